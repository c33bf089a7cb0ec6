//! Attention of single tokens over the paged KV cache, and what writes the cache.

use half::bf16;

use super::{Addr, Launch, Rows, params};

pub(super) const ROPE_KV_WRITE: [&str; 2] = ["rope_kv_write_bf16_d64", "rope_kv_write_bf16_d128"];
pub(super) const DECODE: [&str; 2] = ["attn_decode_bf16_d64", "attn_decode_bf16_d128"];

const ROPE_THREADS: u32 = 256;
/// Blocks that fill a GPU.
const ROPE_BLOCKS: u32 = 1024;
const DECODE_THREADS: u32 = 128;
/// Blocks of the decode kernel that a multiprocessor holds at once.
const DECODE_RESIDENT: u32 = 2;
/// Query heads of a KV head times splits that the decode kernel can merge, at the smaller head width.
const MAX_MERGED: u32 = 128 * 64;
/// A split of the cache has a multiple of this many tokens.
const SPLIT_GRANULE: u32 = 64;
/// Bytes of shared memory per element of head_dim, in the attention kernels over `mma.sync`.
const SHARED_BYTES_PER_DIM: u32 = 512;

/// A shape for which there is no kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is no GPU kernel for a {what} of {found}: it has to be {supported}")]
pub struct UnsupportedShape {
    /// `head width`, `page size`.
    pub what: &'static str,
    /// What was asked for.
    pub found: usize,
    /// What there is.
    pub supported: &'static str,
}

/// The head widths that the attention kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadDim {
    /// 64.
    D64,
    /// 128.
    D128,
}

impl HeadDim {
    /// The number.
    pub const fn get(self) -> u32 {
        match self {
            Self::D64 => 64,
            Self::D128 => 128,
        }
    }

    pub(super) const fn shared_bytes(self) -> u32 {
        SHARED_BYTES_PER_DIM * self.get()
    }
}

impl TryFrom<usize> for HeadDim {
    type Error = UnsupportedShape;

    fn try_from(head_dim: usize) -> Result<Self, UnsupportedShape> {
        match head_dim {
            64 => Ok(Self::D64),
            128 => Ok(Self::D128),
            found => Err(UnsupportedShape { what: "head width", found, supported: "64 or 128" }),
        }
    }
}

/// Positions of a page of the KV cache: a power of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageSize {
    log2: u32,
}

impl PageSize {
    /// The number.
    pub const fn get(self) -> usize {
        1 << self.log2
    }
}

impl TryFrom<usize> for PageSize {
    type Error = UnsupportedShape;

    fn try_from(page_size: usize) -> Result<Self, UnsupportedShape> {
        if page_size.is_power_of_two() && page_size <= 1 << 16 {
            return Ok(Self { log2: page_size.ilog2() });
        }
        Err(UnsupportedShape { what: "page size", found: page_size, supported: "a power of two up to 65536" })
    }
}

/// The paged KV cache of one layer: `[n_pages, n_kv_heads, page_size, head_dim]` for keys and for values.
#[derive(Debug, Clone, Copy)]
pub struct PagedKv {
    /// Keys, rotated.
    pub k: Addr<bf16>,
    /// Values.
    pub v: Addr<bf16>,
    /// `[n_sequences, max_pages]`: the page of each `page_size` positions.
    pub block_table: Addr<u32>,
    /// Pages in a row of the block table.
    pub max_pages: u32,
    /// Positions of a page.
    pub page_size: PageSize,
    /// KV heads of this rank.
    pub n_kv_heads: u32,
}

impl PagedKv {
    pub(super) fn params(&self) -> params::PagedKv {
        params::PagedKv {
            k: self.k.raw(),
            v: self.v.raw(),
            block_table: self.block_table.raw(),
            max_pages: self.max_pages,
            page_size_log2: self.page_size.log2,
            n_kv_heads: self.n_kv_heads,
            reserved: 0,
        }
    }
}

