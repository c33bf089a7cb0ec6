//! The product over `wgmma` for prompts: tensor cores kept busy by warps that do nothing else.
//!
//! One warpgroup copies, two multiply, 64 tokens each by all weight rows of the tile; they meet at two barriers a
//! stage, full and empty, so that copies run ahead over the end of a tile and both warpgroups at their own pace. The
//! weight rows lie permuted in shared memory, and a lane's sums are eight neighbouring columns, stored from registers.

use crate::gemm::cluster_sum::Partial;
use crate::gemm::eight::{Eight, is_eights, write_pairs};
use crate::gemm::epilogue::{Add, Store, StoreF32, SwiGlu};
use crate::gemm::loader::{BLOCK_K, CHUNKS, ROW_BYTES};
use crate::params::Gemm;
use crate::ptx::barrier::{fence_proxy_async, sync_block, sync_some};
use crate::ptx::special::{ctaid_x, ctaid_y, lane, nctaid_x, nctaid_y, opaque, tid_x, warp};
use crate::ptx::wgmma::{self, Accumulators, Descriptor};
use crate::ptx::{Global, Shared, async_copy, mbarrier, pdl, shared};
use crate::tile::bf16::{BYTES, PER_VECTOR, gather8};
use crate::tile::ring::{self, BARRIER_BYTES, Barriers};
use crate::tile::swizzle;

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
            /// See [`Gemm`]: any `m`, `n`, `k`; `cp.async` where `k` and `ld_a` are multiples of 8, else
            /// element by element. `norm_weight` is not used.
            ///
            /// # Thread mapping
            /// Grid (parts of k, blocks). With one part a block takes every `blocks`-th tile, m tiles first.
            /// Else the parts of a tile are a cluster, and there are as many as tiles. Dynamic shared memory is
            /// stages · (128 + weight rows) · 128 bytes.
            ///
            /// # Memory order
            /// Copies arrive at their stage's full barrier; who has waited for it fences them for the asynchronous
            /// proxy. Consumers' warps arrive at the empty one when their products have been waited for.
            /// Partial sums are read between two barriers of the cluster.
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

/// A thread's chunks of the rows of one matrix in a tile. Rows beyond the matrix are its last one again, since their
/// results are dropped; columns beyond it are zeros.
struct Source {
    /// The tile's first row.
    rows: Global,
    stride: u32,
    /// The tile's last row that exists, and this thread's first.
    last: u32,
    row: u32,
    column: u32,
    k: u32,
    /// Where the tile's rows are in a stage, and whether they are permuted.
    at: Shared,
    permuted: bool,
    aligned: bool,
}

impl Source {
    #[inline(always)]
    fn of_tokens(p: &Gemm, token: u32) -> Self {
        Self {
            rows: p.a + u64::from(token) * u64::from(p.ld_a) * BYTES,
            stride: p.ld_a,
            last: p.m - 1 - token,
            row: tid_x() / CHUNKS,
            column: tid_x() % CHUNKS * PER_VECTOR,
            k: p.k,
            at: 0,
            permuted: false,
            aligned: is_aligned(p),
        }
    }

    /// Of each 32 rows, row 8t + 2j + e lies at row 8j + 2t + e (t, j below 4, e below 2), so that a lane's sums of 32
    /// columns are eight neighbours.
    #[inline(always)]
    fn of_weights(p: &Gemm, row: u32) -> Self {
        let r = tid_x() / CHUNKS;
        Self {
            rows: p.w + u64::from(row) * u64::from(p.k) * BYTES,
            stride: p.k,
            last: p.n - 1 - row,
            row: r % 8 / 2 * 8 + r / 8 * 2 + r % 2,
            column: tid_x() % CHUNKS * PER_VECTOR,
            k: p.k,
            at: TOKENS * ROW_BYTES,
            permuted: true,
            aligned: is_aligned(p),
        }
    }

