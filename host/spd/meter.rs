//! Measures plans on a text, one after the other, against the synchronised model.

use serde::{Deserialize, Serialize};

use super::Plan;
use crate::eval::{Tally, compare};
use crate::model::Config;
use crate::runner::{Batch, LogitRows, RunError, Runner, Segment, Span};

/// Sequence number of the one pass through the whole model.
const SEQUENCE: usize = 0;

/// How a plan does on a text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Score {
    /// exp of the mean negative log-likelihood.
    pub perplexity: f64,
    /// Mean KL(synchronised ‖ this) in nats per token.
    pub kl: f64,
    /// Share of tokens where both name the same likeliest one.
    pub top1_agreement: f64,
    /// Share of tokens where the likeliest one is the one that follows.
    pub accuracy: f64,
}

impl Score {
    /// Of what chunks add up to.
    pub fn of(tallies: &[Tally]) -> Self {
        let tally: Tally = tallies.iter().copied().sum();
        Self {
            perplexity: tally.perplexity(),
            kl: tally.mean_kl(),
            top1_agreement: tally.top1_agreement(),
            accuracy: tally.accuracy(),
        }
    }
}

/// What a plan is judged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Perplexity of the text.
    Perplexity,
    /// KL divergence from the synchronised model, nats per token.
    Kl,
}

impl Metric {
    /// This metric of a score.
    pub fn of(self, score: &Score) -> f64 {
        match self {
            Self::Perplexity => score.perplexity,
            Self::Kl => score.kl,
        }
    }
}

/// A runner, a text, and the synchronised model's hidden states at both ends: [`Meter::state_bytes`] of memory.
pub struct Meter<'a> {
    pub(super) runner: &'a mut dyn Runner,
    pub(super) chunks: &'a [Vec<u32>],
    /// A chunk each: the embeddings, `[tokens, hidden]`.
    pub(super) embedded: Vec<Vec<f32>>,
    /// A chunk each: behind the last block, synchronised.
    pub(super) synchronised: Vec<Vec<f32>>,
}

impl<'a> Meter<'a> {
    /// Bytes of hidden states that a meter keeps for a text.
    pub fn state_bytes(config: &Config, n_tokens: usize) -> usize {
        2 * n_tokens * config.hidden * size_of::<f32>()
    }

    /// Runs the synchronised model once over every chunk.
    ///
    /// # Errors
    /// What the runner reports, first of all that it has no [`Runner::run_segment`].
    pub fn new(runner: &'a mut dyn Runner, chunks: &'a [Vec<u32>]) -> Result<Self, RunError> {
        let n_layers = runner.config().n_layers;
        runner.set_plan(&Plan::synchronised(runner.tp(), n_layers))?;
        let (mut embedded, mut synchronised) = (Vec::new(), Vec::new());
        for chunk in chunks {
            let spans = vec![Span { sequence: SEQUENCE, tokens: chunk.clone() }];
            let batch = Batch { spans, logits: LogitRows::Last, hidden_states: true };
            let mut states = runner.forward(&batch)?.hidden_states;
            runner.truncate(SEQUENCE, 0)?;
            synchronised.push(states.pop().unwrap_or_default());
            embedded.push(states.into_iter().next().unwrap_or_default());
        }
        Ok(Self { runner, chunks, embedded, synchronised })
    }

    /// Each chunk's embeddings, `[tokens, hidden]`.
    pub fn into_embedded(self) -> Vec<Vec<f32>> {
        self.embedded
    }

    /// The model's hyper-parameters.
    pub fn config(&self) -> &Config {
        self.runner.config()
    }

    /// The number of ranks.
    pub fn tp(&self) -> usize {
        self.runner.tp()
    }

    /// What each chunk adds up to under `plan`.
    ///
    /// # Errors
    /// What the runner reports: a plan that does not fit, logits that are not finite.
    pub fn measure(&mut self, plan: &Plan) -> Result<Vec<Tally>, RunError> {
        self.runner.set_plan(plan)?;
        let n_layers = self.config().n_layers;
        let mut tallies = Vec::with_capacity(self.chunks.len());
        for (i, chunk) in self.chunks.iter().enumerate() {
            let segment = Segment::blocks(0..n_layers, &self.embedded[i]);
            let states = self.runner.run_segment(segment)?;
            tallies.extend(compare(self.runner, chunk, &self.synchronised[i], &[&states])?);
        }
        Ok(tallies)
    }

    /// As [`Meter::measure`], of all chunks together.
    ///
    /// # Errors
    /// As [`Meter::measure`].
    pub fn score(&mut self, plan: &Plan) -> Result<Score, RunError> {
        Ok(Score::of(&self.measure(plan)?))
    }
}