/// Rotates q in place and k on its way to the cache; copies v to the cache.
#[derive(Debug, Clone, Copy)]
pub struct RopeKvWrite {
    /// Width of a head.
    pub head_dim: HeadDim,
    /// `[n_tokens, n_heads + 2 · n_kv_heads, head_dim]`: q, k, v.
    pub qkv: Addr<bf16>,
    /// `[head_dim / 2]`: inverse frequencies, scaling included.
    pub inv_freq: Addr<f32>,
    /// `[n_tokens]`: position in the sequence.
    pub positions: Addr<u32>,
    /// `[n_tokens]`: row of the block table.
    pub sequences: Addr<u32>,
    /// Cache and block table.
    pub cache: PagedKv,
    /// Query heads of this rank.
    pub n_heads: u32,
    /// Tokens, at least one.
    pub n_tokens: u32,
}

impl RopeKvWrite {
    /// A token's heads are shared among as many blocks as give every thread one head's four dimensions, of many tokens
    /// among fewer: a block computes the token's sines anew.
    pub fn launch(&self) -> Launch {
        let &Self { head_dim, qkv, inv_freq, positions, sequences, cache, n_heads, n_tokens } = self;
        let params = params::RopeKvWrite {
            qkv: qkv.raw(),
            inv_freq: inv_freq.raw(),
            positions: positions.raw(),
            sequences: sequences.raw(),
            cache: cache.params(),
            n_heads,
            n_tokens,
        };
        let heads_per_block = ROPE_THREADS / (head_dim.get() / 4);
        let blocks = (n_heads + 2 * cache.n_kv_heads).div_ceil(heads_per_block);
        let blocks = blocks.min((ROPE_BLOCKS / n_tokens.max(1)).max(1));
        Launch::new(ROPE_KV_WRITE[head_dim as usize], [n_tokens, blocks, 1], ROPE_THREADS, 0, &params)
    }
}

/// Into how many parts the cache of each sequence is split, so that the blocks fill the GPU and no part is
/// shorter than the kernel's granule.
///
/// `heads_per_kv_head` is the largest number of query heads that share a KV head. Splits beyond a sequence's
/// length cost an empty block each, so one number serves a whole generation.
pub const fn decode_splits(
    n_sequences: u32,
    n_kv_heads: u32,
    heads_per_kv_head: u32,
    max_kv_len: u32,
    sm_count: u32,
) -> u32 {
    let wanted = (sm_count * DECODE_RESIDENT).div_ceil(at_least_1(n_sequences * n_kv_heads));
    let splits =
        min(min(wanted, max_kv_len.div_ceil(SPLIT_GRANULE)), MAX_MERGED / at_least_1(heads_per_kv_head));
    at_least_1(splits)
}

const fn min(a: u32, b: u32) -> u32 {
    if a < b { a } else { b }
}

const fn at_least_1(n: u32) -> u32 {
    if n > 0 { n } else { 1 }
}

/// Scratch of [`AttnDecode`], in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeScratch {
    /// f32 of `partial_out`.
    pub partial_out: usize,
    /// f32 of `partial_stats`.
    pub partial_stats: usize,
    /// u32 of `counters`.
    pub counters: usize,
}

/// Attention of one query token per sequence.
#[derive(Debug, Clone, Copy)]
pub struct AttnDecode {
    /// Width of a head.
    pub head_dim: HeadDim,
    /// `[n_sequences, n_heads, head_dim]`.
    pub q: Rows<bf16>,
    /// `[n_sequences, n_heads, head_dim]`, written.
    pub out: Rows<bf16>,
    /// Cache and block table.
    pub cache: PagedKv,
    /// `[n_sequences]`: cached tokens, the query's own included; 0 gives zeros.
    pub kv_lens: Addr<u32>,
    /// `[n_kv_heads + 1]`: KV head g serves `group_heads[group_starts[g]..group_starts[g + 1]]`.
    pub group_starts: Addr<u32>,
    /// `[n_heads]`: query heads by KV head.
    pub group_heads: Addr<u32>,
    /// Scratch, see [`AttnDecode::scratch`].
    pub partial_out: Addr<f32>,
    /// Scratch.
    pub partial_stats: Addr<f32>,
    /// Scratch, zero before the first launch; launches leave zeros.
    pub counters: Addr<u32>,
    /// Query heads of this rank.
    pub n_heads: u32,
    /// Sequences, at least one.
    pub n_sequences: u32,
    /// Parts of each sequence's cache, at least one: see [`decode_splits`].
    pub n_splits: u32,
}

