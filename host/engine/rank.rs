//! One rank on its GPU: what it holds, and the passes that a batch becomes.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use half::bf16;

use super::EngineOptions;
use super::budget::{LANES, MAX_ROWS, RankShape};
use super::buffers::{Activations, KvCache, Lanes, OrderedLogits, Packed};
use super::forward::{Attention, Input, Pass};
use super::logits::LogitLayout;
use super::pages::Pages;
use super::profile::{Classes, ProfileGraphs};
use super::step::{CapturedStep, Choice};
use super::weights::{BlockWeights, GlobalWeights, Shard, Uploader};
use crate::comm::Communicator;
use crate::comm::gpu::{GpuBuffer, GpuComm};
use crate::driver::{Device, DeviceBuffer, KernelLibrary, PinnedBuffer, Stream};
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
    /// Logits of up to `LANES` rows in f32, as the layout says.
    pub(super) logits: GpuBuffer,
    /// As many of them on the host as were wanted at once; none on ranks whose logits nobody reads.
    host_logits: PinnedBuffer<f32>,
    pub(super) layout: LogitLayout,
    pub(super) ordered: OrderedLogits,
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
    /// All, unless a part of a step is being captured.
    pub(super) enqueued: Classes,
    pub(super) profile_graphs: Option<ProfileGraphs>,
}

/// What one rank is made from.
pub(super) struct Seed {
    pub(super) comm: GpuComm,
    pub(super) kernels: Arc<KernelLibrary>,
}

/// What all ranks are made from.
pub(super) struct Blueprint {
    pub(super) config: Config,
    pub(super) source: Arc<dyn TensorSource>,
    pub(super) plan: Plan,
    pub(super) sharding: Sharding,
    pub(super) options: EngineOptions,
    pub(super) page_size: PageSize,
    /// Tokens of the KV cache, the same on every rank.
    pub(super) kv_tokens: usize,
    pub(super) loaded_bytes: Arc<AtomicU64>,
}

impl Rank {
    /// Collective. Memory is registered first: once a rank has begun to load, it waits for nobody.
    pub(super) fn load(seed: Seed, of: &Blueprint) -> Result<Self, RunError> {
        let Blueprint { config, source, plan, sharding, options, page_size, kv_tokens, loaded_bytes } = of;
        let Seed { comm, kernels } = seed;
        let device = kernels.device().clone();
        let rank = comm.topology().rank;
        let shape = RankShape::new(config, sharding, plan, rank)?;
        let layout = LogitLayout::new(sharding, config.vocab);
        let partial = comm.register(MAX_ROWS * shape.hidden * size_of::<bf16>())?;
        let logits = comm.register(LANES * layout.stride() * size_of::<f32>())?;

        let stream = Arc::new(device.stream()?);
        let mut uploader = Uploader::new(&device, loaded_bytes)?;
        let shard = Shard { config, source: &**source, sharding, rank };
        let blocks = plan.blocks().iter().enumerate();
        let blocks =
            blocks.map(|(layer, block)| uploader.block(&shard, layer, block, plan.replacement(layer)));
        let blocks = blocks.collect::<Result<_, _>>()?;
        let globals = uploader.globals(&shard)?;
        let cache = KvCache::allocate(&shape, *kv_tokens, *page_size, &device)?;
        let rank = Self {
            partial,
            logits,
            host_logits: device.allocate_pinned(0)?,
            pages: Pages::new(cache.n_pages, page_size.get()),
            work: Activations::allocate(&shape, &device, &stream)?,
            ordered: OrderedLogits::allocate(&layout, &device)?,
            lanes: Lanes::allocate(cache.max_pages, &device, &stream)?,
            packed: device.allocate(0)?,
            graphs: HashMap::new(),
            syncs: SyncCounts::default(),
            enqueued: Classes::ALL,
            profile_graphs: None,
            config: config.clone(),
            source: Arc::clone(source),
            options: options.clone(),
            sharding: sharding.clone(),
            kernels,
            sm_count: device.properties().multiprocessors,
            device,
            shape,
            layout,
            stream,
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
        self.profile_graphs = None;
        let rank = self.comm.topology().rank;
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
            let shard = Shard { config, source, sharding, rank };
            self.blocks[layer] = uploader.block(&shard, layer, new, plan.replacement(layer))?;
        }
        let shape = RankShape::new(&self.config, &self.sharding, plan, rank)?;
        if shape.n_kv_heads > self.shape.n_kv_heads {
            self.widen(shape)?;
        }
        Ok(())
    }

