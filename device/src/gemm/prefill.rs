//! The product over `wgmma` for prompts: tensor cores kept busy by warps that do nothing else.
//!
//! One warpgroup copies, two multiply, 64 tokens each by all weight rows of the tile; they meet at two barriers a
//! stage, full and empty, so that copies run ahead over the end of a tile and both warpgroups at their own pace. The
//! weight rows lie permuted in shared memory, and a lane's sums are eight neighbouring columns, stored from registers.

use crate::gemm::cluster_sum::Partial;
use crate::gemm::epilogue::{Add, Epilogue, Store, StoreF32, SwiGlu, apply_up_to_8};
use crate::gemm::loader::{BLOCK_K, Loader, ROW_BYTES};
use crate::params::Gemm;
use crate::ptx::barrier::{fence_proxy_async, sync_block, sync_some, sync_warp};
use crate::ptx::special::{ctaid_x, ctaid_y, lane, nctaid_x, nctaid_y, opaque, tid_x, warp};
use crate::ptx::wgmma::{self, Accumulators, Descriptor};
use crate::ptx::{Shared, async_copy, cluster, mbarrier, pdl, shared};

/// Threads of a block.
const THREADS: u32 = 384;
/// Those of the first warpgroup, which copy, and their warps.
const PRODUCERS: u32 = 128;
const PRODUCER_WARPS: u32 = PRODUCERS / 32;
/// Those of the other two, which multiply, and their warps.
const CONSUMERS: u32 = THREADS - PRODUCERS;
const CONSUMER_WARPS: u32 = CONSUMERS / 32;
/// Tokens of a tile, and of a warpgroup.
const TOKENS: u32 = 128;
const GROUP_TOKENS: u32 = 64;
/// Most stages.
const MAX_STAGES: u32 = 16;

shared_array! {
    /// Two `mbarrier` a stage: all that are full, then all that are empty.
    barriers: 256 bytes, align 16
}

