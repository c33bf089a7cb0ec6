//! How many accesses of single threads the memory serves per second, in each of its modes:
//! `cargo run --release -p ptx-emulator --example memory_speed`.

use std::time::Instant;

use ptx_emulator::memory::{
    BlockSpec, Clock, DeviceId, Memory, MemoryOptions, Order, Owner, Result, Row, Scope, Site, Thread,
    WarpAccess, Width,
};

const THREADS: u32 = 256;
const WORDS: u64 = 1 << 16;

fn main() -> Result<()> {
    let plain = MemoryOptions { check_initialised: false, ..MemoryOptions::default() };
    let checked = MemoryOptions::default();
    let race = MemoryOptions { race: true, ..checked };
    let weak = MemoryOptions { weak: Some(1), ..checked };
    println!("{:<28} {:>8} {:>8} {:>8}   million accesses/s", "", "row", "strided", "barriers");
    for (name, options, passes) in [
        ("bounds and alignment", plain, 200),
        ("+ initialised bytes", checked, 200),
        ("+ races", race, 4),
        ("+ weak memory", weak, 4),
        ("+ races + weak memory", MemoryOptions { race: true, ..weak }, 4),
    ] {
        let row = measure(options, passes, 1, u32::MAX)?;
        let strided = measure(options, passes, 3, u32::MAX)?;
        let barriers = measure(options, passes, 1, 4)?;
        println!("{name:<28} {row:>8.1} {strided:>8.1} {barriers:>8.1}");
    }
    Ok(())
}

/// Every thread of a block loads and stores words of its own, `stride` apart, with a barrier after every
/// `barrier_every` warp-wide steps. In million accesses per second.
fn measure(options: MemoryOptions, passes: u32, stride: u64, barrier_every: u32) -> Result<f64> {
    let mut memory = Memory::new(options);
    let at = memory.allocate(Owner::Device(DeviceId(0)), 4 * stride * WORDS, "words")?;
    memory.fill(Thread::HOST, at, 4 * stride * WORDS, &[0])?;
    let mut start = Clock::default();
    memory.release(Thread::HOST, &mut start);
    let grid = memory.begin_grid(DeviceId(0), &start);
    let block = memory.begin_block(&BlockSpec { grid, index: 0, n_threads: THREADS, shared_bytes: 0 });
    let (mut accesses, mut steps, begin) = (0u64, 0, Instant::now());
    let mut values: Row = [0; 32];
    for _ in 0..passes {
        for first in (0..WORDS).step_by(32) {
            let thread = Thread::new(block, (first % u64::from(THREADS)) as u32);
            let access = WarpAccess {
                first: thread,
                mask: u32::MAX,
                site: Site(1),
                order: Order::Weak,
                scope: Scope::Cta,
            };
            let addresses = std::array::from_fn(|lane| at + (first + lane as u64) * 4 * stride);
            memory.load_lanes(&access, &addresses, Width::B4, &mut values)?;
            values.iter_mut().for_each(|value| *value += 1);
            memory.store_lanes(&WarpAccess { site: Site(2), ..access }, &addresses, Width::B4, &values)?;
            memory.tick();
            accesses += 64;
            steps += 1;
            if steps % barrier_every == 0 {
                memory.barrier(block, 0..THREADS);
            }
        }
    }
    assert_eq!(values[0], u64::from(passes));
    Ok(accesses as f64 / begin.elapsed().as_secs_f64() / 1e6)
}
