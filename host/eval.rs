//! Perplexity of a text, and how far a plan moves the model from its synchronised self.

mod bootstrap;
mod compare;

use rayon::prelude::*;

pub use bootstrap::interval;
pub use compare::compare;

use crate::generate::argmax;
use crate::runner::{Batch, LogitRows, RunError, Runner, Span};
use crate::spd::Plan;

/// Sequence number that evaluation uses.
const SEQUENCE: usize = 0;

/// Chunks of a text: chunk `i` of `n` starts at token `i · ⌊(n_tokens − context) / n⌋` and stands alone.
pub fn chunks(tokens: &[u32], n: usize, context: usize) -> Result<Vec<&[u32]>, EvalError> {
    if n == 0 || context < 2 {
        return Err(EvalError::NothingToPredict);
    }
    if tokens.len() < context {
        return Err(EvalError::TextTooShort { n_tokens: tokens.len(), context });
    }
    let stride = (tokens.len() - context) / n;
    if n > 1 && stride == 0 {
        return Err(EvalError::TooManyChunks { n, n_tokens: tokens.len(), context });
    }
    Ok((0..n).map(|i| &tokens[i * stride..][..context]).collect())
}

/// What one chunk, or all of them, add up to.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Tally {
    /// Predicted tokens: `context − 1` a chunk.
    pub n_predicted: usize,
    /// Sum of −ln p(next token).
    pub nll: f64,
    /// Sum of KL(synchronised ‖ this) in nats.
    pub kl: f64,
    /// Positions where both name the same likeliest token.
    pub agreements: usize,
    /// Positions where the likeliest token is the one that follows.
    pub correct: usize,
}

impl Tally {
    /// exp of the mean negative log-likelihood.
    pub fn perplexity(&self) -> f64 {
        (self.nll / self.n_predicted as f64).exp()
    }

    /// Mean KL divergence in nats per token.
    pub fn mean_kl(&self) -> f64 {
        self.kl / self.n_predicted as f64
    }

    /// Share of positions with the same likeliest token.
    pub fn top1_agreement(&self) -> f64 {
        self.agreements as f64 / self.n_predicted as f64
    }

    /// Share of positions where the likeliest token is the one that follows.
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.n_predicted as f64
    }
}

impl std::iter::Sum for Tally {
    fn sum<I: Iterator<Item = Self>>(tallies: I) -> Self {
        tallies.fold(Self::default(), |a, b| Self {
            n_predicted: a.n_predicted + b.n_predicted,
            nll: a.nll + b.nll,
            kl: a.kl + b.kl,
            agreements: a.agreements + b.agreements,
            correct: a.correct + b.correct,
        })
    }
}

/// Why a text cannot be evaluated.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// Fewer tokens than one chunk takes.
    #[error(
        "the text has {n_tokens} tokens, fewer than one chunk of {context}: give a longer text or shorter chunks (--context; --chunk-len of spd commands)"
    )]
    TextTooShort {
        /// Tokens of the text.
        n_tokens: usize,
        /// Tokens of a chunk.
        context: usize,
    },
    /// So many chunks that they would all be the same.
    #[error(
        "the text's {n_tokens} tokens do not give {n} different chunks of {context}: ask for fewer --chunks or shorter ones (--context; --chunk-len of spd commands)"
    )]
    TooManyChunks {
        /// Chunks asked for.
        n: usize,
        /// Tokens of the text.
        n_tokens: usize,
        /// Tokens of a chunk.
        context: usize,
    },
    /// No chunk, or chunks of a single token.
    #[error("there is nothing to predict: at least one chunk of at least two tokens is needed")]
    NothingToPredict,
    /// The model failed.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// Evaluates `plan` on `chunks`. Where the plan drops anything, the synchronised model runs beside it
/// and is what `kl` and `agreements` compare with; where not, they are 0 and all. `progress` is called
/// after every chunk.
pub fn evaluate(
    runner: &mut dyn Runner,
    plan: &Plan,
    chunks: &[&[u32]],
    mut progress: impl FnMut(usize, Tally),
) -> Result<Tally, EvalError> {
    let vocab = runner.config().vocab;
    let synchronised = Plan::synchronised(runner.tp(), runner.config().n_layers);
    let compare = plan.blocks() != synchronised.blocks();
    let mut total = Tally::default();
    for (i, chunk) in chunks.iter().enumerate() {
        let baseline = if compare {
            runner.set_plan(&synchronised)?;
            Some(all_logits(runner, chunk)?)
        } else {
            None
        };
        runner.set_plan(plan)?;
        let logits = all_logits(runner, chunk)?;
        let tally = (0..chunk.len() - 1)
            .into_par_iter()
            .map(|at| {
                let row = at * vocab..(at + 1) * vocab;
                let base = baseline.as_ref().map(|b| &b[row.clone()]);
                tally_row(&logits[row], base, chunk[at + 1])
            })
            // Pairwise in a fixed order, so that the sum does not depend on the threads.
            .collect::<Vec<_>>()
            .into_iter()
            .sum::<Tally>();
        if !tally.nll.is_finite() {
            return Err(RunError::NotFinite.into());
        }
        total = [total, tally].into_iter().sum();
        progress(i, total);
    }
    runner.truncate(SEQUENCE, 0)?;
    Ok(total)
}

