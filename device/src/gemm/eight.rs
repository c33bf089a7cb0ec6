//! Epilogues of kernels whose threads have eight neighbouring results of a row at hand.
//!
//! What is added to is fetched apart from the writing, without a branch, so that a kernel can have several fetches in
//! flight.

use crate::gemm::epilogue::{Add, Epilogue, Store, StoreF32, SwiGlu, index, silu};
use crate::params::Gemm;
use crate::ptx::global::{ld_v4_if, st_b64, st_v4};
use crate::ptx::math::bf16x2;
use crate::tile::bf16::{BYTES, pack8, unpack8};

/// Consumes `y[row][col..col + 8]`; `col` is a multiple of 8, the first of them is in range.
pub trait Eight: Epilogue {
    /// What the results are added to, where [`is_eights`]; nothing is read unless it is `wanted`.
    ///
    /// # Safety
    /// As of [`Epilogue::apply`], if it is wanted.
    #[inline(always)]
    unsafe fn fetch(_p: &Gemm, _row: u32, _col: u32, _wanted: bool) -> [u32; 4] {
        [0; 4]
    }

    /// Writes all eight, where [`is_eights`].
    ///
    /// # Safety
    /// As of [`Epilogue::apply`].
    unsafe fn write8(p: &Gemm, row: u32, col: u32, y: [f32; 8], fetched: [u32; 4]);
}

/// The output is whole aligned eights.
#[inline(always)]
pub fn is_eights(p: &Gemm) -> bool {
    p.n.is_multiple_of(8) && p.ld_out.is_multiple_of(8)
}

/// Writes those of the eight that are in range, in any output.
///
/// # Safety
/// As of [`Epilogue::apply`].
#[inline(always)]
pub unsafe fn write_pairs<E: Epilogue>(p: &Gemm, row: u32, col: u32, y: [f32; 8]) {
    for i in 0..4 {
        let col = col + 2 * i as u32;
        if col < p.n {
            E::apply(p, row, col, [y[2 * i], y[2 * i + 1]]);
        }
    }
}

impl Eight for Store {
    #[inline(always)]
    unsafe fn write8(p: &Gemm, row: u32, col: u32, y: [f32; 8], _: [u32; 4]) {
        st_v4(p.out + index(p, row, col) * BYTES, pack8(y));
    }
}

impl Eight for StoreF32 {
    #[inline(always)]
    unsafe fn write8(p: &Gemm, row: u32, col: u32, y: [f32; 8], _: [u32; 4]) {
        let [a, b, c, d, e, f, g, h] = y.map(f32::to_bits);
        let address = p.out + index(p, row, col) * 4;
        st_v4(address, [a, b, c, d]);
        st_v4(address + 16, [e, f, g, h]);
    }
}

impl Eight for Add {
    #[inline(always)]
    unsafe fn fetch(p: &Gemm, row: u32, col: u32, wanted: bool) -> [u32; 4] {
        ld_v4_if(wanted, p.out + index(p, row, col) * BYTES)
    }

    #[inline(always)]
    unsafe fn write8(p: &Gemm, row: u32, col: u32, y: [f32; 8], fetched: [u32; 4]) {
        let old = unpack8(fetched);
        st_v4(p.out + index(p, row, col) * BYTES, pack8(core::array::from_fn(|i| old[i] + y[i])));
    }
}

impl Eight for SwiGlu {
    #[inline(always)]
    unsafe fn write8(p: &Gemm, row: u32, col: u32, y: [f32; 8], _: [u32; 4]) {
        let pair = |i: usize| bf16x2(silu(y[i]) * y[i + 1], silu(y[i + 2]) * y[i + 3]);
        let both = u64::from(pair(0)) | u64::from(pair(4)) << 32;
        st_b64(p.out + index(p, row, col / 2) * BYTES, both);
    }
}
