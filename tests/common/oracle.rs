//! A Llama in dense f64, straight from the formulas: the judge of the reference back end.

use std::f64::consts::PI;

use fewsync::model::sharding::{Sharding, share};
use fewsync::model::{Config, Model, RopeScaling, Tensor, TensorKind};
use fewsync::spd::BlockPlan;

type Rows = Vec<Vec<f64>>;

/// A model on `tp` ranks; of a block's plan, replacement tensors are not looked at.
pub struct Oracle<'a> {
    model: &'a Model,
    sharding: Sharding,
    blocks: Vec<BlockPlan>,
}

impl<'a> Oracle<'a> {
    pub fn new(model: &'a Model, tp: usize, sync: &[bool]) -> Self {
        let block = |&sync_attention| BlockPlan { sync_attention, ..BlockPlan::default() };
        Self::with_blocks(model, tp, &sync.iter().map(block).collect::<Vec<_>>())
    }

    pub fn with_blocks(model: &'a Model, tp: usize, blocks: &[BlockPlan]) -> Self {
        Self { model, sharding: Sharding::new(&model.config, tp).unwrap(), blocks: blocks.to_vec() }
    }

    /// `[tokens, vocab]`.
    pub fn logits(&self, tokens: &[u32]) -> Vec<f64> {
        let x = self.run(tokens).pop().unwrap();
        let h = norm(&x, &self.gain(Tensor::global(TensorKind::FinalNorm)), self.config());
        multiply(&h, &self.matrix(Tensor::global(TensorKind::LmHead))).concat()
    }

    /// The embedding and every block's output, `[tokens, hidden]` each.
    pub fn hidden_states(&self, tokens: &[u32]) -> Vec<Vec<f64>> {
        self.run(tokens).into_iter().map(|x| x.concat()).collect()
    }

    fn config(&self) -> &Config {
        &self.model.config
    }

    fn run(&self, tokens: &[u32]) -> Vec<Rows> {
        let table = self.matrix(Tensor::global(TensorKind::Embedding));
        let mut states: Vec<Rows> = vec![tokens.iter().map(|&t| table[t as usize].clone()).collect()];
        for layer in 0..self.config().n_layers {
            let next = self.block(layer, states.last().unwrap());
            states.push(next);
        }
        states
    }

    /// X' = X + Σ Y_i + Σ Z_i, where Z_i = MLP_i(norm(X + Σ Y_j)) with and MLP_i(norm(X + Y_i)) without
    /// the first synchronisation.
    fn block(&self, layer: usize, x: &Rows) -> Rows {
        let h = norm(x, &self.gain(Tensor::block(TensorKind::AttentionNorm, layer)), self.config());
        let ys: Vec<Rows> = (0..self.sharding.tp()).map(|rank| self.attention(layer, rank, &h)).collect();
        let attended = ys.iter().fold(x.clone(), |sum, y| add(&sum, y));
        let gain = self.gain(Tensor::block(TensorKind::MlpNorm, layer));
        let mut out = attended.clone();
        for (rank, y) in ys.iter().enumerate() {
            let input = if self.blocks[layer].sync_attention { attended.clone() } else { add(x, y) };
            out = add(&out, &self.mlp(layer, rank, &norm(&input, &gain, self.config())));
        }
        out
    }

