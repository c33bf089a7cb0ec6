//! One rank on its GPU: what it holds, and the passes that a batch becomes.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use half::bf16;

use super::budget::{LANES, MAX_ROWS, RankShape};
use super::buffers::{Activations, KvCache, Lanes, Packed};
use super::forward::{Attention, Input, Pass};
use super::pages::Pages;
use super::step::{CapturedStep, Choice};
use super::weights::{BlockWeights, GlobalWeights, Shard, Uploader};
use super::{EngineError, EngineOptions};
use crate::comm::Communicator;
use crate::comm::gpu::{GpuBuffer, GpuComm};
use crate::driver::{Device, DeviceBuffer, KernelLibrary, Stream};
use crate::kernels::{Embedding, PageSize};
use crate::model::sharding::Sharding;
use crate::model::{Config, TensorSource};
use crate::runner::chunk::Chunk;
use crate::runner::{LogitRows, Output, RunError, SyncCounts};
use crate::spd::Plan;

/// A rank: its shard of the weights, its memory, its end of the communicator.
pub(super) struct Rank {
    pub(super) config: Config,
    source: Arc<dyn TensorSource>,
    pub(super) sharding: Sharding,
    pub(super) shape: RankShape,
    pub(super) options: EngineOptions,
    device: Device,
    pub(super) stream: Arc<Stream>,
    pub(super) kernels: Arc<KernelLibrary>,
    pub(super) sm_count: u32,
    pub(super) comm: GpuComm,
    /// Partial sums on their way into an all-reduce, `[MAX_ROWS, hidden]` bf16.
    pub(super) partial: GpuBuffer,
    /// Logits, `[LANES, vocab]` f32, rank by rank.
    pub(super) logits: GpuBuffer,
    pub(super) globals: GlobalWeights,
    pub(super) blocks: Vec<BlockWeights>,
    pub(super) cache: KvCache,
    pub(super) pages: Pages,
    pub(super) work: Activations,
    pub(super) lanes: Lanes,
    /// The arrays of the pass at hand.
    packed: DeviceBuffer<u32>,
    pub(super) graphs: HashMap<(usize, Choice), CapturedStep>,
    pub(super) syncs: SyncCounts,
}

impl Rank {
    pub(super) fn load(
        config: &Config,
        source: &Arc<dyn TensorSource>,
        plan: &Plan,
        device: &Device,
        options: &EngineOptions,
        loaded_bytes: &Arc<AtomicU64>,
    ) -> Result<Self, RunError> {
        let page_size = PageSize::try_from(options.page_size).map_err(EngineError::from)?;
        let sharding = Sharding::new(config, plan.tp()).map_err(crate::spd::PlanError::from)?;
        let shape = RankShape::new(config, &sharding, 0)?;
        let sm_count = device.properties().multiprocessors;
        let kv_tokens =
            shape.kv_tokens(options.kv_tokens, device.memory_info()?, device.label(), sm_count)?;

        let kernels = Arc::new(KernelLibrary::load(device)?.programmatic(options.dependent_launch));
        let comm = GpuComm::solo(Arc::clone(&kernels));
        let stream = Arc::new(device.stream()?);
        let mut uploader = Uploader::new(device, loaded_bytes)?;
        let shard = Shard { config, source: &**source, sharding: &sharding, rank: comm.topology().rank };
        let blocks = plan.blocks().iter().enumerate();
        let blocks =
            blocks.map(|(layer, block)| uploader.block(&shard, layer, block, plan.replacement(layer)));
        let blocks = blocks.collect::<Result<_, _>>()?;
        let globals = uploader.globals(&shard)?;
        let cache = KvCache::allocate(&shape, kv_tokens, page_size, device)?;
        let rank = Self {
            partial: comm.register(MAX_ROWS * shape.hidden * size_of::<bf16>())?,
            logits: comm.register(LANES * shape.vocab * size_of::<f32>())?,
            pages: Pages::new(cache.n_pages, page_size.get()),
            work: Activations::allocate(&shape, device, &stream)?,
            lanes: Lanes::allocate(cache.max_pages, device, &stream)?,
            packed: device.allocate(0)?,
            graphs: HashMap::new(),
            syncs: SyncCounts::default(),
            config: config.clone(),
            source: Arc::clone(source),
            options: options.clone(),
            device: device.clone(),
            sharding,
            shape,
            stream,
            kernels,
            sm_count,
            comm,
            globals,
            blocks,
            cache,
        };
        rank.stream.synchronize()?;
        Ok(rank)
    }

    pub(super) fn kv_tokens(&self) -> usize {
        self.cache.n_pages * self.options.page_size
    }

    pub(super) fn lengths(&self) -> Vec<usize> {
        self.pages.lengths()
    }

    pub(super) fn sync_counts(&self) -> SyncCounts {
        self.syncs
    }

    pub(super) fn truncate(&mut self, sequence: usize, len: usize) {
        self.pages.truncate(sequence, len);
    }

    /// Switches to another plan and forgets all sequences; blocks whose weights or heads differ are loaded anew.
    pub(super) fn set_plan(&mut self, plan: &Plan) -> Result<(), RunError> {
        self.stream.synchronize()?;
        self.pages.clear();
        self.graphs.clear();
        let mut uploader = None;
        for (layer, new) in plan.blocks().iter().enumerate() {
            let old = &self.blocks[layer].plan;
            if old.heads == new.heads && old.replacement == new.replacement && new.replacement.is_none() {
                self.blocks[layer].plan = new.clone();
                continue;
            }
            let uploader = match &mut uploader {
                Some(uploader) => uploader,
                none => none.insert(Uploader::new(&self.device, &Arc::default())?),
            };
            let (config, source, sharding) = (&self.config, &*self.source, &self.sharding);
            let shard = Shard { config, source, sharding, rank: self.comm.topology().rank };
            self.blocks[layer] = uploader.block(&shard, layer, new, plan.replacement(layer))?;
        }
        Ok(())
    }

