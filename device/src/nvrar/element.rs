//! Element types: a unit of 16 bytes as fp32 values and back.

use crate::ptx::math::{f16x2, f16x2_to_f32};
use crate::tile::bf16;

/// An element type.
pub trait Element {
    /// The values of a unit.
    type Wide: Copy;
    /// Halves (2 bytes) of an element.
    const HALVES: u32;
    /// What adds nothing: -0, since 0 would make -0 its own.
    const NOTHING: Self::Wide;
    /// Widens, exactly.
    fn widen(unit: [u32; 4]) -> Self::Wide;
    /// Rounds to nearest, ties to even.
    fn narrow(wide: Self::Wide) -> [u32; 4];
    /// Adds in fp32.
    fn add(a: Self::Wide, b: Self::Wide) -> Self::Wide;
}

/// The upper half of a binary32.
pub struct Bf16;
/// IEEE 754 binary16.
pub struct F16;
/// IEEE 754 binary32.
pub struct F32;

impl Element for Bf16 {
    type Wide = [f32; 8];
    const HALVES: u32 = 1;
    const NOTHING: [f32; 8] = [-0.0; 8];

    #[inline(always)]
    fn widen(unit: [u32; 4]) -> [f32; 8] {
        bf16::unpack8(unit)
    }

    #[inline(always)]
    fn narrow(wide: [f32; 8]) -> [u32; 4] {
        bf16::pack8(wide)
    }

    #[inline(always)]
    fn add(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        core::array::from_fn(|i| a[i] + b[i])
    }
}

impl Element for F16 {
    type Wide = [f32; 8];
    const HALVES: u32 = 1;
    const NOTHING: [f32; 8] = [-0.0; 8];

    #[inline(always)]
    fn widen(unit: [u32; 4]) -> [f32; 8] {
        let [[a, b], [c, d], [e, f], [g, h]] = unit.map(f16x2_to_f32);
        [a, b, c, d, e, f, g, h]
    }

    #[inline(always)]
    fn narrow(x: [f32; 8]) -> [u32; 4] {
        [f16x2(x[0], x[1]), f16x2(x[2], x[3]), f16x2(x[4], x[5]), f16x2(x[6], x[7])]
    }

    #[inline(always)]
    fn add(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        core::array::from_fn(|i| a[i] + b[i])
    }
}

impl Element for F32 {
    type Wide = [f32; 4];
    const HALVES: u32 = 2;
    const NOTHING: [f32; 4] = [-0.0; 4];

    #[inline(always)]
    fn widen(unit: [u32; 4]) -> [f32; 4] {
        unit.map(f32::from_bits)
    }

    #[inline(always)]
    fn narrow(wide: [f32; 4]) -> [u32; 4] {
        wide.map(f32::to_bits)
    }

    #[inline(always)]
    fn add(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        core::array::from_fn(|i| a[i] + b[i])
    }
}
