//! One block's weights between the checkpoint's layout and the one that trains.
//!
//! In the checkpoint a linear layer is `[out, in]` and tensors are whole. Here it is `[in, out]`, contiguous, so that
//! neither the product nor its gradient needs a strided copy, and what ranks hold apart is held apart.

use candle_core::{DType, Device, Tensor as Matrix};
use half::bf16;

use super::DistillError;
use crate::model::sharding::{Sharding, runs};
use crate::model::{Config, Storage, Tensor, TensorKind, TensorSource};

/// What one rank has to itself: its columns of attention's output projection and its part of the MLP.
#[derive(Clone)]
pub(super) struct Shard {
    /// `[heads · head_dim, hidden]`; reads the rank's columns of the attended heads.
    pub(super) o: Matrix,
    /// The first of those columns.
    pub(super) o_start: usize,
    /// `[hidden]`
    pub(super) norm: Matrix,
    /// Absent on a rank without MLP columns.
    pub(super) mlp: Option<Mlp>,
}

/// A rank's part of the MLP; `ffn` is its share.
#[derive(Clone)]
pub(super) struct Mlp {
    /// `[hidden, ffn]`
    pub(super) gate: Matrix,
    /// `[hidden, ffn]`
    pub(super) up: Matrix,
    /// `[ffn, hidden]`
    pub(super) down: Matrix,
}

impl Shard {
    /// MLP columns of the rank.
    pub(super) fn width(&self) -> usize {
        self.mlp.as_ref().map_or(0, Mlp::width)
    }
}

impl Mlp {
    /// Its columns.
    pub(super) fn width(&self) -> usize {
        self.down.dims()[0]
    }

    /// The parts of all ranks as one.
    pub(super) fn joined(weights: &Weights) -> candle_core::Result<Self> {
        let parts = || weights.shards.iter().filter_map(|shard| shard.mlp.as_ref());
        Ok(Self {
            gate: Matrix::cat(&parts().map(|m| &m.gate).collect::<Vec<_>>(), 1)?,
            up: Matrix::cat(&parts().map(|m| &m.up).collect::<Vec<_>>(), 1)?,
            down: Matrix::cat(&parts().map(|m| &m.down).collect::<Vec<_>>(), 0)?,
        })
    }
}

/// A block's weights, split as its ranks hold them. Attention up to its output projection is whole: heads do not
/// meet before it, so which rank computes one changes nothing.
#[derive(Clone)]
pub(super) struct Weights {
    /// `[hidden]`
    pub(super) attention_norm: Matrix,
    /// `[hidden, heads · head_dim]`, heads in the order in which they are dealt.
    pub(super) q: Matrix,
    /// `[hidden, kv_heads · head_dim]`, as in the checkpoint.
    pub(super) k: Matrix,
    /// `[hidden, kv_heads · head_dim]`, as in the checkpoint.
    pub(super) v: Matrix,
    /// By rank.
    pub(super) shards: Vec<Shard>,
}

impl Weights {
    /// The same weights with `change` made to each matrix.
    fn map(
        &self,
        change: impl Fn(TensorKind, &Matrix) -> candle_core::Result<Matrix>,
    ) -> candle_core::Result<Self> {
        let mlp = |m: &Mlp| -> candle_core::Result<Mlp> {
            let (gate, up) = (change(TensorKind::Gate, &m.gate)?, change(TensorKind::Up, &m.up)?);
            Ok(Mlp { gate, up, down: change(TensorKind::Down, &m.down)? })
        };
        let shard = |s: &Shard| -> candle_core::Result<Shard> {
            let (o, norm) = (change(TensorKind::O, &s.o)?, change(TensorKind::MlpNorm, &s.norm)?);
            Ok(Shard { o, o_start: s.o_start, norm, mlp: s.mlp.as_ref().map(mlp).transpose()? })
        };
        Ok(Self {
            attention_norm: change(TensorKind::AttentionNorm, &self.attention_norm)?,
            q: change(TensorKind::Q, &self.q)?,
            k: change(TensorKind::K, &self.k)?,
            v: change(TensorKind::V, &self.v)?,
            shards: self.shards.iter().map(shard).collect::<candle_core::Result<_>>()?,
        })
    }