    /// The tile's rows of `k_tile`, 16 at a time.
    #[inline(always)]
    unsafe fn load<A: Accumulators>(&self, stage: Shared, k_tile: u32) {
        const PER_PASS: u32 = PRODUCERS / CHUNKS;
        let n_passes = if self.permuted { A::N } else { TOKENS } / PER_PASS;
        let row = |pass: u32| {
            let offset = if self.permuted { pass / 2 * 32 + pass % 2 * 4 } else { pass * PER_PASS };
            let row = (self.row + offset).min(self.last);
            u64::from(row * BYTES as u32) * u64::from(self.stride)
        };
        let target = swizzle::address::<CHUNKS>(stage + self.at, tid_x() / CHUNKS, tid_x() % CHUNKS);
        let column = self.column + k_tile * BLOCK_K;
        if self.aligned {
            // Where nothing is read the address must still be one of the matrix.
            let inside = column < self.k;
            let source = self.rows + if inside { u64::from(column) * BYTES } else { 0 };
            for pass in 0..n_passes {
                // Rows a multiple of 8 apart are swizzled alike.
                let to = target + pass * PER_PASS * ROW_BYTES;
                async_copy::copy_16(to, source + row(pass), if inside { 16 } else { 0 });
            }
            return;
        }
        for pass in 0..opaque(n_passes) {
            shared::st_v4(
                target + pass * PER_PASS * ROW_BYTES,
                gather8(self.rows + row(pass), column, self.k),
            );
        }
    }
}

/// The rows of both matrices are 16-byte aligned, so that asynchronous copies can take them.
#[inline(always)]
fn is_aligned(p: &Gemm) -> bool {
    p.ld_a.is_multiple_of(PER_VECTOR) && p.k.is_multiple_of(PER_VECTOR)
}

struct Tile<const STAGES: u32>;

impl<const STAGES: u32> Tile<STAGES> {
    /// The whole kernel.
    #[inline(always)]
    unsafe fn product<A: Accumulators, E: Eight>(p: &Gemm) {
        if tid_x() == 0 {
            Place::<STAGES>::init(PRODUCERS, CONSUMER_WARPS);
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
            Partial { at: shared::dynamic(), token, n_tokens, col, n_cols: A::N }.finish::<E>(p, THREADS);
        }
    }

    #[inline(always)]
    unsafe fn produce<A: Accumulators>(p: &Gemm) {
        let (base, stage_bytes) = (shared::dynamic(), (TOKENS + A::N) * ROW_BYTES);
        let mut work = Work::new(p, A::N);
        let mut to = Place::<STAGES>::FIRST;

        // The first weights do not wait for the predecessor.
        let early = if work.tile < work.n_tiles { work.count.min(STAGES) } else { 0 };
        let w = Source::of_weights(p, work.origin(A::N).1.min(p.n - 1));
        for i in 0..opaque(early) {
            w.load::<A>(base + i * stage_bytes, work.begin + i);
        }
        pdl::wait();

        let mut loaded = 0;
        while work.tile < work.n_tiles {
            let (token, row) = work.origin(A::N);
            let (a, w) = (Source::of_tokens(p, token), Source::of_weights(p, row));
            for i in work.begin..work.begin + work.count {
                // Before its first use a stage is empty.
                mbarrier::wait(to.empty(), to.parity ^ 1);
                let stage = base + to.stage * stage_bytes;
                a.load::<A>(stage, i);
                if loaded >= early {
                    w.load::<A>(stage, i);
                }
                if is_aligned(p) {
                    async_copy::arrive_behind(to.full());
                } else {
                    mbarrier::arrive(to.full());
                }
                loaded += 1;
                to.advance();
            }
            work.advance();
        }
        // Nobody leaves with copies in flight.
        async_copy::wait_all();
    }

    #[inline(always)]
    unsafe fn consume<A: Accumulators, E: Eight>(p: &Gemm) {
        let (base, stage_bytes) = (shared::dynamic(), (TOKENS + A::N) * ROW_BYTES);
        let group_at = (tid_x() - PRODUCERS) / 128 * GROUP_TOKENS * ROW_BYTES;
        let mut work = Work::new(p, A::N);
        let (mut at, mut read) = (Place::<STAGES>::FIRST, Place::<STAGES>::FIRST);
        while work.tile < work.n_tiles {
            let mut sums = A::ZERO;
            for i in 0..work.count {
                mbarrier::wait(at.full(), at.parity);
                fence_proxy_async();
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
                Self::write_partial(base, &sums);
            } else {
                Self::write::<A, E>(p, &sums, token, row);
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
