//! What becomes of two neighbouring results of a row.

use crate::params::Gemm;
use crate::ptx::global::{ld_b32, ld_v4, st_b32, st_f32, st_v2_f32, st_v4};
use crate::ptx::math::{bf16x2, exp2, rcp};
use crate::tile::bf16::{BYTES, load, pack8, store, unpack, unpack8};

/// Consumes `y[row][col]` and `y[row][col + 1]`; `col` is even, both are in range of `m` and of `n`
/// rounded up to even.
pub trait Epilogue {
    /// Writes the pair; a second value beyond `n` is dropped.
    ///
    /// # Safety
    /// `p.out` has room for the row and columns as its documentation says.
    unsafe fn apply(p: &Gemm, row: u32, col: u32, y: [f32; 2]);

    /// The same for `y[row][col..col + 8]` in one access, where `col` is a multiple of 8 and all are in range
    /// ([`is_eight`]).
    ///
    /// # Safety
    /// As of [`Epilogue::apply`].
    unsafe fn apply8(p: &Gemm, row: u32, col: u32, y: [f32; 8]);
}

/// Writes what there is of `y[row][col..col + 8]`; `col` is a multiple of 8.
///
/// # Safety
/// As of [`Epilogue::apply`].
#[cfg(cuda_arch = "sm_90a")]
#[inline(always)]
pub unsafe fn apply_up_to_8<E: Epilogue>(p: &Gemm, row: u32, col: u32, y: [f32; 8]) {
    if col + 8 <= p.n && p.ld_out.is_multiple_of(8) {
        return E::apply8(p, row, col, y);
    }
    for i in 0..4 {
        let col = col + 2 * i as u32;
        if col < p.n {
            E::apply(p, row, col, [y[2 * i], y[2 * i + 1]]);
        }
    }
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
fn index(p: &Gemm, row: u32, col: u32) -> u64 {
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

    #[inline(always)]
    unsafe fn apply8(p: &Gemm, row: u32, col: u32, y: [f32; 8]) {
        st_v4(p.out + index(p, row, col) * BYTES, pack8(y));
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

    #[inline(always)]
    unsafe fn apply8(p: &Gemm, row: u32, col: u32, y: [f32; 8]) {
        let bits = y.map(f32::to_bits);
        let address = p.out + index(p, row, col) * 4;
        st_v4(address, [bits[0], bits[1], bits[2], bits[3]]);
        st_v4(address + 16, [bits[4], bits[5], bits[6], bits[7]]);
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

    #[inline(always)]
    unsafe fn apply8(p: &Gemm, row: u32, col: u32, y: [f32; 8]) {
        let address = p.out + index(p, row, col) * BYTES;
        let old = unpack8(ld_v4(address));
        st_v4(address, pack8(core::array::from_fn(|i| old[i] + y[i])));
    }
}

impl Epilogue for SwiGlu {
    #[inline(always)]
    unsafe fn apply(p: &Gemm, row: u32, col: u32, y: [f32; 2]) {
        store(p.out, index(p, row, col / 2), silu(y[0]) * y[1]);
    }

    #[inline(always)]
    unsafe fn apply8(p: &Gemm, row: u32, col: u32, y: [f32; 8]) {
        let address = p.out + index(p, row, col / 2) * BYTES;
        st_b32(address, bf16x2(silu(y[0]) * y[1], silu(y[2]) * y[3]));
        st_b32(address + 4, bf16x2(silu(y[4]) * y[5], silu(y[6]) * y[7]));
    }
}

/// x / (1 + e^−x)
#[inline(always)]
fn silu(x: f32) -> f32 {
    x * rcp(1.0 + exp2(-x * core::f32::consts::LOG2_E))
}