    /// A copy that no longer follows the variables that it was read from.
    pub(super) fn detached(&self) -> candle_core::Result<Self> {
        self.map(|_, matrix| matrix.detach().copy())
    }
}

/// Where a block's weights lie in the checkpoint.
pub(super) struct Layout<'a> {
    pub(super) config: &'a Config,
    pub(super) source: &'a dyn TensorSource,
    pub(super) sharding: &'a Sharding,
    pub(super) layer: usize,
    /// The order in which query heads are dealt.
    pub(super) heads: Vec<usize>,
}

impl<'a> Layout<'a> {
    pub(super) fn new(
        config: &'a Config,
        source: &'a dyn TensorSource,
        sharding: &'a Sharding,
        layer: usize,
        heads: Option<&[usize]>,
    ) -> Self {
        let heads = heads.map_or_else(|| (0..config.n_heads).collect(), <[usize]>::to_vec);
        Self { config, source, sharding, layer, heads }
    }

    fn tensor(&self, kind: TensorKind) -> Tensor {
        Tensor::block(kind, self.layer)
    }

    /// A whole tensor in f32, row-major as in the checkpoint.
    fn read(&self, kind: TensorKind) -> Vec<f32> {
        let (rows, cols) = self.tensor(kind).shape(self.config);
        let mut values = vec![0.0; rows * cols];
        self.source.read_f32(self.tensor(kind), 0..rows, 0..cols, &mut values);
        values
    }

    /// The index of the KV head of each query head, in dealt order.
    pub(super) fn kv_of(&self) -> Vec<u32> {
        let group = self.config.n_heads / self.config.n_kv_heads;
        self.heads.iter().map(|head| (head / group) as u32).collect()
    }

    /// The rank's columns of the attended heads, in dealt order.
    fn o_cols(&self, rank: usize) -> std::ops::Range<usize> {
        let before: usize = (0..rank).map(|r| self.sharding.heads(r, None).heads.len()).sum();
        let d = self.config.head_dim;
        before * d..(before + self.sharding.heads(rank, None).heads.len()) * d
    }

    /// Moves heads, groups of `head_dim` columns, from checkpoint order into dealt order.
    fn deal(&self, columns: &Matrix) -> candle_core::Result<Matrix> {
        let d = self.config.head_dim;
        let parts = runs(&self.heads);
        let parts = parts.iter().map(|run| columns.narrow(1, run.start * d, run.len() * d));
        Matrix::cat(&parts.collect::<Result<Vec<_>, _>>()?, 1)?.contiguous()
    }

    /// The inverse of [`Self::deal`].
    fn collect(&self, columns: &Matrix) -> candle_core::Result<Matrix> {
        let d = self.config.head_dim;
        let mut place = vec![0; self.heads.len()];
        for (at, &head) in self.heads.iter().enumerate() {
            place[head] = at;
        }
        let parts = runs(&place);
        let parts = parts.iter().map(|run| columns.narrow(1, run.start * d, run.len() * d));
        Matrix::cat(&parts.collect::<Result<Vec<_>, _>>()?, 1)
    }

