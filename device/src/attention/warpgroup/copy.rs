//! The warpgroup that copies: queries once, keys and values tile by tile from their pages.

use super::{Keys, PANEL_BYTES, PRODUCERS, Prefill, TILE, Values, Work, queries_full};
use crate::attention::paged;
use crate::params::AttnPrefill;
use crate::ptx::shuffle::broadcast;
use crate::ptx::special::{lane, tid_x, warp};
use crate::ptx::{Global, Shared, async_copy};
use crate::tile::bf16::PER_VECTOR;
use crate::tile::ring::Landing;
use crate::tile::swizzle::{self, CHUNK_BYTES};

impl<const HEAD_DIM: u32, const STAGES: u32> Prefill<HEAD_DIM, STAGES> {
    /// 16-byte chunks of a row.
    const CHUNKS: u32 = HEAD_DIM / PER_VECTOR;
    /// Rows that the warpgroup copies at a time, and those of them that are one warp's.
    const PASS_ROWS: u32 = PRODUCERS / Self::CHUNKS;
    const WARP_ROWS: u32 = 32 / Self::CHUNKS;
    const ROW_BYTES: u32 = Self::CHUNKS * CHUNK_BYTES;

    /// Copies all that the block needs.
    #[inline(always)]
    pub(super) unsafe fn copy(p: &AttnPrefill, work: &Work) {
        let row = Self::row_of_lane();
        let chunk = u64::from(lane() % Self::CHUNKS * CHUNK_BYTES);
        let look_up = |tile: u32| {
            // Keys beyond the last are that one again: nobody sees them.
            let token = (tile * TILE + row).min(work.kv_end - 1);
            // SAFETY: tokens below kv_end have pages.
            unsafe { paged::row(&p.cache, work.sequence, work.kv_head, token) as u32 }
        };
        let mut tile = work.n_tiles() - 1;
        let mut rows = look_up(tile);

        // Rows beyond the last are that one again: their results are dropped.
        let queries = p.q + u64::from(work.head * Self::ROW_BYTES) + chunk;
        Self::copy_tile(Self::queries(), queries, p.ld_q * 2, work.token + row.min(work.n - 1));
        let mut landing = Landing::NONE;
        landing.issued(queries_full());

        let (k, v) = (p.cache.k + chunk, p.cache.v + chunk);
        let (mut keys, mut values) = (Keys::<STAGES>::FIRST, Values::<STAGES>::FIRST);
        loop {
            // Pages are looked up a tile ahead.
            let next = look_up(tile.saturating_sub(1));
            landing.make_room(&keys);
            Self::copy_tile(Self::keys(keys.stage), k, Self::ROW_BYTES, rows);
            landing.issued(keys.full());
            landing.make_room(&values);
            Self::copy_tile(Self::values(values.stage), v, Self::ROW_BYTES, rows);
            landing.issued(values.full());
            if tile == 0 {
                break;
            }
            tile -= 1;
            rows = next;
            keys.advance();
            values.advance();
        }
        landing.end();
    }

    /// The row of a tile that this lane looks up for its warp: those that the warp copies, in the order of lanes.
    #[inline(always)]
    fn row_of_lane() -> u32 {
        const { assert!(TILE / Self::PASS_ROWS * Self::WARP_ROWS == 32) };
        lane() / Self::WARP_ROWS * Self::PASS_ROWS + warp() * Self::WARP_ROWS + lane() % Self::WARP_ROWS
    }

    /// Copies a tile; `row` is the number, from `source` on, of the row that this lane has looked up.
    #[inline(always)]
    unsafe fn copy_tile(tile: Shared, source: Global, row_bytes: u32, row: u32) {
        let chunk = lane() % Self::CHUNKS;
        let panel = tile + chunk / 8 * PANEL_BYTES;
        let target = swizzle::address::<8>(panel, tid_x() / Self::CHUNKS, chunk % 8);
        for pass in 0..TILE / Self::PASS_ROWS {
            let row = broadcast(row, pass * Self::WARP_ROWS + lane() / Self::CHUNKS);
            // Rows a multiple of 8 apart are swizzled alike.
            let to = target + pass * Self::PASS_ROWS * 128;
            async_copy::copy_16(to, source + u64::from(row) * u64::from(row_bytes), 16);
        }
    }
}
