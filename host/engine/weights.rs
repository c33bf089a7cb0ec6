//! A rank's weights on its GPU: bf16, assembled from rectangles of the checkpoint.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use half::bf16;
use rayon::prelude::*;

use super::EngineError;
use crate::driver::{Device, DeviceBuffer, PinnedBuffer, Stream};
use crate::kernels::Addr;
use crate::model::sharding::{HeadShard, Sharding, runs};
use crate::model::{Config, Tensor, TensorKind, TensorSource};
use crate::spd::{BlockPlan, Replaced, ReplacementFile};

/// Values that travel at once: 32 MiB.
const STAGING_VALUES: usize = 16 << 20;

/// Row-major `[n, k]` for a matrix product.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix {
    pub(crate) at: Addr<bf16>,
    pub(crate) n: u32,
    pub(crate) k: u32,
}

/// The weights of one decoder block.
pub(crate) struct BlockWeights {
    pub(crate) plan: BlockPlan,
    pub(crate) heads: GroupTables,
    pub(crate) attention_norm: DeviceBuffer<bf16>,
    pub(crate) qkv: Weight,
    pub(crate) o: Weight,
    pub(crate) mlp_norm: DeviceBuffer<bf16>,
    /// Gate and up rows interleaved, as the SwiGLU epilogue wants them.
    pub(crate) gate_up: Weight,
    pub(crate) down: Weight,
}

/// Which query heads a KV head serves, and the reverse, for the attention kernels.
pub(crate) struct GroupTables {
    pub(crate) n_heads: u32,
    pub(crate) n_kv_heads: u32,
    tables: DeviceBuffer<u32>,
}

/// A matrix and the memory that it lies in.
pub(crate) struct Weight {
    values: DeviceBuffer<bf16>,
    n: u32,
    k: u32,
}

/// What lies outside the blocks.
pub(crate) struct GlobalWeights {
    pub(crate) embedding: Weight,
    pub(crate) final_norm: DeviceBuffer<bf16>,
    pub(crate) inv_freq: DeviceBuffer<f32>,
    /// None: rows of the embedding.
    own_head: Option<Weight>,
    /// This rank's rows of the vocabulary.
    head_rows: Range<usize>,
}

impl Weight {
    pub(crate) fn matrix(&self) -> Matrix {
        Matrix { at: self.values.addr(), n: self.n, k: self.k }
    }
}

impl GlobalWeights {
    /// The rank's rows of the output head.
    pub(crate) fn head(&self) -> Matrix {
        match &self.own_head {
            Some(head) => head.matrix(),
            None => {
                let table = self.embedding.matrix();
                let first = self.head_rows.start * table.k as usize;
                Matrix { at: table.at.at(first), n: self.head_rows.len() as u32, k: table.k }
            }
        }
    }
}

impl GroupTables {
    /// Starts at multiples of four elements, so that every table is 16-byte aligned.
    fn offsets(&self) -> [usize; 3] {
        let starts = (self.n_kv_heads as usize + 1).next_multiple_of(4);
        [0, starts, starts + (self.n_heads as usize).next_multiple_of(4)]
    }

    /// `[n_kv_heads + 1]`: KV head g serves `group_heads[starts[g]..starts[g + 1]]`.
    pub(crate) fn group_starts(&self) -> Addr<u32> {
        self.tables.addr().at(self.offsets()[0])
    }

    /// `[n_heads]`: query heads by KV head.
    pub(crate) fn group_heads(&self) -> Addr<u32> {
        self.tables.addr().at(self.offsets()[1])
    }

    /// `[n_heads]`: the KV head of each query head.
    pub(crate) fn kv_head_of(&self) -> Addr<u32> {
        self.tables.addr().at(self.offsets()[2])
    }

    fn upload(heads: &HeadShard, device: &Device, stream: &Stream) -> Result<Self, EngineError> {
        let (n_heads, n_kv_heads) = (heads.heads.len() as u32, heads.kv_heads.len() as u32);
        let mut starts = vec![0];
        let mut by_group = Vec::new();
        for kv in 0..heads.kv_heads.len() {
            by_group.extend((0..n_heads).filter(|&h| heads.kv_index[h as usize] == kv));
            starts.push(by_group.len() as u32);
        }
        let kv_head_of: Vec<u32> = heads.kv_index.iter().map(|&kv| kv as u32).collect();
        let padded = [starts, by_group, kv_head_of].map(|mut table| {
            table.resize(table.len().next_multiple_of(4), 0);
            table
        });
        Ok(Self { n_heads, n_kv_heads, tables: device.upload(&padded.concat(), stream)? })
    }
}