    /// The weights as the checkpoint has them.
    pub(super) fn load(&self) -> Result<Weights, DistillError> {
        let whole = |kind| {
            let shape = self.tensor(kind).shape(self.config);
            Matrix::from_vec(self.read(kind), shape, &Device::Cpu)
        };
        let transposed = |kind| whole(kind)?.t()?.contiguous();
        let norm = |kind| whole(kind)?.flatten_all();
        // [hidden, heads], so that heads are dealt as they are of the queries.
        let o = self.deal(&whole(TensorKind::O)?)?;
        let (gate, up) = (whole(TensorKind::Gate)?, whole(TensorKind::Up)?);
        let down = transposed(TensorKind::Down)?;
        let mut shards = Vec::with_capacity(self.sharding.tp());
        for rank in 0..self.sharding.tp() {
            let (cols, ffn) = (self.o_cols(rank), self.sharding.ffn(rank));
            let columns = |of: &Matrix| of.narrow(0, ffn.start, ffn.len())?.t()?.contiguous();
            let mlp = if ffn.is_empty() {
                None
            } else {
                // A narrowed tensor shares memory with the whole; an own copy can be freed by itself.
                let down = down.narrow(0, ffn.start, ffn.len())?.copy()?;
                Some(Mlp { gate: columns(&gate)?, up: columns(&up)?, down })
            };
            shards.push(Shard {
                o: o.narrow(1, cols.start, cols.len())?.t()?.contiguous()?,
                o_start: cols.start,
                norm: norm(TensorKind::MlpNorm)?,
                mlp,
            });
        }
        Ok(Weights {
            attention_norm: norm(TensorKind::AttentionNorm)?,
            q: self.deal(&transposed(TensorKind::Q)?)?,
            k: transposed(TensorKind::K)?,
            v: transposed(TensorKind::V)?,
            shards,
        })
    }

    /// The weights in the precision in which the checkpoint keeps them.
    pub(super) fn rounded(&self, weights: &Weights) -> candle_core::Result<Weights> {
        weights.map(|kind, matrix| match self.source.storage(self.tensor(kind)) {
            Storage::F32 => Ok(matrix.clone()),
            Storage::Bf16 => matrix.to_dtype(DType::BF16)?.to_dtype(DType::F32),
        })
    }

    /// The tensors that differ from the checkpoint's, whole, in its layout and in the precision in which it keeps
    /// them: `(name, shape, storage, values)`. A norm that ranks no longer share is one tensor a rank.
    pub(super) fn changed(&self, weights: &Weights) -> Result<Vec<Changed>, DistillError> {
        let shards = &weights.shards;
        let transposed = |m: &Matrix| m.t()?.contiguous();
        let o = Matrix::cat(&shards.iter().map(|s| &s.o).collect::<Vec<_>>(), 0)?.t()?.contiguous()?;
        let mlp = Mlp::joined(weights)?;
        let whole = [
            (TensorKind::AttentionNorm, weights.attention_norm.clone()),
            (TensorKind::Q, transposed(&self.collect(&weights.q)?)?),
            (TensorKind::K, transposed(&weights.k)?),
            (TensorKind::V, transposed(&weights.v)?),
            (TensorKind::O, self.collect(&o)?),
            (TensorKind::Gate, transposed(&mlp.gate)?),
            (TensorKind::Up, transposed(&mlp.up)?),
            (TensorKind::Down, transposed(&mlp.down)?),
        ];
        let mut changed = Vec::new();
        let mut compare = |prefix: String, kind, values: &Matrix| -> Result<(), DistillError> {
            let values = values.flatten_all()?.to_vec1::<f32>()?;
            if values != self.read(kind) {
                changed.push(Changed::new(prefix, self.tensor(kind), self.config, self.source, &values));
            }
            Ok(())
        };
        for (kind, values) in &whole {
            compare(String::new(), *kind, values)?;
        }
        for (rank, shard) in shards.iter().enumerate() {
            compare(format!("rank{rank}."), TensorKind::MlpNorm, &shard.norm)?;
        }
        Ok(changed)
    }
}

/// A tensor for a replacement file.
pub(super) struct Changed {
    /// As the overlay reads it: a Hugging Face name, behind `rankR.` where it is one rank's.
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) storage: Storage,
    /// Little-endian, in the precision of `storage`.
    pub(super) bytes: Vec<u8>,
}

impl Changed {
    fn new(
        prefix: String,
        tensor: Tensor,
        config: &Config,
        source: &dyn TensorSource,
        values: &[f32],
    ) -> Self {
        let (rows, cols) = tensor.shape(config);
        let storage = source.storage(tensor);
        let bytes = match storage {
            Storage::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Storage::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        };
        let shape = if tensor.is_norm() { vec![cols] } else { vec![rows, cols] };
        Self { name: format!("{prefix}{}", tensor.hf_name()), shape, storage, bytes }
    }
}
