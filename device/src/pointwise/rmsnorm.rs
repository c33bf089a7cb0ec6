//! RMSNorm, alone and after a residual addition.

use crate::params::{FEW_ROWS, RmsNorm};
use crate::ptx::math::{fma, rsqrt};
use crate::ptx::special::{ctaid_x, nctaid_x, ntid_x, tid_x};
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
    /// One block per token. A thread keeps its first eight values in registers, of more than [`FEW_ROWS`] rows
    /// (whose length is a multiple of 8) sixteen; what of a row is beyond is read again.
    ///
    /// # Dependent launch
    /// Of few rows the next kernel may be launched at once. Of many, blocks follow blocks and end one by one; a product
    /// that took their places as they became free was 15 to 20 µs slower on an H200 (1024 tokens of Llama 3 8B),
    /// presumably since blocks that read the same weights no longer lay side by side. So it is launched when all are
    /// done.
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
    // Apart, so that the usual ways are short: a step's few rows wait for their instructions, too.
    if !p.hidden.is_multiple_of(PER_VECTOR) {
        row::<ADD, 1, false>(p);
    } else if nctaid_x() <= FEW_ROWS {
        row::<ADD, 1, true>(p);
    } else {
        row::<ADD, 2, true>(p);
    }
}

/// The block's row, of which a thread keeps `KEPT` vectors in registers.
#[inline(always)]
unsafe fn row<const ADD: bool, const KEPT: usize, const ALIGNED: bool>(p: &RmsNorm) {
    let first = tid_x() * PER_VECTOR;
    let step = ntid_x() * PER_VECTOR;
    let row = u64::from(ctaid_x()) * u64::from(p.hidden) * BYTES;
    let at: [u32; KEPT] = core::array::from_fn(|j| first + j as u32 * step);
    // SAFETY: as of the kernel.
    let first_weights = at.map(|i| unsafe { load8_or_zero(p.weight, i, p.hidden, ALIGNED) });

    if nctaid_x() <= FEW_ROWS {
        pdl::launch_dependents();
    }
    pdl::wait();

    // Sum of squares, and the sum with the residual where there is one.
    let kept = input::<ADD, KEPT, ALIGNED>(p, row, at);
    let mut squares = kept.into_iter().fold(0.0, sum_of_squares);
    let mut i = first + KEPT as u32 * step;
    while i < p.hidden {
        let [x] = input::<ADD, 1, ALIGNED>(p, row, [i]);
        squares = sum_of_squares(squares, x);
        i += step;
    }
    let inverse_rms = rsqrt(block_sum(squares) / p.hidden as f32 + p.eps);

    // Scale. Each thread reads back only what it wrote itself.
    let source = if ADD { p.sum } else { p.x } + row;
    for j in 0..KEPT {
        scale::<ALIGNED>(p, row, at[j], kept[j], first_weights[j], inverse_rms);
    }
    let mut i = first + KEPT as u32 * step;
    while i < p.hidden {
        let x = load8_or_zero(source, i, p.hidden, ALIGNED);
        let weight = load8_or_zero(p.weight, i, p.hidden, ALIGNED);
        scale::<ALIGNED>(p, row, i, x, weight, inverse_rms);
        i += step;
    }
    if nctaid_x() > FEW_ROWS {
        pdl::launch_dependents();
    }
}

/// Eight inputs from each place on, packed; with `ADD` their sum with the residual, which is also stored.
#[inline(always)]
unsafe fn input<const ADD: bool, const N: usize, const ALIGNED: bool>(
    p: &RmsNorm,
    row: Global,
    at: [u32; N],
) -> [[u32; 4]; N] {
    // SAFETY: as of the kernel.
    let load = |from: Global| at.map(|i| unsafe { load8_or_zero(from + row, i, p.hidden, ALIGNED) });
    let x = load(p.x);
    if !ADD {
        return x;
    }
    let residual = load(p.residual);
    core::array::from_fn(|j| {
        let (a, b) = (unpack8(x[j]), unpack8(residual[j]));
        let sum = pack8(core::array::from_fn(|k| a[k] + b[k]));
        // SAFETY: as of the kernel.
        unsafe { store8(p.sum + row, at[j], p.hidden, sum, ALIGNED) };
        sum
    })
}

#[inline(always)]
fn sum_of_squares(start: f32, x: [u32; 4]) -> f32 {
    unpack8(x).into_iter().fold(start, |sum, x| fma(x, x, sum))
}

#[inline(always)]
unsafe fn scale<const ALIGNED: bool>(
    p: &RmsNorm,
    row: Global,
    i: u32,
    x: [u32; 4],
    weight: [u32; 4],
    inverse_rms: f32,
) {
    let (x, w) = (unpack8(x), unpack8(weight));
    let y = pack8(core::array::from_fn(|j| x[j] * inverse_rms * w[j]));
    store8(p.out + row, i, p.hidden, y, ALIGNED);
}
