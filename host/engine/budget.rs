//! How much device memory a model needs, before any is taken.

use super::EngineError;
use super::logits::LogitLayout;
use crate::driver::MemoryInfo;
use crate::kernels::{AttnDecode, DecodeScratch, HeadDim, decode_splits};
use crate::model::Config;
use crate::model::sharding::Sharding;
use crate::spd::Plan;

/// Tokens of one pass; longer batches run in several.
pub(crate) const MAX_ROWS: usize = 1024;
/// Sequences of a captured decode step, and rows whose logits are computed at once.
pub(crate) const LANES: usize = 128;
/// Whole contexts that the KV cache has room for, where memory allows and nobody says otherwise.
const DEFAULT_CONTEXTS: usize = 16;
/// The shortest KV cache that is worth starting with, in tokens.
const LEAST_KV_TOKENS: usize = 1024;
/// What the driver, kernels' code, captured graphs and the communicator's slots take beside our allocations.
const RESERVE_BYTES: u64 = 512 << 20;
/// Share of the free memory that a KV cache of default size leaves to others: 1/16.
const SPARE_SHIFT: u32 = 4;

const BF16: usize = 2;
const F32: usize = 4;

/// The sizes that one rank's buffers follow from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RankShape {
    pub(crate) hidden: usize,
    /// Columns of the MLP.
    pub(crate) ffn: usize,
    pub(crate) n_heads: usize,
    /// The most KV heads of a block: with query heads in another order a rank may need more of them.
    pub(crate) n_kv_heads: usize,
    /// KV heads of all blocks.
    kv_heads_in_all: usize,
    pub(crate) head_dim: HeadDim,
    pub(crate) n_layers: usize,
    pub(crate) vocab: usize,
    /// Rows of the output head.
    pub(crate) head_rows: usize,
    /// Columns of a row of logits, alignment included.
    logit_stride: usize,
    pub(crate) context: usize,
    tp: usize,
    tied: bool,
}

impl RankShape {
    pub(crate) fn new(
        config: &Config,
        sharding: &Sharding,
        plan: &Plan,
        rank: usize,
    ) -> Result<Self, EngineError> {
        let blocks = plan.blocks().iter();
        let kv_heads = blocks.map(|block| sharding.heads(rank, block.heads.as_deref()).kv_heads.len());
        let kv_heads: Vec<usize> = kv_heads.collect();
        Ok(Self {
            hidden: config.hidden,
            ffn: sharding.ffn(rank).len(),
            n_heads: sharding.heads(rank, None).heads.len(),
            n_kv_heads: kv_heads.iter().copied().max().unwrap_or(0),
            kv_heads_in_all: kv_heads.iter().sum(),
            head_dim: HeadDim::try_from(config.head_dim)?,
            n_layers: config.n_layers,
            vocab: config.vocab,
            head_rows: sharding.vocab(rank).len(),
            logit_stride: LogitLayout::new(sharding, config.vocab).stride(),
            context: config.context,
            tp: sharding.tp(),
            tied: config.tied,
        })
    }

    fn head_width(&self) -> usize {
        self.head_dim.get() as usize
    }

    /// Width of q, k and v side by side.
    pub(crate) fn qkv_width(&self) -> usize {
        (self.n_heads + 2 * self.n_kv_heads) * self.head_width()
    }

    /// Width of all query heads.
    pub(crate) fn q_width(&self) -> usize {
        self.n_heads * self.head_width()
    }

    /// Bytes of the weights.
    pub(crate) fn weight_bytes(&self) -> u64 {
        let mlp = 3 * self.ffn * self.hidden;
        let attention = 2 * self.q_width() * self.hidden;
        let kv = 2 * self.kv_heads_in_all * self.head_width() * self.hidden;
        let blocks = self.n_layers * (mlp + attention + 2 * self.hidden) + kv;
        let head = if self.tied { 0 } else { self.head_rows * self.hidden };
        ((blocks + self.vocab * self.hidden + head + self.hidden) * BF16) as u64
    }

