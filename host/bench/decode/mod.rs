//! The whole decode step of a model: time to first token, time per token.

#[cfg(feature = "cli")]
pub mod figure;
#[cfg(feature = "cli")]
mod record;

use std::time::Instant;

use serde::Serialize;

use super::breakdown::Breakdown;
use super::stats::Percentiles;
use crate::generate::{Sampler, Sampling, argmax};
use crate::runner::{Batch, LogitRows, RunError, Runner, Span};

/// One measurement's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Workload {
    /// Sequences decoded together.
    pub batch: usize,
    /// Prompt tokens of each.
    pub prompt: usize,
    /// Tokens decoded after the first.
    pub decode: usize,
    /// How often all of it is done.
    pub runs: usize,
}

/// What was measured.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct DecodeTimes {
    /// Prefill of all sequences and the first token, over the runs.
    pub time_to_first_token_ms: Percentiles,
    /// One decode step of the whole batch, over the steps of all runs.
    pub step_ms: Percentiles,
    /// Tokens of all sequences per second, at the median step.
    pub tokens_per_s: f64,
    /// From the call to the last token, over the runs.
    pub end_to_end_ms: Percentiles,
    /// Collectives of every kind per decode step.
    pub sync_points_per_token: f64,
    /// All-reduces inside the decoder blocks per decode step.
    pub block_all_reduces_per_token: f64,
}

/// One line of results.
#[derive(Debug, Clone, Serialize)]
pub struct Measurement {
    /// The model's name.
    pub model: String,
    /// Tensor-parallel degree.
    pub tp: usize,
    /// Nodes x ranks per node.
    pub topology: String,
    /// Blocks without attention sync.
    pub spd_blocks: usize,
    /// Where it ran: `cpu`, `cuda:0`.
    pub device: String,
    /// What was decoded.
    pub workload: Workload,
    /// How long it took.
    pub times: DecodeTimes,
    /// What the step is spent on, where that was asked for.
    pub breakdown: Option<Breakdown>,
}

/// Runs the workload greedily from pseudo-random prompts. The runner's sequences are cleared first and
/// afterwards. `progress` is called after every step.
///
/// # Errors
/// What the runner reports.
pub fn decode(
    runner: &mut dyn Runner,
    w: Workload,
    mut progress: impl FnMut(),
) -> Result<DecodeTimes, RunError> {
    let ms = |since: Instant| since.elapsed().as_secs_f64() * 1e3;
    let (mut first_ms, mut end_ms, mut steps_ms) = (Vec::new(), Vec::new(), Vec::new());
    let (mut sync_points, mut block_all_reduces) = (0, 0);
    for _ in 0..w.runs {
        let start = Instant::now();
        let mut tokens = fill(runner, w)?;
        first_ms.push(ms(start));
        let mut samplers: Vec<Sampler> = tokens.iter().map(|_| Sampler::new(Sampling::GREEDY)).collect();
        let before = runner.sync_counts();
        for _ in 0..w.decode {
            let step = Instant::now();
            tokens = runner.decode_sampled(&tokens, &mut samplers)?;
            steps_ms.push(ms(step));
            progress();
        }
        end_ms.push(ms(start));
        let after = runner.sync_counts();
        sync_points += after.sync_points - before.sync_points;
        block_all_reduces += after.block_all_reduces - before.block_all_reduces;
    }
    for sequence in 0..w.batch {
        runner.truncate(sequence, 0)?;
    }
    let step_ms = Percentiles::of(&steps_ms);
    let per_step = |n: u64| n as f64 / steps_ms.len() as f64;
    Ok(DecodeTimes {
        time_to_first_token_ms: Percentiles::of(&first_ms),
        step_ms,
        tokens_per_s: w.batch as f64 * 1e3 / step_ms.median,
        end_to_end_ms: Percentiles::of(&end_ms),
        sync_points_per_token: per_step(sync_points),
        block_all_reduces_per_token: per_step(block_all_reduces),
    })
}

/// Fills the sequences with their prompts; the token behind each.
pub(super) fn fill(runner: &mut dyn Runner, w: Workload) -> Result<Vec<u32>, RunError> {
    for sequence in 0..w.batch {
        runner.truncate(sequence, 0)?;
    }
    let vocab = runner.config().vocab;
    let spans = (0..w.batch).map(|sequence| Span { sequence, tokens: prompt(sequence, w.prompt, vocab) });
    let prefill = Batch { spans: spans.collect(), logits: LogitRows::Last, hidden_states: false };
    Ok(greedy(&runner.forward(&prefill)?.logits, vocab))
}

fn greedy(logits: &[f32], vocab: usize) -> Vec<u32> {
    logits.chunks_exact(vocab).map(argmax).collect()
}

/// Token numbers without a pattern that a cache could profit from.
fn prompt(sequence: usize, len: usize, vocab: usize) -> Vec<u32> {
    let mixed = |i: usize| (i as u64 ^ (sequence as u64) << 32).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33;
    (0..len).map(|i| (mixed(i + 1) % vocab as u64) as u32).collect()
}
