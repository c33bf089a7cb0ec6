//! RMSNorm, alone and after a residual addition.

use crate::params::RmsNorm;
use crate::ptx::math::{fma, rsqrt};
use crate::ptx::special::{ctaid_x, ntid_x, tid_x};
use crate::ptx::{Global, pdl};
use crate::tile::bf16::{BYTES, PER_VECTOR, load8_or_zero, pack8, store8, unpack8};
use crate::tile::reduce::block_sum;

kernel! {
    /// `out = x / sqrt(mean(x²) + eps) · weight`.
    ///
    /// # Shape and layout
    /// Rows of `hidden`, any length; 16-byte accesses where `hidden` is a multiple of 8.
    ///
    /// # Thread mapping
    /// One block per token. A thread keeps its first eight values in registers, so a row of up to
    /// 8 × block size is read once; what is beyond is read again.
    ///
    /// # Safety
    /// The grid is `n_tokens` blocks of whole warps; all rows exist; `out` is `x` or overlaps nothing.
    #[launch_bounds(1024, 1)]
    pub fn rmsnorm_bf16(p: RmsNorm) {
        rmsnorm::<false>(&p);
    }
}

kernel! {
    /// `sum = residual + x`, then `out = rmsnorm(sum) · weight`. The sum is rounded to bf16 before it is
    /// normalised, so that `out` belongs to the sum that is kept.
    ///
    /// Shape and layout, thread mapping: as [`rmsnorm_bf16`].
    ///
    /// # Safety
    /// As [`rmsnorm_bf16`]; `sum` is `residual` or overlaps nothing, and `residual` overlaps nothing else.
    #[launch_bounds(1024, 1)]
    pub fn add_rmsnorm_bf16(p: RmsNorm) {
        rmsnorm::<true>(&p);
    }
}

#[inline(always)]
unsafe fn rmsnorm<const ADD: bool>(p: &RmsNorm) {
    let aligned = p.hidden.is_multiple_of(PER_VECTOR);
    let first = tid_x() * PER_VECTOR;
    let step = ntid_x() * PER_VECTOR;
    let row = u64::from(ctaid_x()) * u64::from(p.hidden) * BYTES;
    let first_weight = load8_or_zero(p.weight, first, p.hidden, aligned);

    pdl::launch_dependents();
    pdl::wait();

    // Sum of squares, and the sum with the residual where there is one.
    let head = input::<ADD>(p, row, first, aligned);
    let mut squares = sum_of_squares(0.0, head);
    let mut i = first + step;
    while i < p.hidden {
        squares = sum_of_squares(squares, input::<ADD>(p, row, i, aligned));
        i += step;
    }
    let inverse_rms = rsqrt(block_sum(squares) / p.hidden as f32 + p.eps);

    // Scale. Each thread reads back only what it wrote itself.
    let source = if ADD { p.sum } else { p.x } + row;
    scale(p, row, first, head, first_weight, inverse_rms, aligned);
    let mut i = first + step;
    while i < p.hidden {
        let x = load8_or_zero(source, i, p.hidden, aligned);
        let weight = load8_or_zero(p.weight, i, p.hidden, aligned);
        scale(p, row, i, x, weight, inverse_rms, aligned);
        i += step;
    }
}

/// Eight inputs from `i` on, packed; with `ADD` their sum with the residual, which is also stored.
#[inline(always)]
unsafe fn input<const ADD: bool>(p: &RmsNorm, row: Global, i: u32, aligned: bool) -> [u32; 4] {
    let x = load8_or_zero(p.x + row, i, p.hidden, aligned);
    if !ADD {
        return x;
    }
    let (a, b) = (unpack8(x), unpack8(load8_or_zero(p.residual + row, i, p.hidden, aligned)));
    let sum = pack8(core::array::from_fn(|j| a[j] + b[j]));
    store8(p.sum + row, i, p.hidden, sum, aligned);
    sum
}

#[inline(always)]
fn sum_of_squares(start: f32, x: [u32; 4]) -> f32 {
    unpack8(x).into_iter().fold(start, |sum, x| fma(x, x, sum))
}

#[inline(always)]
unsafe fn scale(
    p: &RmsNorm,
    row: Global,
    i: u32,
    x: [u32; 4],
    weight: [u32; 4],
    inverse_rms: f32,
    aligned: bool,
) {
    let (x, w) = (unpack8(x), unpack8(weight));
    let y = pack8(core::array::from_fn(|j| x[j] * inverse_rms * w[j]));
    store8(p.out + row, i, p.hidden, y, aligned);
}