    /// Scratch of the decode attention, enough for every number of sequences.
    pub(crate) fn decode_scratch(&self, sm_count: u32) -> DecodeScratch {
        let mut most = DecodeScratch { partial_out: 0, partial_stats: 0, counters: 0 };
        for n_sequences in 1..=LANES as u32 {
            let n_splits = self.decode_splits(n_sequences, sm_count);
            let (n_heads, n_kv_heads) = (self.n_heads as u32, self.n_kv_heads as u32);
            let one = AttnDecode::scratch(self.head_dim, n_heads, n_kv_heads, n_sequences, n_splits);
            most.partial_out = most.partial_out.max(one.partial_out);
            most.partial_stats = most.partial_stats.max(one.partial_stats);
            most.counters = most.counters.max(one.counters);
        }
        most
    }

    /// Splits of the decode attention for this many sequences.
    pub(crate) fn decode_splits(&self, n_sequences: u32, sm_count: u32) -> u32 {
        // With heads in another order a KV head may serve up to all of them.
        let (n_heads, n_kv_heads) = (self.n_heads as u32, self.n_kv_heads as u32);
        decode_splits(n_sequences, n_kv_heads, n_heads, self.context as u32, sm_count)
    }

    /// Bytes of activations, logits and scratch.
    pub(crate) fn work_bytes(&self, sm_count: u32) -> u64 {
        // x, h, the partial sums and the residual beside a dropped sync point; then the wider ones.
        let widths = 4 * self.hidden + self.qkv_width() + self.q_width() + self.ffn;
        // Gathered, and with several ranks in order too.
        let copies = if self.tp == 1 { 1 } else { 2 };
        let logits = LANES * (copies * self.logit_stride * F32 + self.hidden * BF16);
        let scratch = self.decode_scratch(sm_count);
        let scratch = (scratch.partial_out + scratch.partial_stats + scratch.counters) * F32;
        (MAX_ROWS * widths * BF16 + logits + scratch) as u64
    }

    /// Bytes of the KV cache for one token.
    pub(crate) fn kv_bytes_per_token(&self) -> u64 {
        (2 * self.n_layers * self.n_kv_heads * self.head_width() * BF16) as u64
    }

