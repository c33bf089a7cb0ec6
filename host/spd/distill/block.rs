//! A decoder block over candle tensors: synchronised, as the teacher, and without its first all-reduce, as the
//! student. Only operations with a backward pass are used: candle's fused norm, rotary embedding and softmax
//! have none, so they are composed here.

use candle_core::{D, Device, Result, Tensor as Matrix};

use super::weights::{Mlp, Shard, Weights};
use crate::model::Config;

/// What all blocks of a model share: sizes and rotary tables.
pub(super) struct Geometry {
    pub(super) hidden: usize,
    head_dim: usize,
    eps: f64,
    /// Tokens of a chunk; every chunk starts at position 0.
    pub(super) context: usize,
    /// `[context, head_dim / 2]`
    cos: Matrix,
    sin: Matrix,
    /// `[context, context]`: 0 where a position may look, −∞ where not.
    mask: Matrix,
}

impl Geometry {
    pub(super) fn new(config: &Config, context: usize) -> Result<Self> {
        let freq = config.rope_inv_freq();
        let angles = (0..context).flat_map(|at| freq.iter().map(move |f| at as f32 * f));
        let (sin, cos): (Vec<f32>, Vec<f32>) = angles.map(f32::sin_cos).unzip();
        let table = |values| Matrix::from_vec(values, (context, freq.len()), &Device::Cpu);
        let visible = |i: usize| if i % context <= i / context { 0.0 } else { f32::NEG_INFINITY };
        let mask: Vec<f32> = (0..context * context).map(visible).collect();
        Ok(Self {
            hidden: config.hidden,
            head_dim: config.head_dim,
            eps: f64::from(config.rms_eps),
            context,
            cos: table(cos)?,
            sin: table(sin)?,
            mask: Matrix::from_vec(mask, (context, context), &Device::Cpu)?,
        })
    }

    /// RMSNorm of rows.
    pub(super) fn norm(&self, x: &Matrix, gain: &Matrix) -> Result<Matrix> {
        let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + self.eps)?.sqrt()?.recip()?;
        x.broadcast_mul(&scale)?.broadcast_mul(gain)
    }

    /// Rotates pairs `(i, i + head_dim / 2)` of `[chunks, heads, context, head_dim]`.
    fn rotate(&self, x: &Matrix) -> Result<Matrix> {
        let half = self.head_dim / 2;
        let (a, b) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
        let turned = |a: &Matrix, b: &Matrix| a.broadcast_mul(&self.cos)? - b.broadcast_mul(&self.sin)?;
        let back = b.broadcast_mul(&self.cos)? + a.broadcast_mul(&self.sin)?;
        Matrix::cat(&[&turned(&a, &b)?, &back?], D::Minus1)
    }

    /// Causal attention of every head, before the output projection: `[rows, heads · head_dim]`, heads in dealt
    /// order. `x` is the block's input, whole chunks of `context` rows; `kv_of` names each head's KV head.
    pub(super) fn attend(&self, x: &Matrix, weights: &Weights, kv_of: &Matrix) -> Result<Matrix> {
        let (d, context) = (self.head_dim, self.context);
        let chunks = x.dim(0)? / context;
        let h = self.norm(x, &weights.attention_norm)?;
        let heads = |w: &Matrix| {
            let heads = h.matmul(w)?.reshape((chunks, context, (), d))?;
            heads.transpose(1, 2)?.contiguous()
        };
        let q = self.rotate(&heads(&weights.q)?)?;
        let k = self.rotate(&heads(&weights.k)?)?.index_select(kv_of, 1)?;
        let v = heads(&weights.v)?.index_select(kv_of, 1)?;
        let scores = (q.matmul(&k.t()?)? * (1.0 / (d as f64).sqrt()))?.broadcast_add(&self.mask)?;
        // A softmax does not depend on what is subtracted, so no gradient goes through the maximum.
        let shifted = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
        let attended = shifted.broadcast_div(&shifted.sum_keepdim(D::Minus1)?)?.matmul(&v)?;
        attended.transpose(1, 2)?.reshape((x.dim(0)?, ()))
    }

    /// `Y_i`: the rank's part of attention, behind its columns of the output projection.
    pub(super) fn project(&self, attended: &Matrix, shard: &Shard) -> Result<Matrix> {
        attended.narrow(1, shard.o_start, shard.o.dim(0)?)?.contiguous()?.matmul(&shard.o)
    }

    /// The block's output where both all-reduces take place: `X₁ + Σ Z_i(norm(X₁))`, `X₁ = X + Σ Y_i`.
    pub(super) fn synchronised(&self, x: &Matrix, attended: &Matrix, weights: &Weights) -> Result<Matrix> {
        let x1 = self.attention_sum(x, attended, weights)?;
        let mut out = x1.clone();
        for Shard { norm, mlp, .. } in &weights.shards {
            if let Some(mlp) = mlp {
                out = (out + mlp.forward(&self.norm(&x1, norm)?)?)?;
            }
        }
        Ok(out)
    }

    /// `X + Σ Y_i`: what every MLP sees behind the first all-reduce.
    pub(super) fn attention_sum(&self, x: &Matrix, attended: &Matrix, weights: &Weights) -> Result<Matrix> {
        weights.shards.iter().try_fold(x.clone(), |sum, shard| sum + self.project(attended, shard)?)
    }

    /// The block's output without the first all-reduce: `X + Σ (Y_i + Z_i(norm(X + Y_i)))`.
    pub(super) fn dropped(&self, x: &Matrix, attended: &Matrix, weights: &Weights) -> Result<Matrix> {
        let mut out = x.clone();
        for shard in &weights.shards {
            let own = self.project(attended, shard)?;
            if let Some(mlp) = &shard.mlp {
                out = (out + mlp.forward(&self.norm(&(x + &own)?, &shard.norm)?)?)?;
            }
            out = (out + own)?;
        }
        Ok(out)
    }
}

impl Mlp {
    /// `silu(gate) · up`, the inputs of the down projection.
    pub(super) fn activate(&self, h: &Matrix) -> Result<Matrix> {
        h.matmul(&self.gate)?.silu()? * h.matmul(&self.up)?
    }

    fn forward(&self, h: &Matrix) -> Result<Matrix> {
        self.activate(h)?.matmul(&self.down)
    }
}
