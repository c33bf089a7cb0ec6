//! The closed form: what linear least squares recovers of a dropped all-reduce before any gradient step.
//!
//! Three steps, each of which keeps the shards' shapes:
//!
//! 1. *Input*: rank i sees `n_i = norm(X + Y_i)` and should see `n = norm(X + Σ Y_j)`. The best linear guess of the
//!    second from the first, `n ≈ n_i A_i`, is folded into its gate and up projections.
//! 2. *Columns*: MLP columns may live on any rank. Each goes where its activation comes out best, as long as every
//!    rank keeps its number of columns.
//! 3. *Output*: the down projections of all ranks together are refitted to the synchronised output.
//!
//! The fits are ridge regressions that shrink towards no change, over the whole text, in f64.

use candle_core::{DType, Device, Tensor as Matrix};
use nalgebra::{Cholesky, DMatrix};

use super::DistillError;
use super::block::Geometry;
use super::placement::place;
use super::samples::{MiniBatch, Samples};
use super::weights::{Mlp, Shard, Weights};

/// Ridge, relative to the mean square of a feature.
const RIDGE: f64 = 1e-3;

/// Chunks from which the columns' places are judged.
const COLUMN_CHUNKS: usize = 16;

/// Sums of a least-squares problem `features · B ≈ targets`.
struct Normal {
    /// `featuresᵀ · features`
    gram: Vec<f64>,
    /// `featuresᵀ · targets`
    cross: Vec<f64>,
    n_features: usize,
}

impl Normal {
    fn new(n_features: usize, n_targets: usize) -> Self {
        Self {
            gram: vec![0.0; n_features * n_features],
            cross: vec![0.0; n_features * n_targets],
            n_features,
        }
    }

    /// Adds rows. A mini-batch is summed in f32, mini-batches in f64.
    fn add(&mut self, features: &Matrix, targets: &Matrix) -> Result<(), DistillError> {
        for (sum, rhs) in [(&mut self.gram, features), (&mut self.cross, targets)] {
            let product = features.t()?.matmul(rhs)?.flatten_all()?.to_vec1::<f32>()?;
            sum.iter_mut().zip(product).for_each(|(sum, new)| *sum += f64::from(new));
        }
        Ok(())
    }

    /// B, `[n_features, n_targets]`.
    fn solve(mut self, layer: usize) -> Result<Matrix, DistillError> {
        let n = self.n_features;
        let trace: f64 = self.gram.iter().step_by(n + 1).sum();
        // Where no feature ever differs from zero there is nothing to fit, and any ridge gives B = 0.
        let ridge = (RIDGE * trace / n as f64).max(f64::MIN_POSITIVE);
        self.gram.iter_mut().step_by(n + 1).for_each(|diagonal| *diagonal += ridge);
        // A symmetric matrix is the same in either order of its elements.
        let gram = DMatrix::from_vec(n, n, self.gram);
        let n_targets = self.cross.len() / n;
        let cross = DMatrix::from_row_slice(n, n_targets, &self.cross);
        let factors = Cholesky::new(gram).ok_or(DistillError::NotFinite { layer, step: 0 })?;
        let by_target: Vec<f32> = factors.solve(&cross).iter().map(|&value| value as f32).collect();
        Ok(Matrix::from_vec(by_target, (n_targets, n), &Device::Cpu)?.t()?.contiguous()?)
    }
}

/// The fits of one block.
pub(super) struct Fit<'a> {
    pub(super) geometry: &'a Geometry,
    pub(super) teacher: &'a Weights,
    pub(super) samples: &'a Samples<'a>,
    /// Chunks read at a time.
    pub(super) batch: usize,
    pub(super) layer: usize,
}

