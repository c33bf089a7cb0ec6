//! One rank's share of the model and its pass through it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::attention::{KvCache, attention};
use super::math::{Threads, linear, rotate, swiglu};
use super::matrix::Matrix;
use super::probe::RankProbe;
use crate::comm::cpu::{CpuBuffer, CpuComm, Link, rms_norm};
use crate::comm::{AllGather, AllReduce, CommError, Communicator, DType, Epilogue};
use crate::model::sharding::{HeadShard, Sharding, runs};
use crate::model::{Config, Tensor, TensorKind, TensorSource};
use crate::runner::{Batch, LogitRows, Output, RunError, SyncCounts};
use crate::spd::{BlockPlan, Plan, Replaced, ReplacementFile};

/// Rows of one pass; longer batches run in several.
pub(crate) const MAX_ROWS: usize = 512;

/// Rows whose logits are gathered at once; bounds the symmetric buffer for them.
const LOGIT_ROWS: usize = 16;

/// The weights of one decoder block that this rank holds.
pub(super) struct Block {
    plan: BlockPlan,
    pub(super) heads: HeadShard,
    pub(super) attention_norm: Vec<f32>,
    qkv: Matrix,
    o: Matrix,
    mlp_norm: Vec<f32>,
    gate_up: Matrix,
    down: Matrix,
}

/// A sequence's KV cache in every block.
#[derive(Default, Clone)]
pub(super) struct Sequence {
    pub(super) len: usize,
    pub(super) blocks: Vec<KvCache>,
}

/// One rank: its shard of the weights, its caches, its end of the communicator.
pub(crate) struct Rank<L: Link> {
    pub(super) config: Config,
    source: Arc<dyn TensorSource>,
    sharding: Sharding,
    threads: Threads,
    comm: CpuComm<L>,
    /// Whether it hands out the logits; where ranks share a process, one is enough.
    speaks: bool,
    /// Partial sums on their way into an all-reduce, `[MAX_ROWS, hidden]`.
    partial: CpuBuffer<L>,
    /// Logits on their way into the gather, `[LOGIT_ROWS, vocab]`, rank by rank.
    logits: CpuBuffer<L>,
    pub(super) blocks: Vec<Block>,
    pub(super) final_norm: Vec<f32>,
    lm_head: Matrix,
    inv_freq: Vec<f32>,
    pub(super) sequences: Vec<Sequence>,
    syncs: SyncCounts,
    /// Collects what blocks do, while somebody looks.
    pub(super) probe: Option<RankProbe>,
}

impl<L: Link> Rank<L> {
    /// Loads the rank's shard, adding to `loaded_bytes` as it goes. Collective.
    pub(crate) fn load(
        config: &Config,
        source: Arc<dyn TensorSource>,
        plan: &Plan,
        comm: CpuComm<L>,
        speaks: bool,
        threads: Threads,
        loaded_bytes: &AtomicU64,
    ) -> Result<Self, RunError> {
        let world = comm.topology().world();
        let sharding = Sharding::new(config, world).map_err(crate::spd::PlanError::from)?;
        let rank = comm.topology().rank;
        let mut blocks = Vec::with_capacity(config.n_layers);
        for (layer, block) in plan.blocks().iter().enumerate() {
            let block = Block::load(config, &*source, &sharding, rank, layer, block, plan.replacement(layer));
            loaded_bytes.fetch_add(block.bytes() as u64, Ordering::Relaxed);
            blocks.push(block);
        }
        let vocab = [(Tensor::global(TensorKind::LmHead), sharding.vocab(rank))];
        let lm_head = Matrix::load(&*source, &vocab, std::slice::from_ref(&(0..config.hidden)));
        loaded_bytes.fetch_add(lm_head.bytes() as u64, Ordering::Relaxed);
        Ok(Self {
            final_norm: gain(&*source, Tensor::global(TensorKind::FinalNorm), config.hidden),
            inv_freq: config.rope_inv_freq(),
            partial: comm.register(MAX_ROWS * config.hidden * size_of::<f32>())?,
            logits: comm.register(LOGIT_ROWS * config.vocab * size_of::<f32>())?,
            config: config.clone(),
            source,
            sharding,
            threads,
            comm,
            speaks,
            blocks,
            lm_head,
            sequences: Vec::new(),
            syncs: SyncCounts::default(),
            probe: None,
        })
    }

