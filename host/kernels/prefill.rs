//! Attention of prompts, and of chunks of them.

use half::bf16;

use super::attention::{HeadDim, PagedKv, scale};
use super::{Addr, Launch, Rows, Target, params};

pub(super) const PREFILL: [&str; 2] = ["attn_prefill_bf16_d64", "attn_prefill_bf16_d128"];

const PREFILL_THREADS: u32 = 256;
/// Those of the one over `wgmma`: a warpgroup that copies, and two that attend.
const WGMMA_PREFILL_THREADS: u32 = 384;
/// Stages of keys and values there, by head width, as many as `device/` has.
const WGMMA_PREFILL_STAGES: [u32; 2] = [4, 2];
/// Query tokens of a block of the prefill kernels.
const PREFILL_BLOCK: u32 = 128;

/// Causal attention of the last tokens of each sequence. Strides of `q` and `out` are multiples of 8.
#[derive(Debug, Clone, Copy)]
pub struct AttnPrefill {
    /// Width of a head.
    pub head_dim: HeadDim,
    /// `[n_tokens, n_heads, head_dim]`.
    pub q: Rows<bf16>,
    /// `[n_tokens, n_heads, head_dim]`, written.
    pub out: Rows<bf16>,
    /// Cache and block table; holds the new tokens' keys and values already.
    pub cache: PagedKv,
    /// `[n_sequences + 1]`: sequence s has the query tokens `q_starts[s]..q_starts[s + 1]`.
    pub q_starts: Addr<u32>,
    /// `[n_sequences]`: cached tokens, the queries' own included.
    pub kv_lens: Addr<u32>,
    /// `[n_heads]`: KV head of each query head.
    pub kv_head_of: Addr<u32>,
    /// Query heads of this rank.
    pub n_heads: u32,
    /// Sequences, at least one.
    pub n_sequences: u32,
    /// Query tokens of the sequence that has most of them, at least one.
    pub max_q_len: u32,
}

impl AttnPrefill {
    /// One block per 128 query tokens, query head and sequence.
    pub fn launch(&self, target: Target) -> Launch {
        let Self { head_dim, n_heads, n_sequences, .. } = *self;
        let params = params::AttnPrefill {
            q: self.q.at.raw(),
            out: self.out.at.raw(),
            cache: self.cache.params(),
            q_starts: self.q_starts.raw(),
            kv_lens: self.kv_lens.raw(),
            kv_head_of: self.kv_head_of.raw(),
            ld_q: self.q.stride,
            ld_out: self.out.stride,
            scale: scale(head_dim),
            reserved: 0,
        };
        let (entry, tiles) = (PREFILL[head_dim as usize], self.max_q_len.div_ceil(PREFILL_BLOCK));
        if !target.has_wgmma {
            let grid = [tiles, n_heads, n_sequences];
            return Launch::new(entry, grid, PREFILL_THREADS, head_dim.shared_bytes(), &params);
        }
        // Tiles of bf16: the queries, and keys and values of each stage.
        let n_tiles = 1 + 2 * WGMMA_PREFILL_STAGES[head_dim as usize];
        let shared_bytes = n_tiles * PREFILL_BLOCK * head_dim.get() * 2;
        Launch::new(entry, [n_heads, tiles, n_sequences], WGMMA_PREFILL_THREADS, shared_bytes, &params)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{PTX, PageSize};

    #[test]
    fn prompts_are_cut_into_blocks_as_the_kernels_of_the_target_take_them() {
        let at = Addr::new(256);
        let page_size = PageSize::try_from(16).unwrap();
        let cache = PagedKv { k: at, v: at, block_table: Addr::NULL, max_pages: 4, page_size, n_kv_heads: 8 };
        let launch = |head_dim, has_wgmma| {
            AttnPrefill {
                head_dim,
                q: Rows::new(at, 48 * 128),
                out: Rows::new(at, 32 * 128),
                cache,
                q_starts: Addr::NULL,
                kv_lens: Addr::NULL,
                kv_head_of: Addr::NULL,
                n_heads: 32,
                n_sequences: 3,
                max_q_len: 300,
            }
            .launch(Target::new(132, has_wgmma))
        };
        let shape = |launch: Launch| (launch.grid, launch.threads, launch.shared_bytes);
        assert_eq!(shape(launch(HeadDim::D64, false)), ([3, 32, 3], 256, 32 << 10));
        assert_eq!(shape(launch(HeadDim::D128, false)), ([3, 32, 3], 256, 64 << 10));
        // One tile of queries; four or two stages of keys and values.
        assert_eq!(shape(launch(HeadDim::D64, true)), ([32, 3, 3], 384, 9 * (16 << 10)));
        assert_eq!(shape(launch(HeadDim::D128, true)), ([32, 3, 3], 384, 5 * (32 << 10)));
        for ptx in &PTX {
            for head_dim in [HeadDim::D64, HeadDim::D128] {
                let launch = launch(head_dim, ptx.has_wgmma());
                let entry = ptx.entry(launch.entry).expect("in both files");
                assert_eq!(entry.max_threads, launch.threads, "{} {}", ptx.arch, launch.entry);
            }
        }
    }
}
