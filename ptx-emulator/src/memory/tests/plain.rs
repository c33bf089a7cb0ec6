//! Addresses, initialised bytes, and plain behaviour.

use proptest::prelude::*;

use super::machine::Dice;
use crate::memory::{
    Access, BlockSpec, Clock, DeviceId, Fault, LOCAL_WINDOW, Memory, MemoryOptions, Owner, SHARED_WINDOW,
    Site, Thread, WarpAccess, Width,
};

const DEVICE: Owner = Owner::Device(DeviceId(0));

/// A memory with one block of 32 threads on `device`.
fn memory(options: MemoryOptions, device: u32) -> (Memory, Thread) {
    let mut memory = Memory::new(options);
    let grid = memory.begin_grid(DeviceId(device), &Clock::default());
    let block = memory.begin_block(&BlockSpec { grid, index: 0, n_threads: 32, shared_bytes: 1024 });
    (memory, Thread::new(block, 0))
}

fn load(memory: &mut Memory, thread: Thread, address: u64, width: Width) -> Result<u64, Box<Fault>> {
    memory.load(&Access::weak(thread, Site(3)), address, width)
}

#[test]
fn an_access_off_by_one_is_out_of_bounds() {
    let (mut memory, thread) = memory(MemoryOptions::default(), 0);
    let at = memory.allocate(DEVICE, 100, "x").unwrap();
    memory.fill(Thread::HOST, at, 100, &[1]).unwrap();
    assert_eq!(load(&mut memory, thread, at + 96, Width::B4).unwrap(), 0x0101_0101);
    for (address, offset) in [(at + 100, 100), (at - 4, -4), (at + 4096, 4096)] {
        let fault = load(&mut memory, thread, address, Width::B4).unwrap_err();
        assert!(matches!(&*fault, Fault::OutOfBounds { offset: it, .. } if *it == offset), "{fault}");
    }
    let fault = load(&mut memory, thread, at + 96, Width::B8).unwrap_err();
    assert!(fault.to_string().contains("load of 8 bytes"), "{fault}");
    assert!(fault.to_string().contains("\"x\" (100 bytes on device 0)"), "{fault}");
    let fault = load(&mut memory, thread, SHARED_WINDOW + 1024, Width::B4).unwrap_err();
    assert!(matches!(*fault, Fault::OutOfBounds { offset: 1024, .. }), "{fault}");
    for address in [0, 8, LOCAL_WINDOW, 1 << 60, u64::MAX - 7] {
        let fault = load(&mut memory, thread, address, Width::B8).unwrap_err();
        assert!(matches!(*fault, Fault::Unmapped { .. }), "{fault}");
    }
}

#[test]
fn addresses_are_aligned_to_the_access() {
    let (mut memory, thread) = memory(MemoryOptions::default(), 0);
    let at = memory.allocate(DEVICE, 64, "x").unwrap();
    memory.fill(Thread::HOST, at, 64, &[1]).unwrap();
    for base in [at, SHARED_WINDOW] {
        let fault = load(&mut memory, thread, base + 4, Width::B8).unwrap_err();
        assert!(matches!(*fault, Fault::Misaligned { alignment_bytes: 8, offset: 4, .. }), "{fault}");
    }
}

#[test]
fn unwritten_bytes_are_not_read() {
    let (mut memory, thread) = memory(MemoryOptions::default(), 0);
    let at = memory.allocate(DEVICE, 64, "x").unwrap();
    memory.write(Thread::HOST, at, &[1; 6]).unwrap();
    let fault = load(&mut memory, thread, at, Width::B8).unwrap_err();
    assert!(matches!(*fault, Fault::Uninitialised { offset: 6, .. }), "{fault}");
    memory.store(&Access::weak(thread, Site(0)), SHARED_WINDOW, Width::B2, 5).unwrap();
    assert_eq!(load(&mut memory, thread, SHARED_WINDOW, Width::B2).unwrap(), 5);
    let fault = load(&mut memory, thread, SHARED_WINDOW, Width::B4).unwrap_err();
    assert!(matches!(*fault, Fault::Uninitialised { offset: 2, .. }), "{fault}");
}

#[test]
fn freed_memory_is_not_touched() {
    let (mut memory, thread) = memory(MemoryOptions::default(), 0);
    let at = memory.allocate(DEVICE, 64, "x").unwrap();
    memory.fill(Thread::HOST, at, 64, &[1]).unwrap();
    assert!(memory.free(at + 8).is_err());
    memory.free(at).unwrap();
    let fault = load(&mut memory, thread, at + 8, Width::B8).unwrap_err();
    assert!(matches!(*fault, Fault::UseAfterFree { offset: 8, .. }), "{fault}");
    assert!(memory.free(at).is_err());
    assert_ne!(memory.allocate(DEVICE, 64, "y").unwrap(), at);
    assert!(memory.allocate(DEVICE, u64::MAX, "too much").is_err());
}

