//! Stages filled by the threads of the first warpgroup: rows of any alignment.

use super::work::Work;
use super::{PRODUCERS, Place, TOKENS, stage_bytes};
use crate::gemm::loader::{BLOCK_K, CHUNKS, ROW_BYTES};
use crate::params::Gemm;
use crate::ptx::barrier::fence_proxy_async;
use crate::ptx::special::{opaque, tid_x};
use crate::ptx::wgmma::Accumulators;
use crate::ptx::{Global, Shared, async_copy, mbarrier, pdl, shared};
use crate::tile::bf16::{BYTES, PER_VECTOR, gather8};
use crate::tile::ring::Landing;
use crate::tile::swizzle;

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

    /// Permuted as the [kernels'](super) consumers expect them.
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

/// Fills the stages of all tiles; every thread arrives at the full barrier of a stage, behind its copies or stores.
///
/// # Safety
/// As of the kernel; the producers' threads call it together.
#[inline(always)]
pub(super) unsafe fn fill<const STAGES: u32, A: Accumulators>(p: &Gemm) {
    let (base, stage_bytes) = (shared::dynamic(), stage_bytes(A::N));
    let mut work = Work::new(p, A::N);
    let mut to = Place::<STAGES>::FIRST;

    // The first weights do not wait for the predecessor.
    let early = work.early(STAGES);
    let w = Source::of_weights(p, work.origin(A::N).1.min(p.n - 1));
    for i in 0..opaque(early) {
        w.load::<A>(base + i * stage_bytes, work.begin + i);
    }
    pdl::wait();

    let mut loaded = 0;
    let mut landing = Landing::NONE;
    while work.tile < work.n_tiles {
        let (token, row) = work.origin(A::N);
        let (a, w) = (Source::of_tokens(p, token), Source::of_weights(p, row));
        for i in work.begin..work.begin + work.count {
            landing.make_room(&to);
            let stage = base + to.stage * stage_bytes;
            a.load::<A>(stage, i);
            if loaded >= early {
                w.load::<A>(stage, i);
            }
            if is_aligned(p) {
                landing.issued(to.full());
            } else {
                fence_proxy_async();
                mbarrier::arrive(to.full());
            }
            loaded += 1;
            to.advance();
        }
        work.advance();
    }
    landing.end();
}
