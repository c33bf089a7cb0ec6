//! The walk through the model, block by block: what the teacher says, the fits of those that are to be fitted, and
//! the next block's input.

use std::time::Instant;

use candle_core::{Device, Tensor as Matrix};

use super::block::Geometry;
use super::fit::Fit;
use super::record::Run;
use super::samples::{Rows, RowsWriter, Samples, split};
use super::train::Trainer;
use super::weights::{Layout, Weights};
use super::{BlockResult, DistillError, Job, Progress, Trainable};
use crate::model::sharding::Sharding;
use crate::model::{Tensor, TensorKind};
use crate::spd::PlanError;

/// Cost of a gradient step, in passes.
const STEP_COST: u64 = 3;

/// What stays the same over the whole walk.
pub(super) struct Walk<'a> {
    job: &'a Job<'a>,
    sharding: Sharding,
    geometry: Geometry,
    chunks: usize,
    train: Vec<usize>,
    held_out: Vec<usize>,
}

/// Counts units of work and tells who asked.
struct Meter<'a> {
    block: usize,
    done: u64,
    total: u64,
    tell: &'a mut dyn FnMut(Progress),
}

impl Meter<'_> {
    fn add(&mut self, units: u64) {
        self.set(self.done + units);
    }

    fn set(&mut self, done: u64) {
        self.done = done;
        (self.tell)(Progress { block: self.block, done, total: self.total });
    }
}

impl<'a> Walk<'a> {
    pub(super) fn new(job: &'a Job<'a>) -> Result<Self, DistillError> {
        let context = job.options.context;
        let chunks = job.tokens.len() / context;
        let (train, held_out) = split(chunks, job.options.hold_out);
        let sharding = Sharding::new(job.config, job.plan.tp()).map_err(PlanError::from)?;
        Ok(Self { job, sharding, geometry: Geometry::new(job.config, context)?, chunks, train, held_out })
    }

    /// Walks from where `run` stands to behind the last block that is to be fitted.
    pub(super) fn run(
        &self,
        mut run: Run,
        tell: &mut dyn FnMut(Progress),
    ) -> Result<Vec<BlockResult>, DistillError> {
        let (first, end) = (run.next_block(), self.job.blocks.iter().max().map_or(0, |&last| last + 1));
        if first < end {
            let units = |blocks: std::ops::Range<usize>| blocks.map(|layer| self.units(layer)).sum();
            let mut meter = Meter { block: first, done: units(0..first), total: units(0..end), tell };
            let mut input = self.input(&run, first)?;
            for layer in first..end {
                meter.block = layer;
                let behind = meter.done + self.units(layer);
                let (output, result) = self.block(layer, &run, input, &mut meter)?;
                run.advance(layer + 1, result)?;
                // Training may have stopped early.
                meter.set(behind);
                input = output;
            }
        }
        run.finish()
    }

    /// The units of work that a block takes.
    fn units(&self, layer: usize) -> u64 {
        let options = self.job.options;
        let (chunks, train) = (self.chunks as u64, self.train.len() as u64);
        let fits = if options.closed_form { 2 * train } else { 0 };
        let steps =
            if options.train == Trainable::None { 0 } else { options.epochs as u64 * train * STEP_COST };
        chunks + if self.job.blocks.contains(&layer) { fits + steps } else { 0 }
    }

    /// The input of a block: the embeddings, or what the walk left.
    fn input(&self, run: &Run, layer: usize) -> Result<Rows, DistillError> {
        let (path, hidden) = (run.input(layer), self.job.config.hidden);
        let tokens = &self.job.tokens[..self.chunks * self.job.options.context];
        if layer > 0 {
            return Rows::open(&path, hidden, tokens.len());
        }
        let mut rows = RowsWriter::create(&path, hidden)?;
        let mut row = vec![0.0; hidden];
        for &token in tokens {
            let at = token as usize;
            self.job.source.read_f32(Tensor::global(TensorKind::Embedding), at..at + 1, 0..hidden, &mut row);
            rows.append(&row)?;
        }
        rows.finish()
    }

