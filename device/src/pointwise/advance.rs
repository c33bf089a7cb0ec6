//! The step counter of a captured decode graph.

use crate::params::AdvancePositions;
use crate::ptx::global::{ld_b32, st_b32};
use crate::ptx::special::{ctaid_x, ntid_x, tid_x};
use crate::ptx::{Global, pdl};

kernel! {
    /// Adds one to the position and to the cached length of every sequence, so that a captured decode
    /// graph replays without the host writing anything.
    ///
    /// # Thread mapping
    /// One thread per sequence.
    ///
    /// # Safety
    /// Both arrays hold `n_sequences` values and do not overlap.
    #[launch_bounds(1024, 1)]
    pub fn advance_positions_u32(p: AdvancePositions) {
        pdl::launch_dependents();
        pdl::wait();
        let i = ctaid_x() * ntid_x() + tid_x();
        if i < p.n_sequences {
            increment(p.positions + u64::from(i) * 4);
            increment(p.kv_lens + u64::from(i) * 4);
        }
    }
}

#[inline(always)]
unsafe fn increment(address: Global) {
    st_b32(address, ld_b32(address) + 1);
}
