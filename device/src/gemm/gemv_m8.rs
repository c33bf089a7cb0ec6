//! Decode's matrix product for up to eight tokens: weights streamed once, through tensor cores.
//!
//! The time is the weights' bytes over the memory's bandwidth, so everything is arranged around
//! keeping loads in flight and instructions few. Weights go from memory to registers in 16-byte loads
//! and from there straight into `mma.sync` as the left operand: 16 weight rows by eight tokens cost the
//! same few instructions as one token would.
//!
//! A product does not change when its k indices are permuted alike on both sides. A lane therefore
//! feeds two `mma` from eight consecutive k of its row, instead of the four separate pairs that the
//! operand's layout names, and reads the activations in the same order.

use crate::gemm::epilogue::{Add, Epilogue, Store, StoreF32, SwiGlu};
use crate::params::Gemm;
use crate::ptx::barrier::sync_block;
use crate::ptx::global::{ld_v4, ld_v4_stream};
use crate::ptx::math::{fma, rsqrt};
use crate::ptx::mma::m16n8k16;
use crate::ptx::shared::{ld_f32, st_f32};
use crate::ptx::special::{ctaid_x, lane, tid_x, warp};
use crate::ptx::{Global, pdl};
use crate::tile::bf16::{BYTES, PER_VECTOR, gather8, load8_or_zero, pack8, unpack8};
use crate::tile::reduce::quad_sum;

/// Warps of a block; each has a part of k.
const WARPS: u32 = 8;
/// Weight rows of a block.
const ROWS: u32 = 16;
/// Tokens of the `mma`.
const TOKENS: u32 = 8;
/// Elements of k that four lanes cover with one 16-byte load each: two `mma`.
const STEP: u32 = 4 * PER_VECTOR;
/// Steps whose weights are in flight together.
const UNROLL: usize = 4;

shared_array! {
    /// Each warp's `[token][weight row]` sums, f32.
    sums: 4096 bytes, align 16
}
shared_array! {
    /// Each warp's sum of squares per token, f32.
    squares: 256 bytes, align 16
}

macro_rules! gemv_kernels {
    ($($name:ident: $epilogue:ident, $doc:literal;)*) => {$(
        kernel! {
            #[doc = $doc]
            /// `m` is at most 8.
            ///
            /// # Shape and layout
            /// See [`Gemm`]: any `n` and `k`; 16-byte loads where `k` and `ld_a` are multiples of 8. With
            /// `norm_weight` the rows of `a` are RMS-normalised on the fly: the weight multiplies the
            /// activations (rounded to bf16 again), the inverse RMS, gathered in the same pass, the result.
            ///
            /// # Thread mapping
            /// One block of 256 threads per 16 rows of `w`; its eight warps share k and add up in shared
            /// memory, in warp order.
            ///
            /// # Safety
            /// The grid covers `n`; all rows exist; `w` is written by no kernel
            /// in flight; `out` overlaps no input.
            #[launch_bounds(256, 2)]
            pub fn $name(p: Gemm) {
                if p.k.is_multiple_of(PER_VECTOR) && p.ld_a.is_multiple_of(PER_VECTOR) {
                    gemv::<true, $epilogue>(&p);
                } else {
                    gemv::<false, $epilogue>(&p);
                }
            }
        }
    )*};
}

gemv_kernels! {
    gemv_bf16_m8_store: Store, "`out = a · wᵀ` in bf16.";
    gemv_bf16_m8_f32: StoreF32, "`out = a · wᵀ` in f32.";
    gemv_bf16_m8_add: Add, "`out += a · wᵀ` in bf16.";
    gemv_bf16_m8_swiglu: SwiGlu, "`out = silu(gate) · up` of interleaved `a · wᵀ`.";
}

#[inline(always)]
unsafe fn gemv<const ALIGNED: bool, E: Epilogue>(p: &Gemm) {
    let col = ctaid_x() * ROWS;
    let weights = WeightRows::new(p, col + lane() / 4);

    // This warp's steps, and those among them that are complete batches inside k.
    let n_steps = p.k.div_ceil(STEP);
    let (begin, end) = (n_steps * warp() / WARPS, n_steps * (warp() + 1) / WARPS);
    let inside = if ALIGNED { end.min(p.k / STEP) } else { begin };
    let n_batches = inside.saturating_sub(begin) / UNROLL as u32;
    let element = |step: u32| step * STEP + lane() % 4 * PER_VECTOR;

    // The first weights do not wait for the predecessor.
    pdl::launch_dependents();
    let mut batch = [[[0; 4]; 2]; UNROLL];
    if n_batches > 0 {
        batch = weights.load_batch(element(begin));
    }
    pdl::wait();

    let mut token = Token::new(p);
    for b in 0..n_batches {
        let i = element(begin + b * UNROLL as u32);
        let activations: [[u32; 4]; UNROLL] =
            core::array::from_fn(|u| token.load::<true, ALIGNED>(p, i + u as u32 * STEP));
        let current = batch;
        if b + 1 < n_batches {
            batch = weights.load_batch(i + UNROLL as u32 * STEP);
        }
        for u in 0..UNROLL {
            token.multiply(&current[u], &activations[u]);
        }
    }
    for step in begin + n_batches * UNROLL as u32..end {
        let rows = weights.load_or_zero::<ALIGNED>(element(step), p.k);
        let activations = token.load::<false, ALIGNED>(p, element(step));
        token.multiply(&rows, &activations);
    }
    token.write_sums();
    sync_block();
    finish::<E>(p, col);
}

