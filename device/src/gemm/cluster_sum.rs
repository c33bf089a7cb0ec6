//! The last step of a product whose k the blocks of a cluster share.

use crate::gemm::epilogue::{Epilogue, apply_up_to_8};
use crate::params::Gemm;
use crate::ptx::special::{ctaid_x, nctaid_x, tid_x};
use crate::ptx::{Shared, cluster};

/// Partial sums `[token][column]` in f32, in each block's shared memory.
pub struct Partial {
    pub at: Shared,
    /// Of the output, at `at`.
    pub token: u32,
    pub n_tokens: u32,
    pub col: u32,
    /// A multiple of 8.
    pub n_cols: u32,
}

impl Partial {
    /// From one token to the next, for so many columns: four banks past a multiple of 16, so that neither 16-byte
    /// accesses nor those in the accumulators' layout conflict.
    #[inline(always)]
    pub const fn pitch_bytes(n_cols: u32) -> u32 {
        (n_cols + 4) * 4
    }

    /// Adds up this block's share of the tokens over the cluster's ranks, in their order, eight columns a thread.
    ///
    /// Between the writing of all partial sums and this, and behind it, stands a barrier of the cluster.
    #[inline(always)]
    pub unsafe fn finish<E: Epilogue>(&self, p: &Gemm, threads: u32) {
        let eights = self.n_cols / 8;
        let (rank, n_ranks) = (ctaid_x(), nctaid_x().max(1));
        let (first, end) = (self.n_tokens * rank / n_ranks, self.n_tokens * (rank + 1) / n_ranks);
        let mut i = first * eights + tid_x();
        while i < end * eights {
            let (token, col) = (i / eights, i % eights * 8);
            if self.col + col < p.n {
                let at = self.at + token * Self::pitch_bytes(self.n_cols) + col * 4;
                let mut y = [0.0; 8];
                for r in 0..n_ranks {
                    let part = cluster::map(at, r);
                    let (low, high) = (cluster::ld_v4_f32(part), cluster::ld_v4_f32(part + 16));
                    for j in 0..4 {
                        y[j] += low[j];
                        y[j + 4] += high[j];
                    }
                }
                apply_up_to_8::<E>(p, self.token + token, self.col + col, y);
            }
            i += threads;
        }
    }
}