#[test]
fn peers_need_leave() {
    let (mut memory, thread) = memory(MemoryOptions::default(), 1);
    let pinned = memory.allocate(Owner::Host, 8, "pinned").unwrap();
    let mine = memory.allocate(Owner::Device(DeviceId(1)), 8, "mine").unwrap();
    let theirs = memory.allocate(DEVICE, 8, "theirs").unwrap();
    for at in [pinned, mine, theirs] {
        memory.fill(Thread::HOST, at, 8, &[1]).unwrap();
    }
    load(&mut memory, thread, pinned, Width::B8).unwrap();
    load(&mut memory, thread, mine, Width::B8).unwrap();
    let fault = load(&mut memory, thread, theirs, Width::B8).unwrap_err();
    assert!(matches!(*fault, Fault::NoPeerAccess { device: DeviceId(1), .. }), "{fault}");
    memory.enable_peer(DeviceId(1), DeviceId(0));
    load(&mut memory, thread, theirs, Width::B8).unwrap();
    let later = memory.allocate(DEVICE, 8, "later").unwrap();
    memory.store(&Access::weak(thread, Site(0)), later, Width::B8, 1).unwrap();
}

#[test]
fn memory_may_move_between_threads() {
    fn send<T: Send>() {}
    send::<Memory>();
    send::<Clock>();
}

const WIDTHS: [Width; 4] = [Width::B1, Width::B2, Width::B4, Width::B8];

/// Random accesses by one thread, against an array.
fn against_an_array(options: MemoryOptions, seed: u64) {
    let (mut memory, thread) = memory(options, 0);
    let at = memory.allocate(DEVICE, 48, "x").unwrap();
    memory.fill(thread, at, 48, &[0]).unwrap();
    let (mut dice, mut array) = (Dice(seed), [0u8; 48]);
    for _ in 0..200 {
        let width = WIDTHS[dice.below(4)];
        let bytes = width.bytes() as usize;
        let offset = dice.below(48 / bytes) * bytes;
        let mut old = [0; 8];
        old[..bytes].copy_from_slice(&array[offset..offset + bytes]);
        let (old, address, access) =
            (u64::from_le_bytes(old), at + offset as u64, Access::weak(thread, Site(0)));
        let value = (dice.below(1 << 30) as u64) << 20 | dice.below(1 << 20) as u64;
        let mut new = Some(value);
        match dice.below(4) {
            0 => {
                assert_eq!(memory.load(&access, address, width).unwrap(), old);
                new = None;
            }
            1 => memory.store(&access, address, width, value).unwrap(),
            2 => assert_eq!(memory.rmw(&access, address, width, |_| Some(value)).unwrap(), old),
            _ => memory.write(thread, address, &value.to_le_bytes()[..bytes]).unwrap(),
        }
        if let Some(new) = new {
            array[offset..offset + bytes].copy_from_slice(&new.to_le_bytes()[..bytes]);
        }
        memory.tick();
    }
    let mut bytes = [0; 48];
    memory.read(thread, at, &mut bytes).unwrap();
    assert_eq!(bytes, array);
}

proptest! {
    #[test]
    fn one_thread_sees_plain_memory(seed: u64, race: bool, weak: Option<u64>) {
        against_an_array(MemoryOptions { check_initialised: true, race, weak }, seed);
    }

    /// Warps see what their lanes would, one after the other, in every mode.
    #[test]
    fn lanes_are_single_accesses(seed: u64, mask: u32, race: bool, weak: Option<u64>, run: bool) {
        let (mut together, thread) = memory(MemoryOptions { race, weak, ..MemoryOptions::default() }, 0);
        let (mut apart, _) = memory(MemoryOptions::default(), 0);
        let at = together.allocate(DEVICE, 512, "x").unwrap();
        prop_assert_eq!(apart.allocate(DEVICE, 512, "x").unwrap(), at);
        let mut dice = Dice(seed);
        let width = WIDTHS[dice.below(4)];
        let bytes = width.bytes();
        let mask = if run { u32::MAX } else { mask };
        // Distinct addresses, since two lanes that store to one race; some out of bounds.
        let start = dice.below(8) as u64 * bytes;
        let stride = if run { 1 } else { 1 + dice.below(3) as u64 };
        let addresses = std::array::from_fn(|lane| at + start + lane as u64 * stride * bytes);
        let values = std::array::from_fn(|_| dice.below(1 << 30) as u64);
        let access = |first| WarpAccess { first, mask, site: Site(1), order: crate::memory::Order::Weak, scope: crate::memory::Scope::Cta };
        let stored = together.store_lanes(&access(thread), &addresses, width, &values).map_err(|it| it.to_string());
        let lanes: Vec<usize> = (0..32).filter(|lane| mask >> lane & 1 != 0).collect();
        let lane = |at: usize| Access::weak(Thread::new(thread.block, at as u32), Site(1));
        let expected = lanes.iter().try_for_each(|&it| apart.store(&lane(it), addresses[it], width, values[it]));
        prop_assert_eq!(&stored, &expected.map_err(|it| it.to_string()));
        if stored.is_ok() {
            let mut out = [9; 32];
            together.load_lanes(&access(thread), &addresses, width, &mut out).unwrap();
            for it in 0..32 {
                let value = if mask >> it & 1 != 0 { apart.load(&lane(it), addresses[it], width).unwrap() } else { 9 };
                prop_assert_eq!(out[it], value);
            }
        }
    }
}
