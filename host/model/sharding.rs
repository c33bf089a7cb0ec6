//! Which heads, MLP columns and vocabulary rows belong to which rank. Pure arithmetic.
//!
//! Query heads are dealt as single heads, contiguous (in the order of an optional permutation), shares
//! differing by at most one; a KV head is present on every rank that holds one of its query heads. MLP
//! columns and vocabulary rows are dealt in granules of [`GRANULE`]; a rank beyond the last granule
//! holds none. The embedding is replicated and not part of a shard.

use std::ops::Range;

use super::Config;

/// Columns of the MLP and rows of the vocabulary move between ranks in units of this many.
pub const GRANULE: usize = 64;

/// A tensor-parallel degree that a model cannot be split to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "tensor-parallel degree {tp} is out of range: this model has {n_heads} query heads, so choose 1 to {n_heads}"
)]
pub struct ShardingError {
    /// The degree asked for.
    pub tp: usize,
    /// The model's query heads.
    pub n_heads: usize,
}

/// Part `index` of `n` things dealt to `parts` takers: contiguous, sizes differing by at most one,
/// the larger ones first.
pub fn share(n: usize, parts: usize, index: usize) -> Range<usize> {
    let (base, extra) = (n / parts, n % parts);
    let start = index * base + index.min(extra);
    start..start + base + usize::from(index < extra)
}

/// As [`share`], in granules of [`GRANULE`]; the last granule may be partial.
fn granular_share(n: usize, parts: usize, index: usize) -> Range<usize> {
    let granules = share(n.div_ceil(GRANULE), parts, index);
    (granules.start * GRANULE).min(n)..(granules.end * GRANULE).min(n)
}

/// The attention heads of one rank in one block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadShard {
    /// Query heads, by their number in the checkpoint, in the order they are computed.
    pub heads: Vec<usize>,
    /// KV heads that they attend with, ascending.
    pub kv_heads: Vec<usize>,
    /// For each of `heads`, the index of its KV head in `kv_heads`.
    pub kv_index: Vec<usize>,
}

/// A model split over `tp` ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sharding {
    tp: usize,
    n_heads: usize,
    n_kv_heads: usize,
    ffn: usize,
    vocab: usize,
}

impl Sharding {
    /// Splits `config` over `tp` ranks, 1 to the number of query heads.
    pub fn new(config: &Config, tp: usize) -> Result<Self, ShardingError> {
        let &Config { n_heads, n_kv_heads, ffn, vocab, .. } = config;
        if tp == 0 || tp > n_heads {
            return Err(ShardingError { tp, n_heads });
        }
        Ok(Self { tp, n_heads, n_kv_heads, ffn, vocab })
    }

    /// The number of ranks.
    pub fn tp(&self) -> usize {
        self.tp
    }

    /// The heads of `rank`. `order` is a permutation of the query heads to deal from (head grouping);
    /// without it they are dealt in checkpoint order.
    pub fn heads(&self, rank: usize, order: Option<&[usize]>) -> HeadShard {
        let dealt = share(self.n_heads, self.tp, rank);
        let heads: Vec<usize> = match order {
            Some(order) => order[dealt].to_vec(),
            None => dealt.collect(),
        };
        let kv_of = |head: usize| head / (self.n_heads / self.n_kv_heads);
        let mut kv_heads: Vec<usize> = heads.iter().map(|&h| kv_of(h)).collect();
        kv_heads.sort_unstable();
        kv_heads.dedup();
        let kv_index = heads.iter().map(|&h| kv_heads.partition_point(|&kv| kv < kv_of(h))).collect();
        HeadShard { heads, kv_heads, kv_index }
    }

    /// The MLP columns (rows of gate and up, columns of down) of `rank`; may be empty.
    pub fn ffn(&self, rank: usize) -> Range<usize> {
        granular_share(self.ffn, self.tp, rank)
    }

    /// The rows of the output head of `rank`; may be empty.
    pub fn vocab(&self, rank: usize) -> Range<usize> {
        granular_share(self.vocab, self.tp, rank)
    }
}