fn all_logits(runner: &mut dyn Runner, tokens: &[u32]) -> Result<Vec<f32>, RunError> {
    runner.truncate(SEQUENCE, 0)?;
    let spans = vec![Span { sequence: SEQUENCE, tokens: tokens.to_vec() }];
    Ok(runner.forward(&Batch { spans, logits: LogitRows::All, hidden_states: false })?.logits)
}

fn tally_row(logits: &[f32], baseline: Option<&[f32]>, next: u32) -> Tally {
    match baseline {
        Some(baseline) => Distribution::of(baseline).tally(logits, next),
        None => tally_alone(logits, next),
    }
}

fn tally_alone(logits: &[f32], next: u32) -> Tally {
    let nll = log_sum_exp(logits) - f64::from(logits[next as usize]);
    let correct = usize::from(argmax(logits) == next);
    Tally { n_predicted: 1, nll, kl: 0.0, agreements: 1, correct }
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    logits.iter().map(|&l| (f64::from(l) - max).exp()).sum::<f64>().ln() + max
}

/// One row of the synchronised model, that others are compared with.
struct Distribution<'a> {
    logits: &'a [f32],
    log_sum: f64,
    /// exp(logit − log_sum).
    probabilities: Vec<f64>,
    likeliest: u32,
}

impl<'a> Distribution<'a> {
    fn of(logits: &'a [f32]) -> Self {
        let log_sum = log_sum_exp(logits);
        let probabilities = logits.iter().map(|&l| (f64::from(l) - log_sum).exp()).collect();
        Self { logits, log_sum, probabilities, likeliest: argmax(logits) }
    }

    /// Another model's row beside it.
    fn tally(&self, logits: &[f32], next: u32) -> Tally {
        let log_sum = log_sum_exp(logits);
        let pairs = self.logits.iter().zip(logits).zip(&self.probabilities);
        let difference: f64 = pairs.map(|((&p, &q), &weight)| weight * (f64::from(p) - f64::from(q))).sum();
        let likeliest = argmax(logits);
        Tally {
            n_predicted: 1,
            nll: log_sum - f64::from(logits[next as usize]),
            kl: difference + log_sum - self.log_sum,
            agreements: usize::from(likeliest == self.likeliest),
            correct: usize::from(likeliest == next),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_starts() {
        let tokens: Vec<u32> = (0..100).collect();
        let starts = |n, c| chunks(&tokens, n, c).unwrap().iter().map(|c| c[0]).collect::<Vec<_>>();
        assert_eq!(starts(3, 10), [0, 30, 60]);
        assert_eq!(starts(1, 100), [0]);
        assert!(matches!(
            chunks(&tokens, 1, 101),
            Err(EvalError::TextTooShort { n_tokens: 100, context: 101 })
        ));
        assert!(matches!(chunks(&tokens, 0, 10), Err(EvalError::NothingToPredict)));
        let too_many = chunks(&tokens, usize::MAX, 10);
        assert!(matches!(too_many, Err(EvalError::TooManyChunks { n_tokens: 100, .. })));
    }

    #[test]
    fn a_row_against_itself_and_another() {
        let same = tally_row(&[0.0, 1.0, 2.0], Some(&[0.0, 1.0, 2.0]), 1);
        assert!(same.kl.abs() < 1e-12 && same.agreements == 1);
        // p = (1/2, 1/2), q = (1/4, 3/4): KL = ln 2 − ln 3 / 2.
        let other = tally_row(&[0.0, 3.0f32.ln()], Some(&[5.0, 5.0]), 0);
        assert!((other.kl - (2.0f64.ln() - 3.0f64.ln() / 2.0)).abs() < 1e-6, "{}", other.kl);
        assert!((other.nll - 4.0f64.ln()).abs() < 1e-6);
        assert_eq!(other.agreements, 0);
    }
}
