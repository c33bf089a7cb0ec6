//! Online softmax of 16 query rows over tiles of keys and values.
//!
//! A warp holds 16 rows. `KT` is head_dim / 16 and `CHUNKS` head_dim / 8; a tile has `TP · 16` tokens.
//! With g = lane / 4 a lane holds rows g and g + 8 of everything (see [`m16n8k16`]).

use crate::ptx::Shared;
use crate::ptx::math::{bf16x2, exp2, fma, max};
use crate::ptx::mma::{ldmatrix_x4, ldmatrix_x4_trans, m16n8k16};
use crate::ptx::special::lane;
use crate::tile::reduce::{quad_max, quad_sum};
use crate::tile::swizzle;

/// Below every score and yet finite: `exp2(FLOOR - FLOOR)` is 1, not NaN.
pub const FLOOR: f32 = -1.0e30;

/// Query rows and what they have gathered.
pub struct Rows<const KT: usize> {
    /// Queries as left operands.
    pub q: [[u32; 4]; KT],
    /// Weighted values, not divided by `sum`.
    pub out: [[[f32; 4]; 2]; KT],
    /// Largest score so far of the two rows, times log2 e.
    pub max: [f32; 2],
    /// Sum of exponentials relative to `max`; each lane of a quad has its columns' share.
    pub sum: [f32; 2],
}

impl<const KT: usize> Rows<KT> {
    /// Rows that have seen no key.
    #[inline(always)]
    pub fn new(q: [[u32; 4]; KT]) -> Self {
        Self { q, out: [[[0.0; 4]; 2]; KT], max: [FLOOR; 2], sum: [0.0; 2] }
    }

    /// Joins the lanes' shares of the sums.
    #[inline(always)]
    pub fn finish(&mut self) {
        self.sum = self.sum.map(quad_sum);
    }

    /// Attends to a tile. `visible[h]` is how many of its tokens row g + 8h may see; when `masked` is
    /// false all are. `scale` includes log2 e.
    #[inline(always)]
    pub unsafe fn attend<const TP: usize, const CHUNKS: u32>(
        &mut self,
        k_tile: Shared,
        v_tile: Shared,
        visible: [i32; 2],
        masked: bool,
        scale: f32,
    ) {
        let mut scores = self.scores::<TP, CHUNKS>(k_tile);
        if masked {
            mask(&mut scores, visible);
        }
        let weights = self.softmax(&mut scores, scale);
        for tp in 0..TP {
            for kt in 0..KT {
                let row = tp as u32 * 16 + lane() % 16;
                let chunk = kt as u32 * 2 + lane() / 16;
                let v = ldmatrix_x4_trans(swizzle::address::<CHUNKS>(v_tile, row, chunk));
                m16n8k16(&mut self.out[kt][0], &weights[tp], [v[0], v[1]]);
                m16n8k16(&mut self.out[kt][1], &weights[tp], [v[2], v[3]]);
            }
        }
    }

    #[inline(always)]
    unsafe fn scores<const TP: usize, const CHUNKS: u32>(&self, k_tile: Shared) -> [[[f32; 4]; 2]; TP] {
        let mut scores = [[[0.0; 4]; 2]; TP];
        for tp in 0..TP {
            for kt in 0..KT {
                let row = tp as u32 * 16 + lane() % 8 + lane() / 16 * 8;
                let chunk = kt as u32 * 2 + lane() / 8 % 2;
                let k = ldmatrix_x4(swizzle::address::<CHUNKS>(k_tile, row, chunk));
                m16n8k16(&mut scores[tp][0], &self.q[kt], [k[0], k[1]]);
                m16n8k16(&mut scores[tp][1], &self.q[kt], [k[2], k[3]]);
            }
        }
        scores
    }

    /// Updates maxima, sums and the scale of `out`; returns the weights as left operands.
    #[inline(always)]
    fn softmax<const TP: usize>(&mut self, scores: &mut [[[f32; 4]; 2]; TP], scale: f32) -> [[u32; 4]; TP] {
        for h in 0..2 {
            let mut tile_max = f32::NEG_INFINITY;
            for tp in 0..TP {
                for half in 0..2 {
                    tile_max = max(tile_max, max(scores[tp][half][2 * h], scores[tp][half][2 * h + 1]));
                }
            }
            let new_max = max(self.max[h], quad_max(tile_max) * scale);
            let shrink = exp2(self.max[h] - new_max);
            self.max[h] = new_max;
            self.sum[h] *= shrink;
            for kt in 0..KT {
                for half in 0..2 {
                    self.out[kt][half][2 * h] *= shrink;
                    self.out[kt][half][2 * h + 1] *= shrink;
                }
            }
            for tp in 0..TP {
                for half in 0..2 {
                    for i in 2 * h..2 * h + 2 {
                        let weight = exp2(fma(scores[tp][half][i], scale, -new_max));
                        scores[tp][half][i] = weight;
                        self.sum[h] += weight;
                    }
                }
            }
        }
        let mut weights = [[0; 4]; TP];
        for tp in 0..TP {
            let [left, right] = scores[tp];
            weights[tp] = [
                bf16x2(left[0], left[1]),
                bf16x2(left[2], left[3]),
                bf16x2(right[0], right[1]),
                bf16x2(right[2], right[3]),
            ];
        }
        weights
    }
}

#[inline(always)]
fn mask<const TP: usize>(scores: &mut [[[f32; 4]; 2]; TP], visible: [i32; 2]) {
    for tp in 0..TP {
        for half in 0..2 {
            for i in 0..4 {
                let token = (tp * 16 + half * 8 + i % 2) as i32 + (lane() % 4 * 2) as i32;
                if token >= visible[i / 2] {
                    scores[tp][half][i] = f32::NEG_INFINITY;
                }
            }
        }
    }
}
