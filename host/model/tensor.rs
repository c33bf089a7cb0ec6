//! The tensors of a Llama model by role, and the one trait through which every format hands them out.

use std::ops::Range;

use half::bf16;

use super::{Config, ModelError};

/// A weight tensor by its role. `layer` counts from 0 and is ignored by the three global kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tensor {
    /// The role.
    pub kind: TensorKind,
    /// The decoder block.
    pub layer: usize,
}

/// Roles of the weight tensors, in the Hugging Face orientation: a linear layer is `[out, in]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum TensorKind {
    Embedding,
    FinalNorm,
    LmHead,
    AttentionNorm,
    Q,
    K,
    V,
    O,
    MlpNorm,
    Gate,
    Up,
    Down,
}

/// The kinds that every decoder block has.
pub const BLOCK_TENSORS: [TensorKind; 9] = [
    TensorKind::AttentionNorm,
    TensorKind::Q,
    TensorKind::K,
    TensorKind::V,
    TensorKind::O,
    TensorKind::MlpNorm,
    TensorKind::Gate,
    TensorKind::Up,
    TensorKind::Down,
];

impl Tensor {
    /// A tensor outside the blocks.
    pub fn global(kind: TensorKind) -> Self {
        Self { kind, layer: 0 }
    }

    /// A tensor of block `layer`.
    pub fn block(kind: TensorKind, layer: usize) -> Self {
        Self { kind, layer }
    }

    /// The gain of an RMSNorm: a vector, not a linear layer.
    pub fn is_norm(&self) -> bool {
        matches!(self.kind, TensorKind::FinalNorm | TensorKind::AttentionNorm | TensorKind::MlpNorm)
    }

    /// `(rows, columns)`; a norm's gain is one row.
    pub fn shape(&self, c: &Config) -> (usize, usize) {
        let (q, kv) = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
        match self.kind {
            TensorKind::Embedding | TensorKind::LmHead => (c.vocab, c.hidden),
            TensorKind::FinalNorm | TensorKind::AttentionNorm | TensorKind::MlpNorm => (1, c.hidden),
            TensorKind::Q => (q, c.hidden),
            TensorKind::K | TensorKind::V => (kv, c.hidden),
            TensorKind::O => (c.hidden, q),
            TensorKind::Gate | TensorKind::Up => (c.ffn, c.hidden),
            TensorKind::Down => (c.hidden, c.ffn),
        }
    }

    /// The name in Hugging Face checkpoints.
    pub fn hf_name(&self) -> String {
        let part = match self.kind {
            TensorKind::Embedding => return "model.embed_tokens.weight".into(),
            TensorKind::FinalNorm => return "model.norm.weight".into(),
            TensorKind::LmHead => return "lm_head.weight".into(),
            TensorKind::AttentionNorm => "input_layernorm",
            TensorKind::Q => "self_attn.q_proj",
            TensorKind::K => "self_attn.k_proj",
            TensorKind::V => "self_attn.v_proj",
            TensorKind::O => "self_attn.o_proj",
            TensorKind::MlpNorm => "post_attention_layernorm",
            TensorKind::Gate => "mlp.gate_proj",
            TensorKind::Up => "mlp.up_proj",
            TensorKind::Down => "mlp.down_proj",
        };
        format!("model.layers.{}.{part}.weight", self.layer)
    }

    /// Every tensor of a model, in file order; a tied head is not listed.
    pub fn all(c: &Config) -> Vec<Tensor> {
        let mut all = vec![Tensor::global(TensorKind::Embedding)];
        for layer in 0..c.n_layers {
            all.extend(BLOCK_TENSORS.iter().map(|&kind| Tensor::block(kind, layer)));
        }
        all.push(Tensor::global(TensorKind::FinalNorm));
        if !c.tied {
            all.push(Tensor::global(TensorKind::LmHead));
        }
        all
    }
}

/// In which of the two working precisions a tensor's values are exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// bf16 loses nothing: the file holds bf16.
    Bf16,
    /// Needs f32: the file holds f32, f16 or quantised blocks.
    F32,
}

impl Storage {
    /// Bytes of one value.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }
}

/// Read access to a checkpoint by role and rectangle, in the Hugging Face orientation and row order
/// (rotary pairs are `(i, i + head_dim / 2)`), so that a rank materialises only its shard.
///
/// A tied head (`LmHead` with `Config::tied`) reads the embedding table. Every tensor of
/// [`Tensor::all`] was checked for presence, shape, dtype and file bounds when the source was opened,
/// so a read fails only for a caller's mistake (a rectangle outside [`Tensor::shape`]: panic).
pub trait TensorSource: Send + Sync {
    /// The precision in which the tensor's values are exact.
    fn storage(&self, tensor: Tensor) -> Storage;

    /// Writes `tensor[rows, cols]` to `out`, row-major, `rows.len() * cols.len()` values.
    fn read_f32(&self, tensor: Tensor, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]);

    /// As [`Self::read_f32`], rounded to bf16 where [`Self::storage`] is `F32`, exact otherwise.
    fn read_bf16(&self, tensor: Tensor, rows: Range<usize>, cols: Range<usize>, out: &mut [bf16]);

    /// `sha256:<hex>` over what identifies the weights: configuration, tensor names, shapes, storage,
    /// and the first and last 4 KiB of each tensor's bytes.
    fn fingerprint(&self) -> Result<String, ModelError>;
}