impl Fit<'_> {
    /// The student's weights, from the teacher's. `done` is told the chunks of every mini-batch of either pass
    /// over the text.
    pub(super) fn run(&self, done: &mut dyn FnMut(usize)) -> Result<Weights, DistillError> {
        let guesses = self.input(done)?;
        let mut student = self.teacher.clone();
        self.columns(&guesses, &mut student)?;
        self.output(&mut student, done)?;
        Ok(student)
    }

    /// `A_i` of every rank, `[hidden, hidden]`.
    fn input(&self, done: &mut dyn FnMut(usize)) -> Result<Vec<Matrix>, DistillError> {
        let hidden = self.geometry.hidden;
        let shards = &self.teacher.shards;
        let mut normals: Vec<Normal> = shards.iter().map(|_| Normal::new(hidden, hidden)).collect();
        for chunks in self.samples.train.chunks(self.batch) {
            let batch = self.samples.batch(chunks)?;
            let wanted = self.synchronised_norm(&batch)?;
            for (normal, shard) in normals.iter_mut().zip(shards) {
                let own = self.own_norm(&batch, shard)?;
                normal.add(&own, &(&wanted - &own)?)?;
            }
            done(chunks.len());
        }
        let identity = Matrix::eye(hidden, DType::F32, &Device::Cpu)?;
        normals.into_iter().map(|normal| Ok((&identity + normal.solve(self.layer)?)?)).collect()
    }

    /// `norm(X + Σ Y_j)`
    fn synchronised_norm(&self, batch: &MiniBatch) -> candle_core::Result<Matrix> {
        let sum = self.geometry.attention_sum(&batch.x, &batch.attended, self.teacher)?;
        self.geometry.norm(&sum, &self.teacher.shards[0].norm)
    }

    /// `norm(X + Y_i)`
    fn own_norm(&self, batch: &MiniBatch, shard: &Shard) -> candle_core::Result<Matrix> {
        let own = (&batch.x + self.geometry.project(&batch.attended, shard)?)?;
        self.geometry.norm(&own, &shard.norm)
    }

    /// Folds `guesses` into the student's gate and up projections, each rank taking the columns that suit it.
    fn columns(&self, guesses: &[Matrix], student: &mut Weights) -> Result<(), DistillError> {
        let all = Mlp::joined(self.teacher)?;
        let costs = self.column_costs(guesses, &all)?;
        let capacities: Vec<usize> = student.shards.iter().map(Shard::width).collect();
        for ((shard, columns), guess) in
            student.shards.iter_mut().zip(place(&costs, &capacities)).zip(guesses)
        {
            if let Some(mlp) = &mut shard.mlp {
                let columns = Matrix::new(columns, &Device::Cpu)?;
                mlp.gate = guess.matmul(&all.gate.index_select(&columns, 1)?)?;
                mlp.up = guess.matmul(&all.up.index_select(&columns, 1)?)?;
                mlp.down = all.down.index_select(&columns, 0)?;
            }
        }
        Ok(())
    }

    /// By rank and column: the squared error that the column's activation brings into the block's output when the
    /// rank computes it.
    fn column_costs(&self, guesses: &[Matrix], all: &Mlp) -> Result<Vec<Vec<f64>>, DistillError> {
        let mut costs = vec![vec![0.0; all.width()]; guesses.len()];
        let reach = all.down.sqr()?.sum(1)?.to_vec1::<f32>()?;
        for chunks in self.samples.train[..COLUMN_CHUNKS.min(self.samples.train.len())].chunks(self.batch) {
            let batch = self.samples.batch(chunks)?;
            let wanted = all.activate(&self.synchronised_norm(&batch)?)?;
            for ((costs, shard), guess) in costs.iter_mut().zip(&self.teacher.shards).zip(guesses) {
                let guessed = all.activate(&self.own_norm(&batch, shard)?.matmul(guess)?)?;
                let error = (guessed - &wanted)?.sqr()?.broadcast_mul(&batch.weight)?.sum(0)?;
                let errors = error.to_vec1::<f32>()?;
                costs.iter_mut().zip(errors).zip(&reach).for_each(|((c, e), r)| *c += f64::from(e * r));
            }
        }
        Ok(costs)
    }

    /// Refits the down projections of all ranks together.
    fn output(&self, student: &mut Weights, done: &mut dyn FnMut(usize)) -> Result<(), DistillError> {
        let widths: Vec<usize> = student.shards.iter().map(Shard::width).collect();
        let mut normal = Normal::new(widths.iter().sum(), self.geometry.hidden);
        for chunks in self.samples.train.chunks(self.batch) {
            let batch = self.samples.batch(chunks)?;
            let mut rest =
                (&batch.target - self.geometry.attention_sum(&batch.x, &batch.attended, student)?)?;
            let mut features = Vec::with_capacity(widths.len());
            for shard in &student.shards {
                if let Some(mlp) = &shard.mlp {
                    let activated = mlp.activate(&self.own_norm(&batch, shard)?)?;
                    rest = (rest - activated.matmul(&mlp.down)?)?;
                    features.push(activated);
                }
            }
            let root = batch.weight.sqrt()?;
            let features = Matrix::cat(&features, 1)?.broadcast_mul(&root)?;
            normal.add(&features, &rest.broadcast_mul(&root)?)?;
            done(chunks.len());
        }
        let b = normal.solve(self.layer)?;
        let mut at = 0;
        for (shard, width) in student.shards.iter_mut().zip(widths) {
            if let Some(mlp) = &mut shard.mlp {
                mlp.down = (&mlp.down + b.narrow(0, at, width)?)?;
            }
            at += width;
        }
        Ok(())
    }
}
