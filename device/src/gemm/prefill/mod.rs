//! The product over `wgmma` for prompts: tensor cores kept busy by warps that do nothing else.
//!
//! One warpgroup fills the stages, two multiply, 64 tokens each by all weight rows of the tile; they meet at two barriers
//! a stage, full and empty, so that copies run ahead over the end of a tile and both warpgroups at their own pace. Of each
//! 32 weight rows, row 8t + 2j + e lies at row 8j + 2t + e in shared memory (t, j below 4, e below 2), so that a lane's
//! sums of 32 columns are eight neighbours, stored from registers.

mod by_maps;
mod by_threads;
mod work;

use self::work::Work;
use crate::gemm::cluster_sum::Partial;
use crate::gemm::eight::{Eight, is_eights, write_pairs};
use crate::gemm::epilogue::{Add, Store, StoreF32, SwiGlu};
use crate::gemm::loader::{BLOCK_K, ROW_BYTES};
use crate::params::{Gemm, PrefillGemm};
use crate::ptx::barrier::{fence_proxy_async, sync_block, sync_some};
use crate::ptx::special::{lane, nctaid_x, tid_x, warp};
use crate::ptx::wgmma::{self, Accumulators, Descriptor};
use crate::ptx::{Shared, mbarrier, pdl, shared};
use crate::tile::ring::{self, BARRIER_BYTES, Barriers};

/// Threads of a block.
const THREADS: u32 = 384;
/// Those of the first warpgroup, which fill the stages, and their warps.
const PRODUCERS: u32 = 128;
const PRODUCER_WARPS: u32 = PRODUCERS / 32;
/// Those of the other two, which multiply, and their warps.
const CONSUMERS: u32 = THREADS - PRODUCERS;
const CONSUMER_WARPS: u32 = CONSUMERS / 32;
/// Tokens of a tile, and of a warpgroup.
const TOKENS: u32 = 128;
const GROUP_TOKENS: u32 = 64;

/// Bytes of a stage: the tokens, then so many weight rows.
#[inline(always)]
const fn stage_bytes(weight_rows: u32) -> u32 {
    (TOKENS + weight_rows) * ROW_BYTES
}

shared_array! {
    /// Those of the ring.
    barriers: 256 bytes, align 16
}
const _: () = assert!(BARRIER_BYTES == 256);

/// The ring's.
struct Stages;

impl Barriers for Stages {
    #[inline(always)]
    fn barriers() -> Shared {
        barriers()
    }
}

type Place<const STAGES: u32> = ring::Place<Stages, STAGES>;

macro_rules! gemm_kernels {
    ($($name:ident: $sums:literal sums, $stages:literal stages, $epilogue:ident, $doc:literal;)*) => {$(
        kernel! {
            #[doc = $doc]
            /// The name gives the tile: tokens × weight rows.
            ///
            /// # Shape and layout
            /// See [`PrefillGemm`]: any `m`, `n`, `k`; tensor copies where the launch has maps, else `cp.async`
            /// where `k` and `ld_a` are multiples of 8, else element by element. `norm_weight` is not used.
            ///
            /// # Thread mapping
            /// Grid (parts of k, blocks). With one part a block takes every `blocks`-th tile, m tiles first.
            /// Else the parts of a tile are a cluster, and there are as many as tiles. Dynamic shared memory is
            /// stages · (128 + weight rows) · 128 bytes.
            ///
            /// # Memory order
            /// The copy engine tells a stage's full barrier of its bytes; threads that fill one fence what they have
            /// written for the asynchronous proxy and arrive there. Consumers' warps arrive at the empty one when
            /// their products have been waited for. Partial sums are read between two barriers of the cluster.
            ///
            /// # Safety
            /// All rows exist; `w` is written by no kernel in flight; `out` overlaps no input; maps are of these
            /// matrices and this tile.
            // Tensor maps lie at multiples of 64.
            #[launch_bounds(384, 1, align = 64)]
            pub fn $name(p: PrefillGemm) {
                Tile::<$stages>::product::<[f32; $sums], $epilogue>(&p, param_address!($name));
            }
        }
    )*};
}

gemm_kernels! {
    wgmma_bf16_128x128_store: 64 sums, 6 stages, Store, "`out = a · wᵀ` in bf16.";
    wgmma_bf16_128x128_f32: 64 sums, 6 stages, StoreF32, "`out = a · wᵀ` in f32.";
    wgmma_bf16_128x128_add: 64 sums, 6 stages, Add, "`out += a · wᵀ` in bf16.";
    wgmma_bf16_128x128_swiglu: 64 sums, 6 stages, SwiGlu, "`out = silu(gate) · up` of interleaved `a · wᵀ`.";
    wgmma_bf16_128x192_store: 96 sums, 5 stages, Store, "`out = a · wᵀ` in bf16.";
    wgmma_bf16_128x192_f32: 96 sums, 5 stages, StoreF32, "`out = a · wᵀ` in f32.";
    wgmma_bf16_128x192_add: 96 sums, 5 stages, Add, "`out += a · wᵀ` in bf16.";
    wgmma_bf16_128x192_swiglu: 96 sums, 5 stages, SwiGlu, "`out = silu(gate) · up` of interleaved `a · wᵀ`.";
    wgmma_bf16_128x256_store: 128 sums, 4 stages, Store, "`out = a · wᵀ` in bf16.";
    wgmma_bf16_128x256_f32: 128 sums, 4 stages, StoreF32, "`out = a · wᵀ` in f32.";
    wgmma_bf16_128x256_add: 128 sums, 4 stages, Add, "`out += a · wᵀ` in bf16.";
    wgmma_bf16_128x256_swiglu: 128 sums, 4 stages, SwiGlu, "`out = silu(gate) · up` of interleaved `a · wᵀ`.";
}