    /// Bytes of weights that this rank holds.
    pub(crate) fn weight_bytes(&self) -> usize {
        let blocks: usize = self.blocks.iter().map(Block::bytes).sum();
        blocks + size_of_val(self.final_norm.as_slice()) + self.lm_head.bytes()
    }

    /// The rank's number in its group.
    pub(super) fn number(&self) -> usize {
        self.comm.topology().rank
    }

    pub(crate) fn sync_counts(&self) -> SyncCounts {
        self.syncs
    }

    /// Shortens a sequence to its first `len` tokens.
    pub(crate) fn truncate(&mut self, sequence: usize, len: usize) {
        if let Some(sequence) = self.sequences.get_mut(sequence) {
            if len == 0 {
                *sequence = Sequence::default();
            }
            sequence.len = sequence.len.min(len);
            for cache in &mut sequence.blocks {
                cache.truncate(len, self.config.head_dim);
            }
        }
    }

    /// Switches to another plan and forgets all sequences; blocks whose weights or heads differ are loaded anew.
    pub(crate) fn set_plan(&mut self, plan: &Plan) {
        self.sequences.clear();
        let rank = self.comm.topology().rank;
        for (layer, new) in plan.blocks().iter().enumerate() {
            let old = &self.blocks[layer].plan;
            if old.heads == new.heads && old.replacement == new.replacement && new.replacement.is_none() {
                self.blocks[layer].plan = new.clone();
            } else {
                let (config, source, replacement) = (&self.config, &*self.source, plan.replacement(layer));
                self.blocks[layer] =
                    Block::load(config, source, &self.sharding, rank, layer, new, replacement);
            }
        }
    }

    /// One pass over at most [`MAX_ROWS`] tokens.
    pub(crate) fn forward(&mut self, batch: &Batch) -> Result<Output, RunError> {
        let rows: Vec<(usize, usize)> = self.place(batch);
        let n = rows.len();
        let (hidden, eps) = (self.config.hidden, self.config.rms_eps);
        let mut x = self.embed(batch, n);
        let mut hidden_states = Vec::new();
        if batch.hidden_states {
            hidden_states.push(x.clone());
        }
        let mut h = vec![0.0; n * hidden];
        rms_norm(&x, &self.blocks[0].attention_norm, eps, &mut h);
        for layer in 0..self.blocks.len() {
            self.block(layer, &rows, &mut x, &mut h)?;
            if batch.hidden_states {
                hidden_states.push(x.clone());
            }
        }
        let wanted = match batch.logits {
            LogitRows::All => h,
            LogitRows::Last => last_rows(batch, &h, hidden),
        };
        let logits = self.logits(&wanted)?;
        self.syncs.passes += 1;
        Ok(Output { logits, hidden_states })
    }

    /// The (sequence, position) of every row; the sequences grow by them.
    fn place(&mut self, batch: &Batch) -> Vec<(usize, usize)> {
        let mut rows = Vec::with_capacity(batch.n_tokens());
        for span in &batch.spans {
            if self.sequences.len() <= span.sequence {
                self.sequences.resize(span.sequence + 1, Sequence::default());
            }
            let sequence = &mut self.sequences[span.sequence];
            sequence.blocks.resize(self.blocks.len(), KvCache::default());
            rows.extend((sequence.len..).take(span.tokens.len()).map(|position| (span.sequence, position)));
            sequence.len += span.tokens.len();
        }
        rows
    }

    /// The embeddings of the batch's tokens. The table is replicated: each rank reads the rows it needs.
    fn embed(&self, batch: &Batch, n: usize) -> Vec<f32> {
        let hidden = self.config.hidden;
        let mut x = vec![0.0; n * hidden];
        let tokens = batch.spans.iter().flat_map(|s| &s.tokens);
        for (&token, out) in tokens.zip(x.chunks_exact_mut(hidden)) {
            let row = token as usize;
            self.source.read_f32(Tensor::global(TensorKind::Embedding), row..row + 1, 0..hidden, out);
        }
        x
    }

