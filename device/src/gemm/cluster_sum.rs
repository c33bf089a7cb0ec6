//! The last step of a product whose k the blocks of a cluster share.

use crate::gemm::eight::{Eight, is_eights, write_pairs};
use crate::params::Gemm;
use crate::ptx::special::{ctaid_x, nctaid_x, tid_x};
use crate::ptx::{Shared, cluster};

/// Places of a thread that are read together.
const BATCH: usize = 4;

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

    /// Once all ranks of the cluster have written theirs, adds up this block's share of the tokens in the order of the
    /// ranks, eight columns a thread.
    ///
    /// All threads of the cluster call it; none of them returns before all have read.
    #[inline(always)]
    pub unsafe fn finish<E: Eight>(&self, p: &Gemm, threads: u32) {
        let eights = self.n_cols / 8;
        let (rank, n_ranks) = (ctaid_x(), nctaid_x().max(1));
        let (first, end) = (self.n_tokens * rank / n_ranks, self.n_tokens * (rank + 1) / n_ranks);
        let place = |i: u32| (self.token + i / eights, self.col + i % eights * 8);
        let sum = |i: u32| {
            let at = self.at + i / eights * Self::pitch_bytes(self.n_cols) + i % eights * 32;
            // SAFETY: inside every rank's partial sums, behind the first barrier below.
            unsafe { sum_of_ranks(at, n_ranks) }
        };
        let (mut i, end) = (first * eights + tid_x(), end * eights);
        if !is_eights(p) {
            cluster::sync();
            while i < end {
                let (token, col) = place(i);
                if col < p.n {
                    write_pairs::<E>(p, token, col, sum(i));
                }
                i += threads;
            }
            return cluster::sync();
        }

        // What is added to comes while the other ranks do, and of a few places at a time.
        let fetch = |i: u32| {
            core::array::from_fn(|b| {
                let i = i + b as u32 * threads;
                let (token, col) = place(i);
                // SAFETY: as of this function.
                unsafe { E::fetch(p, token, col, i < end && col < p.n) }
            })
        };
        let mut fetched: [_; BATCH] = fetch(i);
        cluster::sync();
        while i < end {
            for b in 0..BATCH {
                let i = i + b as u32 * threads;
                let (token, col) = place(i);
                if i < end && col < p.n {
                    E::write8(p, token, col, sum(i), fetched[b]);
                }
            }
            i += BATCH as u32 * threads;
            if i < end {
                fetched = fetch(i);
            }
        }
        cluster::sync();
    }
}

#[inline(always)]
unsafe fn sum_of_ranks(at: Shared, n_ranks: u32) -> [f32; 8] {
    let mut y = [0.0; 8];
    for r in 0..n_ranks {
        let part = cluster::map(at, r);
        let (low, high) = (cluster::ld_v4_f32(part), cluster::ld_v4_f32(part + 16));
        for j in 0..4 {
            y[j] += low[j];
            y[j + 4] += high[j];
        }
    }
    y
}