/// Joins neighbouring numbers into ranges, keeping the order: `[3, 4, 5, 0, 1]` → `[3..6, 0..2]`.
pub fn runs(numbers: &[usize]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for &n in numbers {
        match runs.last_mut() {
            Some(run) if run.end == n => run.end += 1,
            _ => runs.push(n..n + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::RopeScaling;

    fn config(n_heads: usize, n_kv_heads: usize, ffn: usize, vocab: usize) -> Config {
        Config {
            hidden: 64,
            ffn,
            n_layers: 1,
            n_heads,
            n_kv_heads,
            head_dim: 16,
            vocab,
            context: 128,
            rms_eps: 1e-5,
            rope_base: 1e4,
            rope_scaling: RopeScaling::None,
            tied: false,
            bos: None,
            eos: vec![],
        }
    }

    #[test]
    fn smollm2_splits_for_every_degree() {
        let c = config(9, 3, 1536, 49152);
        let heads = |tp, rank| Sharding::new(&c, tp).unwrap().heads(rank, None);
        assert_eq!(heads(3, 1).heads, [3, 4, 5]);
        assert_eq!(heads(3, 1).kv_heads, [1]);
        // Two ranks: 5 + 4 heads; KV head 1 serves query heads 3..6, so both ranks hold it.
        assert_eq!(heads(2, 0).kv_heads, [0, 1]);
        assert_eq!(heads(2, 1).heads, [5, 6, 7, 8]);
        assert_eq!(heads(2, 1).kv_heads, [1, 2]);
        assert_eq!(heads(2, 1).kv_index, [0, 1, 1, 1]);
        assert_eq!(Sharding::new(&c, 9).unwrap().ffn(8), 1408..1536);
    }

    #[test]
    fn impossible_degrees_are_named() {
        let c = config(9, 3, 1536, 49152);
        for tp in [0, 10] {
            let message = Sharding::new(&c, tp).unwrap_err().to_string();
            assert!(message.contains(&format!("degree {tp} ")) && message.contains("1 to 9"), "{message}");
        }
    }

    #[test]
    fn runs_join_neighbours() {
        assert_eq!(runs(&[3, 4, 5, 0, 1]), [3..6, 0..2]);
        assert!(runs(&[]).is_empty());
        assert_eq!(runs(&[2, 1]), [2..3, 1..2]);
    }

    proptest! {
        #[test]
        fn every_part_belongs_to_one_rank(
            groups in 1usize..6, per_group in 1usize..6, ffn in 1usize..700, vocab in 1usize..700, seed in any::<u64>(),
        ) {
            let n_heads = groups * per_group;
            let c = config(n_heads, groups, ffn, vocab);
            let mut order: Vec<usize> = (0..n_heads).collect();
            order.sort_by_key(|&h| (h as u64 + 1).wrapping_mul(seed | 1).rotate_left(17));
            for tp in 1..=n_heads {
                let s = Sharding::new(&c, tp).unwrap();
                for order in [None, Some(order.as_slice())] {
                    let shards: Vec<HeadShard> = (0..tp).map(|r| s.heads(r, order)).collect();
                    let dealt: Vec<usize> = shards.iter().flat_map(|s| s.heads.clone()).collect();
                    prop_assert_eq!(dealt, order.map_or((0..n_heads).collect::<Vec<_>>(), <[usize]>::to_vec));
                    let sizes = shards.iter().map(|s| s.heads.len());
                    prop_assert!(sizes.clone().max().unwrap() - sizes.min().unwrap() <= 1);
                    for shard in &shards {
                        for (i, &h) in shard.heads.iter().enumerate() {
                            prop_assert_eq!(shard.kv_heads[shard.kv_index[i]], h / per_group);
                        }
                        prop_assert!(shard.kv_heads.iter().all(|kv| shard.heads.iter().any(|h| h / per_group == *kv)));
                    }
                }
                for (n, part) in [(ffn, Sharding::ffn as fn(&Sharding, usize) -> _), (vocab, Sharding::vocab)] {
                    let mut end = 0;
                    for rank in 0..tp {
                        let r = part(&s, rank);
                        prop_assert_eq!(r.start, end);
                        prop_assert!(r.is_empty() || r.start % GRANULE == 0);
                        end = r.end;
                    }
                    prop_assert_eq!(end, n);
                }
            }
        }
    }
}