    /// One decoder block: `x` is the residual stream, `h` its norm for this block on entry and for the
    /// next block (or the head) on return. Sync-Point Drop, SPD paper Section 4.1, Figure 3a.
    pub(super) fn block(
        &mut self,
        layer: usize,
        rows: &[(usize, usize)],
        x: &mut [f32],
        h: &mut [f32],
    ) -> Result<(), CommError> {
        let (hidden, eps) = (self.config.hidden, self.config.rms_eps);
        let numel = rows.len() * hidden;
        let attended = self.attend(layer, rows, h);
        let block = &self.blocks[layer];
        let next_norm = self.blocks.get(layer + 1).map_or(self.final_norm.as_slice(), |b| &b.attention_norm);
        let before = self.comm.counts().all_reduces;

        // With one rank there is no all-reduce to drop, and the exact order of additions is kept.
        let dropped = !block.plan.sync_attention && self.sharding.tp() > 1;
        let mut own_attention = Vec::new();
        if dropped {
            // The MLP of this rank sees X + Y_i; Y_i joins the all-reduce behind the MLP.
            own_attention.resize(numel, 0.0);
            linear(&attended, &block.o, &mut own_attention, self.threads);
            let m: Vec<f32> = x.iter().zip(&own_attention).map(|(x, y)| x + y).collect();
            rms_norm(&m, &block.mlp_norm, eps, h);
        } else {
            linear(&attended, &block.o, &mut self.partial.as_mut_slice()[..numel], self.threads);
            let epilogue =
                Epilogue::ResidualRmsNorm { residual: x, gain: block.mlp_norm.as_slice(), eps, out: h };
            let buf = &mut self.partial;
            self.comm.enqueue(&(), AllReduce { buf, numel, dtype: DType::F32, addend: None, epilogue })?;
        }

        let width = block.down.cols;
        let mut gate_up = vec![0.0; rows.len() * 2 * width];
        linear(h, &block.gate_up, &mut gate_up, self.threads);
        let mut activated = vec![0.0; rows.len() * width];
        swiglu(&gate_up, width, &mut activated, self.threads);
        linear(&activated, &block.down, &mut self.partial.as_mut_slice()[..numel], self.threads);
        if let Some(probe) = &mut self.probe {
            probe.add_mlp(&self.partial.as_slice()[..numel], hidden);
        }
        let epilogue = Epilogue::ResidualRmsNorm { residual: x, gain: next_norm, eps, out: h };
        let (buf, addend) = (&mut self.partial, dropped.then_some(own_attention.as_slice()));
        self.comm.enqueue(&(), AllReduce { buf, numel, dtype: DType::F32, addend, epilogue })?;

        let all_reduces = self.comm.counts().all_reduces - before;
        self.syncs.block_all_reduces += all_reduces;
        self.syncs.sync_points += all_reduces;
        Ok(())
    }

    /// Projections, rotary embedding, cache write and attention of this rank's heads: `[n, heads · head_dim]`.
    fn attend(&mut self, layer: usize, rows: &[(usize, usize)], h: &[f32]) -> Vec<f32> {
        let d = self.config.head_dim;
        let block = &self.blocks[layer];
        let (q_width, kv_width) = (block.heads.heads.len() * d, block.heads.kv_heads.len() * d);
        let mut qkv = vec![0.0; rows.len() * block.qkv.rows];
        linear(h, &block.qkv, &mut qkv, self.threads);
        let mut queries = Vec::with_capacity(rows.len() * q_width);
        for (qkv, &(sequence, position)) in qkv.chunks_exact_mut(block.qkv.rows).zip(rows) {
            let (q_and_k, v) = qkv.split_at_mut(q_width + kv_width);
            q_and_k.chunks_exact_mut(d).for_each(|head| rotate(head, position, &self.inv_freq));
            queries.extend_from_slice(&q_and_k[..q_width]);
            self.sequences[sequence].blocks[layer].push(&q_and_k[q_width..], v, d);
        }
        let mut out = vec![0.0; queries.len()];
        let spans = rows.chunk_by(|a, b| a.0 == b.0);
        let mut at = 0;
        for span in spans {
            let part = at * q_width..(at + span.len()) * q_width;
            let cache = &self.sequences[span[0].0].blocks[layer];
            let scores = self.probe.as_mut().map(|probe| probe.scores.as_mut_slice());
            attention(&queries[part.clone()], cache, &block.heads, d, &mut out[part], self.threads, scores);
            at += span.len();
        }
        out
    }

