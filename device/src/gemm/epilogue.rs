//! What becomes of two neighbouring results of a row.

use crate::params::Gemm;
use crate::ptx::global::{ld_b32, st_b32, st_f32, st_v2_f32};
use crate::ptx::math::{bf16x2, exp2, rcp};
use crate::tile::bf16::{BYTES, load, store, unpack};

/// Consumes `y[row][col]` and `y[row][col + 1]`; `col` is even, both are in range of `m` and of `n`
/// rounded up to even.
pub trait Epilogue {
    /// Writes the pair; a second value beyond `n` is dropped.
    ///
    /// # Safety
    /// `p.out` has room for the row and columns as its documentation says.
    unsafe fn apply(p: &Gemm, row: u32, col: u32, y: [f32; 2]);
}

/// `out = y` in bf16.
pub struct Store;
/// `out = y` in f32.
pub struct StoreF32;
/// `out += y` in bf16; the sum is formed in f32.
pub struct Add;
/// `out[j] = silu(y[2j]) · y[2j + 1]` in bf16.
pub struct SwiGlu;

#[inline(always)]
pub(super) fn index(p: &Gemm, row: u32, col: u32) -> u64 {
    u64::from(row) * u64::from(p.ld_out) + u64::from(col)
}

/// Both values exist and lie at an even index, so that one access writes them.
#[inline(always)]
fn is_pair(p: &Gemm, col: u32) -> bool {
    col + 1 < p.n && p.ld_out.is_multiple_of(2)
}

impl Epilogue for Store {
    #[inline(always)]
    unsafe fn apply(p: &Gemm, row: u32, col: u32, y: [f32; 2]) {
        let i = index(p, row, col);
        if is_pair(p, col) {
            st_b32(p.out + i * BYTES, bf16x2(y[0], y[1]));
            return;
        }
        store(p.out, i, y[0]);
        if col + 1 < p.n {
            store(p.out, i + 1, y[1]);
        }
    }
}

impl Epilogue for StoreF32 {
    #[inline(always)]
    unsafe fn apply(p: &Gemm, row: u32, col: u32, y: [f32; 2]) {
        let address = p.out + index(p, row, col) * 4;
        if is_pair(p, col) {
            st_v2_f32(address, y);
            return;
        }
        st_f32(address, y[0]);
        if col + 1 < p.n {
            st_f32(address + 4, y[1]);
        }
    }
}

impl Epilogue for Add {
    #[inline(always)]
    unsafe fn apply(p: &Gemm, row: u32, col: u32, y: [f32; 2]) {
        let i = index(p, row, col);
        if is_pair(p, col) {
            let old = unpack(ld_b32(p.out + i * BYTES));
            st_b32(p.out + i * BYTES, bf16x2(old[0] + y[0], old[1] + y[1]));
            return;
        }
        store(p.out, i, load(p.out, i) + y[0]);
        if col + 1 < p.n {
            store(p.out, i + 1, load(p.out, i + 1) + y[1]);
        }
    }
}

impl Epilogue for SwiGlu {
    #[inline(always)]
    unsafe fn apply(p: &Gemm, row: u32, col: u32, y: [f32; 2]) {
        store(p.out, index(p, row, col / 2), silu(y[0]) * y[1]);
    }
}

/// x / (1 + e^−x)
#[inline(always)]
pub(super) fn silu(x: f32) -> f32 {
    x * rcp(1.0 + exp2(-x * core::f32::consts::LOG2_E))
}
