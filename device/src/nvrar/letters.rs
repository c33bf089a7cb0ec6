//! The sum over a row whose units lie in many warps, of one block or (sm_90) of a cluster.
//!
//! The warps of a block add up through words in shared memory and a barrier. Each block then puts its sum into a
//! *letter* to every block that shares the row: one 64-bit store of {sum, number of the row} to the other's shared
//! memory, which is its own signal. The tree is fixed by the blocks of a row and their workers: within a warp by
//! lanes, then warps, then blocks in their order. Ranks compare both, so that all of them get the same bits.
//!
//! Two sets of words and letters take turns. That is enough: a block writes a letter of row n + 2 after it has read
//! all of row n + 1, and whoever wrote those had read all of row n. For the same reason no block ends while a letter
//! to it is on its way. There is no time limit here: who awaits a letter awaits blocks that are resident with it, and
//! whose own waits have one.

use super::call::Call;
use crate::params::MAX_ROW_BLOCKS;
use crate::ptx::barrier::sync_some;
use crate::ptx::shared;
use crate::ptx::special::{lane, tid_x, warp};
use crate::tile::reduce::warp_sum;

/// The barrier of the threads that move data.
const WORKERS_MEET: u32 = 2;
/// Most warps of a block that move data.
const MAX_WARPS: usize = 8;
const LETTER_BYTES: u32 = 8;
/// A set: a word per warp, then a letter per block.
const LETTERS_AT: u32 = 4 * MAX_WARPS as u32;
const SET_BYTES: u32 = LETTERS_AT + LETTER_BYTES * MAX_ROW_BLOCKS;

shared_array! {
    /// Two sets.
    sets: 192 bytes, align 16
}
const _: () = assert!(2 * SET_BYTES == 192);

/// What blocks need to add up one row after the other.
#[derive(Clone, Copy)]
pub struct Letters {
    /// Of the row, from 1 on.
    number: u32,
    #[cfg(cuda_arch_min = "90")]
    post: post::Post,
}

impl Letters {
    /// For the first row, which the blocks in x share. All threads of the cluster call it together.
    #[inline(always)]
    pub unsafe fn begin() -> Self {
        if tid_x() < 2 * SET_BYTES / 4 {
            shared::st_b32(sets() + tid_x() * 4, 0);
        }
        #[cfg(cuda_arch_min = "90")]
        return Self { number: 1, post: post::Post::begin() };
        #[cfg(not(cuda_arch_min = "90"))]
        {
            crate::ptx::barrier::sync_block();
            Self { number: 1 }
        }
    }

    /// The sum of `value` over all workers of all blocks of the row; all of them call it.
    #[inline(always)]
    pub unsafe fn sum(&mut self, value: f32) -> f32 {
        let at = self.number % 2 * SET_BYTES;
        let total = warp_sum(value);
        if lane() == 0 {
            shared::st_f32(sets() + at + warp() * 4, total);
        }
        sync_some::<WORKERS_MEET>(Call::workers());
        let words = [shared::ld_v4(sets() + at), shared::ld_v4(sets() + at + 16)];
        let mut sum = 0.0;
        for warp in 0..MAX_WARPS {
            // Words of no warp are 0.
            sum += f32::from_bits(words[warp / 4][warp % 4]);
        }
        #[cfg(cuda_arch_min = "90")]
        {
            sum = self.post.sum_of_blocks(at + LETTERS_AT, self.number, sum);
        }
        self.number += 1;
        sum
    }
}

#[cfg(cuda_arch_min = "90")]
mod post {
    use super::{LETTER_BYTES, sets};
    use crate::params::MAX_ROW_BLOCKS;
    use crate::ptx::cluster;
    use crate::ptx::special::{ctaid_x, lane, nctaid_x, tid_x};

    /// The way to the blocks that share a row.
    #[derive(Clone, Copy)]
    pub struct Post {
        /// The sets of the block that this lane writes to.
        addressee: u64,
    }

    impl Post {
        #[inline(always)]
        pub unsafe fn begin() -> Self {
            cluster::sync();
            Self { addressee: cluster::map(sets(), if lane() < nctaid_x() { lane() } else { ctaid_x() }) }
        }

        /// Sends the block's sum to all blocks, and adds up theirs. Letters lie at `at` in each.
        #[inline(always)]
        pub unsafe fn sum_of_blocks(&self, at: u32, number: u32, own: f32) -> f32 {
            let blocks = nctaid_x();
            if blocks == 1 {
                return own;
            }
            if tid_x() < blocks {
                let place = self.addressee + u64::from(at + ctaid_x() * LETTER_BYTES);
                cluster::st_relaxed_b64(place, u64::from(number) << 32 | u64::from(own.to_bits()));
            }
            loop {
                let (mut sum, mut all) = (0.0, true);
                for pair in 0..MAX_ROW_BLOCKS / 2 {
                    let letters = cluster::ld_relaxed_v2_b64(sets() + at + 2 * pair * LETTER_BYTES);
                    for side in 0..2 {
                        // Places of no block hold 0.
                        sum += f32::from_bits(letters[side] as u32);
                        let there = (letters[side] >> 32) as u32 == number;
                        all &= there | (2 * pair + side as u32 >= blocks);
                    }
                }
                if all {
                    return sum;
                }
            }
        }
    }
}
