//! The sum over a row whose units lie in many warps, of one block or (sm_90) of a cluster.
//!
//! The warps of a block add up through words in shared memory and a barrier. Each block then writes its sum, a
//! *letter*, into the shared memory of every block that shares the row (`st.async`), whose mbarrier awaits a letter of
//! each. The tree is fixed by the blocks of a row and their workers: within a warp by lanes, then warps, then blocks in
//! their order. Ranks compare both, so that all of them get the same bits.
//!
//! Two sets of words, letters and mbarriers take turns. That is enough: a block writes a letter of row n + 2 after it
//! has read all of row n + 1, and whoever wrote those had read all of row n. For the same reason no block ends while a
//! letter to it is on its way. There is no time limit here: who awaits a letter awaits blocks that are resident with
//! it, and whose own waits have one.

use super::call::Call;
use crate::params::MAX_ROW_BLOCKS;
use crate::ptx::barrier::sync_some;
use crate::ptx::special::{here, lane, nctaid_x, tid_x, warp};
use crate::ptx::{Shared, shared};
use crate::tile::reduce::warp_sum;

/// The barrier of the threads that move data.
const WORKERS_MEET: u32 = 2;
/// Most warps of a block that move data.
const MAX_WARPS: usize = 8;
const LETTER_BYTES: u32 = 4;
/// A set: a word per warp, a letter per block, the mbarrier of these.
const LETTERS_AT: u32 = 4 * MAX_WARPS as u32;
#[cfg(cuda_arch_min = "90")]
const MBARRIER_AT: u32 = LETTERS_AT + LETTER_BYTES * MAX_ROW_BLOCKS;
const SET_BYTES: u32 = 80;
/// Words and letters of a set.
const WORDS: u32 = MAX_WARPS as u32 + MAX_ROW_BLOCKS;
const _: () =
    assert!(LETTERS_AT + LETTER_BYTES * MAX_ROW_BLOCKS + 8 <= SET_BYTES && SET_BYTES.is_multiple_of(16));

shared_array! {
    /// Two sets.
    sets: 160 bytes, align 16
}
const _: () = assert!(2 * SET_BYTES == 160 && MAX_WARPS == 8 && MAX_ROW_BLOCKS == 8);

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
        // Words of no warp and letters of no block stay 0.
        let (set, word) = (tid_x() / WORDS, tid_x() % WORDS);
        let is_used = word < Call::workers() / 32 || word.wrapping_sub(MAX_WARPS as u32) < nctaid_x();
        if set < 2 && !is_used {
            shared::st_b32(sets() + set * SET_BYTES + word * 4, 0);
        }
        #[cfg(cuda_arch_min = "90")]
        return Self { number: 1, post: post::Post::begin() };
        #[cfg(not(cuda_arch_min = "90"))]
        Self { number: 1 }
    }

    /// The sum of `value` over all workers of all blocks of the row; all of them call it.
    #[inline(always)]
    pub unsafe fn sum(&mut self, value: f32) -> f32 {
        let at = here(self.number) % 2 * SET_BYTES;
        let total = warp_sum(value);
        if lane() == 0 {
            shared::st_f32(sets() + at + warp() * 4, total);
        }
        sync_some::<WORKERS_MEET>(Call::workers());
        let sum = add_up(sets() + at);
        #[cfg(cuda_arch_min = "90")]
        let sum = self.post.sum_of_blocks(at, self.number, sum);
        self.number += 1;
        sum
    }
}

/// The sum of eight numbers; those of no warp and of no block are 0.
#[inline(always)]
unsafe fn add_up(at: Shared) -> f32 {
    let words = [shared::ld_v4(at), shared::ld_v4(at + 16)];
    words.into_iter().flatten().fold(0.0, |sum, word| sum + f32::from_bits(word))
}

#[cfg(cuda_arch_min = "90")]
mod post {
    use super::{LETTER_BYTES, LETTERS_AT, MBARRIER_AT, SET_BYTES, add_up, sets};
    use crate::ptx::special::{ctaid_x, nctaid_x, tid_x};
    use crate::ptx::{cluster, mbarrier};

    /// The way to the blocks that share a row.
    #[derive(Clone, Copy)]
    pub struct Post;

    impl Post {
        #[inline(always)]
        pub unsafe fn begin() -> Self {
            if tid_x() == 0 {
                mbarrier::init(sets() + MBARRIER_AT, 1);
                mbarrier::init(sets() + SET_BYTES + MBARRIER_AT, 1);
                mbarrier::fence_init();
            }
            cluster::arrive();
            Self
        }

        /// Sends the block's sum of row `number` to all blocks, and adds up theirs, in the set at `set`.
        #[inline(always)]
        pub unsafe fn sum_of_blocks(self, set: u32, number: u32, own: f32) -> f32 {
            let blocks = nctaid_x();
            if blocks == 1 {
                return own;
            }
            if number == 1 {
                // The others' mbarriers are ready: their blocks began long ago.
                cluster::wait();
            }
            if tid_x() < blocks {
                let there = cluster::map(sets() + set, tid_x());
                let place = there + LETTERS_AT + ctaid_x() * LETTER_BYTES;
                cluster::st_async_b32(place, own.to_bits(), there + MBARRIER_AT);
            }
            let here = sets() + set;
            // Letters may come before they are expected: the phase needs this arrival, too.
            if tid_x() == 0 {
                mbarrier::arrive_and_expect(here + MBARRIER_AT, blocks * LETTER_BYTES);
            }
            // Rows number 1 and 2 are the first phases of their mbarriers.
            mbarrier::wait_cluster(here + MBARRIER_AT, (number - 1) / 2 % 2);
            add_up(here + LETTERS_AT)
        }
    }
}