/// Where the rows of a matrix come from.
enum Rows {
    /// Row ranges below each other.
    Stacked(Vec<(Tensor, Range<usize>)>),
    /// Row i of the first at 2i, row i of the second at 2i + 1.
    Interleaved(Tensor, Tensor, Range<usize>),
}

impl Rows {
    fn count(&self) -> usize {
        match self {
            Self::Stacked(parts) => parts.iter().map(|(_, rows)| rows.len()).sum(),
            Self::Interleaved(_, _, rows) => 2 * rows.len(),
        }
    }

    /// The tensor and row behind row `index`.
    fn locate(&self, mut index: usize) -> (Tensor, usize) {
        match self {
            Self::Stacked(parts) => {
                for (tensor, rows) in parts {
                    if index < rows.len() {
                        return (*tensor, rows.start + index);
                    }
                    index -= rows.len();
                }
                unreachable!("row beyond the matrix")
            }
            Self::Interleaved(even, odd, rows) => {
                (if index.is_multiple_of(2) { *even } else { *odd }, rows.start + index / 2)
            }
        }
    }
}

/// Which part of which model.
pub(crate) struct Shard<'a> {
    pub(crate) config: &'a Config,
    pub(crate) source: &'a dyn TensorSource,
    pub(crate) sharding: &'a Sharding,
    pub(crate) rank: usize,
}

/// Carries a rank's weights to its GPU, through page-locked memory.
pub(crate) struct Uploader {
    device: Device,
    stream: Stream,
    staging: PinnedBuffer<bf16>,
    loaded_bytes: Arc<AtomicU64>,
}

impl Uploader {
    /// `loaded_bytes` grows while weights arrive.
    pub(crate) fn new(device: &Device, loaded_bytes: &Arc<AtomicU64>) -> Result<Self, EngineError> {
        Ok(Self {
            device: device.clone(),
            stream: device.stream()?,
            staging: device.allocate_pinned(STAGING_VALUES)?,
            loaded_bytes: Arc::clone(loaded_bytes),
        })
    }

    /// Embedding (whole), output head (this rank's rows), final norm and rotary frequencies.
    pub(crate) fn globals(&mut self, shard: &Shard<'_>) -> Result<GlobalWeights, EngineError> {
        let &Shard { config, source, sharding, rank } = shard;
        let cols = 0..config.hidden;
        let cols = std::slice::from_ref(&cols);
        let head_rows = sharding.vocab(rank);
        let table = |kind, rows| Rows::Stacked(vec![(Tensor::global(kind), rows)]);
        let embedding = self.weight(source, &table(TensorKind::Embedding, 0..config.vocab), cols)?;
        let own_head = match config.tied {
            true => None,
            false => Some(self.weight(source, &table(TensorKind::LmHead, head_rows.clone()), cols)?),
        };
        Ok(GlobalWeights {
            embedding,
            final_norm: self.norm(source, Tensor::global(TensorKind::FinalNorm), config.hidden)?,
            inv_freq: self.device.upload(&config.rope_inv_freq(), &self.stream)?,
            own_head,
            head_rows,
        })
    }

