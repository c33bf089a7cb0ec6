//! Prompt in, tokens out: prefill in chunks, then one token at a time.

mod sampler;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub use sampler::{Sampler, Sampling, argmax};

use crate::runner::{Batch, RunError, Runner};

/// Prompt tokens fed between two looks at the cancel flag.
const PREFILL_CHUNK: usize = 512;

/// What to generate.
#[derive(Debug, Clone)]
pub struct Request {
    /// Prompt tokens, at least one.
    pub prompt: Vec<u32>,
    /// Tokens to generate at most; with the prompt no more than the context.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Tokens that end the text (the end token is part of the result).
    pub eos: Vec<u32>,
}

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The model produced an end token.
    Eos,
    /// `max_tokens` were produced.
    Length,
    /// The caller's flag was raised.
    Interrupted,
}

/// What was generated, and how fast.
#[derive(Debug, Clone)]
pub struct Generation {
    /// New tokens, the end token included.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub stop: StopReason,
    /// From the call to the first token.
    pub time_to_first_token: Duration,
    /// From the first token to the last.
    pub decode_time: Duration,
    /// Collectives of every kind per pass through the model, one pass per token in decode.
    pub sync_points_per_token: f64,
    /// All-reduces inside the decoder blocks per pass.
    pub block_all_reduces_per_token: f64,
}

impl Generation {
    /// Decode rate: tokens after the first over the time after the first; with a single token its own rate.
    pub fn tokens_per_s(&self) -> f64 {
        match self.tokens.len() {
            0 => 0.0,
            1 => self.time_to_first_token.as_secs_f64().recip(),
            n => (n - 1) as f64 / self.decode_time.as_secs_f64(),
        }
    }
}

/// Generates on sequence 0 of `runner`, which is cleared first. `on_token` sees every token as it comes;
/// raising `cancel` ends the text after the token, or prompt chunk, that is under way.
pub fn generate(
    runner: &mut dyn Runner,
    request: &Request,
    cancel: &AtomicBool,
    mut on_token: impl FnMut(u32),
) -> Result<Generation, RunError> {
    let needed = request.prompt.len() + request.max_tokens;
    let context = runner.config().context;
    if needed > context {
        return Err(RunError::ContextExceeded { sequence: 0, needed, context });
    }
    runner.truncate(0, 0)?;
    let before = runner.sync_counts();
    let start = Instant::now();
    let mut first_token = start;
    let mut tokens = Vec::new();
    let mut logits = Vec::new();
    let mut stop = StopReason::Length;
    for chunk in request.prompt.chunks(PREFILL_CHUNK) {
        if cancel.load(Ordering::Relaxed) {
            stop = StopReason::Interrupted;
            break;
        }
        logits = runner.forward(&Batch::prefill(0, chunk))?.logits;
    }
    let mut samplers = [Sampler::new(request.sampling)];
    if stop == StopReason::Length && request.max_tokens > 0 {
        if !logits.iter().all(|logit| logit.is_finite()) {
            return Err(RunError::NotFinite);
        }
        let mut token = samplers[0].sample(&logits);
        first_token = Instant::now();
        stop = loop {
            tokens.push(token);
            on_token(token);
            if request.eos.contains(&token) {
                break StopReason::Eos;
            } else if cancel.load(Ordering::Relaxed) {
                break StopReason::Interrupted;
            } else if tokens.len() == request.max_tokens {
                break StopReason::Length;
            }
            token = runner.decode_sampled(&[token], &mut samplers)?[0];
        };
    }
    let after = runner.sync_counts();
    let per_pass = |n: u64| n as f64 / (after.passes - before.passes).max(1) as f64;
    Ok(Generation {
        tokens,
        stop,
        time_to_first_token: first_token - start,
        decode_time: first_token.elapsed(),
        sync_points_per_token: per_pass(after.sync_points - before.sync_points),
        block_all_reduces_per_token: per_pass(after.block_all_reduces - before.block_all_reduces),
    })
}
