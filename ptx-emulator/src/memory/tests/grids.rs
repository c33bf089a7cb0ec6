//! Races between grids, copies, the host, and lanes of a warp.

use Order::Relaxed;
use Scope::{Cta, Gpu, Sys};

use crate::memory::{
    Access, BlockSpec, Clock, DeviceId, Fault, GridId, Memory, MemoryOptions, Order, Owner, SHARED_WINDOW,
    Scope, Site, Thread, Width,
};

/// Races looked for, on two devices.
fn memory() -> (Memory, u64) {
    let mut memory = Memory::new(MemoryOptions { race: true, ..MemoryOptions::default() });
    let at = memory.allocate(Owner::Device(DeviceId(0)), 1 << 14, "x").unwrap();
    memory.fill(Thread::HOST, at, 1 << 14, &[0]).unwrap();
    (memory, at)
}

fn block(memory: &mut Memory, after: &Clock, n_threads: u32) -> (GridId, Thread) {
    let grid = memory.begin_grid(DeviceId(0), after);
    let block = memory.begin_block(&BlockSpec { grid, index: 0, n_threads, shared_bytes: 256 });
    (grid, Thread::new(block, 0))
}

fn end(memory: &mut Memory, (grid, thread): (GridId, Thread)) -> Clock {
    memory.end_block(thread.block);
    memory.end_grid(grid)
}

fn store(memory: &mut Memory, thread: Thread, address: u64) -> bool {
    memory.store(&Access::weak(thread, Site(0)), address, Width::B4, 1).is_ok()
}

fn load(memory: &mut Memory, thread: Thread, address: u64) -> bool {
    memory.load(&Access::weak(thread, Site(0)), address, Width::B4).is_ok()
}

/// The end of what the host did so far.
fn host(memory: &mut Memory) -> Clock {
    let mut clock = Clock::default();
    memory.release(Thread::HOST, &mut clock);
    clock
}

#[test]
fn grids_of_one_stream_follow_each_other() {
    let (mut memory, at) = memory();
    let mut stream = host(&mut memory);
    let mut other = None;
    for _ in 0..5 {
        let grid = block(&mut memory, &stream, 32);
        assert!(store(&mut memory, grid.1, at));
        other.get_or_insert_with(|| stream.clone());
        stream = end(&mut memory, grid);
    }
    let apart = block(&mut memory, &other.unwrap(), 32);
    assert!(!store(&mut memory, apart.1, at), "another stream did not wait");
    let mut four = [0; 4];
    assert!(memory.read(Thread::HOST, at, &mut four).is_err(), "the host did not wait");
    memory.acquire(Thread::HOST, &stream);
    memory.read(Thread::HOST, at, &mut four).unwrap();
}

#[test]
fn a_copy_races_with_a_kernel_as_a_whole() {
    let (mut memory, at) = memory();
    let stream = host(&mut memory);
    let kernel = block(&mut memory, &stream, 1);
    assert!(load(&mut memory, kernel.1, at + 4096 + 40));
    let fault = memory.write(Thread::HOST, at, &[1; 1 << 14]).unwrap_err();
    assert!(matches!(*fault, Fault::Race { offset: 4136, .. }), "{fault}");
    let (mut memory, at) = self::memory();
    let kernel = block(&mut memory, &Clock::default(), 1);
    assert!(!load(&mut memory, kernel.1, at + 8192), "the fill is not known to the kernel");
}

#[test]
fn an_early_grid_waits_for_its_predecessor() {
    let (mut memory, at) = memory();
    let start = host(&mut memory);
    let first = block(&mut memory, &start, 1);
    // Launched with programmatic dependence: they begin where the first began.
    let (second, third) = (block(&mut memory, &start, 1), block(&mut memory, &start, 1));
    assert!(store(&mut memory, first.1, at) && store(&mut memory, second.1, at + 8));
    let first_end = end(&mut memory, first);
    memory.acquire(second.1, &first_end);
    assert!(load(&mut memory, second.1, at));
    let second_end = end(&mut memory, second);
    memory.acquire(third.1, &second_end);
    assert!(load(&mut memory, third.1, at) && load(&mut memory, third.1, at + 8));
    // Had the second not waited, its end would say nothing about the first.
    let (first, second, third) = (
        block(&mut memory, &second_end, 1),
        block(&mut memory, &second_end, 1),
        block(&mut memory, &second_end, 1),
    );
    assert!(store(&mut memory, first.1, at + 16));
    let second_end = end(&mut memory, second);
    end(&mut memory, first);
    memory.acquire(third.1, &second_end);
    assert!(!load(&mut memory, third.1, at + 16));
}

