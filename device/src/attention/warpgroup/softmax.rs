//! The online softmax of a warpgroup's 64 rows over a tile of 128 keys, in registers.
//!
//! With g = lane / 4 a lane has rows g and g + 8 of its warp's sixteen, of everything: h is 0 or 1 for them. See
//! [`Accumulators`](crate::ptx::wgmma::Accumulators) for where an element is.

use super::TILE;
use crate::attention::flash::FLOOR;
use crate::ptx::math::{bf16x2, exp2, fma, max};
use crate::ptx::shuffle::ballot;
use crate::ptx::special::lane;
use crate::ptx::wgmma::Fragment;
use crate::tile::reduce::{quad_max, quad_sum};

/// A thread's scores of a tile.
pub type Scores = [f32; TILE as usize / 2];
/// The same as left operands, 16 keys each.
pub type Weights = [Fragment; TILE as usize / 16];

/// Values that do not wait for each other, of which a maximum or sum is formed.
const CHAINS: usize = 4;

/// How far scores, times log2 e, may exceed what exponentials are relative to. Weights are below two to this power, so
/// that nothing overflows, and as exact as below one; sums are hardly ever multiplied once a few tiles have been seen
/// (as in FlashAttention-4).
const SLACK: f32 = 8.0;

/// What a thread's two rows have gathered.
pub struct Rows {
    /// What exponentials are relative to: the largest score so far, times log2 e, or up to [`SLACK`] less.
    max: [f32; 2],
    /// Sum of exponentials; each lane of a quad has its columns' share.
    sum: [f32; 2],
}

impl Rows {
    /// Rows that have seen no key.
    pub const NEW: Self = Self { max: [FLOOR; 2], sum: [0.0; 2] };

    /// Turns scores into exponentials; `scale` includes log2 e. Returns what sums of earlier tiles are to be multiplied
    /// with.
    #[inline(always)]
    pub fn exponentials(&mut self, scores: &mut Scores, scale: f32) -> [f32; 2] {
        let mut shrink = [0.0; 2];
        for h in 0..2 {
            let mut chains = [f32::NEG_INFINITY; CHAINS];
            for pair in 0..Self::PAIRS {
                let i = 4 * pair + 2 * h;
                chains[pair % CHAINS] = max(chains[pair % CHAINS], max(scores[i], scores[i + 1]));
            }
            let tile_max = max(max(chains[0], chains[1]), max(chains[2], chains[3]));
            let tile_max = quad_max(tile_max) * scale;
            let new_max = if tile_max > self.max[h] + SLACK { tile_max } else { self.max[h] };
            shrink[h] = exp2(self.max[h] - new_max);
            self.max[h] = new_max;
        }
        for h in 0..2 {
            let mut chains = [0.0; CHAINS];
            for pair in 0..Self::PAIRS {
                for i in 0..2 {
                    let score = &mut scores[4 * pair + 2 * h + i];
                    *score = exp2(fma(*score, scale, -self.max[h]));
                    let chain = (2 * pair + i) % CHAINS;
                    chains[chain] += *score;
                }
            }
            let tile_sum = (chains[0] + chains[1]) + (chains[2] + chains[3]);
            self.sum[h] = fma(self.sum[h], shrink[h], tile_sum);
        }
        shrink
    }

    /// Neighbouring pairs of scores of a row.
    const PAIRS: usize = TILE as usize / 8;

    /// The sums of the whole rows.
    #[inline(always)]
    pub fn sums(&self) -> [f32; 2] {
        self.sum.map(quad_sum)
    }
}

/// Rounds exponentials to operands: two tiles of 8 columns of sums are one of 16 of a left operand.
#[inline(always)]
pub fn weights(scores: &Scores) -> Weights {
    let mut weights = [[0; 4]; TILE as usize / 16];
    for kt in 0..TILE as usize / 16 {
        for r in 0..4 {
            let i = 8 * kt + 2 * r;
            weights[kt][r] = bf16x2(scores[i], scores[i + 1]);
        }
    }
    weights
}

/// Hides the keys of a tile that a row does not see: it sees the first `visible[h]`.
#[inline(always)]
pub fn mask(scores: &mut Scores, visible: [i32; 2]) {
    let visible = visible.map(|visible| visible - (lane() % 4 * 2) as i32);
    for i in 0..TILE as usize / 2 {
        let key = (8 * (i / 4) + i % 2) as i32;
        if key >= visible[i / 2 % 2] {
            scores[i] = f32::NEG_INFINITY;
        }
    }
}

/// Multiplies the two rows of a thread's sums where that changes any of the warp's.
#[inline(always)]
pub fn shrink_rows(sums: &mut [f32], factors: [f32; 2]) {
    if ballot(factors[0] < 1.0 || factors[1] < 1.0) != 0 {
        scale_rows(sums, factors);
    }
}

/// Multiplies the two rows of a thread's sums.
#[inline(always)]
pub fn scale_rows(sums: &mut [f32], factors: [f32; 2]) {
    for i in 0..sums.len() {
        sums[i] *= factors[i / 2 % 2];
    }
}
