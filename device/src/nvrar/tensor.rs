//! This rank's own tensors, unit by unit.

use super::element::{Bf16, Element};
use crate::params::UNIT_BYTES;
use crate::ptx::Global;
use crate::ptx::global::{ld_v4, ld_v4_here, st_v4};
use crate::tile::bf16::{gather8, store8};

const HALVES_PER_UNIT: u32 = 8;
/// No unit.
pub const NONE: u32 = u32::MAX;

/// The units that hold `halves` values of 2 bytes.
#[inline(always)]
pub fn units(halves: u32) -> u32 {
    halves.div_ceil(HALVES_PER_UNIT)
}

/// Unit `index` of a tensor of `halves` values of 2 bytes; zeros beyond its end.
#[inline(always)]
pub unsafe fn load(tensor: Global, index: u32, halves: u32) -> [u32; 4] {
    let first = index * HALVES_PER_UNIT;
    if halves - first >= HALVES_PER_UNIT {
        return ld_v4(tensor + u64::from(first) * 2);
    }
    gather8(tensor, first, halves)
}

/// Writes unit `index` of a tensor of `halves` values of 2 bytes; nothing beyond its end.
#[inline(always)]
pub unsafe fn store(tensor: Global, index: u32, halves: u32, unit: [u32; 4]) {
    let first = index * HALVES_PER_UNIT;
    if halves - first >= HALVES_PER_UNIT {
        return st_v4(tensor + u64::from(first) * 2, unit);
    }
    store8(tensor, first, halves, unit, false);
}

/// What a rank brings to a sum: its tensor, and the addend where there is one, rounded.
#[derive(Clone, Copy)]
pub struct Contribution {
    /// The tensor, readable up to the next multiple of 16 bytes.
    pub data: Global,
    /// bf16, or 0.
    pub addend: Global,
    /// Values of 2 bytes.
    pub halves: u32,
    /// A unit that nobody writes: what threads without one of the tensor load.
    pub idle: Global,
}

impl Contribution {
    /// Reads units of the tensor at `indices`, and another one for those that are [`NONE`]. The loads are issued here;
    /// values beyond the tensor's end are whatever lies there, and are stored nowhere.
    #[inline(always)]
    pub unsafe fn load<const K: usize>(&self, first: u32, indices: [u32; K]) -> [[u32; 4]; K] {
        let mut loaded = [[0; 4]; K];
        for k in 0..K {
            let place = self.data + u64::from(first.wrapping_add(indices[k])) * UNIT_BYTES;
            loaded[k] = ld_v4_here(if indices[k] == NONE { self.idle } else { place });
        }
        loaded
    }

    /// Adds the addend's units to those of the tensor. The addend is bf16, and so is then the tensor.
    #[inline(always)]
    pub unsafe fn add<const K: usize>(
        &self,
        first: u32,
        indices: [u32; K],
        loaded: [[u32; 4]; K],
    ) -> [[u32; 4]; K] {
        let mut sums = loaded;
        for k in 0..K {
            if indices[k] != NONE {
                sums[k] = self.with_addend(first + indices[k], loaded[k]);
            }
        }
        sums
    }

    /// Unit `index`, which is there, the addend included.
    #[inline(always)]
    pub unsafe fn unit(&self, index: u32) -> [u32; 4] {
        self.with_addend(index, ld_v4_here(self.data + u64::from(index) * UNIT_BYTES))
    }

    #[inline(always)]
    unsafe fn with_addend(&self, index: u32, unit: [u32; 4]) -> [u32; 4] {
        if self.addend == 0 {
            return unit;
        }
        let addend = load(self.addend, index, self.halves);
        Bf16::narrow(Bf16::add(Bf16::widen(unit), Bf16::widen(addend)))
    }
}