    /// Y_i: this rank's heads through its columns of the output projection.
    fn attention(&self, layer: usize, rank: usize, h: &Rows) -> Rows {
        let c = self.config();
        let (d, group) = (c.head_dim, c.n_heads / c.n_kv_heads);
        let [q, k, v, o] = [TensorKind::Q, TensorKind::K, TensorKind::V, TensorKind::O]
            .map(|kind| self.matrix(Tensor::block(kind, layer)));
        let mut y = vec![vec![0.0; c.hidden]; h.len()];
        for head in self.heads(layer, rank) {
            let rows = |w: &Rows, head: usize| w[head * d..(head + 1) * d].to_vec();
            let queries = self.rotate(multiply(h, &rows(&q, head)));
            let keys = self.rotate(multiply(h, &rows(&k, head / group)));
            let values = multiply(h, &rows(&v, head / group));
            for t in 0..h.len() {
                let scores: Vec<f64> =
                    keys[..=t].iter().map(|k| (dot(&queries[t], k) / (d as f64).sqrt()).exp()).collect();
                let total: f64 = scores.iter().sum();
                for i in 0..d {
                    let value: f64 = scores.iter().zip(&values).map(|(s, v)| s / total * v[i]).sum();
                    for (y, o) in y[t].iter_mut().zip(&o) {
                        *y += value * o[head * d + i];
                    }
                }
            }
        }
        y
    }

    /// The heads dealt to a rank: its share of the block's order.
    fn heads(&self, layer: usize, rank: usize) -> Vec<usize> {
        let n_heads = self.config().n_heads;
        let order = self.blocks[layer].heads.clone().unwrap_or_else(|| (0..n_heads).collect());
        order[share(n_heads, self.sharding.tp(), rank)].to_vec()
    }

    /// Z_i: this rank's columns of the MLP.
    fn mlp(&self, layer: usize, rank: usize, n: &Rows) -> Rows {
        let columns = self.sharding.ffn(rank);
        let [gate, up, down] = [TensorKind::Gate, TensorKind::Up, TensorKind::Down]
            .map(|kind| self.matrix(Tensor::block(kind, layer)));
        let (g, u) =
            (multiply(n, &gate[columns.clone()].to_vec()), multiply(n, &up[columns.clone()].to_vec()));
        let down: Rows = down.iter().map(|row| row[columns.clone()].to_vec()).collect();
        let silu = |v: f64| v / (1.0 + (-v).exp());
        let inner: Rows =
            g.iter().zip(&u).map(|(g, u)| g.iter().zip(u).map(|(&g, u)| silu(g) * u).collect()).collect();
        multiply(&inner, &down)
    }

    /// Hugging Face's rotate-half: pairs (i, i + d/2), angle t · base^(−2i/d).
    fn rotate(&self, mut rows: Rows) -> Rows {
        let c = self.config();
        assert_eq!(c.rope_scaling, RopeScaling::None);
        let half = c.head_dim / 2;
        for (t, row) in rows.iter_mut().enumerate() {
            for i in 0..half {
                let angle = t as f64 * f64::from(c.rope_base).powf(-(i as f64) / half as f64) % (2.0 * PI);
                let (a, b) = (row[i], row[i + half]);
                row[i] = a * angle.cos() - b * angle.sin();
                row[i + half] = b * angle.cos() + a * angle.sin();
            }
        }
        rows
    }

    fn matrix(&self, tensor: Tensor) -> Rows {
        let (rows, cols) = tensor.shape(self.config());
        let mut values = vec![0.0; rows * cols];
        self.model.source.read_f32(tensor, 0..rows, 0..cols, &mut values);
        values.chunks_exact(cols).map(|row| row.iter().map(|&v| f64::from(v)).collect()).collect()
    }

    fn gain(&self, tensor: Tensor) -> Vec<f64> {
        self.matrix(tensor).concat()
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `x · wᵀ`.
fn multiply(x: &Rows, w: &Rows) -> Rows {
    x.iter().map(|x| w.iter().map(|w| dot(x, w)).collect()).collect()
}

fn add(a: &Rows, b: &Rows) -> Rows {
    a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a + b).collect()).collect()
}

fn norm(x: &Rows, gain: &[f64], c: &Config) -> Rows {
    let scale = |row: &[f64]| (dot(row, row) / row.len() as f64 + f64::from(c.rms_eps)).sqrt().recip();
    x.iter().map(|row| row.iter().zip(gain).map(|(v, g)| v * scale(row) * g).collect()).collect()
}
