//! Decode's matrix product: up to four rows of activations, weights streamed once.
//!
//! The time is the weights' bytes over the memory's bandwidth, so everything else is arranged around
//! keeping loads in flight: weights go from memory to registers in 16-byte loads that leave L1 to the
//! activations, the next loads are issued before the current ones are used, and the first ones before
//! the kernel waits for its predecessor.

use crate::gemm::epilogue::{Add, Epilogue, Store, StoreF32, SwiGlu};
use crate::params::Gemm;
use crate::ptx::global::ld_v4_stream;
use crate::ptx::math::{fma, rsqrt};
use crate::ptx::special::{ctaid_x, lane, ntid_x, warp};
use crate::ptx::{Global, pdl};
use crate::tile::bf16::{BYTES, PER_VECTOR, gather8, load8_or_zero, unpack8};
use crate::tile::reduce::warp_sum;

/// Weight rows of a warp: the pair that an epilogue takes.
const ROWS: usize = 2;
/// Elements of a row that a warp covers with one load.
const WARP_SPAN: u32 = 32 * PER_VECTOR;

macro_rules! gemv_kernels {
    ($($name:ident: $m:literal rows x $unroll:literal chunks, $epilogue:ident, $doc:literal;)*) => {$(
        kernel! {
            #[doc = $doc]
            /// Up to as many rows of activations as the name says.
            ///
            /// # Shape and layout
            /// See [`Gemm`]: any `n` and `k`; 16-byte loads where `k` and `ld_a` are multiples of 8. With
            /// `norm_weight` the rows of `a` are RMS-normalised on the fly: the weight multiplies the
            /// activations, the inverse RMS, gathered in the same pass, the result.
            ///
            /// # Thread mapping
            /// One warp per two rows of `w`; block of any number of warps; grid covers `n`.
            ///
            /// # Safety
            /// All rows exist; `w` is written by no kernel in flight; `out` overlaps no input.
            #[launch_bounds(256, 2)]
            pub fn $name(p: Gemm) {
                gemv::<$m, $unroll, $epilogue>(&p);
            }
        }
    )*};
}

gemv_kernels! {
    gemv_bf16_m1_store: 1 rows x 4 chunks, Store, "`out = a · wᵀ` in bf16.";
    gemv_bf16_m1_f32: 1 rows x 4 chunks, StoreF32, "`out = a · wᵀ` in f32.";
    gemv_bf16_m1_add: 1 rows x 4 chunks, Add, "`out += a · wᵀ` in bf16.";
    gemv_bf16_m1_swiglu: 1 rows x 4 chunks, SwiGlu, "`out = silu(gate) · up` of interleaved `a · wᵀ`.";
    gemv_bf16_m2_store: 2 rows x 4 chunks, Store, "`out = a · wᵀ` in bf16.";
    gemv_bf16_m2_f32: 2 rows x 4 chunks, StoreF32, "`out = a · wᵀ` in f32.";
    gemv_bf16_m2_add: 2 rows x 4 chunks, Add, "`out += a · wᵀ` in bf16.";
    gemv_bf16_m2_swiglu: 2 rows x 4 chunks, SwiGlu, "`out = silu(gate) · up` of interleaved `a · wᵀ`.";
    gemv_bf16_m4_store: 4 rows x 2 chunks, Store, "`out = a · wᵀ` in bf16.";
    gemv_bf16_m4_f32: 4 rows x 2 chunks, StoreF32, "`out = a · wᵀ` in f32.";
    gemv_bf16_m4_add: 4 rows x 2 chunks, Add, "`out += a · wᵀ` in bf16.";
    gemv_bf16_m4_swiglu: 4 rows x 2 chunks, SwiGlu, "`out = silu(gate) · up` of interleaved `a · wᵀ`.";
}

#[inline(always)]
unsafe fn gemv<const M: usize, const UNROLL: usize, E: Epilogue>(p: &Gemm) {
    let col = (ctaid_x() * (ntid_x() / 32) + warp()) * ROWS as u32;
    pdl::launch_dependents();
    if col >= p.n {
        // Executed by every thread of the chain, also by those without work.
        pdl::wait();
        return;
    }
    if p.k.is_multiple_of(PER_VECTOR) && p.ld_a.is_multiple_of(PER_VECTOR) {
        warp_rows::<M, UNROLL, true, E>(p, col);
    } else {
        warp_rows::<M, 1, false, E>(p, col);
    }
}