macro_rules! gemm_kernels {
    ($($name:ident: $sums:literal sums, $stages:literal stages, $epilogue:ident, $doc:literal;)*) => {$(
        kernel! {
            #[doc = $doc]
            /// The name gives the tile: tokens × weight rows.
            ///
            /// # Shape and layout
            /// See [`Gemm`]: any `m`, `n`, `k`; `cp.async` where `k` and `ld_a` are multiples of 8, else
            /// element by element. `norm_weight` is not used.
            ///
            /// # Thread mapping
            /// Grid (parts of k, blocks). With one part a block takes every `blocks`-th tile, m tiles first.
            /// Else the parts of a tile are a cluster, and there are as many as tiles. Dynamic shared memory is
            /// stages · (128 + weight rows) · 128 bytes.
            ///
            /// # Memory order
            /// Producers wait for their copies and fence them for the asynchronous proxy before a warp arrives
            /// at the stage's full barrier; consumers' warps arrive at the empty one when their products have
            /// been waited for. Partial sums are read between two barriers of the cluster.
            ///
            /// # Safety
            /// All rows exist; `w` is written by no kernel in flight; `out` overlaps no input.
            #[launch_bounds(384, 1)]
            pub fn $name(p: Gemm) {
                Tile::<$stages>::product::<[f32; $sums], $epilogue>(&p);
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

/// A place in the ring: its stage, and the parity of the phase that its barriers are in.
struct Place<const STAGES: u32> {
    stage: u32,
    parity: u32,
}

impl<const STAGES: u32> Place<STAGES> {
    const FIRST: Self = Self { stage: 0, parity: 0 };

    #[inline(always)]
    fn advance(&mut self) {
        self.stage += 1;
        if self.stage == STAGES {
            self.stage = 0;
            self.parity ^= 1;
        }
    }

    #[inline(always)]
    fn full(&self) -> Shared {
        barriers() + self.stage * 8
    }

    #[inline(always)]
    fn empty(&self) -> Shared {
        barriers() + (MAX_STAGES + self.stage) * 8
    }
}

/// A block's tiles, and its part of k.
struct Work {
    tile: u32,
    n_tiles: u32,
    m_tiles: u32,
    begin: u32,
    count: u32,
}

impl Work {
    #[inline(always)]
    fn new(p: &Gemm, cols: u32) -> Self {
        let (n_k_tiles, parts) = (p.k.div_ceil(BLOCK_K), nctaid_x().max(1));
        let begin = n_k_tiles * ctaid_x() / parts;
        let count = n_k_tiles * (ctaid_x() + 1) / parts - begin;
        let m_tiles = p.m.div_ceil(TOKENS).max(1);
        Self { tile: ctaid_y(), n_tiles: m_tiles * p.n.div_ceil(cols), m_tiles, begin, count }
    }

    /// First token and first weight row of the tile at hand.
    #[inline(always)]
    fn origin(&self, cols: u32) -> (u32, u32) {
        (self.tile % self.m_tiles * TOKENS, self.tile / self.m_tiles * cols)
    }

    #[inline(always)]
    fn advance(&mut self) {
        self.tile += nctaid_y();
    }
}

struct Tile<const STAGES: u32>;

impl<const STAGES: u32> Tile<STAGES> {
    /// Groups of copies that a producer leaves in flight: with one more, who waits for a stage to become empty would
    /// hold back the one that its last reader waits for.
    const IN_FLIGHT: u32 = STAGES - 2;

    /// The whole kernel.
    #[inline(always)]
    unsafe fn product<A: Accumulators, E: Epilogue>(p: &Gemm) {
        const { assert!(STAGES > 2 && STAGES <= MAX_STAGES) };
        if tid_x() == 0 {
            for stage in 0..opaque(STAGES) {
                let place = Place::<STAGES> { stage, parity: 0 };
                mbarrier::init(place.full(), PRODUCER_WARPS);
                mbarrier::init(place.empty(), CONSUMER_WARPS);
            }
        }
        sync_block();
        pdl::launch_dependents();
        if tid_x() < PRODUCERS {
            Self::produce::<A>(p);
        } else {
            pdl::wait();
            Self::consume::<A, E>(p);
        }
        if nctaid_x() > 1 {
            let (token, col) = Work::new(p, A::N).origin(A::N);
            let n_tokens = TOKENS.min(p.m - token);
            cluster::sync();
            Partial { at: shared::dynamic(), token, n_tokens, col, n_cols: A::N }.finish::<E>(p, THREADS);
            cluster::sync();
        }
    }

    #[inline(always)]
    unsafe fn produce<A: Accumulators>(p: &Gemm) {
        let (base, stage_bytes) = (shared::dynamic(), (TOKENS + A::N) * ROW_BYTES);
        let mut work = Work::new(p, A::N);
        let (mut to, mut ready) = (Place::<STAGES>::FIRST, Place::<STAGES>::FIRST);
        let weights = |row| Loader::new_permuted(p.w, p.n, p.k, p.k, row);

        // The first weights do not wait for the predecessor.
        let early = if work.tile < work.n_tiles { work.count.min(STAGES) } else { 0 };
        let w = weights(work.origin(A::N).1);
        for i in 0..opaque(early) {
            w.load_permuted(base + i * stage_bytes + TOKENS * ROW_BYTES, work.begin + i, A::N);
        }
        pdl::wait();

        let mut copied = 0;
        while work.tile < work.n_tiles {
            let (token, row) = work.origin(A::N);
            let (a, w) = (Loader::new(p.a, p.m, p.ld_a, p.k, token), weights(row));
            for i in work.begin..work.begin + work.count {
                // Before its first use a stage is empty.
                mbarrier::wait(to.empty(), to.parity ^ 1);
                let stage = base + to.stage * stage_bytes;
                a.load(stage, i, TOKENS, PRODUCERS);
                if copied >= early {
                    w.load_permuted(stage + TOKENS * ROW_BYTES, i, A::N);
                }
                async_copy::commit();
                if copied >= Self::IN_FLIGHT {
                    async_copy::wait_ring::<STAGES>();
                    Self::publish(&mut ready);
                }
                copied += 1;
                to.advance();
            }
            work.advance();
        }
        async_copy::wait::<0>();
        for _ in 0..opaque(copied.min(Self::IN_FLIGHT)) {
            Self::publish(&mut ready);
        }
    }

    /// The copies of a stage have been waited for by this warp.
    #[inline(always)]
    unsafe fn publish(ready: &mut Place<STAGES>) {
        fence_proxy_async();
        sync_warp();
        if lane() == 0 {
            mbarrier::arrive(ready.full());
        }
        ready.advance();
    }

    #[inline(always)]
    unsafe fn consume<A: Accumulators, E: Epilogue>(p: &Gemm) {
        let (base, stage_bytes) = (shared::dynamic(), (TOKENS + A::N) * ROW_BYTES);
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
                    Self::give_back(&mut read);
                }
            }
            sums.wait();
            if work.count > 0 {
                Self::give_back(&mut read);
            }
            let (token, row) = work.origin(A::N);
            if nctaid_x() > 1 {
                // The sums take the place of the stages, which all consumers have done with.
                sync_some::<1>(CONSUMERS);
                let pitch = Partial::pitch_bytes(A::N);
                Self::for_each_eight(&sums, |t, c, y| {
                    // SAFETY: inside the stages.
                    unsafe {
                        let at = base + t * pitch + c * 4;
                        shared::st_v4_f32(at, [y[0], y[1], y[2], y[3]]);
                        shared::st_v4_f32(at + 16, [y[4], y[5], y[6], y[7]]);
                    }
                });
            } else {
                Self::for_each_eight(&sums, |t, c, y| {
                    if token + t < p.m && row + c < p.n {
                        // SAFETY: row and column are inside the output.
                        unsafe { apply_up_to_8::<E>(p, token + t, row + c, y) };
                    }
                });
            }
            work.advance();
        }
    }

    #[inline(always)]
    unsafe fn give_back(read: &mut Place<STAGES>) {
        if lane() == 0 {
            mbarrier::arrive(read.empty());
        }
        read.advance();
    }

    /// Calls `each` with token, column (both relative to the tile) and eight neighbouring sums, for all that this
    /// consumer holds.
    #[inline(always)]
    fn for_each_eight<A: Accumulators>(sums: &A, mut each: impl FnMut(u32, u32, [f32; 8])) {
        let sums = sums.as_ref();
        let token = (warp() - PRODUCER_WARPS) * 16 + lane() / 4;
        for q in 0..A::N / 32 {
            for half in 0..2 {
                let y = core::array::from_fn(|i| sums[(16 * q + 2 * half) as usize + i / 2 * 4 + i % 2]);
                each(token + 8 * half, 32 * q + lane() % 4 * 8, y);
            }
        }
    }
}