    /// How many tokens the KV cache shall hold: `wanted`, or by default as many as sixteen contexts have, or as
    /// fit.
    pub(crate) fn kv_tokens(
        &self,
        wanted: Option<usize>,
        memory: MemoryInfo,
        device: &str,
        sm_count: u32,
    ) -> Result<usize, EngineError> {
        let (weight_bytes, work_bytes) = (self.weight_bytes(), self.work_bytes(sm_count));
        let left = memory.free_bytes.saturating_sub(weight_bytes + work_bytes + RESERVE_BYTES);
        let fitting = |bytes: u64| (bytes / self.kv_bytes_per_token()) as usize;
        let least = wanted.unwrap_or(LEAST_KV_TOKENS.min(self.context));
        if fitting(left) < least {
            return Err(EngineError::OutOfMemory {
                device: device.to_owned(),
                free_bytes: memory.free_bytes,
                total_bytes: memory.total_bytes,
                weight_bytes,
                work_bytes: work_bytes + RESERVE_BYTES,
                kv_bytes: least as u64 * self.kv_bytes_per_token(),
                kv_tokens: least,
            });
        }
        let default = || {
            let spared = fitting(left.saturating_sub(memory.free_bytes >> SPARE_SHIFT));
            spared.min(DEFAULT_CONTEXTS * self.context).max(least)
        };
        Ok(wanted.unwrap_or_else(default))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::shapes;
    use crate::spd::BlockPlan;

    const GIB: u64 = 1 << 30;
    const SMS: u32 = 132;

    fn shape(name: &str) -> RankShape {
        rank_shape(name, 1, 0, None)
    }

    /// A rank of `tp`, all blocks with query heads in this order.
    fn rank_shape(name: &str, tp: usize, rank: usize, heads: Option<Vec<usize>>) -> RankShape {
        let config = shapes::named(name).unwrap();
        let block = BlockPlan { heads, ..BlockPlan::default() };
        let plan = Plan::new(tp, vec![block; config.n_layers]);
        RankShape::new(&config, &Sharding::new(&config, tp).unwrap(), &plan, rank).unwrap()
    }

    fn memory(free_bytes: u64) -> MemoryInfo {
        MemoryInfo { free_bytes, total_bytes: 139 * GIB }
    }

    #[test]
    fn weights_are_two_bytes_a_parameter() {
        assert_eq!(shape("llama3-8b").weight_bytes(), 2 * 8_030_261_248);
        assert_eq!(shape("llama3.2-1b").weight_bytes(), 2 * 1_235_814_400);
        assert_eq!(shape("smollm2").weight_bytes(), 2 * 134_515_008);
    }

    #[test]
    fn ranks_share_blocks_and_head_and_each_has_the_embedding() {
        let (alone, halves) =
            (shape("llama3-70b"), [0, 1].map(|rank| rank_shape("llama3-70b", 2, rank, None)));
        let replicated = 2 * (128_256 * 8192 + (2 * 80 + 1) * 8192);
        let sum: u64 = halves.iter().map(RankShape::weight_bytes).sum();
        assert_eq!(sum, alone.weight_bytes() + replicated);
        // Nine heads: five and four, and two KV heads each.
        let halves = [0, 1].map(|rank| rank_shape("smollm2", 2, rank, None));
        assert_eq!(halves.map(|s| (s.n_heads, s.n_kv_heads)), [(5, 2), (4, 2)]);
    }

    #[test]
    fn another_order_of_heads_may_need_more_kv_heads() {
        // Every rank takes one query head of each group.
        let heads: Vec<usize> = (0..9).map(|i| i % 3 * 3 + i / 3).collect();
        assert_eq!(rank_shape("smollm2", 3, 0, None).n_kv_heads, 1);
        let shape = rank_shape("smollm2", 3, 0, Some(heads));
        assert_eq!((shape.n_kv_heads, shape.kv_heads_in_all), (3, 90));
        assert_eq!(shape.kv_bytes_per_token(), 2 * 30 * 3 * 64 * 2);
    }

    #[test]
    fn a_shape_without_kernels_is_refused() {
        let config = shapes::named("tiny").unwrap();
        let plan = Plan::synchronised(1, config.n_layers);
        let error = RankShape::new(&config, &Sharding::new(&config, 1).unwrap(), &plan, 0).unwrap_err();
        assert!(error.to_string().contains("head width of 32"), "{error}");
    }

    #[test]
    fn the_kv_cache_takes_what_is_left() {
        let s = shape("llama3-8b");
        assert_eq!(s.kv_bytes_per_token(), 128 << 10);
        let tokens = |wanted, free| s.kv_tokens(wanted, memory(free), "cuda:0", SMS);
        // Plenty: sixteen contexts. Scarce: what fits, less a sixteenth of the free memory.
        assert_eq!(tokens(None, 130 * GIB).unwrap(), 16 * 8192);
        let scarce = tokens(None, 20 * GIB).unwrap();
        assert!((8192..=4 * 8192).contains(&scarce), "{scarce}");
        assert_eq!(tokens(Some(5000), 20 * GIB).unwrap(), 5000);
        // Too little: says what is needed.
        let error = tokens(None, 15 * GIB).unwrap_err().to_string();
        assert!(
            error.contains("14.96 GiB of weights") && error.contains("0.12 GiB of KV cache for 1024 tokens"),
            "{error}"
        );
        let error = tokens(Some(1 << 20), 100 * GIB).unwrap_err().to_string();
        assert!(error.contains("128.00 GiB of KV cache for 1048576 tokens"), "{error}");
    }

    #[test]
    fn scratch_is_enough_for_every_number_of_sequences() {
        for name in ["smollm2", "llama3.2-1b", "llama3-8b", "llama2-7b"] {
            let s = shape(name);
            let most = s.decode_scratch(SMS);
            for n in 1..=LANES as u32 {
                let splits = s.decode_splits(n, SMS);
                let one = AttnDecode::scratch(s.head_dim, s.n_heads as u32, s.n_kv_heads as u32, n, splits);
                assert!(one.partial_out <= most.partial_out && one.counters <= most.counters, "{name}, {n}");
            }
        }
    }
}
