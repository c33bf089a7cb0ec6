//! Block-to-block distillation (SPD paper, Section 4.2.3): every block that drops its first all-reduce is fitted,
//! alone, to the output it had with it, on the exact inputs that the synchronised model gives it.
//!
//! One walk through the model serves all blocks: what block i gives, synchronised, is block i's target and block
//! i + 1's input. On disk there are three tensors of the text's length (input, attended heads, output), in memory one
//! block's weights, their moments and a mini-batch. A finished block is on disk for good; an interrupted run goes on
//! at the block that it was at and ends with the same bits.

mod block;
mod error;
mod fit;
mod placement;
mod record;
mod samples;
#[cfg(test)]
mod tests;
mod train;
mod walk;
mod weights;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use error::DistillError;
pub use record::BlockResult;

use record::Run;
use walk::Walk;

use crate::model::{Config, TensorSource};
use crate::spd::Plan;

/// Which weights take gradient steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trainable {
    /// None: the closed form alone.
    None,
    /// The gain of each rank's norm before the MLP.
    Norms,
    /// Gate, up and down projections; attention is computed once.
    Mlp,
    /// All of the block's weights.
    All,
}

/// How to distil.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// Whether to begin from the closed form; else from the model's weights.
    pub closed_form: bool,
    /// What takes gradient steps.
    pub train: Trainable,
    /// Passes of gradient steps over the text.
    pub epochs: usize,
    /// Highest learning rate of AdamW; it rises over the first twentieth of the steps and falls to zero.
    pub learning_rate: f64,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// Tokens of a chunk. The text is cut into whole chunks, each a sequence of its own.
    pub context: usize,
    /// Chunks of a mini-batch.
    pub batch: usize,
    /// Share of the chunks that is held out, to stop by and to report on; at least one chunk.
    pub hold_out: f64,
    /// Of the order of the mini-batches.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            closed_form: true,
            train: Trainable::Mlp,
            epochs: 1,
            learning_rate: 1e-3,
            weight_decay: 0.0,
            context: 512,
            batch: 2,
            hold_out: 0.03,
            seed: 0,
        }
    }
}

/// What is to be distilled.
pub struct Job<'a> {
    /// The model's hyper-parameters.
    pub config: &'a Config,
    /// The model's weights: the teacher's.
    pub source: &'a dyn TensorSource,
    /// The plan whose blocks are fitted.
    pub plan: &'a Plan,
    /// Blocks to fit. Each drops and has no replacement yet.
    pub blocks: &'a [usize],
    /// The calibration text.
    pub tokens: &'a [u32],
    /// How.
    pub options: &'a Options,
    /// Takes the blocks' files and, meanwhile, what a resumed run needs.
    pub folder: &'a Path,
}

/// How far a run is. The unit is one chunk's pass through a block; a gradient step counts three.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// The block at hand.
    pub block: usize,
    /// Units done, those of earlier runs included.
    pub done: u64,
    /// Units in all; training that stops early jumps to its end.
    pub total: u64,
}

/// Distils `job.blocks` into `job.folder`, which is created: one file of replacement tensors a block, named by
/// [`block_file`], and the record of the run, `distill.json`. Continues a run of the same job that was interrupted.
pub fn distill(job: &Job<'_>, progress: &mut dyn FnMut(Progress)) -> Result<Vec<BlockResult>, DistillError> {
    check(job)?;
    Walk::new(job)?.run(Run::open(job)?, progress)
}

/// The file with the replacement tensors of a block, inside a run's folder.
pub fn block_file(layer: usize) -> PathBuf {
    format!("block{layer}.safetensors").into()
}

/// Refuses what cannot be distilled.
fn check(job: &Job<'_>) -> Result<(), DistillError> {
    job.plan.check(job.config, job.plan.tp())?;
    let refuse = |what: String| Err(DistillError::Refused { what });
    let options = job.options;
    if job.plan.tp() == 1 {
        return refuse(
            "the plan is for one rank, where nothing is dropped: distil a plan for two or more".into(),
        );
    }
    if !(2..=job.config.context).contains(&options.context) {
        let (given, most) = (options.context, job.config.context);
        return refuse(format!("chunks of {given} tokens: choose 2 to {most}, the model's context"));
    }
    if options.batch == 0 || options.epochs == 0 {
        return refuse("no epoch or no chunk in a mini-batch: choose at least 1".into());
    }
    if !(options.learning_rate > 0.0 && options.learning_rate.is_finite()) {
        return refuse(format!("a learning rate of {}: choose a positive one", options.learning_rate));
    }
    if !(options.weight_decay >= 0.0 && options.weight_decay.is_finite()) {
        return refuse(format!("a weight decay of {}: choose 0 or a positive one", options.weight_decay));
    }
    if options.train == Trainable::None && !options.closed_form {
        return refuse(
            "no closed form and no gradient steps: nothing would be fitted; leave one of them".into(),
        );
    }
    if !(options.hold_out > 0.0 && options.hold_out < 1.0) {
        return refuse(format!("a held-out share of {}: choose one between 0 and 1", options.hold_out));
    }
    let chunks = job.tokens.len() / options.context;
    if chunks < 2 {
        let (tokens, context) = (job.tokens.len(), options.context);
        return refuse(format!(
            "the text has {tokens} tokens, less than two chunks of {context}, one to train on and one held out: \
             give a longer text or shorter chunks"
        ));
    }
    if let Some(&token) = job.tokens.iter().find(|&&token| token as usize >= job.config.vocab) {
        return refuse(format!("token {token} is outside the model's vocabulary of {}", job.config.vocab));
    }
    for &layer in job.blocks {
        match job.plan.blocks().get(layer) {
            None => {
                let last = job.config.n_layers - 1;
                return refuse(format!("there is no block {layer}: this model has blocks 0 to {last}"));
            }
            Some(block) if block.sync_attention => {
                return refuse(format!("block {layer} synchronises in the plan: name blocks that drop"));
            }
            Some(block) if block.replacement.is_some() => {
                return refuse(format!("block {layer} has replacement tensors already: leave it out"));
            }
            Some(_) => {}
        }
    }
    Ok(())
}
