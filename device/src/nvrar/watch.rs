//! Waiting with a limit, and what is left behind when it is reached.

use crate::params::{Collective, FAILURE_MISMATCH, FAILURE_TIMEOUT, ROW_RECORD};
use crate::ptx::Global;
use crate::ptx::atomic::{compare_and_swap_gpu, load_u32_gpu};
use crate::ptx::global::ld_b64;
use crate::ptx::system::{globaltimer_ns, st_b32, st_release_b32};

/// Looks at empty places between two looks at clock and failure word.
const LOOKS: u32 = 128;

/// Whom a thread waits for.
#[derive(Clone, Copy)]
pub struct Source {
    /// Rank in the group.
    pub peer: u32,
    /// Bit of the phase.
    pub phase: u32,
    /// Round within it.
    pub step: u32,
}

/// One thread's patience.
pub struct Watch {
    failed: Global,
    record: Global,
    limit_ns: u64,
    /// When the present wait was first found worth timing; 0 before.
    since_ns: u64,
    looks: u32,
    /// The rank has failed: nothing is sent, awaited or written any more.
    pub over: bool,
}

impl Watch {
    /// `failed` is the rank's failure word, `row` its row.
    #[inline(always)]
    pub unsafe fn new(failed: Global, row: Global, limit_ns: u64) -> Self {
        let over = load_u32_gpu(failed) != 0;
        Self { failed, record: row + ROW_RECORD, limit_ns, since_ns: 0, looks: 0, over }
    }

    /// To be called after each look at a place that is still empty; returns whether the limit is
    /// reached for the first time on this rank, and this thread is to say so.
    #[inline(always)]
    pub unsafe fn is_first_to_give_up(&mut self) -> bool {
        self.looks += 1;
        if !self.looks.is_multiple_of(LOOKS) {
            return false;
        }
        let now_ns = globaltimer_ns();
        if self.since_ns == 0 {
            self.since_ns = now_ns;
        }
        self.over = load_u32_gpu(self.failed) != 0;
        if self.over || now_ns - self.since_ns < self.limit_ns {
            return false;
        }
        self.claim()
    }

    /// What was waited for has come: the limit is one wait's, not the call's.
    #[inline(always)]
    pub fn is_rewarded(&mut self) {
        self.since_ns = 0;
    }

    /// Marks the rank as failed; whether this thread was the first to do so.
    #[inline(always)]
    pub unsafe fn claim(&mut self) -> bool {
        self.over = true;
        compare_and_swap_gpu(self.failed, 0, 1) == 0
    }

    /// Writes the record of a message that did not come.
    #[inline(always)]
    pub unsafe fn report_timeout(&self, p: &Collective, rank: u32, from: Source, sequence: u64, seen: u32) {
        self.report(p, FAILURE_TIMEOUT, rank, from, sequence, seen, [0; 2]);
    }

    /// Writes the record of a peer in another call: its number of elements and `meta`.
    #[inline(always)]
    pub unsafe fn report_mismatch(
        &self,
        p: &Collective,
        rank: u32,
        from: Source,
        sequence: u64,
        found: [u32; 2],
    ) {
        self.report(p, FAILURE_MISMATCH, rank, from, sequence, sequence as u32, found);
    }

    /// The fields in the order of [`crate::params::FailureRecord`], the first one last.
    #[inline(always)]
    unsafe fn report(
        &self,
        p: &Collective,
        state: u32,
        rank: u32,
        from: Source,
        sequence: u64,
        seen: u32,
        [peer_numel, peer_meta]: [u32; 2],
    ) {
        let Source { peer, phase, step } = from;
        let (low, high) = (sequence as u32, (sequence >> 32) as u32);
        let fields =
            [p.group, rank, peer, phase, step, seen, low, high, p.numel, p.meta, peer_numel, peer_meta];
        let record = ld_b64(self.record);
        for i in 0..fields.len() {
            st_b32(record + 4 * (i as u64 + 1), fields[i]);
        }
        st_release_b32(record, state);
    }
}