    /// The full logits of `rows` normalised rows, gathered from the ranks' shards of the vocabulary;
    /// empty on a rank that does not hand them out.
    pub(super) fn logits(&mut self, h: &[f32]) -> Result<Vec<f32>, CommError> {
        let topology = self.comm.topology();
        let (rank, world, vocab) = (topology.rank, topology.world(), self.config.vocab);
        let mut logits = Vec::new();
        for h in h.chunks(LOGIT_ROWS * self.config.hidden) {
            let rows = h.len() / self.config.hidden;
            let offsets: Vec<usize> =
                (0..world).map(|r| rows * self.sharding.vocab(r).start).chain([rows * vocab]).collect();
            let own = offsets[rank]..offsets[rank + 1];
            linear(h, &self.lm_head, &mut self.logits.as_mut_slice()[own], self.threads);
            let before = self.comm.counts().all_gathers;
            self.comm.enqueue_gather(
                &(),
                AllGather { buf: &mut self.logits, offsets: &offsets, dtype: DType::F32 },
            )?;
            self.syncs.sync_points += self.comm.counts().all_gathers - before;
            if self.speaks {
                let by_rank = self.logits.as_slice();
                for row in 0..rows {
                    for r in 0..world {
                        let width = self.sharding.vocab(r).len();
                        logits.extend_from_slice(&by_rank[offsets[r] + row * width..][..width]);
                    }
                }
            }
        }
        Ok(logits)
    }
}

impl Block {
    fn load(
        config: &Config,
        source: &dyn TensorSource,
        sharding: &Sharding,
        rank: usize,
        layer: usize,
        plan: &BlockPlan,
        replacement: Option<&Arc<ReplacementFile>>,
    ) -> Self {
        let replaced = replacement.map(|file| Replaced { base: source, file, rank });
        let source: &dyn TensorSource = match &replaced {
            Some(replaced) => replaced,
            None => source,
        };
        let tensor = |kind| Tensor::block(kind, layer);
        let d = config.head_dim;
        let heads = sharding.heads(rank, plan.heads.as_deref());
        let scaled = |numbers: &[usize]| runs(numbers).into_iter().map(|r| r.start * d..r.end * d);
        let rows_of = |kind, numbers: &[usize]| scaled(numbers).map(move |rows| (tensor(kind), rows));
        let qkv: Vec<_> = rows_of(TensorKind::Q, &heads.heads)
            .chain(rows_of(TensorKind::K, &heads.kv_heads))
            .chain(rows_of(TensorKind::V, &heads.kv_heads))
            .collect();
        let o_cols: Vec<_> = scaled(&heads.heads).collect();
        let (ffn, all) = (sharding.ffn(rank), 0..config.hidden);
        let gate_up = [(tensor(TensorKind::Gate), ffn.clone()), (tensor(TensorKind::Up), ffn.clone())];
        Self {
            plan: plan.clone(),
            attention_norm: gain(source, tensor(TensorKind::AttentionNorm), config.hidden),
            qkv: Matrix::load(source, &qkv, std::slice::from_ref(&all)),
            o: Matrix::load(source, &[(tensor(TensorKind::O), all.clone())], &o_cols),
            mlp_norm: gain(source, tensor(TensorKind::MlpNorm), config.hidden),
            gate_up: Matrix::load(source, &gate_up, std::slice::from_ref(&all)),
            down: Matrix::load(source, &[(tensor(TensorKind::Down), all)], &[ffn]),
            heads,
        }
    }

    fn bytes(&self) -> usize {
        let norms = size_of_val(self.attention_norm.as_slice()) + size_of_val(self.mlp_norm.as_slice());
        norms + self.qkv.bytes() + self.o.bytes() + self.gate_up.bytes() + self.down.bytes()
    }
}

/// A norm's gain in f32.
fn gain(source: &dyn TensorSource, tensor: Tensor, width: usize) -> Vec<f32> {
    let mut gain = vec![0.0; width];
    source.read_f32(tensor, 0..1, 0..width, &mut gain);
    gain
}

/// The last row of every span.
fn last_rows(batch: &Batch, h: &[f32], width: usize) -> Vec<f32> {
    let mut end = 0;
    let mut rows = Vec::with_capacity(batch.spans.len() * width);
    for span in &batch.spans {
        end += span.tokens.len();
        rows.extend_from_slice(&h[(end - 1) * width..end * width]);
    }
    rows
}
