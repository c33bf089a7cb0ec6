//! The whole decode step of a model: time to first token, time per token.

use std::time::Instant;

use serde::Serialize;

use super::stats::Percentiles;
use crate::generate::{Sampler, Sampling, argmax};
use crate::runner::{Batch, LogitRows, RunError, Runner, Span};

/// One measurement's shape.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Workload {
    /// Sequences decoded together.
    pub batch: usize,
    /// Prompt tokens of each.
    pub prompt: usize,
    /// Tokens decoded after the first.
    pub decode: usize,
}

/// What was measured.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct DecodeTimes {
    /// Prefill of all sequences and the first token.
    pub time_to_first_token_ms: f64,
    /// One decode step of the whole batch.
    pub step_ms: Percentiles,
    /// Tokens of all sequences per second, at the median step.
    pub tokens_per_s: f64,
    /// From the call to the last token.
    pub end_to_end_ms: f64,
    /// Collectives of every kind per decode step.
    pub sync_points_per_token: f64,
    /// All-reduces inside the decoder blocks per decode step.
    pub block_all_reduces_per_token: f64,
}

/// Runs the workload once, greedily, from pseudo-random prompts. The runner's sequences are cleared first
/// and afterwards. `progress` is called after every step.
pub fn decode(
    runner: &mut dyn Runner,
    w: Workload,
    mut progress: impl FnMut(),
) -> Result<DecodeTimes, RunError> {
    for sequence in 0..w.batch {
        runner.truncate(sequence, 0)?;
    }
    let vocab = runner.config().vocab;
    let spans = (0..w.batch).map(|sequence| Span { sequence, tokens: prompt(sequence, w.prompt, vocab) });
    let prefill = Batch { spans: spans.collect(), logits: LogitRows::Last, hidden_states: false };

    let start = Instant::now();
    let mut tokens = greedy(&runner.forward(&prefill)?.logits, vocab);
    let first = start.elapsed();
    let mut samplers: Vec<Sampler> = tokens.iter().map(|_| Sampler::new(Sampling::GREEDY)).collect();
    let before = runner.sync_counts();
    let mut steps_ms = Vec::with_capacity(w.decode);
    for _ in 0..w.decode {
        let step = Instant::now();
        tokens = runner.decode_sampled(&tokens, &mut samplers)?;
        steps_ms.push(step.elapsed().as_secs_f64() * 1e3);
        progress();
    }
    let end_to_end_ms = start.elapsed().as_secs_f64() * 1e3;
    let after = runner.sync_counts();
    for sequence in 0..w.batch {
        runner.truncate(sequence, 0)?;
    }
    let step_ms = Percentiles::of(&steps_ms);
    let per_step = |n: u64| n as f64 / w.decode as f64;
    Ok(DecodeTimes {
        time_to_first_token_ms: first.as_secs_f64() * 1e3,
        step_ms,
        tokens_per_s: w.batch as f64 * 1e3 / step_ms.median,
        end_to_end_ms,
        sync_points_per_token: per_step(after.sync_points - before.sync_points),
        block_all_reduces_per_token: per_step(after.block_all_reduces - before.block_all_reduces),
    })
}

fn greedy(logits: &[f32], vocab: usize) -> Vec<u32> {
    logits.chunks_exact(vocab).map(argmax).collect()
}

/// Token numbers without a pattern that a cache could profit from.
fn prompt(sequence: usize, len: usize, vocab: usize) -> Vec<u32> {
    let mixed = |i: usize| (i as u64 ^ (sequence as u64) << 32).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33;
    (0..len).map(|i| (mixed(i + 1) % vocab as u64) as u32).collect()
}
