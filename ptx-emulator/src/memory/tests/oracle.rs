//! The race detector against full vector clocks and a list of all accesses.

use proptest::prelude::*;

use super::machine::Dice;
use crate::memory::{
    Access, BlockSpec, Clock, DeviceId, Fault, Memory, MemoryOptions, Owner, Site, Thread, Width,
};

const BLOCKS: usize = 2;
const THREADS: usize = 4;
const N: usize = BLOCKS * THREADS;

type Full = [u32; N];

fn join(a: &mut Full, b: &Full) {
    a.iter_mut().zip(b).for_each(|(a, b)| *a = (*a).max(*b));
}

/// Who knows of what, without any compression.
struct Oracle {
    clocks: [Full; N],
    /// Thread, its clock, bytes, whether it writes.
    accesses: Vec<(usize, u32, std::ops::Range<usize>, bool)>,
}

impl Oracle {
    /// Whether the access races with an earlier one.
    fn access(&mut self, thread: usize, bytes: std::ops::Range<usize>, writes: bool) -> bool {
        let races = self.accesses.iter().any(|(who, at, theirs, wrote)| {
            let overlap = theirs.start < bytes.end && bytes.start < theirs.end;
            overlap && (*wrote || writes) && self.clocks[thread][*who] < *at
        });
        self.accesses.push((thread, self.clocks[thread][thread], bytes, writes));
        races
    }

    fn advance(&mut self, thread: usize) {
        self.clocks[thread][thread] += 1;
    }
}

/// One random program; returns how many steps went by before the race, if one came.
fn compare(seed: u64) -> Option<usize> {
    let mut memory = Memory::new(MemoryOptions { race: true, ..MemoryOptions::default() });
    let at = memory.allocate(Owner::Device(DeviceId(0)), 32, "x").unwrap();
    memory.fill(Thread::HOST, at, 32, &[0]).unwrap();
    let mut start = Clock::default();
    memory.release(Thread::HOST, &mut start);
    let grid = memory.begin_grid(DeviceId(0), &start);
    let threads: Vec<Thread> = (0..BLOCKS)
        .flat_map(|index| {
            let spec = BlockSpec { grid, index: index as u64, n_threads: THREADS as u32, shared_bytes: 0 };
            let block = memory.begin_block(&spec);
            (0..THREADS).map(move |index| Thread::new(block, index as u32))
        })
        .collect();
    let mut oracle = Oracle { clocks: [[0; N]; N], accesses: Vec::new() };
    (0..N).for_each(|it| oracle.advance(it));
    let mut clocks = [(); 2].map(|()| (Clock::default(), [0; N]));
    let mut dice = Dice(seed);
    for step in 0..300 {
        let thread = dice.below(N);
        match dice.below(10) {
            0 | 1 => {
                let (clock, full) = &mut clocks[dice.below(2)];
                memory.release(threads[thread], clock);
                join(full, &oracle.clocks[thread]);
                oracle.advance(thread);
            }
            2..4 => {
                let (clock, full) = &clocks[dice.below(2)];
                memory.acquire(threads[thread], clock);
                join(&mut oracle.clocks[thread], full);
            }
            4 => clocks[dice.below(2)] = (Clock::default(), [0; N]),
            5 | 6 => {
                let block = thread / THREADS;
                let members = if dice.below(2) == 0 { (1 << THREADS) - 1 } else { dice.below(1 << THREADS) };
                let members = (0..THREADS).filter(move |it| members >> it & 1 != 0);
                memory.barrier(threads[thread].block, members.clone().map(|it| it as u32));
                let mut all = [0; N];
                members.clone().for_each(|it| join(&mut all, &oracle.clocks[block * THREADS + it]));
                for it in members.map(|it| block * THREADS + it) {
                    oracle.clocks[it] = all;
                    oracle.advance(it);
                }
            }
            _ => {
                let width = [Width::B1, Width::B2, Width::B4, Width::B8][dice.below(4)];
                let bytes = width.bytes() as usize;
                let offset = dice.below(32 / bytes) * bytes;
                let writes = dice.below(4) == 0;
                let (access, address) = (Access::weak(threads[thread], Site(step)), at + offset as u64);
                let result = if writes {
                    memory.store(&access, address, width, 1)
                } else {
                    memory.load(&access, address, width).map(drop)
                };
                let races = oracle.access(thread, offset..offset + bytes, writes);
                match result {
                    Ok(()) => assert!(!races, "a race was missed in step {step}"),
                    Err(fault) => {
                        assert!(matches!(*fault, Fault::Race { .. }), "{fault}");
                        assert!(races, "a race was invented in step {step}: {fault}");
                        return Some(step as usize);
                    }
                }
            }
        }
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn finds_exactly_the_races(seed: u64) {
        compare(seed);
    }
}

#[test]
fn the_programs_go_deep() {
    let depths: Vec<_> = (0..500).filter_map(compare).collect();
    assert!(depths.iter().filter(|&&depth| depth > 20).count() > 50, "{depths:?}");
}
