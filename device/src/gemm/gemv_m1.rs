//! Decode's matrix product for one token, weights streamed once.
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
/// 16-byte chunks per row and lane in one step.
const UNROLL: usize = 2;

macro_rules! gemv_kernels {
    ($($name:ident: $epilogue:ident, $doc:literal;)*) => {$(
        kernel! {
            #[doc = $doc]
            /// `m` is 1.
            ///
            /// # Shape and layout
            /// See [`Gemm`]: any `n` and `k`; 16-byte loads where `k` is a multiple of 8. With `norm_weight`
            /// the row of `a` is RMS-normalised on the fly: the weight multiplies the activations, the
            /// inverse RMS, gathered in the same pass, the result.
            ///
            /// # Thread mapping
            /// One warp per two rows of `w`; a block has any number of warps up to eight.
            ///
            /// # Safety
            /// The grid covers `n`; all rows exist; `w` is written by no kernel in flight; `out` overlaps no
            /// input.
            #[launch_bounds(256, 3)]
            pub fn $name(p: Gemm) {
                gemv::<$epilogue>(&p);
            }
        }
    )*};
}

gemv_kernels! {
    gemv_bf16_m1_store: Store, "`out = a · wᵀ` in bf16.";
    gemv_bf16_m1_f32: StoreF32, "`out = a · wᵀ` in f32.";
    gemv_bf16_m1_add: Add, "`out += a · wᵀ` in bf16.";
    gemv_bf16_m1_swiglu: SwiGlu, "`out = silu(gate) · up` of interleaved `a · wᵀ`.";
}

#[inline(always)]
unsafe fn gemv<E: Epilogue>(p: &Gemm) {
    let col = (ctaid_x() * (ntid_x() / 32) + warp()) * ROWS as u32;
    pdl::launch_dependents();
    if col >= p.n {
        // Every thread of the chain waits, also one without work.
        pdl::wait();
        return;
    }
    if p.k.is_multiple_of(PER_VECTOR) {
        warp_rows::<UNROLL, true, E>(p, col);
    } else {
        warp_rows::<1, false, E>(p, col);
    }
}

/// Sums of one warp.
struct Sums {
    /// Dot products of `a` with each row of `w`.
    dot: [f32; ROWS],
    /// Squares of `a`.
    squares: f32,
}

#[inline(always)]
unsafe fn warp_rows<const UNROLL: usize, const ALIGNED: bool, E: Epilogue>(p: &Gemm, col: u32) {
    let start = lane() * PER_VECTOR;
    let step = WARP_SPAN * UNROLL as u32;
    let mut weights = load_weights::<UNROLL, ALIGNED>(p, col, start);
    pdl::wait();

    let mut sums = Sums { dot: [0.0; ROWS], squares: 0.0 };
    let mut i = start;
    while i < p.k {
        let next = load_weights::<UNROLL, ALIGNED>(p, col, i + step);
        for u in 0..UNROLL {
            accumulate::<ALIGNED>(p, &mut sums, [weights[0][u], weights[1][u]], i + u as u32 * WARP_SPAN);
        }
        weights = next;
        i += step;
    }
    finish::<E>(p, col, sums);
}

/// Elements `i..i + 8` of both rows, and of `UNROLL` such chunks; zeros beyond k.
#[inline(always)]
unsafe fn load_weights<const UNROLL: usize, const ALIGNED: bool>(
    p: &Gemm,
    col: u32,
    i: u32,
) -> [[[u32; 4]; UNROLL]; ROWS] {
    let mut weights = [[[0; 4]; UNROLL]; ROWS];
    for r in 0..ROWS {
        // The second row of an odd n reads the first again; its results are dropped.
        let row = p.w + u64::from((col + r as u32).min(p.n - 1)) * u64::from(p.k) * BYTES;
        for u in 0..UNROLL {
            weights[r][u] = load_chunk::<ALIGNED>(row, i + u as u32 * WARP_SPAN, p.k);
        }
    }
    weights
}

#[inline(always)]
unsafe fn load_chunk<const ALIGNED: bool>(row: Global, i: u32, k: u32) -> [u32; 4] {
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
unsafe fn accumulate<const ALIGNED: bool>(p: &Gemm, sums: &mut Sums, weights: [[u32; 4]; ROWS], i: u32) {
    let weights = weights.map(unpack8);
    let norm_weight =
        if p.norm_weight == 0 { [1.0; 8] } else { unpack8(load8_or_zero(p.norm_weight, i, p.k, ALIGNED)) };
    let a = unpack8(load8_or_zero(p.a, i, p.k, ALIGNED));
    for j in 0..8 {
        sums.squares = fma(a[j], a[j], sums.squares);
        let scaled = a[j] * norm_weight[j];
        for r in 0..ROWS {
            sums.dot[r] = fma(weights[r][j], scaled, sums.dot[r]);
        }
    }
}

/// Sums over the lanes; the first one writes.
#[inline(always)]
unsafe fn finish<E: Epilogue>(p: &Gemm, col: u32, sums: Sums) {
    let mut y = sums.dot.map(warp_sum);
    if p.norm_weight != 0 {
        let inverse_rms = rsqrt(warp_sum(sums.squares) / p.k as f32 + p.eps);
        y = y.map(|y| y * inverse_rms);
    }
    if lane() == 0 {
        E::apply(p, 0, col, y);
    }
}
