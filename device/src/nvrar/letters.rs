//! The sum of squares of a row whose units lie in many warps, of one block or (sm_90) of a cluster.
//!
//! The lanes of a warp add up a *group* of 32 units. The warp puts the group's sum into a *letter* to every block
//! that shares the row: one 64-bit store of {sum, number of the row} to shared memory, which is its own signal. Each
//! warp reads all letters of the row in its own block. The tree is fixed by the row's length alone: within a group
//! by lanes, then every 32nd group, then across. So all ranks, grids and architectures get the same bits.
//!
//! Two sets of letters take turns. That is enough: a warp writes a letter of row n + 2 after it has read all of
//! row n + 1, and whoever wrote those had read all of row n. For the same reason no block ends while a letter to
//! it is on its way. There is no time limit here: who awaits a letter awaits warps that are resident with it, and
//! whose own waits have one.

use crate::params::{LETTER_UNITS, MAX_LETTERS};
use crate::ptx::Shared;
use crate::ptx::special::{lane, ntid_x, tid_x};
use crate::tile::reduce::warp_sum;

/// Bytes of a letter.
const LETTER_BYTES: u32 = 8;
/// Bytes of a set.
const SET_BYTES: u32 = MAX_LETTERS * LETTER_BYTES;

shared_array! {
    /// Two sets of letters.
    letters: 4096 bytes, align 16
}
const _: () = assert!(2 * SET_BYTES == 4096);

/// Letters of one row.
#[derive(Clone, Copy)]
pub struct Letters {
    /// Where they lie in each block.
    set: Shared,
    /// Which row of this launch it is, from 1 on.
    number: u32,
    /// Blocks that share it.
    blocks: u32,
    /// Groups that it has.
    groups: u32,
}

impl Letters {
    /// Those of the first row, all rows having `row_units` units. All threads of the cluster call it together,
    /// before the first letter.
    #[inline(always)]
    pub unsafe fn begin(blocks: u32, row_units: u32) -> Self {
        let groups = row_units.div_ceil(LETTER_UNITS);
        for set in [letters(), letters() + SET_BYTES] {
            let mut group = tid_x();
            while group < groups {
                st(set + group * LETTER_BYTES, 0);
                group += ntid_x();
            }
        }
        sync();
        Self { set: letters(), number: 1, blocks, groups }
    }

    /// Those of the next row.
    #[inline(always)]
    pub fn of_next_row(self) -> Self {
        let set = letters() + self.number % 2 * SET_BYTES;
        Self { set, number: self.number + 1, ..self }
    }

    /// Adds up `squares` over the lanes and sends the sum to all blocks. The whole warp calls it.
    #[inline(always)]
    pub unsafe fn send(&self, group: u32, squares: f32) {
        let letter = u64::from(self.number) << 32 | u64::from(warp_sum(squares).to_bits());
        let place = self.set + group * LETTER_BYTES;
        if self.blocks == 1 {
            if lane() == 0 {
                st(place, letter);
            }
        } else if lane() < self.blocks {
            st_to(lane(), place, letter);
        }
    }

    /// Awaits all letters; their sum. The whole warp calls it.
    #[inline(always)]
    pub unsafe fn sum(&self) -> f32 {
        let mut sum = 0.0;
        let mut group = lane();
        while group < self.groups {
            let mut letter = ld(self.set + group * LETTER_BYTES);
            while (letter >> 32) as u32 != self.number {
                letter = ld(self.set + group * LETTER_BYTES);
            }
            sum += f32::from_bits(letter as u32);
            group += LETTER_UNITS;
        }
        warp_sum(sum)
    }
}

#[cfg(cuda_arch_min = "90")]
use cluster_wide::{ld, st, st_to, sync};

#[cfg(cuda_arch_min = "90")]
mod cluster_wide {
    use crate::ptx::cluster;
    pub use crate::ptx::cluster::{ld_relaxed_b64 as ld, sync};
    pub use crate::ptx::shared::st_relaxed_b64 as st;

    /// Stores at the same place in another block.
    #[inline(always)]
    pub unsafe fn st_to(block: u32, place: u32, letter: u64) {
        cluster::st_relaxed_b64(cluster::map(place, block), letter);
    }
}

#[cfg(not(cuda_arch_min = "90"))]
use block_wide::{ld, st, st_to, sync};

/// Without clusters a row belongs to one block.
#[cfg(not(cuda_arch_min = "90"))]
mod block_wide {
    pub use crate::ptx::barrier::sync_block as sync;
    pub use crate::ptx::shared::{ld_relaxed_b64 as ld, st_relaxed_b64 as st};

    /// Never called.
    #[inline(always)]
    pub unsafe fn st_to(_block: u32, place: u32, letter: u64) {
        st(place, letter);
    }
}
