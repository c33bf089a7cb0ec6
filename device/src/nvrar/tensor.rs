//! This rank's own tensors, unit by unit.

use super::element::{Bf16, Element};
use crate::ptx::Global;
use crate::ptx::global::{ld_v4, st_v4};
use crate::tile::bf16::{gather8, store8};

const HALVES_PER_UNIT: u32 = 8;

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
    /// The tensor.
    pub data: Global,
    /// bf16, or 0.
    pub addend: Global,
    /// Values of 2 bytes.
    pub halves: u32,
}

impl Contribution {
    /// Unit `index`. The addend is bf16, and so is then the tensor.
    #[inline(always)]
    pub unsafe fn unit(&self, index: u32) -> [u32; 4] {
        let own = load(self.data, index, self.halves);
        if self.addend == 0 {
            return own;
        }
        let addend = load(self.addend, index, self.halves);
        Bf16::narrow(Bf16::add(Bf16::widen(own), Bf16::widen(addend)))
    }
}
