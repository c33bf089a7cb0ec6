//! The product over Hopper's `wgmma`, for any m, n and k: from a few tokens, where weights have to stream, to
//! prompts, where tensor cores have to be busy.
//!
//! Weight rows are the left operand (64 for each of two warpgroups), tokens the right one, so a tile may have as few
//! tokens as there are. Where the tiles of an output are fewer than multiprocessors, the blocks of a cluster share k
//! and add up through distributed shared memory, in the order of their ranks.

use crate::gemm::epilogue::{Add, Epilogue, Store, StoreF32, SwiGlu, apply_up_to_8};
use crate::gemm::loader::{BLOCK_K, Loader, ROW_BYTES};
use crate::params::Gemm;
use crate::ptx::barrier::{fence_proxy_async, sync_block};
use crate::ptx::special::{ctaid_x, ctaid_y, ctaid_z, lane, nctaid_x, opaque, tid_x, warp};
use crate::ptx::wgmma::{self, Accumulators, Descriptor};
use crate::ptx::{Shared, async_copy, cluster, pdl, shared};

/// Threads of a block: two warpgroups.
const THREADS: u32 = 256;
/// Weight rows of a block.
const ROWS: u32 = 128;
/// Weight rows of a warpgroup.
const GROUP_ROWS: u32 = 64;
/// From one token's sums to the next in shared memory, in bytes: four banks past a multiple of 16, so that neither
/// the accumulators' layout nor 16-byte reads conflict.
const PITCH: u32 = (ROWS + 4) * 4;

macro_rules! gemm_kernels {
    ($($name:ident: $sums:literal sums, $ahead:literal ahead, $min_blocks:literal blocks, $epilogue:ident, $doc:literal;)*) => {$(
        kernel! {
            #[doc = $doc]
            /// The name gives the tile: tokens × weight rows.
            ///
            /// # Shape and layout
            /// See [`Gemm`]: any `m`, `n`, `k`; `cp.async` where `k` and `ld_a` are multiples of 8, else
            /// element by element. `norm_weight` is not used.
            ///
            /// # Thread mapping
            /// Grid (parts of k, m tiles, n tiles), clusters of all parts of a tile; 256 threads. Dynamic
            /// shared memory is stages · (tokens + 128) · 128 bytes, with two stages more than are loaded ahead.
            ///
            /// # Memory order
            /// Copies are waited for and fenced for the asynchronous proxy before the barrier that opens their
            /// stage. A stage is refilled behind the barrier that follows the wait for its last reader. Partial
            /// sums are read between two cluster barriers.
            ///
            /// # Safety
            /// All rows exist; `w` is written by no kernel in flight; `out` overlaps no input.
            #[launch_bounds(256, $min_blocks)]
            pub fn $name(p: Gemm) {
                product::<[f32; $sums], $epilogue, $ahead>(&p);
            }
        }
    )*};
}

gemm_kernels! {
    wgmma_bf16_32x128_store: 16 sums, 3 ahead, 2 blocks, Store, "`out = a · wᵀ` in bf16.";
    wgmma_bf16_64x128_store: 32 sums, 2 ahead, 2 blocks, Store, "`out = a · wᵀ` in bf16.";
    wgmma_bf16_128x128_store: 64 sums, 4 ahead, 1 blocks, Store, "`out = a · wᵀ` in bf16.";
    wgmma_bf16_256x128_store: 128 sums, 2 ahead, 1 blocks, Store, "`out = a · wᵀ` in bf16.";
}

