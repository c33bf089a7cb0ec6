//! A rank's working memory: activations, KV cache, and what a decode step reads and writes by itself.

use std::collections::HashMap;

use bytemuck::Pod;
use half::bf16;

use super::EngineError;
use super::budget::{LANES, MAX_ROWS, RankShape};
use super::logits::LogitLayout;
use super::weights::GroupTables;
use crate::driver::{Device, DeviceBuffer, PinnedBuffer, Stream};
use crate::kernels::{Addr, Embedding, Launch, PageSize, PagedKv};

/// Activations of one pass.
pub(crate) struct Activations {
    /// `[MAX_ROWS, hidden]`: the residual stream.
    pub(crate) x: DeviceBuffer<bf16>,
    /// `[MAX_ROWS, hidden]`: the residual stream, normalised.
    pub(crate) h: DeviceBuffer<bf16>,
    /// `[MAX_ROWS, hidden]`: the residual stream as a block sees it whose first sync point is dropped.
    pub(crate) m: DeviceBuffer<bf16>,
    /// `[MAX_ROWS, (heads + 2 · kv_heads) · head_dim]`.
    pub(crate) qkv: DeviceBuffer<bf16>,
    /// `[MAX_ROWS, heads · head_dim]`.
    pub(crate) attended: DeviceBuffer<bf16>,
    /// `[MAX_ROWS, ffn]`.
    pub(crate) activated: DeviceBuffer<bf16>,
    /// `[LANES, hidden]`: rows on their way to the output head.
    pub(crate) gathered: DeviceBuffer<bf16>,
    /// Scratch of the decode attention.
    pub(crate) partial_out: DeviceBuffer<f32>,
    pub(crate) partial_stats: DeviceBuffer<f32>,
    pub(crate) counters: DeviceBuffer<u32>,
}

impl Activations {
    pub(crate) fn allocate(shape: &RankShape, device: &Device, stream: &Stream) -> Result<Self, EngineError> {
        let rows = |width: usize| device.allocate(MAX_ROWS * width);
        let scratch = shape.decode_scratch(device.properties().multiprocessors);
        Ok(Self {
            x: rows(shape.hidden)?,
            h: rows(shape.hidden)?,
            m: rows(shape.hidden)?,
            qkv: rows(shape.qkv_width())?,
            attended: rows(shape.q_width())?,
            activated: rows(shape.ffn)?,
            gathered: device.allocate(LANES * shape.hidden)?,
            partial_out: device.allocate(scratch.partial_out)?,
            partial_stats: device.allocate(scratch.partial_stats)?,
            counters: device.allocate_zeroed(scratch.counters, stream)?,
        })
    }
}

/// Keys and values of every block, in pages.
pub(crate) struct KvCache {
    blocks: Vec<[DeviceBuffer<bf16>; 2]>,
    page_size: PageSize,
    /// Pages of the longest sequence.
    pub(crate) max_pages: usize,
    /// Pages in all.
    pub(crate) n_pages: usize,
}

impl KvCache {
    /// Room for `n_tokens` tokens, rounded up to whole pages.
    pub(crate) fn allocate(
        shape: &RankShape,
        n_tokens: usize,
        page_size: PageSize,
        device: &Device,
    ) -> Result<Self, EngineError> {
        let n_pages = n_tokens.div_ceil(page_size.get());
        let values = n_pages * shape.n_kv_heads * page_size.get() * shape.head_dim.get() as usize;
        let block = |_| Ok([device.allocate(values)?, device.allocate(values)?]);
        let blocks = (0..shape.n_layers).map(block).collect::<Result<_, EngineError>>()?;
        Ok(Self { blocks, page_size, max_pages: shape.context.div_ceil(page_size.get()), n_pages })
    }

    /// Room for nothing.
    pub(crate) fn empty(page_size: PageSize) -> Self {
        Self { blocks: Vec::new(), page_size, max_pages: 0, n_pages: 0 }
    }

    pub(crate) fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// One block's part, for sequences whose pages are listed in `block_table`, `[n_sequences, max_pages]`.
    pub(crate) fn layer(&self, layer: usize, heads: &GroupTables, block_table: Addr<u32>) -> PagedKv {
        let [k, v] = &self.blocks[layer];
        PagedKv {
            k: k.addr(),
            v: v.addr(),
            block_table,
            max_pages: self.max_pages as u32,
            page_size: self.page_size,
            n_kv_heads: heads.n_kv_heads,
        }
    }
}

/// An array on the device whose contents the host knows, so that it is written only when they change.
pub(crate) struct Mirror<T: Pod + PartialEq> {
    device: DeviceBuffer<T>,
    host: Vec<T>,
}

impl<T: Pod + PartialEq> Mirror<T> {
    pub(crate) fn zeroed(len: usize, device: &Device, stream: &Stream) -> Result<Self, EngineError> {
        Ok(Self { device: device.allocate_zeroed(len, stream)?, host: vec![T::zeroed(); len] })
    }

    pub(crate) fn addr(&self) -> Addr<T> {
        self.device.addr()
    }

    pub(crate) fn device(&self) -> &DeviceBuffer<T> {
        &self.device
    }