    /// One block: its synchronised output and, where it is to be fitted, what came of it.
    fn block(
        &self,
        layer: usize,
        run: &Run,
        input: Rows,
        meter: &mut Meter<'_>,
    ) -> Result<(Rows, Option<BlockResult>), DistillError> {
        let started = Instant::now();
        let job = self.job;
        let heads = job.plan.blocks()[layer].heads.as_deref();
        let layout = Layout::new(job.config, job.source, &self.sharding, layer, heads);
        let teacher = layout.load()?;
        let kv_of = Matrix::new(layout.kv_of(), &Device::Cpu)?;
        let (attended, output) = self.teach(layer, run, &input, &teacher, &kv_of, meter)?;
        if !job.blocks.contains(&layer) {
            return Ok((output, None));
        }
        let samples = Samples {
            input,
            attended,
            output,
            context: job.options.context,
            train: &self.train,
            held_out: &self.held_out,
        };
        let trainer = Trainer {
            geometry: &self.geometry,
            samples: &samples,
            options: job.options,
            kv_of: &kv_of,
            layer,
        };
        let (student, mut result) = self.fit(&trainer, &teacher, meter)?;
        let written = layout.rounded(&student)?;
        run.save_block(layer, &layout.changed(&written)?)?;
        result.distilled = trainer.held_out_error(&written)?;
        result.seconds = started.elapsed().as_secs_f64();
        Ok((samples.output, Some(result)))
    }

    /// One pass of the synchronised block: its attended heads and its output for the whole text.
    fn teach(
        &self,
        layer: usize,
        run: &Run,
        input: &Rows,
        teacher: &Weights,
        kv_of: &Matrix,
        meter: &mut Meter<'_>,
    ) -> Result<(Rows, Rows), DistillError> {
        let (config, options) = (self.job.config, self.job.options);
        let mut attended = RowsWriter::create(&run.attended(), config.n_heads * config.head_dim)?;
        let mut output = RowsWriter::create(&run.input(layer + 1), config.hidden)?;
        let chunks: Vec<usize> = (0..self.chunks).collect();
        for chunks in chunks.chunks(options.batch) {
            let x = input.chunks(chunks, options.context)?;
            let heads = self.geometry.attend(&x, teacher, kv_of)?;
            output.append_rows(&self.geometry.synchronised(&x, &heads, teacher)?)?;
            attended.append_rows(&heads)?;
            meter.add(chunks.len() as u64);
        }
        Ok((attended.finish()?, output.finish()?))
    }

    /// The block's student and its errors.
    fn fit(
        &self,
        trainer: &Trainer<'_>,
        teacher: &Weights,
        meter: &mut Meter<'_>,
    ) -> Result<(Weights, BlockResult), DistillError> {
        let &Trainer { geometry, samples, options, layer, .. } = trainer;
        let zero_shot = trainer.held_out_error(teacher)?;
        let (mut start, mut error, mut closed_form) = (teacher.clone(), zero_shot, None);
        if options.closed_form {
            let fit = Fit { geometry, teacher, samples, batch: options.batch, layer };
            let fitted = fit.run(&mut |chunks| meter.add(chunks as u64))?;
            let fitted_error = trainer.held_out_error(&fitted)?;
            closed_form = Some(fitted_error);
            if fitted_error < error {
                (start, error) = (fitted, fitted_error);
            }
        }
        let trained = trainer.run(start, error, &mut |chunks| meter.add(chunks as u64 * STEP_COST))?;
        let result = BlockResult {
            block: layer,
            zero_shot,
            closed_form,
            distilled: trained.error,
            steps: trained.steps,
            seconds: 0.0,
        };
        Ok((trained.weights, result))
    }
}
