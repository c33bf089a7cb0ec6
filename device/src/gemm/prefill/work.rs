//! What a block has to do.

use super::TOKENS;
use crate::gemm::loader::BLOCK_K;
use crate::params::Gemm;
use crate::ptx::special::{ctaid_x, ctaid_y, nctaid_x, nctaid_y};

/// A block's tiles, and its part of k.
pub(super) struct Work {
    pub(super) tile: u32,
    pub(super) n_tiles: u32,
    m_tiles: u32,
    pub(super) begin: u32,
    pub(super) count: u32,
}

impl Work {
    #[inline(always)]
    pub(super) fn new(p: &Gemm, cols: u32) -> Self {
        let (n_k_tiles, parts) = (p.k.div_ceil(BLOCK_K), nctaid_x().max(1));
        let begin = n_k_tiles * ctaid_x() / parts;
        let count = n_k_tiles * (ctaid_x() + 1) / parts - begin;
        let m_tiles = p.m.div_ceil(TOKENS).max(1);
        Self { tile: ctaid_y(), n_tiles: m_tiles * p.n.div_ceil(cols), m_tiles, begin, count }
    }

    /// How many stages are filled with weights before the kernel ahead has ended.
    #[inline(always)]
    pub(super) fn early(&self, stages: u32) -> u32 {
        if self.tile < self.n_tiles { self.count.min(stages) } else { 0 }
    }

    /// First token and first weight row of the tile at hand.
    #[inline(always)]
    pub(super) fn origin(&self, cols: u32) -> (u32, u32) {
        (self.tile % self.m_tiles * TOKENS, self.tile / self.m_tiles * cols)
    }

    #[inline(always)]
    pub(super) fn advance(&mut self) {
        self.tile += nctaid_y();
    }
}
