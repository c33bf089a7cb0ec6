//! Chance and time of weak memory: which of the allowed values a load reads, and when a store is seen by all.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::space::RegionId;

/// The longest time, in ticks, that a store may stay invisible to others.
const MAX_DELAY_TICKS: u64 = 4096;

/// The choices of weak memory.
#[derive(Debug)]
pub(super) struct Weak {
    state: u64,
    now: u64,
    /// When a store to a granule is to be seen by all.
    due: BinaryHeap<Reverse<(u64, RegionId, usize)>>,
}

impl Weak {
    pub(super) fn new(seed: u64) -> Self {
        Self { state: seed, now: 0, due: BinaryHeap::new() }
    }

    /// One of several: the last every other time.
    pub(super) fn choose<T: Copy>(&mut self, choices: &[T], last: T) -> T {
        match choices.len() {
            0 | 1 => last,
            _ if self.random() & 1 == 0 => last,
            n => choices[(self.random() % (n as u64 - 1)) as usize],
        }
    }

    /// When a store to a granule, made now, will be seen by all: short and long delays alike.
    pub(super) fn schedule(&mut self, region: RegionId, granule: usize) -> u64 {
        let longest = MAX_DELAY_TICKS >> (self.random() % 12);
        let at = self.now + 1 + self.random() % longest;
        self.due.push(Reverse((at, region, granule)));
        at
    }

    pub(super) fn tick(&mut self) {
        self.now += 1;
    }

    /// The next granule with stores that everybody sees by now, and the time.
    pub(super) fn next_due(&mut self) -> Option<(RegionId, usize, u64)> {
        let &Reverse((at, region, granule)) = self.due.peek()?;
        (at <= self.now).then(|| self.due.pop())?;
        Some((region, granule, self.now))
    }

    pub(super) fn pending(&self) -> usize {
        self.due.len()
    }

    /// SplitMix64.
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}
