//! Gradient steps on one block: AdamW on the squared error of the block's output, the best weights on held-out
//! chunks kept.

use candle_core::{Tensor as Matrix, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::block::Geometry;
use super::samples::{MiniBatch, Samples};
use super::weights::Weights;
use super::{DistillError, Options, Trainable};

/// Share of the steps over which the learning rate rises; it falls linearly to zero behind them.
const WARM_UP: f64 = 0.05;

/// Looks at the held-out chunks per epoch.
const LOOKS_PER_EPOCH: usize = 8;

/// Looks without a better error before training stops.
const PATIENCE: usize = 4;

/// A block that is being trained.
pub(super) struct Trainer<'a> {
    pub(super) geometry: &'a Geometry,
    pub(super) samples: &'a Samples<'a>,
    pub(super) options: &'a Options,
    pub(super) kv_of: &'a Matrix,
    pub(super) layer: usize,
}

/// What training came to.
pub(super) struct Trained {
    pub(super) weights: Weights,
    /// The weights' error on the held-out chunks.
    pub(super) error: f64,
    pub(super) steps: usize,
}

impl Trainer<'_> {
    /// The mean weighted squared error on the held-out chunks, relative to the mean square of the output.
    pub(super) fn held_out_error(&self, weights: &Weights) -> Result<f64, DistillError> {
        let mut sum = 0.0;
        for chunks in self.samples.held_out.chunks(self.options.batch) {
            let batch = self.samples.batch(chunks)?;
            let loss = f64::from(self.loss(&batch, weights)?.to_scalar::<f32>()?);
            sum += loss * chunks.len() as f64;
        }
        match sum / self.samples.held_out.len() as f64 {
            error if error.is_finite() => Ok(error),
            _ => Err(DistillError::NotFinite { layer: self.layer, step: 0 }),
        }
    }

    fn loss(&self, batch: &MiniBatch, weights: &Weights) -> Result<Matrix, DistillError> {
        // Attention is computed anew only where it trains.
        let attended = match self.options.train {
            Trainable::All => self.geometry.attend(&batch.x, weights, self.kv_of)?,
            _ => batch.attended.clone(),
        };
        let error = (self.geometry.dropped(&batch.x, &attended, weights)? - &batch.target)?;
        Ok(error.sqr()?.broadcast_mul(&batch.weight)?.mean_all()?)
    }

    /// Trains from `start`, whose held-out error is `error`. `done` is told the chunks of every mini-batch.
    pub(super) fn run(
        &self,
        start: Weights,
        error: f64,
        done: &mut dyn FnMut(usize),
    ) -> Result<Trained, DistillError> {
        let mut best = Trained { weights: start.clone(), error, steps: 0 };
        let (weights, vars) = trainable(&start, self.options.train)?;
        if vars.is_empty() {
            return Ok(best);
        }
        let params = ParamsAdamW { lr: 0.0, weight_decay: self.options.weight_decay, ..Default::default() };
        let mut optimizer = AdamW::new(vars, params)?;
        let per_epoch = self.samples.train.len().div_ceil(self.options.batch);
        let total = per_epoch * self.options.epochs;
        let look_every = per_epoch.div_ceil(LOOKS_PER_EPOCH);
        let (mut step, mut since_best) = (0, 0);
        for epoch in 0..self.options.epochs {
            for chunks in self.shuffled(epoch).chunks(self.options.batch) {
                optimizer.set_learning_rate(self.options.learning_rate * schedule(step, total));
                let loss = self.loss(&self.samples.batch(chunks)?, &weights)?;
                step += 1;
                if !loss.to_scalar::<f32>()?.is_finite() {
                    return Err(DistillError::NotFinite { layer: self.layer, step });
                }
                optimizer.backward_step(&loss)?;
                done(chunks.len());
                if step % look_every != 0 && step != total {
                    continue;
                }
                let error = self.held_out_error(&weights)?;
                since_best += 1;
                if error < best.error {
                    best = Trained { weights: weights.detached()?, error, steps: step };
                    since_best = 0;
                }
                if since_best == PATIENCE {
                    return Ok(best);
                }
            }
        }
        Ok(best)
    }

    /// The training chunks in the order of an epoch: a function of seed, block and epoch alone, so that neither other
    /// blocks nor an interruption change it.
    fn shuffled(&self, epoch: usize) -> Vec<usize> {
        let mut random = ChaCha8Rng::seed_from_u64(self.options.seed);
        random.set_stream((self.layer as u64) << 32 | epoch as u64);
        let mut order = self.samples.train.to_vec();
        for last in (1..order.len()).rev() {
            order.swap(last, (random.next_u64() % (last as u64 + 1)) as usize);
        }
        order
    }
}

/// The learning rate of a step, relative to the highest.
fn schedule(step: usize, total: usize) -> f64 {
    let (at, warm) = ((step as f64 + 1.0) / total as f64, WARM_UP);
    if at < warm { at / warm } else { (1.0 - step as f64 / total as f64) / (1.0 - warm) }.min(1.0)
}

/// A copy of the weights in which what trains is a variable, and those variables.
pub(super) fn trainable(weights: &Weights, what: Trainable) -> Result<(Weights, Vec<Var>), DistillError> {
    let mut weights = weights.clone();
    let mut vars = Vec::new();
    let mut train = |matrix: &mut Matrix| -> candle_core::Result<()> {
        let var = Var::from_tensor(&matrix.copy()?)?;
        *matrix = var.as_tensor().clone();
        vars.push(var);
        Ok(())
    };
    if what == Trainable::All {
        for matrix in [&mut weights.attention_norm, &mut weights.q, &mut weights.k, &mut weights.v] {
            train(matrix)?;
        }
    }
    for shard in &mut weights.shards {
        if what == Trainable::All {
            train(&mut shard.o)?;
        }
        let Some(mlp) = &mut shard.mlp else { continue };
        if matches!(what, Trainable::Norms | Trainable::All) {
            train(&mut shard.norm)?;
        }
        if matches!(what, Trainable::Mlp | Trainable::All) {
            for matrix in [&mut mlp.gate, &mut mlp.up, &mut mlp.down] {
                train(matrix)?;
            }
        }
    }
    Ok((weights, vars))
}