impl AttnDecode {
    /// How much scratch a launch of this shape needs. Two launches must not share scratch at the same time.
    pub const fn scratch(
        head_dim: HeadDim,
        n_heads: u32,
        n_kv_heads: u32,
        n_sequences: u32,
        n_splits: u32,
    ) -> DecodeScratch {
        let rows = n_sequences as usize * n_heads as usize * n_splits as usize;
        DecodeScratch {
            partial_out: rows * head_dim.get() as usize,
            partial_stats: rows * 2,
            counters: n_sequences as usize * n_kv_heads as usize,
        }
    }

    /// One block per split, KV head and sequence.
    pub fn launch(&self) -> Launch {
        let Self { head_dim, cache, .. } = *self;
        let params = params::AttnDecode {
            q: self.q.at.raw(),
            out: self.out.at.raw(),
            cache: cache.params(),
            kv_lens: self.kv_lens.raw(),
            group_starts: self.group_starts.raw(),
            group_heads: self.group_heads.raw(),
            partial_out: self.partial_out.raw(),
            partial_stats: self.partial_stats.raw(),
            counters: self.counters.raw(),
            n_heads: self.n_heads,
            ld_q: self.q.stride,
            ld_out: self.out.stride,
            scale: scale(head_dim),
        };
        let grid = [self.n_splits, cache.n_kv_heads, self.n_sequences];
        Launch::new(DECODE[head_dim as usize], grid, DECODE_THREADS, head_dim.shared_bytes(), &params)
    }
}

/// 1/√head_dim.
pub(super) fn scale(head_dim: HeadDim) -> f32 {
    (head_dim.get() as f32).sqrt().recip()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_compiled_head_widths_and_powers_of_two_are_taken() {
        assert_eq!([64, 128].map(|d| HeadDim::try_from(d).unwrap().get()), [64, 128]);
        assert_eq!(
            HeadDim::try_from(32).unwrap_err().to_string(),
            "there is no GPU kernel for a head width of 32: it has to be 64 or 128"
        );
        assert_eq!([1, 16, 65536].map(|p| PageSize::try_from(p).unwrap().get()), [1, 16, 65536]);
        for wrong in [0, 48, 1 << 17] {
            PageSize::try_from(wrong).unwrap_err();
        }
    }

    #[test]
    fn splits_fill_the_gpu_and_never_outnumber_the_tiles() {
        // 8 KV heads on 132 multiprocessors: 33 × 8 = 264 blocks, two a multiprocessor.
        assert_eq!(decode_splits(1, 8, 4, 8192, 132), 33);
        assert_eq!(decode_splits(1, 8, 4, 1024, 132), 16);
        assert_eq!(decode_splits(64, 8, 4, 8192, 132), 1);
        assert_eq!(decode_splits(1, 1, 128, 1 << 17, 132), 64);
        assert_eq!(decode_splits(0, 8, 4, 0, 132), 1);
    }

    #[test]
    fn every_thread_of_a_rope_block_has_work_in_the_first_blocks() {
        let page_size = PageSize::try_from(16).unwrap();
        let at = Addr::new(256);
        let cache = PagedKv { k: at, v: at, block_table: Addr::NULL, max_pages: 4, page_size, n_kv_heads: 8 };
        let rope = |head_dim, n_tokens| {
            let (positions, sequences) = (Addr::NULL, Addr::NULL);
            RopeKvWrite {
                head_dim,
                qkv: at,
                inv_freq: Addr::NULL,
                positions,
                sequences,
                cache,
                n_heads: 32,
                n_tokens,
            }
            .launch()
        };
        // 48 heads at 8 (head_dim 128) or 16 (64) a block.
        assert_eq!((rope(HeadDim::D128, 7).grid, rope(HeadDim::D64, 7).grid), ([7, 6, 1], [7, 3, 1]));
        assert_eq!([170, 300, 1024, 4096].map(|n| rope(HeadDim::D128, n).grid[1]), [6, 3, 1, 1]);
        assert_eq!(rope(HeadDim::D64, 7).entry, "rope_kv_write_bf16_d64");
    }
}