#[test]
fn asynchronous_copies_are_waited_for() {
    let (mut memory, at) = memory();
    let stream = host(&mut memory);
    let (_, thread) = block(&mut memory, &stream, 64);
    let neighbour = Thread { index: 33, ..thread };
    let (early, late) = (memory.begin_async(thread), memory.begin_async(thread));
    for (copy, slot) in [(early, 0), (late, 128)] {
        let mut bytes = [0; 16];
        memory.read(copy, at, &mut bytes).unwrap();
        memory.write(copy, SHARED_WINDOW + slot, &bytes).unwrap();
    }
    assert!(!load(&mut memory, thread, SHARED_WINDOW), "before the wait");
    let mut group = Clock::default();
    memory.end_async(early, &mut group);
    memory.acquire(thread, &group);
    assert!(load(&mut memory, thread, SHARED_WINDOW));
    assert!(!load(&mut memory, thread, SHARED_WINDOW + 128), "the later group is still under way");
    assert!(!load(&mut memory, neighbour, SHARED_WINDOW), "the neighbour did not wait");
    memory.barrier(thread.block, 0..64);
    assert!(load(&mut memory, neighbour, SHARED_WINDOW));
    assert!(!load(&mut memory, neighbour, SHARED_WINDOW + 128), "no barrier replaces the wait");
}

#[test]
fn lanes_of_a_warp_may_store_the_same_value_at_once() {
    let lanes = |second: Thread, value, site| {
        let (mut memory, at) = memory();
        let stream = host(&mut memory);
        let (_, first) = block(&mut memory, &stream, 64);
        let second = Thread { block: first.block, ..second };
        memory.store(&Access::weak(first, Site(1)), at, Width::B4, 7).unwrap();
        let stored = memory.store(&Access::weak(second, Site(site)), at, Width::B4, value).is_ok();
        // The value is still for nobody else to read.
        assert!(!load(&mut memory, Thread { index: 5, ..first }, at));
        stored
    };
    let (lane, other_warp) = (Thread { index: 1, ..Thread::HOST }, Thread { index: 33, ..Thread::HOST });
    assert!(lanes(lane, 7, 1));
    assert!(!lanes(lane, 8, 1));
    assert!(!lanes(lane, 7, 2));
    assert!(!lanes(other_warp, 7, 1));
}

#[test]
fn many_readers_of_a_word_are_no_race() {
    let (mut memory, at) = memory();
    let mut stream = host(&mut memory);
    for _ in 0..2 {
        let grid = memory.begin_grid(DeviceId(0), &stream);
        for index in 0..100 {
            let block = memory.begin_block(&BlockSpec { grid, index, n_threads: 256, shared_bytes: 0 });
            assert!((0..256).all(|index| load(&mut memory, Thread::new(block, index), at)));
            memory.end_block(block);
        }
        stream = memory.end_grid(grid);
        let writer = block(&mut memory, &stream, 1);
        assert!(store(&mut memory, writer.1, at));
        stream = end(&mut memory, writer);
    }
}

#[test]
fn lanes_that_stored_the_same_value_once_may_not_differ_later() {
    let (mut memory, at) = memory();
    let stream = host(&mut memory);
    let (_, first) = block(&mut memory, &stream, 32);
    let mut store = |lane, value| {
        let thread = Thread { index: lane, ..first };
        memory.store(&Access::weak(thread, Site(1)), at, Width::B8, value).is_ok()
    };
    assert!((0..32).all(|lane| store(lane, 0)));
    assert!((0..32).any(|lane| !store(lane, u64::from(lane))), "nothing is between the two rounds");
}