    /// One pass over at most [`MAX_ROWS`] tokens.
    pub(super) fn forward(&mut self, chunk: &Chunk) -> Result<Output, RunError> {
        let batch = &chunk.batch;
        let spans = &batch.spans;
        if spans.len() <= LANES && spans.iter().all(|s| s.tokens.len() == 1) && !batch.hidden_states {
            let fed: Vec<_> = spans.iter().map(|s| (s.sequence, s.tokens[0])).collect();
            self.step(&fed, Choice::Logits, &[])?;
            return Ok(Output { logits: self.read_logits(fed.len())?, hidden_states: Vec::new() });
        }
        for span in spans {
            self.pages.grow(span.sequence, span.tokens.len())?;
        }
        let wanted = wanted_rows(chunk);
        let mut packed = Packed::default();
        let arrays = self.pack(chunk, &wanted, &mut packed);
        packed.upload(&mut self.packed, &self.stream)?;
        let at = |offset: usize| self.packed.addr().at(offset);
        let n = batch.n_tokens();
        let pass = Pass {
            n,
            ids: at(arrays.ids),
            positions: at(arrays.positions),
            sequences: at(arrays.sequences),
            block_table: at(arrays.block_table),
            kv_lens: at(arrays.kv_lens),
            attention: Attention::Prefill {
                q_starts: at(arrays.q_starts),
                n_sequences: spans.len(),
                max_q_len: spans.iter().map(|s| s.tokens.len()).max().unwrap_or(0),
            },
        };
        let wanted_at = at(arrays.wanted);
        let mut hidden_states = batch.hidden_states.then(Vec::new);
        let input = self.pass(&pass, hidden_states.as_mut())?;

        let mut logits = Vec::with_capacity(wanted.len() * self.shape.vocab);
        for first in (0..wanted.len()).step_by(LANES) {
            let count = LANES.min(wanted.len() - first);
            let gather = Embedding {
                table: input.rows.at,
                rows: n as u32,
                width: self.shape.hidden as u32,
                ids: wanted_at.at(first),
                out: self.work.gathered.addr(),
                n_tokens: count as u32,
            };
            self.launch(&gather.launch())?;
            self.head(Input { rows: self.dense(self.work.gathered.addr()), ..input }, count)?;
            logits.extend(self.read_logits(count)?);
        }
        self.comm.check()?;
        self.syncs.passes += 1;
        Ok(Output { logits, hidden_states: hidden_states.unwrap_or_default() })
    }

    /// The arrays that a pass reads. The sequences have grown already.
    fn pack(&self, chunk: &Chunk, wanted: &[u32], packed: &mut Packed) -> PassArrays {
        let spans = &chunk.batch.spans;
        let end = |sequence: usize| self.pages.len(sequence) as u32;
        let mut q_starts = vec![0];
        let (mut ids, mut positions, mut sequences) = (Vec::new(), Vec::new(), Vec::new());
        for (row, span) in spans.iter().enumerate() {
            let n = span.tokens.len() as u32;
            ids.extend_from_slice(&span.tokens);
            positions.extend(end(span.sequence) - n..end(span.sequence));
            sequences.extend(span.tokens.iter().map(|_| row as u32));
            q_starts.push(ids.len() as u32);
        }
        let mut table = vec![0; spans.len() * self.cache.max_pages];
        for (row, span) in table.chunks_exact_mut(self.cache.max_pages).zip(spans) {
            let pages = self.pages.of(span.sequence);
            row[..pages.len()].copy_from_slice(pages);
        }
        PassArrays {
            ids: packed.push(ids),
            positions: packed.push(positions),
            sequences: packed.push(sequences),
            q_starts: packed.push(q_starts),
            kv_lens: packed.push(spans.iter().map(|span| end(span.sequence))),
            block_table: packed.push(table),
            wanted: packed.push(wanted.iter().copied()),
        }
    }

    /// The first `count` rows of logits, over the whole vocabulary.
    pub(super) fn read_logits(&self, count: usize) -> Result<Vec<f32>, RunError> {
        let vocab = self.shape.vocab;
        let mut by_rank = vec![0.0f32; count * vocab];
        let memory = self.logits.memory();
        memory.download_at(0, bytemuck::cast_slice_mut(&mut by_rank), &self.stream)?;
        let world = self.comm.topology().world();
        if world == 1 {
            return Ok(by_rank);
        }
        let mut logits = Vec::with_capacity(by_rank.len());
        for row in 0..count {
            for rank in 0..world {
                let columns = self.sharding.vocab(rank);
                logits.extend_from_slice(
                    &by_rank[count * columns.start + row * columns.len()..][..columns.len()],
                );
            }
        }
        Ok(logits)
    }
}

/// Where the arrays of a pass begin, in elements.
struct PassArrays {
    ids: usize,
    positions: usize,
    sequences: usize,
    q_starts: usize,
    kv_lens: usize,
    block_table: usize,
    wanted: usize,
}

/// The rows of the pass whose logits the batch asked for.
fn wanted_rows(chunk: &Chunk) -> Vec<u32> {
    let rows: Vec<u32> = match chunk.batch.logits {
        LogitRows::All => (0..chunk.batch.n_tokens() as u32).collect(),
        LogitRows::Last => {
            let ends = chunk.batch.spans.iter().scan(0, |end, span| {
                *end += span.tokens.len() as u32;
                Some(*end - 1)
            });
            ends.collect()
        }
    };
    rows.into_iter().zip(&chunk.keep_logits).filter(|(_, keep)| **keep).map(|(row, _)| row).collect()
}
