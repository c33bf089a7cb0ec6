//! Stages filled by the copy engine: one thread issues two boxes a stage.

use core::mem::offset_of;

use super::work::Work;
use super::{Place, TOKENS, stage_bytes};
use crate::gemm::loader::{BLOCK_K, ROW_BYTES};
use crate::params::PrefillGemm;
use crate::ptx::barrier::sync_warp;
use crate::ptx::special::{opaque, tid_x};
use crate::ptx::wgmma::Accumulators;
use crate::ptx::{Shared, mbarrier, pdl, shared, tensor_copy};

/// Weight rows that are permuted among each other.
const PERMUTED: u32 = 32;

/// Where the kernel's parameters are, and in them the maps.
struct Maps {
    params: u64,
}

impl Maps {
    /// The box of tokens.
    #[inline(always)]
    unsafe fn copy_tokens(&self, stage: Shared, k_tile: u32, token: u32, full: Shared) {
        let map = self.params + offset_of!(PrefillGemm, a_map) as u64;
        tensor_copy::copy_2d(stage, map, [k_tile * BLOCK_K, token], full);
    }

    /// The box of weight rows, which the map permutes: row 8t + 2j + e of each 32 comes to row 8j + 2t + e.
    #[inline(always)]
    unsafe fn copy_weights(&self, stage: Shared, k_tile: u32, row: u32, full: Shared) {
        let map = self.params + offset_of!(PrefillGemm, w_map) as u64;
        let at = [k_tile * BLOCK_K, 0, 0, 0, row / PERMUTED];
        tensor_copy::copy_5d(stage + TOKENS * ROW_BYTES, map, at, full);
    }
}

/// Fills the stages of all tiles: the full barrier of a stage is told of its bytes.
///
/// # Safety
/// As of the kernel; the producers' threads call it together, with the address of the kernel's parameters.
#[inline(always)]
pub(super) unsafe fn fill<const STAGES: u32, A: Accumulators>(p: &PrefillGemm, params: u64) {
    let (base, stage_bytes) = (shared::dynamic(), stage_bytes(A::N));
    let maps = Maps { params };
    let is_elected = tid_x() == 0;
    let work = Work::new(&p.gemm, A::N);

    // The first weights do not wait for the predecessor.
    let early = work.early(STAGES);
    if is_elected {
        tensor_copy::prefetch(params + offset_of!(PrefillGemm, a_map) as u64);
        let row = work.origin(A::N).1;
        for stage in 0..opaque(early) {
            let full = Place::<STAGES>::first(stage).full();
            mbarrier::arrive_and_expect(full, stage_bytes);
            maps.copy_weights(base + stage * stage_bytes, work.begin + stage, row, full);
        }
    }
    pdl::wait();
    if is_elected {
        fill_from::<STAGES, A>(&maps, work, early);
    }
    // What comes next may be a barrier of the cluster, for whole warps.
    sync_warp();
}

/// Fills the stages of all tiles, of which `early` have their weights already.
#[inline(always)]
unsafe fn fill_from<const STAGES: u32, A: Accumulators>(maps: &Maps, mut work: Work, early: u32) {
    let (base, stage_bytes) = (shared::dynamic(), stage_bytes(A::N));
    let mut to = Place::<STAGES>::FIRST;
    let mut loaded = 0;
    while work.tile < work.n_tiles {
        let (token, row) = work.origin(A::N);
        for i in work.begin..work.begin + work.count {
            let (stage, full) = (base + to.stage * stage_bytes, to.full());
            if loaded >= early {
                // Before its first use a stage is empty.
                mbarrier::wait(to.empty(), to.parity ^ 1);
                mbarrier::arrive_and_expect(full, stage_bytes);
                maps.copy_weights(stage, i, row, full);
            }
            maps.copy_tokens(stage, i, token, full);
            loaded += 1;
            to.advance();
        }
        work.advance();
    }
}
