//! Reductions over a warp and over a block.

use crate::ptx::barrier::sync_block;
use crate::ptx::shared::{ld_b32, st_b32};
use crate::ptx::shuffle::{xor_f32, xor_u64};
use crate::ptx::special::{lane, ntid_x, warp};
use crate::ptx::{math, shuffle};

shared_array! {
    /// One word per warp.
    warp_words: 128 bytes, align 16
}

/// Sum over the warp, in every lane.
#[inline(always)]
pub fn warp_sum(x: f32) -> f32 {
    let x = x + xor_f32::<16>(x);
    let x = x + xor_f32::<8>(x);
    let x = x + xor_f32::<4>(x);
    let x = x + xor_f32::<2>(x);
    x + xor_f32::<1>(x)
}

/// Maximum over the warp, in every lane.
#[inline(always)]
pub fn warp_max(x: f32) -> f32 {
    let x = math::max(x, xor_f32::<16>(x));
    let x = math::max(x, xor_f32::<8>(x));
    let x = math::max(x, xor_f32::<4>(x));
    let x = math::max(x, xor_f32::<2>(x));
    math::max(x, xor_f32::<1>(x))
}

/// Maximum over the warp, in every lane.
#[inline(always)]
pub fn warp_max_u64(x: u64) -> u64 {
    let x = x.max(xor_u64::<16>(x));
    let x = x.max(xor_u64::<8>(x));
    let x = x.max(xor_u64::<4>(x));
    let x = x.max(xor_u64::<2>(x));
    x.max(xor_u64::<1>(x))
}

/// Sum over the warp, in every lane.
#[inline(always)]
pub fn warp_sum_u64(x: u64) -> u64 {
    let x = x + xor_u64::<16>(x);
    let x = x + xor_u64::<8>(x);
    let x = x + xor_u64::<4>(x);
    let x = x + xor_u64::<2>(x);
    x + xor_u64::<1>(x)
}

/// Maximum over the four lanes of a quad.
#[inline(always)]
pub fn quad_max(x: f32) -> f32 {
    let x = math::max(x, xor_f32::<1>(x));
    math::max(x, xor_f32::<2>(x))
}

/// Sum over the four lanes of a quad.
#[inline(always)]
pub fn quad_sum(x: f32) -> f32 {
    let x = x + xor_f32::<1>(x);
    x + xor_f32::<2>(x)
}

/// Sum over a block of whole warps, in every thread and in an order that depends on the block's size
/// alone.
#[inline(always)]
pub unsafe fn block_sum(x: f32) -> f32 {
    let total = warp_sum(x);
    f32::from_bits(combine(total.to_bits(), |word| warp_sum(f32::from_bits(word)).to_bits()))
}

/// Maximum over a block of whole warps, in every thread. Values are non-negative integers.
#[inline(always)]
pub unsafe fn block_max_u32(x: u32) -> u32 {
    combine(warp_max_u32(x), warp_max_u32)
}

#[inline(always)]
fn warp_max_u32(x: u32) -> u32 {
    let x = x.max(shuffle::xor::<16>(x));
    let x = x.max(shuffle::xor::<8>(x));
    let x = x.max(shuffle::xor::<4>(x));
    let x = x.max(shuffle::xor::<2>(x));
    x.max(shuffle::xor::<1>(x))
}

/// Combines one word per warp (missing warps count as 0) in every warp alike.
#[inline(always)]
unsafe fn combine(word: u32, across_lanes: impl Fn(u32) -> u32) -> u32 {
    let words = warp_words();
    // The array may still be read by an earlier reduction.
    sync_block();
    if lane() == 0 {
        st_b32(words + warp() * 4, word);
    }
    sync_block();
    let n_warps = ntid_x() / 32;
    across_lanes(if lane() < n_warps { ld_b32(words + lane() * 4) } else { 0 })
}