    /// One block's shard.
    pub(crate) fn block(
        &mut self,
        shard: &Shard<'_>,
        layer: usize,
        plan: &BlockPlan,
        replacement: Option<&Arc<ReplacementFile>>,
    ) -> Result<BlockWeights, EngineError> {
        let &Shard { config, source: base, sharding, rank } = shard;
        let replaced = replacement.map(|file| Replaced { base, file, rank });
        let source: &dyn TensorSource = match &replaced {
            Some(replaced) => replaced,
            None => base,
        };
        let tensor = |kind| Tensor::block(kind, layer);
        let d = config.head_dim;
        let heads = sharding.heads(rank, plan.heads.as_deref());
        let scaled = |numbers: &[usize]| runs(numbers).into_iter().map(|r| r.start * d..r.end * d);
        let rows_of = |kind, numbers: &[usize]| scaled(numbers).map(move |rows| (tensor(kind), rows));
        let qkv = rows_of(TensorKind::Q, &heads.heads)
            .chain(rows_of(TensorKind::K, &heads.kv_heads))
            .chain(rows_of(TensorKind::V, &heads.kv_heads));
        let o_cols: Vec<_> = scaled(&heads.heads).collect();
        let (ffn, all) = (sharding.ffn(rank), 0..config.hidden);
        let all = std::slice::from_ref(&all);
        let hidden_rows = |kind| Rows::Stacked(vec![(tensor(kind), 0..config.hidden)]);
        let gate_up = Rows::Interleaved(tensor(TensorKind::Gate), tensor(TensorKind::Up), ffn.clone());
        Ok(BlockWeights {
            plan: plan.clone(),
            heads: GroupTables::upload(&heads, &self.device, &self.stream)?,
            attention_norm: self.norm(source, tensor(TensorKind::AttentionNorm), config.hidden)?,
            qkv: self.weight(source, &Rows::Stacked(qkv.collect()), all)?,
            o: self.weight(source, &hidden_rows(TensorKind::O), &o_cols)?,
            mlp_norm: self.norm(source, tensor(TensorKind::MlpNorm), config.hidden)?,
            gate_up: self.weight(source, &gate_up, all)?,
            down: self.weight(source, &hidden_rows(TensorKind::Down), std::slice::from_ref(&ffn))?,
        })
    }

    fn norm(
        &mut self,
        source: &dyn TensorSource,
        tensor: Tensor,
        width: usize,
    ) -> Result<DeviceBuffer<bf16>, EngineError> {
        let mut gain = vec![bf16::ZERO; width];
        source.read_bf16(tensor, 0..1, 0..width, &mut gain);
        self.loaded_bytes.fetch_add(size_of_val(gain.as_slice()) as u64, Ordering::Relaxed);
        Ok(self.device.upload(&gain, &self.stream)?)
    }

    /// Rows of the checkpoint, of each the columns of `cols` side by side.
    fn weight(
        &mut self,
        source: &dyn TensorSource,
        rows: &Rows,
        cols: &[Range<usize>],
    ) -> Result<Weight, EngineError> {
        let (n, k) = (rows.count(), cols.iter().map(Range::len).sum::<usize>());
        let mut values = self.device.allocate(n * k)?;
        let rows_at_once = (self.staging.len() / k.max(1)).max(1);
        for first in (0..if k == 0 { 0 } else { n }).step_by(rows_at_once) {
            let n_rows = rows_at_once.min(n - first);
            let staged = &mut self.staging[..n_rows * k];
            staged.par_chunks_mut(k).enumerate().for_each(|(i, row)| {
                let (tensor, at) = rows.locate(first + i);
                let mut rest = row;
                for run in cols {
                    let (out, behind) = rest.split_at_mut(run.len());
                    source.read_bf16(tensor, at..at + 1, run.clone(), out);
                    rest = behind;
                }
            });
            values.upload_at(first * k, staged, &self.stream)?;
            self.loaded_bytes.fetch_add(size_of_val(staged) as u64, Ordering::Relaxed);
        }
        Ok(Weight { values, n: n as u32, k: k as u32 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_stacked_and_interleaved() {
        let (a, b) = (Tensor::block(TensorKind::Gate, 0), Tensor::block(TensorKind::Up, 0));
        let stacked = Rows::Stacked(vec![(a, 4..6), (b, 1..2), (a, 0..1)]);
        let located: Vec<_> = (0..stacked.count()).map(|i| stacked.locate(i)).collect();
        assert_eq!(located, [(a, 4), (a, 5), (b, 1), (a, 0)]);
        let interleaved = Rows::Interleaved(a, b, 7..9);
        let located: Vec<_> = (0..interleaved.count()).map(|i| interleaved.locate(i)).collect();
        assert_eq!(located, [(a, 7), (b, 7), (a, 8), (b, 8)]);
    }
}
