//! Shadow state of a region.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::history::History;
use super::shadow::Shadow;

/// By granule.
pub(super) type Histories = HashMap<usize, History, BuildHasherDefault<IndexHasher>>;

/// What is known of the accesses to a region.
#[derive(Debug, Default)]
pub(super) struct Tracking {
    pub(super) shadow: Shadow,
    pub(super) histories: Histories,
}

/// Of small integers: quick, and the same in every run.
#[derive(Debug, Default)]
pub(super) struct IndexHasher(u64);

impl Hasher for IndexHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        let mixed = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 32;
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }
}