    /// Makes room for more KV heads. The sequences are forgotten already.
    fn widen(&mut self, shape: RankShape) -> Result<(), RunError> {
        let (tokens, page_size) = (self.kv_tokens(), self.cache.page_size());
        // The old memory goes first: both may not fit.
        self.cache = KvCache::empty(page_size);
        self.cache = KvCache::allocate(&shape, tokens, page_size, &self.device)?;
        self.work = Activations::allocate(&shape, &self.device, &self.stream)?;
        self.shape = shape;
        Ok(())
    }

    /// Whether a pass over the chunk needs no memory and no graph that is not there yet.
    pub(super) fn is_ready(&self, chunk: &Chunk) -> bool {
        self.host_logits.len() >= self.read_words(chunk)
            && match fed_lanes(chunk) {
                Some(fed) => self.is_step_ready(fed.len(), Choice::Logits),
                None => self.packed.len() >= self.packed_words(chunk),
            }
    }

    /// Takes the memory or the graph that a pass over the chunk needs.
    pub(super) fn prepare(&mut self, chunk: &Chunk) -> Result<(), RunError> {
        let words = self.read_words(chunk);
        if self.host_logits.len() < words {
            self.host_logits = self.device.allocate_pinned(words.next_power_of_two())?;
        }
        if let Some(fed) = fed_lanes(chunk) {
            return self.prepare_step(fed.len(), Choice::Logits);
        }
        let words = self.packed_words(chunk);
        if self.packed.len() < words {
            self.packed = self.device.allocate(words.next_power_of_two())?;
        }
        Ok(())
    }

    /// One pass over at most [`MAX_ROWS`] tokens, which is ready. Logits on ranks that [read](Self::reads_logits) them.
    pub(super) fn forward(&mut self, chunk: &Chunk) -> Result<Output, RunError> {
        let output = match fed_lanes(chunk) {
            Some(fed) => {
                self.step(&fed, Choice::Logits, &[])?;
                let mut output = Output::default();
                self.read_logits(fed.len(), &mut output.logits)?;
                output
            }
            None => self.prefill(chunk)?,
        };
        self.comm.check()?;
        Ok(output)
    }

    fn prefill(&mut self, chunk: &Chunk) -> Result<Output, RunError> {
        let batch = &chunk.batch;
        let spans = &batch.spans;
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

        let mut logits = Vec::new();
        logits.reserve_exact(if self.reads_logits() { wanted.len() * self.shape.vocab } else { 0 });
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
            self.read_logits(count, &mut logits)?;
        }
        self.stream.synchronize()?;
        self.syncs.passes += 1;
        Ok(Output { logits, hidden_states: hidden_states.unwrap_or_default() })
    }

    /// Words that the arrays of a pass take at most, alignment included.
    fn packed_words(&self, chunk: &Chunk) -> usize {
        let (n_tokens, n_spans) = (chunk.batch.n_tokens(), chunk.batch.spans.len());
        let arrays =
            [n_tokens, n_tokens, n_tokens, n_spans + 1, n_spans, n_spans * self.cache.max_pages, n_tokens];
        arrays.iter().map(|words| words.next_multiple_of(4)).sum()
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

    /// Whether the process takes its logits from this rank: its first one.
    fn reads_logits(&self) -> bool {
        self.comm.topology().rank == 0 || self.options.processes.is_some()
    }

    /// Elements of gathered logits that a pass over the chunk reads at once.
    fn read_words(&self, chunk: &Chunk) -> usize {
        let rows = match fed_lanes(chunk) {
            Some(fed) => fed.len(),
            None => wanted_rows(chunk).len().min(LANES),
        };
        if self.reads_logits() { rows * self.layout.stride() } else { 0 }
    }

    /// Appends the first `count` rows of logits, over the whole vocabulary, on the rank that is read. Waits for the
    /// stream on all.
    fn read_logits(&mut self, count: usize, rows: &mut Vec<f32>) -> Result<(), RunError> {
        self.stream.synchronize()?;
        if !self.reads_logits() {
            return Ok(());
        }
        let gathered = &mut self.host_logits[..count * self.layout.stride()];
        self.logits.memory().download_at(0, bytemuck::cast_slice_mut(gathered), &self.stream)?;
        self.layout.append(gathered, count, rows);
        Ok(())
    }
}

/// Sequences and tokens of a chunk that is a decode step.
fn fed_lanes(chunk: &Chunk) -> Option<Vec<(usize, u32)>> {
    let spans = &chunk.batch.spans;
    let is_step =
        spans.len() <= LANES && spans.iter().all(|s| s.tokens.len() == 1) && !chunk.batch.hidden_states;
    is_step.then(|| spans.iter().map(|s| (s.sequence, s.tokens[0])).collect())
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
