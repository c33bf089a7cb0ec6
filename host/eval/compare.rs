//! Variants of a model beside its synchronised self, from the hidden states behind their last blocks. Logits exist
//! only for a few rows at a time.

use rayon::prelude::*;

use super::{Distribution, Tally};
use crate::runner::{RunError, Runner, Segment};

/// Rows whose logits are held at once, of the synchronised model and of one variant.
const ROWS: usize = 32;

/// Scores the predictions of `tokens[1..]`. `synchronised` and each of `variants` are hidden states behind the last
/// block, `[tokens, hidden]`; the head is the same for all. One tally a variant.
///
/// # Errors
/// What the runner reports; logits that are not finite.
pub fn compare(
    runner: &mut dyn Runner,
    tokens: &[u32],
    synchronised: &[f32],
    variants: &[&[f32]],
) -> Result<Vec<Tally>, RunError> {
    let (hidden, vocab, n_layers) = {
        let config = runner.config();
        (config.hidden, config.vocab, config.n_layers)
    };
    let predicted = tokens.len().saturating_sub(1);
    let mut tallies = vec![Tally::default(); variants.len()];
    for first in (0..predicted).step_by(ROWS) {
        let rows = first..(first + ROWS).min(predicted);
        let next = &tokens[rows.start + 1..=rows.end];
        let mut head = |states: &[f32]| {
            let states = &states[rows.start * hidden..rows.end * hidden];
            runner.run_segment(Segment::head(n_layers, states))
        };
        let base = head(synchronised)?;
        let base: Vec<Distribution> = base.par_chunks_exact(vocab).map(Distribution::of).collect();
        for (tally, states) in tallies.iter_mut().zip(variants) {
            let logits = head(states)?;
            let row = |((base, logits), &next): ((&Distribution, &[f32]), &u32)| base.tally(logits, next);
            let by_row: Vec<Tally> =
                base.par_iter().zip(logits.par_chunks_exact(vocab)).zip(next).map(row).collect();
            // In the rows' order, so that the sum does not depend on the threads.
            *tally = std::iter::once(*tally).chain(by_row).sum();
        }
    }
    match tallies.iter().all(|tally| tally.nll.is_finite() && tally.kl.is_finite()) {
        true => Ok(tallies),
        false => Err(RunError::NotFinite),
    }
}
