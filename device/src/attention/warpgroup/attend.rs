//! The warpgroups that attend, 64 query tokens each.

use super::softmax::{Rows, Scores, Weights, mask, scale_rows, shrink_rows, weights};
use super::{CONSUMERS, GROUP_Q, Keys, PANEL_BYTES, PRODUCERS, Prefill, TILE, Values, Work, queries_full};
use crate::params::AttnPrefill;
use crate::ptx::barrier::{arrive_at, sync_at};
use crate::ptx::global::st_v4;
use crate::ptx::math::{bf16x2, rcp};
use crate::ptx::mbarrier;
use crate::ptx::shuffle::broadcast;
use crate::ptx::special::{lane, tid_x, warp};
use crate::ptx::wgmma::{self, Accumulators, Descriptor, Transposed};
use crate::tile::bf16::BYTES;
use crate::tile::transpose;

/// The order in which two warpgroups issue their products: each waits for its turn at a barrier of its own, where the
/// other one arrives.
struct Turns {
    group: u32,
}

impl Turns {
    /// The first warpgroup begins.
    #[inline(always)]
    fn begin(group: u32) -> Self {
        if group == 1 {
            arrive_at(1, CONSUMERS);
        }
        Self { group }
    }

    #[inline(always)]
    fn take(&self) {
        sync_at(1 + self.group, CONSUMERS);
    }

    #[inline(always)]
    fn pass(&self) {
        arrive_at(2 - self.group, CONSUMERS);
    }

    /// Takes the turn that nobody needs any more, so that no barrier is left half full.
    #[inline(always)]
    fn end(self) {
        if self.group == 0 {
            sync_at(1, CONSUMERS);
        }
    }
}

impl<const HEAD_DIM: u32, const STAGES: u32> Prefill<HEAD_DIM, STAGES> {
    /// Attends with this warpgroup's queries, and writes their results.
    #[inline(always)]
    pub(super) unsafe fn attend<O: Accumulators>(p: &AttnPrefill, work: &Work) {
        const { assert!(O::N == HEAD_DIM) };
        // Of lane 0: so the assembler sees that it is the same in all lanes, and keeps what follows from it in uniform
        // registers, where descriptors have to be.
        let group = broadcast((tid_x() - PRODUCERS) / 128, 0);
        let q = Descriptor::new(Self::queries() + group * GROUP_Q * 128);
        let scale = p.scale * core::f32::consts::LOG2_E;
        // Values are given back a tile later than they are waited for.
        let (mut keys, mut values) = (Keys::<STAGES>::FIRST, Values::<STAGES>::FIRST);
        let mut read = Values::<STAGES>::FIRST;
        let (mut rows, mut out) = (Rows::NEW, O::ZERO);
        let turns = Turns::begin(group);

        // The last tile's weights.
        let mut tile = work.n_tiles() - 1;
        mbarrier::wait(queries_full(), 0);
        mbarrier::wait(keys.full(), keys.parity);
        let mut scores = Self::scores(q, &keys);
        scores.wait();
        keys.give_back();
        Self::hide(&mut scores, work, group, tile);
        rows.exponentials(&mut scores, scale);
        Self::wait_for_next(&mut keys, &values, tile);
        let mut tile_weights = weights(&scores);

        while tile > 0 {
            tile -= 1;
            turns.take();
            let mut scores = Self::scores(q, &keys);
            Self::add_values(&mut out, &tile_weights, &values);
            values.advance();
            turns.pass();

            // This tile's exponentials, while the values of the one before are added up.
            scores.wait_until::<1>();
            keys.give_back();
            Self::hide(&mut scores, work, group, tile);
            let shrink = rows.exponentials(&mut scores, scale);
            Self::wait_for_next(&mut keys, &values, tile);

            out.wait();
            tile_weights.iter().for_each(wgmma::keep);
            read.give_back();
            read.advance();
            shrink_rows(out.as_mut(), shrink);
            tile_weights = weights(&scores);
        }
        turns.end();

        Self::add_values(&mut out, &tile_weights, &values);
        out.wait();
        tile_weights.iter().for_each(wgmma::keep);
        scale_rows(out.as_mut(), rows.sums().map(rcp));
        Self::store(p, work, out.as_ref());
    }

    /// Waits for what comes next after the scores of `tile`: its values, and the keys of the tile below.
    ///
    /// It stands between exponentials and the wait for products because the assembler moves that wait up to the last
    /// branch: products and exponentials would not overlap.
    #[inline(always)]
    unsafe fn wait_for_next(keys: &mut Keys<STAGES>, values: &Values<STAGES>, tile: u32) {
        keys.advance();
        if tile > 0 {
            mbarrier::wait(keys.full(), keys.parity);
        }
        mbarrier::wait(values.full(), values.parity);
    }

    /// Issues the products of the queries with a stage of keys, as a group.
    #[inline(always)]
    unsafe fn scores(q: Descriptor, keys: &Keys<STAGES>) -> Scores {
        let k = Descriptor::new(Self::keys(keys.stage));
        wgmma::fence();
        let mut scores = Scores::product(q, k);
        for step in 1..HEAD_DIM / 16 {
            let panel = step / 4 * PANEL_BYTES;
            scores.multiply(q.beyond(panel).at_step(step % 4), k.beyond(panel).at_step(step % 4));
        }
        wgmma::commit();
        scores
    }

    /// Issues the products of weights with a stage of values, as a group.
    #[inline(always)]
    unsafe fn add_values<O: Accumulators>(out: &mut O, weights: &Weights, values: &Values<STAGES>) {
        let v = Transposed::new(Self::values(values.stage), PANEL_BYTES);
        wgmma::fence();
        for step in 0..TILE / 16 {
            out.multiply_fragment(&weights[step as usize], v.at_step(step));
        }
        wgmma::commit();
    }

    /// Hides what this thread's queries do not see of a tile.
    #[inline(always)]
    fn hide(scores: &mut Scores, work: &Work, group: u32, tile: u32) {
        // The first query of the warpgroup sees least.
        if (tile + 1) * TILE <= work.first_position + group * GROUP_Q + 1 {
            return;
        }
        let position = work.first_position + Self::first_row();
        let visible = (position + 1) as i32 - (tile * TILE) as i32;
        mask(scores, [visible, visible + 8]);
    }

    /// The first of this thread's two rows of the block's tile.
    #[inline(always)]
    fn first_row() -> u32 {
        (warp() - PRODUCERS / 32) * 16 + lane() / 4
    }

    /// Writes this thread's results, of rows that exist: eight neighbours at a time, which lanes of a quad gather from
    /// each other.
    #[inline(always)]
    unsafe fn store(p: &AttnPrefill, work: &Work, out: &[f32]) {
        for h in 0..2 {
            let row = Self::first_row() + 8 * h as u32;
            let column = u64::from(work.head * HEAD_DIM + lane() % 4 * 8);
            let target = u64::from(work.token + row) * u64::from(p.ld_out) + column;
            for q in 0..HEAD_DIM as usize / 32 {
                let pair = |j: usize| {
                    let i = 4 * (4 * q + j) + 2 * h;
                    bf16x2(out[i], out[i + 1])
                };
                let eight = transpose::quad([pair(0), pair(1), pair(2), pair(3)]);
                if row < work.n {
                    st_v4(p.out + (target + 32 * q as u64) * BYTES, eight);
                }
            }
        }
    }
}