/// Weights of one step: `ROWS` rows, `UNROLL` 16-byte chunks per lane.
type Weights<const UNROLL: usize> = [[[u32; 4]; UNROLL]; ROWS];

/// Sums of one warp.
struct Sums<const M: usize> {
    /// Dot products of each row of `w` with each row of `a`.
    dot: [[f32; M]; ROWS],
    /// Squares of each row of `a`.
    squares: [f32; M],
}

#[inline(always)]
unsafe fn warp_rows<const M: usize, const UNROLL: usize, const ALIGNED: bool, E: Epilogue>(
    p: &Gemm,
    col: u32,
) {
    let start = lane() * PER_VECTOR;
    let step = WARP_SPAN * UNROLL as u32;
    let mut weights = load_weights::<UNROLL, ALIGNED>(p, col, start);
    pdl::wait();

    let mut sums = Sums { dot: [[0.0; M]; ROWS], squares: [0.0; M] };
    let mut i = start;
    while i < p.k {
        let next = load_weights::<UNROLL, ALIGNED>(p, col, i + step);
        for u in 0..UNROLL {
            let rows = [weights[0][u], weights[1][u]];
            accumulate::<M, ALIGNED>(p, &mut sums, rows, i + u as u32 * WARP_SPAN);
        }
        weights = next;
        i += step;
    }
    finish::<M, E>(p, col, sums);
}

#[inline(always)]
unsafe fn load_weights<const UNROLL: usize, const ALIGNED: bool>(
    p: &Gemm,
    col: u32,
    i: u32,
) -> Weights<UNROLL> {
    let mut weights = [[[0; 4]; UNROLL]; ROWS];
    for r in 0..ROWS {
        // The second row of an odd n reads the first again; its results are dropped.
        let row = p.w + u64::from((col + r as u32).min(p.n - 1)) * u64::from(p.k) * BYTES;
        for u in 0..UNROLL {
            weights[r][u] = load_weight_chunk::<ALIGNED>(row, i + u as u32 * WARP_SPAN, p.k);
        }
    }
    weights
}

#[inline(always)]
unsafe fn load_weight_chunk<const ALIGNED: bool>(row: Global, i: u32, k: u32) -> [u32; 4] {
    if i >= k {
        [0; 4]
    } else if ALIGNED {
        ld_v4_stream(row + u64::from(i) * BYTES)
    } else {
        gather8(row, i, k)
    }
}

/// Adds the products of elements `i..i + 8`.
#[inline(always)]
unsafe fn accumulate<const M: usize, const ALIGNED: bool>(
    p: &Gemm,
    sums: &mut Sums<M>,
    weights: [[u32; 4]; ROWS],
    i: u32,
) {
    let weights = weights.map(unpack8);
    let norm_weight =
        if p.norm_weight == 0 { [1.0; 8] } else { unpack8(load8_or_zero(p.norm_weight, i, p.k, ALIGNED)) };
    for m in 0..M {
        // Rows beyond m read the last one again; their results are dropped.
        let row = p.a + u64::from((m as u32).min(p.m - 1)) * u64::from(p.ld_a) * BYTES;
        let a = unpack8(load8_or_zero(row, i, p.k, ALIGNED));
        for j in 0..8 {
            sums.squares[m] = fma(a[j], a[j], sums.squares[m]);
            let scaled = a[j] * norm_weight[j];
            for r in 0..ROWS {
                sums.dot[r][m] = fma(weights[r][j], scaled, sums.dot[r][m]);
            }
        }
    }
}

/// Sums over the lanes; lane m writes row m.
#[inline(always)]
unsafe fn finish<const M: usize, E: Epilogue>(p: &Gemm, col: u32, sums: Sums<M>) {
    for m in 0..M {
        let mut y = [warp_sum(sums.dot[0][m]), warp_sum(sums.dot[1][m])];
        if p.norm_weight != 0 {
            let inverse_rms = rsqrt(warp_sum(sums.squares[m]) / p.k as f32 + p.eps);
            y = y.map(|y| y * inverse_rms);
        }
        if lane() == m as u32 && (m as u32) < p.m {
            E::apply(p, m as u32, col, y);
        }
    }
}
