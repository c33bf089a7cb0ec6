//! The product over `wgmma` for a few dozen tokens: weights streamed once, at the memory's speed.
//!
//! Weight rows are the left operand, 64 for each of two warpgroups, and tokens the right one, so that a tile has as
//! few tokens as there are. The blocks of a cluster share k, so that few weight rows keep the whole device busy, and
//! add up through distributed shared memory.

use crate::gemm::cluster_sum::Partial;
use crate::gemm::eight::Eight;
use crate::gemm::epilogue::{Add, Store, StoreF32, SwiGlu};
use crate::gemm::loader::{BLOCK_K, Loader, ROW_BYTES};
use crate::params::Gemm;
use crate::ptx::barrier::{fence_proxy_async, sync_block};
use crate::ptx::special::{ctaid_x, ctaid_y, ctaid_z, lane, nctaid_x, opaque, warp};
use crate::ptx::wgmma::{self, Accumulators, Descriptor};
use crate::ptx::{Shared, async_copy, pdl, shared};

/// Threads of a block: two warpgroups.
const THREADS: u32 = 256;
/// Weight rows of a block.
const ROWS: u32 = 128;
/// Weight rows of a warpgroup.
const GROUP_ROWS: u32 = 64;

macro_rules! gemm_kernels {
    ($($name:ident: $sums:literal sums, $ahead:literal ahead, $epilogue:ident, $doc:literal;)*) => {$(
        kernel! {
            #[doc = $doc]
            /// The name gives the tile: tokens × weight rows.
            ///
            /// # Shape and layout
            /// See [`Gemm`]: any `m`, `n`, `k`; `cp.async` where `k` and `ld_a` are multiples of 8, else
            /// element by element. `norm_weight` is not used.
            ///
            /// # Thread mapping
            /// Grid (parts of k, m tiles, n tiles); the parts of a tile are a cluster. Dynamic shared memory is
            /// stages · (tokens + 128) · 128 bytes, with two stages more than are loaded ahead.
            ///
            /// # Memory order
            /// Copies are waited for and fenced for the asynchronous proxy before the barrier that opens their
            /// stage. A stage is refilled behind the barrier that follows the wait for its last reader. Partial
            /// sums are read between two barriers of the cluster.
            ///
            /// # Safety
            /// All rows exist; `w` is written by no kernel in flight; `out` overlaps no input.
            #[launch_bounds(256, 1)]
            pub fn $name(p: Gemm) {
                product::<[f32; $sums], $epilogue, $ahead>(&p);
            }
        }
    )*};
}

gemm_kernels! {
    wgmma_bf16_32x128_store: 16 sums, 8 ahead, Store, "`out = a · wᵀ` in bf16.";
    wgmma_bf16_32x128_f32: 16 sums, 8 ahead, StoreF32, "`out = a · wᵀ` in f32.";
    wgmma_bf16_32x128_add: 16 sums, 8 ahead, Add, "`out += a · wᵀ` in bf16.";
    wgmma_bf16_32x128_swiglu: 16 sums, 8 ahead, SwiGlu, "`out = silu(gate) · up` of interleaved `a · wᵀ`.";
    wgmma_bf16_64x128_store: 32 sums, 6 ahead, Store, "`out = a · wᵀ` in bf16.";
    wgmma_bf16_64x128_f32: 32 sums, 6 ahead, StoreF32, "`out = a · wᵀ` in f32.";
    wgmma_bf16_64x128_add: 32 sums, 6 ahead, Add, "`out += a · wᵀ` in bf16.";
    wgmma_bf16_64x128_swiglu: 32 sums, 6 ahead, SwiGlu, "`out = silu(gate) · up` of interleaved `a · wᵀ`.";
}

/// The whole kernel for this block's part of k of its tile.
#[inline(always)]
unsafe fn product<A: Accumulators, E: Eight, const AHEAD: u32>(p: &Gemm) {
    let (token, row) = (ctaid_y() * A::N, ctaid_z() * ROWS);
    let w = Loader::new(p.w, p.n, p.k, p.k, row, THREADS);
    let a = Loader::new(p.a, p.m, p.ld_a, p.k, token, THREADS);
    // One stage is filled up to AHEAD tiles ahead, one is multiplied, one has perhaps not been read to the end.
    let (base, stages, stage_bytes) = (shared::dynamic(), AHEAD + 2, (ROWS + A::N) * ROW_BYTES);
    let stage = |i: u32| base + i % stages * stage_bytes;
    let tokens_at = ROWS * ROW_BYTES;

    // This block's tiles of k.
    let (n_k_tiles, parts) = (p.k.div_ceil(BLOCK_K), nctaid_x().max(1));
    let begin = n_k_tiles * ctaid_x() / parts;
    let count = n_k_tiles * (ctaid_x() + 1) / parts - begin;

    // Prologue; the weights do not wait for the predecessor. Beyond the last tile the groups are empty, so that
    // their count stays right.
    pdl::launch_dependents();
    for i in 0..opaque(AHEAD.min(count)) {
        w.load(stage(i), begin + i, ROWS, THREADS);
    }
    pdl::wait();
    for i in 0..opaque(AHEAD) {
        if i < count {
            a.load(stage(i) + tokens_at, begin + i, A::N, THREADS);
        }
        async_copy::commit();
    }

    // Main loop: the products of a stage run while the next one is waited for and a later one is loaded.
    let mut sums = A::ZERO;
    let group_at = warp() / 4 * GROUP_ROWS * ROW_BYTES;
    for i in 0..count {
        async_copy::wait_oldest::<AHEAD>();
        fence_proxy_async();
        sync_block();
        let rows = Descriptor::new(stage(i) + group_at);
        let tokens = Descriptor::new(stage(i) + tokens_at);
        wgmma::fence();
        for step in 0..BLOCK_K / 16 {
            sums.multiply(rows.at_step(step), tokens.at_step(step));
        }
        wgmma::commit();
        let next = i + AHEAD;
        if next < count {
            w.load(stage(next), begin + next, ROWS, THREADS);
            a.load(stage(next) + tokens_at, begin + next, A::N, THREADS);
        }
        async_copy::commit();
        wgmma::wait::<1>();
    }
    sums.wait();

    // Epilogue. The sums take the place of the stages, which all warps have done with.
    sync_block();
    write(base, &sums);
    Partial { at: base, token, n_tokens: A::N.min(p.m - token), col: row, n_cols: ROWS }
        .finish::<E>(p, THREADS);
}

/// Writes a thread's sums, whose columns are tokens.
#[inline(always)]
unsafe fn write<A: Accumulators>(to: Shared, sums: &A) {
    let pitch = Partial::pitch_bytes(ROWS);
    let (row, token) = (warp() * 16 + lane() / 4, lane() % 4 * 2);
    let to = to + token * pitch + row * 4;
    let sums = sums.as_ref();
    for j in 0..A::N / 8 {
        for i in 0..4 {
            shared::st_f32(to + (8 * j + i % 2) * pitch + i / 2 * 8 * 4, sums[(4 * j + i) as usize]);
        }
    }
}
