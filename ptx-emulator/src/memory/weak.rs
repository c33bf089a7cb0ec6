//! Chance and time of weak memory: which of the allowed values a load reads, and when a store is seen by all.

use super::space::RegionId;

/// The longest time, in ticks, that a store may stay invisible to others.
const MAX_DELAY_TICKS: usize = 4096;

/// The longest time, in instructions of its warp, that a load is put off.
const MAX_PUT_OFF: u32 = 128;

/// The choices of weak memory.
#[derive(Debug)]
pub(super) struct Weak {
    state: u64,
    now: u64,
    /// Granules with stores that are to be seen by all, by the tick modulo the length.
    due: Vec<Vec<(RegionId, usize)>>,
    pending: usize,
}

impl Weak {
    pub(super) fn new(seed: u64) -> Self {
        Self { state: seed, now: 0, due: vec![Vec::new(); MAX_DELAY_TICKS + 1], pending: 0 }
    }

    /// The usual choice, or every other time one of the others if there are any.
    pub(super) fn choose<T: Copy>(&mut self, usual: T, others: &[T]) -> T {
        if others.is_empty() || self.random() & 1 == 0 {
            return usual;
        }
        others[(self.random() % others.len() as u64) as usize]
    }

    /// When a store to a granule, made now, will be seen by all: short and long delays alike.
    pub(super) fn schedule(&mut self, region: RegionId, granule: usize) -> u64 {
        let longest = (MAX_DELAY_TICKS >> (self.random() % 12)) as u64;
        let at = self.now + 1 + self.random() % longest;
        self.slot(at).push((region, granule));
        self.pending += 1;
        at
    }

    /// For how many instructions of its warp a load is put off: one load in eight, mostly for a few.
    pub(super) fn put_off(&mut self) -> Option<u32> {
        if self.random() & 7 != 0 {
            return None;
        }
        let longest = MAX_PUT_OFF >> (self.random() % 6);
        Some(1 + (self.random() % u64::from(longest)) as u32)
    }

    pub(super) fn tick(&mut self) {
        self.now += 1;
    }

    /// A granule with stores that everybody sees from now on, and the time.
    pub(super) fn next_due(&mut self) -> Option<(RegionId, usize, u64)> {
        let (region, granule) = self.slot(self.now).pop()?;
        self.pending -= 1;
        Some((region, granule, self.now))
    }

    pub(super) fn pending(&self) -> usize {
        self.pending
    }

    fn slot(&mut self, at: u64) -> &mut Vec<(RegionId, usize)> {
        let slots = self.due.len() as u64;
        &mut self.due[(at % slots) as usize]
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