/// The whole kernel for this block's part of k of its tile.
#[inline(always)]
unsafe fn product<A: Accumulators, E: Epilogue, const AHEAD: u32>(p: &Gemm) {
    let (token, row) = (ctaid_y() * A::N, ctaid_z() * ROWS);
    let ring = Ring::<AHEAD> { base: shared::dynamic(), stage_bytes: (ROWS + A::N) * ROW_BYTES };
    let w = Loader::new(p.w, p.n, p.k, p.k, row, THREADS);
    let a = Loader::new(p.a, p.m, p.ld_a, p.k, token, THREADS);
    let tokens_at = ROWS * ROW_BYTES;

    // This block's tiles of k.
    let n_k_tiles = p.k.div_ceil(BLOCK_K);
    let begin = n_k_tiles * ctaid_x() / nctaid_x();
    let count = n_k_tiles * (ctaid_x() + 1) / nctaid_x() - begin;

    // Prologue; the weights do not wait for the predecessor. Beyond the last tile the groups are empty, so that
    // their count stays right.
    pdl::launch_dependents();
    for i in 0..opaque(AHEAD.min(count)) {
        w.load(ring.stage(i), begin + i, ROWS, THREADS);
    }
    pdl::wait();
    for i in 0..opaque(AHEAD) {
        if i < count {
            a.load(ring.stage(i) + tokens_at, begin + i, A::N, THREADS);
        }
        async_copy::commit();
    }

    // Main loop: the products of a stage run while the next ones are waited for and later ones are loaded.
    let mut sums = A::ZERO;
    let group_at = warp() / 4 * GROUP_ROWS * ROW_BYTES;
    for i in 0..count {
        async_copy::wait_oldest::<AHEAD>();
        fence_proxy_async();
        sync_block();
        let stage = ring.stage(i);
        let (rows, tokens) = (Descriptor::new(stage + group_at), Descriptor::new(stage + tokens_at));
        wgmma::fence();
        for step in 0..BLOCK_K / 16 {
            sums.multiply(rows.at_step(step), tokens.at_step(step));
        }
        wgmma::commit();
        let next = i + AHEAD;
        if next < count {
            w.load(ring.stage(next), begin + next, ROWS, THREADS);
            a.load(ring.stage(next) + tokens_at, begin + next, A::N, THREADS);
        }
        async_copy::commit();
        wgmma::wait::<1>();
    }
    sums.wait();

    // Epilogue. The sums take the place of the stages, which all warps have done with.
    sync_block();
    write_sums(ring.base, &sums);
    cluster::sync();
    let n_tokens = A::N.min(p.m - token);
    finish::<E>(p, ring.base, token, n_tokens, row);
    cluster::sync();
}

/// Stages in dynamic shared memory: rows of weights, then rows of tokens.
struct Ring<const AHEAD: u32> {
    base: Shared,
    stage_bytes: u32,
}

impl<const AHEAD: u32> Ring<AHEAD> {
    /// One is being filled up to `AHEAD` tiles ahead, one is multiplied, one has perhaps not been read to the end.
    const STAGES: u32 = AHEAD + 2;

    #[inline(always)]
    fn stage(&self, i: u32) -> Shared {
        self.base + i % Self::STAGES * self.stage_bytes
    }
}

/// Writes a thread's sums as `[token][weight row]`.
#[inline(always)]
unsafe fn write_sums<A: Accumulators>(to: Shared, sums: &A) {
    let (row, token) = (warp() * 16 + lane() / 4, lane() % 4 * 2);
    let to = to + token * PITCH + row * 4;
    let sums = sums.as_ref();
    for j in 0..A::N / 8 {
        for i in 0..4 {
            let at = to + (8 * j + i % 2) * PITCH + i / 2 * 8 * 4;
            shared::st_f32(at, sums[(4 * j + i) as usize]);
        }
    }
}

/// Adds up this block's share of the tile's tokens over the cluster, eight weight rows of a token a thread.
#[inline(always)]
unsafe fn finish<E: Epilogue>(p: &Gemm, sums: Shared, token: u32, n_tokens: u32, row: u32) {
    const EIGHTS: u32 = ROWS / 8;
    let (rank, n_ranks) = (ctaid_x(), nctaid_x());
    let (first, end) = (n_tokens * rank / n_ranks, n_tokens * (rank + 1) / n_ranks);
    let col = row + tid_x() % EIGHTS * 8;
    let mut t = first + tid_x() / EIGHTS;
    while t < end {
        if col < p.n {
            let at = sums + t * PITCH + tid_x() % EIGHTS * 32;
            let mut y = [0.0; 8];
            for r in 0..n_ranks {
                let part = cluster::map(at, r);
                let (low, high) = (cluster::ld_v4_f32(part), cluster::ld_v4_f32(part + 16));
                for i in 0..4 {
                    y[i] += low[i];
                    y[i + 4] += high[i];
                }
            }
            apply_up_to_8::<E>(p, token + t, col, y);
        }
        t += THREADS / EIGHTS;
    }
}