    /// Makes elements `offset` and on equal to `values`, on both sides.
    pub(crate) fn set(&mut self, offset: usize, values: &[T], stream: &Stream) -> Result<(), EngineError> {
        let known = &mut self.host[offset..offset + values.len()];
        if known != values {
            self.device.upload_at(offset, values, stream)?;
            known.copy_from_slice(values);
        }
        Ok(())
    }

    /// Notes what kernels have written to the first elements.
    pub(crate) fn note(&mut self, written: impl IntoIterator<Item = T>) {
        self.host.iter_mut().zip(written).for_each(|(known, value)| *known = value);
    }
}

/// Rows of logits in order, where the gather leaves them by rank.
pub(crate) struct OrderedLogits {
    /// `[LANES, stride]`; empty where a rank is alone.
    rows: DeviceBuffer<f32>,
    /// By number of rows: see [`LogitLayout::order`].
    orders: HashMap<usize, DeviceBuffer<u32>>,
}

impl OrderedLogits {
    pub(crate) fn allocate(layout: &LogitLayout, device: &Device) -> Result<Self, EngineError> {
        let len = if layout.in_order(LANES) { 0 } else { LANES * layout.stride() };
        Ok(Self { rows: device.allocate(len)?, orders: HashMap::new() })
    }

    /// Whether this number of rows can be brought into order.
    pub(crate) fn is_ready(&self, layout: &LogitLayout, n_rows: usize) -> bool {
        layout.in_order(n_rows) || self.orders.contains_key(&n_rows)
    }

    pub(crate) fn prepare(
        &mut self,
        layout: &LogitLayout,
        n_rows: usize,
        stream: &Stream,
    ) -> Result<(), EngineError> {
        if !self.is_ready(layout, n_rows) {
            let order = self.rows.device().upload(&layout.order(n_rows), stream)?;
            self.orders.insert(n_rows, order);
        }
        Ok(())
    }

    /// What copies gathered rows into order, and where they are then; `gathered` itself where they are in order.
    pub(crate) fn launch(
        &self,
        layout: &LogitLayout,
        n_rows: usize,
        gathered: Addr<f32>,
    ) -> (Option<Launch>, Addr<f32>) {
        let Some(order) = self.orders.get(&n_rows) else { return (None, gathered) };
        // A gather of rows of bf16 moves any two bytes, so also half of an f32.
        let (width, bf16s) = ((2 * layout.unit()) as u32, |at: Addr<f32>| Addr::new(at.raw()));
        let n_units = order.len() as u32;
        let copy = Embedding {
            table: bf16s(gathered),
            rows: n_units,
            width,
            ids: order.addr(),
            out: bf16s(self.rows.addr()),
            n_tokens: n_units,
        };
        (Some(copy.launch()), self.rows.addr())
    }
}

/// What a captured decode step reads and advances on the device, one element per lane.
pub(crate) struct Lanes {
    /// The tokens that are fed; a sampling step leaves the next ones here.
    pub(crate) tokens: Mirror<u32>,
    /// Their positions.
    pub(crate) positions: Mirror<u32>,
    /// Cached tokens, the fed one included.
    pub(crate) kv_lens: Mirror<u32>,
    /// `[LANES]`, 0, 1, 2, …: lane i uses row i of the block table.
    pub(crate) numbers: DeviceBuffer<u32>,
    /// `[LANES, max_pages]`.
    pub(crate) block_table: Mirror<u32>,
    pub(crate) temperatures: Mirror<f32>,
    pub(crate) top_ks: Mirror<u32>,
    pub(crate) top_ps: Mirror<f32>,
    pub(crate) seeds: Mirror<u64>,
    /// Scratch of the argmax.
    pub(crate) best: DeviceBuffer<u64>,
    pub(crate) counters: DeviceBuffer<u32>,
    /// The next tokens, on the host.
    pub(crate) next: PinnedBuffer<u32>,
}

impl Lanes {
    pub(crate) fn allocate(max_pages: usize, device: &Device, stream: &Stream) -> Result<Self, EngineError> {
        let words = |len| Mirror::zeroed(len, device, stream);
        Ok(Self {
            tokens: words(LANES)?,
            positions: words(LANES)?,
            kv_lens: words(LANES)?,
            numbers: device.upload(&(0..LANES as u32).collect::<Vec<_>>(), stream)?,
            block_table: words(LANES * max_pages)?,
            temperatures: Mirror::zeroed(LANES, device, stream)?,
            top_ks: words(LANES)?,
            top_ps: Mirror::zeroed(LANES, device, stream)?,
            seeds: Mirror::zeroed(LANES, device, stream)?,
            best: device.allocate_zeroed(LANES, stream)?,
            counters: device.allocate_zeroed(LANES, stream)?,
            next: device.allocate_pinned(LANES)?,
        })
    }
}

/// Arrays of one pass, packed so that a single copy carries them.
#[derive(Default)]
pub(crate) struct Packed {
    words: Vec<u32>,
}

impl Packed {
    /// Appends an array at a 16-byte boundary; where it begins.
    pub(crate) fn push(&mut self, array: impl IntoIterator<Item = u32>) -> usize {
        let start = self.words.len().next_multiple_of(4);
        self.words.resize(start, 0);
        self.words.extend(array);
        start
    }

    /// Carries them over.
    pub(crate) fn upload(&self, to: &mut DeviceBuffer<u32>, stream: &Stream) -> Result<(), EngineError> {
        Ok(to.upload_at(0, &self.words, stream)?)
    }
}