#[test]
fn a_flag_stored_again_races_with_its_plain_reader() {
    let (mut memory, _) = memory();
    let at = memory.allocate(Owner::Device(DeviceId(0)), 8, "flag").unwrap();
    let stream = host(&mut memory);
    let (_, writer) = block(&mut memory, &stream, 1);
    let (_, reader) = block(&mut memory, &stream, 1);
    let strong = |thread| Access { order: Relaxed, scope: Gpu, ..Access::weak(thread, Site(1)) };
    memory.store(&strong(writer), at, Width::B8, 1).unwrap();
    memory.load(&strong(reader), at, Width::B8).unwrap();
    assert!(memory.load(&Access::weak(reader, Site(2)), at, Width::B8).is_ok(), "the store was observed");
    assert!(memory.store(&strong(writer), at, Width::B8, 2).is_err(), "against the plain load");
}

#[test]
fn time_is_no_observer() {
    for weak in [None, Some(1)] {
        let mut memory = Memory::new(MemoryOptions { race: true, weak, ..MemoryOptions::default() });
        let at = memory.allocate(Owner::Device(DeviceId(0)), 64, "x").unwrap();
        memory.fill(Thread::HOST, at, 64, &[0]).unwrap();
        let stream = host(&mut memory);
        let (_, writer) = block(&mut memory, &stream, 1);
        let (_, stranger) = block(&mut memory, &stream, 1);
        let strong = Access { order: Relaxed, scope: Gpu, ..Access::weak(writer, Site(1)) };
        memory.store(&strong, at, Width::B4, 1).unwrap();
        (0..5000).for_each(|_| memory.tick());
        // Neighbouring bytes, which nobody else touches.
        memory.write(Thread::HOST, at + 4, &[1]).unwrap();
        assert!(!load(&mut memory, stranger, at), "nothing orders the two, weak: {weak:?}");
    }
}

#[test]
fn a_strong_store_does_not_excuse_a_plain_one_before_it() {
    let strong = |scope| Access { order: Relaxed, scope, ..Access::weak(Thread::HOST, Site(0)) };
    let store = |memory: &mut Memory, at, first: Access, second: Access| {
        let stream = host(memory);
        let (one, other) = (block(memory, &stream, 1).1, block(memory, &stream, 1).1);
        memory.store(&Access { thread: one, ..first }, at, Width::B4, 1).unwrap();
        memory.store(&Access { thread: one, ..second }, at, Width::B4, 2).unwrap();
        memory.load(&Access { thread: other, ..strong(Gpu) }, at, Width::B4).is_ok()
    };
    let (mut memory, at) = memory();
    assert!(store(&mut memory, at, strong(Gpu), strong(Gpu)));
    assert!(!store(&mut memory, at + 8, Access::weak(Thread::HOST, Site(0)), strong(Gpu)));
    assert!(!store(&mut memory, at + 16, strong(Cta), strong(Gpu)));
    assert!(store(&mut memory, at + 24, strong(Sys), strong(Gpu)));
}

#[test]
fn streams_do_not_wait_for_each_other() {
    let (mut memory, at) = memory();
    let start = host(&mut memory);
    let (first, second) = (block(&mut memory, &start, 1), block(&mut memory, &start, 1));
    assert!(store(&mut memory, first.1, at) && store(&mut memory, second.1, at + 8));
    let ends = [end(&mut memory, first), end(&mut memory, second)];
    let reader = block(&mut memory, &ends[1], 1);
    assert!(load(&mut memory, reader.1, at + 8));
    assert!(!load(&mut memory, reader.1, at));
    memory.acquire(reader.1, &ends[0]);
    assert!(load(&mut memory, reader.1, at));
}

#[test]
fn only_the_last_strong_store_is_kept() {
    let (mut memory, at) = memory();
    let stream = host(&mut memory);
    let (_, thread) = block(&mut memory, &stream, 1);
    let access = Access { thread, site: Site(0), order: Relaxed, scope: Sys };
    for value in 0..100 {
        memory.store(&access, at, Width::B8, value).unwrap();
    }
    assert_eq!(memory.space.region(0).tracking().unwrap().histories[&0].len(), 1);
}