struct Tile<const STAGES: u32>;

impl<const STAGES: u32> Tile<STAGES> {
    /// The whole kernel, whose parameters are at this generic address.
    #[inline(always)]
    unsafe fn product<A: Accumulators, E: Eight>(params: &PrefillGemm, at: u64) {
        // One is filled while one is multiplied and one is given back.
        const { assert!(STAGES > 2) };
        let (p, has_maps) = (&params.gemm, params.has_maps != 0);
        if tid_x() == 0 {
            Place::<STAGES>::init(if has_maps { 1 } else { PRODUCERS }, CONSUMER_WARPS);
            // The copy engine must find them initialised.
            fence_proxy_async();
        }
        sync_block();
        pdl::launch_dependents();
        if tid_x() >= PRODUCERS {
            pdl::wait();
            Self::consume::<A, E>(p);
        } else if has_maps {
            by_maps::fill::<STAGES, A>(params, at);
        } else {
            by_threads::fill::<STAGES, A>(p);
        }
        if nctaid_x() > 1 {
            let (token, col) = Work::new(p, A::N).origin(A::N);
            let n_tokens = TOKENS.min(p.m - token);
            Partial { at: shared::dynamic(), token, n_tokens, col, n_cols: A::N }.finish::<E>(p, THREADS);
        }
    }

    #[inline(always)]
    unsafe fn consume<A: Accumulators, E: Eight>(p: &Gemm) {
        let (base, stage_bytes) = (shared::dynamic(), stage_bytes(A::N));
        let group_at = (tid_x() - PRODUCERS) / 128 * GROUP_TOKENS * ROW_BYTES;
        let mut work = Work::new(p, A::N);
        let (mut at, mut read) = (Place::<STAGES>::FIRST, Place::<STAGES>::FIRST);
        while work.tile < work.n_tiles {
            let mut sums = A::ZERO;
            for i in 0..work.count {
                mbarrier::wait(at.full(), at.parity);
                let stage = base + at.stage * stage_bytes;
                let (tokens, rows) =
                    (Descriptor::new(stage + group_at), Descriptor::new(stage + TOKENS * ROW_BYTES));
                wgmma::fence();
                for step in 0..BLOCK_K / 16 {
                    sums.multiply(tokens.at_step(step), rows.at_step(step));
                }
                wgmma::commit();
                at.advance();
                // The products of the stage before have ended.
                wgmma::wait::<1>();
                if i > 0 {
                    read.give_back();
                    read.advance();
                }
            }
            sums.wait();
            if work.count > 0 {
                read.give_back();
                read.advance();
            }
            let (token, row) = work.origin(A::N);
            if nctaid_x() > 1 {
                // The sums take the place of the stages, which all consumers have done with.
                sync_some::<1>(CONSUMERS);
                Self::write_partial(base, &sums);
            } else {
                Self::write::<A, E>(p, &sums, token, row);
            }
            work.advance();
        }
    }

    /// Writes a consumer's sums as `[token][column]`.
    #[inline(always)]
    unsafe fn write_partial<A: Accumulators>(to: Shared, sums: &A) {
        for q in 0..A::N / 32 {
            for half in 0..2 {
                let (t, c) = Self::place((q, half));
                let at = to + t * Partial::pitch_bytes(A::N) + c * 4;
                let [a, b, c, d, e, f, g, h] = Self::eight(sums, (q, half));
                shared::st_v4_f32(at, [a, b, c, d]);
                shared::st_v4_f32(at + 16, [e, f, g, h]);
            }
        }
    }

    /// Writes a consumer's results of the tile at this token and weight row.
    #[inline(always)]
    unsafe fn write<A: Accumulators, E: Eight>(p: &Gemm, sums: &A, token: u32, row: u32) {
        let place = |part| {
            let (t, c) = Self::place(part);
            (token + t, row + c)
        };
        if !is_eights(p) {
            for q in 0..A::N / 32 {
                for half in 0..2 {
                    let (token, col) = place((q, half));
                    if token < p.m && col < p.n {
                        write_pairs::<E>(p, token, col, Self::eight(sums, (q, half)));
                    }
                }
            }
            return;
        }
        // What is added to comes for 64 columns of two tokens at a time, so that few waits follow each other.
        for pair in 0..A::N / 64 {
            let part = |j: usize| (2 * pair + j as u32 / 2, j as u32 % 2);
            let fetched: [_; 4] = core::array::from_fn(|j| {
                let (token, col) = place(part(j));
                // SAFETY: as of this function.
                unsafe { E::fetch(p, token, col, token < p.m && col < p.n) }
            });
            for j in 0..4 {
                let (token, col) = place(part(j));
                if token < p.m && col < p.n {
                    E::write8(p, token, col, Self::eight(sums, part(j)), fetched[j]);
                }
            }
        }
    }

    /// Eight neighbouring sums: of 32 columns and of one of this consumer's two rows.
    #[inline(always)]
    fn eight<A: Accumulators>(sums: &A, (q, half): (u32, u32)) -> [f32; 8] {
        core::array::from_fn(|i| sums.as_ref()[(16 * q + 2 * half) as usize + i / 2 * 4 + i % 2])
    }

    /// Their token and first column, relative to the tile.
    #[inline(always)]
    fn place((q, half): (u32, u32)) -> (u32, u32) {
        ((warp() - PRODUCER_WARPS) * 16 + lane() / 4 + 8 * half, 32 * q + lane() % 4 * 8)
    }
}
