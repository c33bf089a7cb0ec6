//! bf16 in packed registers and in memory.

use crate::ptx::Global;
use crate::ptx::global::{ld_b16, ld_v4, st_b16, st_v4};
use crate::ptx::math::bf16x2;
use crate::ptx::special::opaque;

/// Bytes of one bf16.
pub const BYTES: u64 = 2;
/// Values in one 16-byte access.
pub const PER_VECTOR: u32 = 8;

/// A bf16 as f32: exact.
#[inline(always)]
pub fn to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The nearest bf16, ties to even.
#[inline(always)]
pub fn from_f32(x: f32) -> u16 {
    bf16x2(x, 0.0) as u16
}

/// The two values of a packed register.
#[inline(always)]
pub fn unpack(pair: u32) -> [f32; 2] {
    [f32::from_bits(pair << 16), f32::from_bits(pair & 0xffff_0000)]
}

/// The eight values of a 16-byte access.
#[inline(always)]
pub fn unpack8(v: [u32; 4]) -> [f32; 8] {
    let [[a, b], [c, d], [e, f], [g, h]] = v.map(unpack);
    [a, b, c, d, e, f, g, h]
}

/// Eight values for a 16-byte access.
#[inline(always)]
pub fn pack8(x: [f32; 8]) -> [u32; 4] {
    [bf16x2(x[0], x[1]), bf16x2(x[2], x[3]), bf16x2(x[4], x[5]), bf16x2(x[6], x[7])]
}

/// Reads element `i` of a bf16 array.
#[inline(always)]
pub unsafe fn load(base: Global, i: u64) -> f32 {
    to_f32(ld_b16(base + i * BYTES))
}

/// Writes element `i` of a bf16 array.
#[inline(always)]
pub unsafe fn store(base: Global, i: u64, x: f32) {
    st_b16(base + i * BYTES, from_f32(x));
}

/// Elements `i..i + 8` of a row of `len`, packed; zeros beyond its end. One access if `aligned`
/// (row start and `len` are multiples of 8), else one per element.
#[inline(always)]
pub unsafe fn load8_or_zero(row: Global, i: u32, len: u32, aligned: bool) -> [u32; 4] {
    if i >= len {
        return [0; 4];
    }
    if aligned {
        return ld_v4(row + u64::from(i) * BYTES);
    }
    gather8(row, i, len)
}

/// [`load8_or_zero`] for rows that are not 16-byte aligned. Rare, so short rather than fast.
#[inline(always)]
pub unsafe fn gather8(row: Global, i: u32, len: u32) -> [u32; 4] {
    let mut vector = 0u128;
    for j in 0..opaque(PER_VECTOR) {
        let element = if i + j < len { ld_b16(row + u64::from(i + j) * BYTES) } else { 0 };
        vector = vector >> 16 | u128::from(element) << 112;
    }
    [vector as u32, (vector >> 32) as u32, (vector >> 64) as u32, (vector >> 96) as u32]
}

/// Writes elements `i..i + 8` of a row of `len`; nothing beyond its end.
#[inline(always)]
pub unsafe fn store8(row: Global, i: u32, len: u32, x: [u32; 4], aligned: bool) {
    if i >= len {
        return;
    }
    if aligned {
        st_v4(row + u64::from(i) * BYTES, x);
        return;
    }
    let [a, b, c, d] = x.map(u128::from);
    let mut vector = a | b << 32 | c << 64 | d << 96;
    for j in i..len.min(i + opaque(PER_VECTOR)) {
        st_b16(row + u64::from(j) * BYTES, vector as u16);
        vector >>= 16;
    }
}