/// The two weight rows of a lane: rows g and g + 8 of the block's 16.
struct WeightRows {
    rows: [Global; 2],
}

impl WeightRows {
    /// Rows beyond `n` read the last one again; their results are dropped.
    #[inline(always)]
    fn new(p: &Gemm, row: u32) -> Self {
        let address = |row: u32| p.w + u64::from(row.min(p.n - 1)) * u64::from(p.k) * BYTES;
        Self { rows: [address(row), address(row + 8)] }
    }

    /// Elements `i..i + 8` of both rows, of `UNROLL` steps; all inside k.
    #[inline(always)]
    unsafe fn load_batch(&self, i: u32) -> [[[u32; 4]; 2]; UNROLL] {
        let mut batch = [[[0; 4]; 2]; UNROLL];
        for u in 0..UNROLL {
            for r in 0..2 {
                batch[u][r] =
                    ld_v4_stream(self.rows[r] + u64::from(i) * BYTES + (u as u64) * u64::from(STEP) * BYTES);
            }
        }
        batch
    }

    /// Elements `i..i + 8` of both rows; zeros beyond k.
    #[inline(always)]
    unsafe fn load_or_zero<const ALIGNED: bool>(&self, i: u32, k: u32) -> [[u32; 4]; 2] {
        if i >= k {
            return [[0; 4]; 2];
        }
        let load = |row: Global| {
            // SAFETY: the row has k elements, and i is below k.
            unsafe { if ALIGNED { ld_v4_stream(row + u64::from(i) * BYTES) } else { gather8(row, i, k) } }
        };
        [load(self.rows[0]), load(self.rows[1])]
    }
}

/// The token g of a lane.
struct Token {
    row: Global,
    /// Products of 16 weight rows with eight tokens.
    acc: [f32; 4],
    /// This lane's share of its token's sum of squares.
    squares: f32,
}

impl Token {
    /// Tokens beyond `m` read the last row again; their results are dropped.
    #[inline(always)]
    fn new(p: &Gemm) -> Self {
        let token = (lane() / 4).min(p.m - 1);
        Self { row: p.a + u64::from(token) * u64::from(p.ld_a) * BYTES, acc: [0.0; 4], squares: 0.0 }
    }

    /// Elements `i..i + 8`, times the norm's weight if there is one. With `INSIDE` all are below k and
    /// aligned; else there are zeros from k on.
    #[inline(always)]
    unsafe fn load<const INSIDE: bool, const ALIGNED: bool>(&mut self, p: &Gemm, i: u32) -> [u32; 4] {
        let load = |row: Global| {
            // SAFETY: rows have k elements.
            unsafe {
                if INSIDE { ld_v4(row + u64::from(i) * BYTES) } else { load8_or_zero(row, i, p.k, ALIGNED) }
            }
        };
        let activations = load(self.row);
        if p.norm_weight == 0 {
            return activations;
        }
        let (a, weight) = (unpack8(activations), unpack8(load(p.norm_weight)));
        self.squares = a.into_iter().fold(self.squares, |sum, a| fma(a, a, sum));
        pack8(core::array::from_fn(|j| a[j] * weight[j]))
    }

    #[inline(always)]
    fn multiply(&mut self, [top, bottom]: &[[u32; 4]; 2], a: &[u32; 4]) {
        m16n8k16(&mut self.acc, &[top[0], bottom[0], top[1], bottom[1]], [a[0], a[1]]);
        m16n8k16(&mut self.acc, &[top[2], bottom[2], top[3], bottom[3]], [a[2], a[3]]);
    }

    /// Writes this warp's sums to shared memory.
    #[inline(always)]
    unsafe fn write_sums(&self) {
        let at = |token: u32, row: u32| sums() + ((warp() * TOKENS + token) * ROWS + row) * 4;
        let (token, row) = (lane() % 4 * 2, lane() / 4);
        st_f32(at(token, row), self.acc[0]);
        st_f32(at(token + 1, row), self.acc[1]);
        st_f32(at(token, row + 8), self.acc[2]);
        st_f32(at(token + 1, row + 8), self.acc[3]);
        let total = quad_sum(self.squares);
        if lane().is_multiple_of(4) {
            st_f32(squares() + (warp() * TOKENS + lane() / 4) * 4, total);
        }
    }
}

/// Adds the warps' sums; a thread has one token and two neighbouring weight rows.
#[inline(always)]
unsafe fn finish<E: Epilogue>(p: &Gemm, col: u32) {
    let (token, row) = (tid_x() / (ROWS / 2), tid_x() % (ROWS / 2) * 2);
    if token >= p.m.min(TOKENS) || col + row >= p.n {
        return;
    }
    let (mut y, mut square) = ([0.0; 2], 0.0);
    for w in 0..WARPS {
        let slot = w * TOKENS + token;
        y[0] += ld_f32(sums() + (slot * ROWS + row) * 4);
        y[1] += ld_f32(sums() + (slot * ROWS + row + 1) * 4);
        square += ld_f32(squares() + slot * 4);
    }
    if p.norm_weight != 0 {
        let inverse_rms = rsqrt(square / p.k as f32 + p.eps);
        y = y.map(|y| y * inverse_rms);
    }
    E::apply(p, token, col + row, y);
}
