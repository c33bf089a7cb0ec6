//! Choosing blocks by measuring sets of them, not only single ones.

use super::choose::ascending;
use super::meter::{Meter, Metric, Score};
use super::{BlockPlan, Plan};
use crate::runner::RunError;

/// A plan in which exactly `blocks` drop, with the model's own weights.
pub fn dropping(tp: usize, n_layers: usize, blocks: &[usize]) -> Plan {
    let block = |layer| BlockPlan { sync_attention: !blocks.contains(&layer), ..BlockPlan::default() };
    Plan::new(tp, (0..n_layers).map(block).collect())
}

/// The longest start of `order` whose measured metric stays within `limit`, by bisection between none and all; and
/// its score. `measured` is called with the number of blocks after every measurement.
///
/// # Errors
/// What the runner reports.
pub fn longest_within(
    meter: &mut Meter<'_>,
    order: &[usize],
    metric: Metric,
    limit: f64,
    mut measured: impl FnMut(usize, &Score),
) -> Result<(usize, Score), RunError> {
    let (tp, n_layers) = (meter.tp(), meter.config().n_layers);
    let mut score = |count: usize| -> Result<Score, RunError> {
        let score = meter.score(&dropping(tp, n_layers, &order[..count]))?;
        measured(count, &score);
        Ok(score)
    };
    // Within the limit up to `good`, beyond it from `bad` on: as if the metric only rose, which it nearly does.
    let (mut good, mut bad) = ((0, score(0)?), order.len() + 1);
    while bad - good.0 > 1 {
        let count = good.0.midpoint(bad);
        let this = score(count)?;
        if metric.of(&this) <= limit {
            good = (count, this);
        } else {
            bad = count;
        }
    }
    Ok(good)
}

/// How a greedy search goes.
#[derive(Debug, Clone, Copy)]
pub struct Greedy {
    /// What is kept low.
    pub metric: Metric,
    /// Most candidates that are measured for one choice.
    pub candidates: usize,
    /// Most blocks to choose.
    pub count: usize,
    /// The metric's limit.
    pub limit: f64,
}

/// One choice of a greedy search.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// The block that drops too from here on.
    pub block: usize,
    /// The score of all choices so far.
    pub score: Score,
}

/// Chooses block after block, each time the one that adds least to those that drop already.
///
/// Candidates come in the order of the last known rise of each (`rises` to begin with) and are measured until the best
/// rise seen is no larger than the next one's last known, or [`Greedy::candidates`] are measured. The search ends at
/// its count, or where the best candidate would exceed the limit. `measured` is called after every measurement with
/// the number of blocks chosen before it.
///
/// # Errors
/// What the runner reports.
pub fn greedy(
    meter: &mut Meter<'_>,
    search: Greedy,
    rises: &[f64],
    mut measured: impl FnMut(usize, &Score),
) -> Result<Vec<Choice>, RunError> {
    let (tp, n_layers) = (meter.tp(), meter.config().n_layers);
    let mut rises = rises.to_vec();
    let mut chosen: Vec<usize> = Vec::new();
    let mut choices = Vec::new();
    let mut level = search.metric.of(&meter.score(&dropping(tp, n_layers, &[]))?);
    while chosen.len() < search.count.min(n_layers) {
        let open: Vec<usize> =
            ascending(&rises).into_iter().filter(|block| !chosen.contains(block)).collect();
        let mut best: Option<Choice> = None;
        for &block in open.iter().take(search.candidates.max(1)) {
            if best.is_some_and(|best| search.metric.of(&best.score) - level <= rises[block]) {
                break;
            }
            chosen.push(block);
            let score = meter.score(&dropping(tp, n_layers, &chosen))?;
            chosen.pop();
            measured(chosen.len(), &score);
            rises[block] = search.metric.of(&score) - level;
            if best.is_none_or(|best| search.metric.of(&score) < search.metric.of(&best.score)) {
                best = Some(Choice { block, score });
            }
        }
        let Some(best) = best.filter(|best| search.metric.of(&best.score) <= search.limit) else { break };
        level = search.metric.of(&best.score);
        chosen.push(best.block);
        choices.push(best);
    }
    Ok(choices)
}
