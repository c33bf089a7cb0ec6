//! Plans side by side: what each loses in quality.

use serde::Serialize;

use super::meter::{Meter, Score};
use super::{BlockPlan, Plan};
use crate::eval::{Tally, interval};
use crate::runner::RunError;

/// The plan in which the first `count` blocks of `order` drop, each with the heads and weights that `from` has for it
/// if it drops there too; without `from` with the model's own.
pub fn at_level(from: &Plan, order: &[usize], count: usize) -> Plan {
    let dropped = &order[..count.min(order.len())];
    from.map_blocks(|layer, block| match (dropped.contains(&layer), block.sync_attention) {
        (false, _) => BlockPlan::default(),
        (true, false) => block.clone(),
        (true, true) => BlockPlan { sync_attention: false, ..BlockPlan::default() },
    })
}

/// A number and its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// Over all chunks.
    pub value: f64,
    /// By the bootstrap over chunks; none for one chunk.
    pub interval: Option<(f64, f64)>,
}

/// How a plan does on a text, with intervals.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Quality {
    /// Perplexity. Its interval is mostly the text's own scatter.
    pub perplexity: Estimate,
    /// Perplexity over the synchronised model's on the same chunks, less one. The scatter of the text cancels.
    pub rise: Estimate,
    /// KL(synchronised ‖ this), nats per token.
    pub kl: Estimate,
    /// Share of tokens where both name the same likeliest one.
    pub top1_agreement: Estimate,
    /// Share of tokens where the likeliest one is the one that follows.
    pub accuracy: Estimate,
}

impl Quality {
    /// From each chunk's tally and the synchronised model's of the same chunks.
    pub fn of(tallies: &[Tally], synchronised: &[Tally], seed: u64) -> Self {
        let all: Vec<usize> = (0..tallies.len()).collect();
        let drawn = |from: &[Tally], chunks: &[usize]| -> Tally { chunks.iter().map(|&i| from[i]).sum() };
        let estimate = |statistic: &dyn Fn(&[usize]) -> f64| Estimate {
            value: statistic(&all),
            interval: interval(tallies.len(), seed, statistic),
        };
        let rise = |chunks: &[usize]| {
            drawn(tallies, chunks).perplexity() / drawn(synchronised, chunks).perplexity() - 1.0
        };
        Self {
            perplexity: estimate(&|chunks| drawn(tallies, chunks).perplexity()),
            rise: estimate(&rise),
            kl: estimate(&|chunks| drawn(tallies, chunks).mean_kl()),
            top1_agreement: estimate(&|chunks| drawn(tallies, chunks).top1_agreement()),
            accuracy: estimate(&|chunks| drawn(tallies, chunks).accuracy()),
        }
    }

    /// Without the intervals.
    pub fn score(&self) -> Score {
        Score {
            perplexity: self.perplexity.value,
            kl: self.kl.value,
            top1_agreement: self.top1_agreement.value,
            accuracy: self.accuracy.value,
        }
    }
}

/// Measures the quality of plans, in order. `progress` is called after each.
///
/// # Errors
/// What the runner reports.
pub fn qualities(
    meter: &mut Meter<'_>,
    plans: &[Plan],
    seed: u64,
    mut progress: impl FnMut(&Quality),
) -> Result<Vec<Quality>, RunError> {
    let synchronised = meter.measure(&Plan::synchronised(meter.tp(), meter.config().n_layers))?;
    let mut qualities = Vec::with_capacity(plans.len());
    for plan in plans {
        let quality = Quality::of(&meter.measure(plan)?, &synchronised, seed);
        progress(&quality);
        qualities.push(quality);
    }
    Ok(qualities)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_takes_what_the_plan_has_for_its_blocks() {
        let permuted = BlockPlan { sync_attention: false, heads: Some(vec![1, 0]), ..BlockPlan::default() };
        let kept = BlockPlan { heads: Some(vec![1, 0]), ..BlockPlan::default() };
        let from = Plan::new(2, vec![permuted.clone(), kept, BlockPlan::default()]);
        let zero_shot = BlockPlan { sync_attention: false, ..BlockPlan::default() };
        let order = [2, 0, 1];
        let blocks = |count| at_level(&from, &order, count).blocks().to_vec();
        let sync = BlockPlan::default;
        assert_eq!(blocks(0), [sync(), sync(), sync()]);
        assert_eq!(blocks(2), [permuted.clone(), sync(), zero_shot.clone()]);
        assert_eq!(blocks(3), [permuted, zero_shot.clone(), zero_shot]);
    }

    #[test]
    fn the_rise_has_no_scatter_where_all_chunks_rise_alike() {
        let tally = |nll: f64| Tally { n_predicted: 10, nll, kl: 0.1, agreements: 9, correct: 3 };
        let synchronised: Vec<Tally> = (0..8).map(|i| tally(20.0 + f64::from(i))).collect();
        let tallies: Vec<Tally> = (0..8).map(|i| tally(21.0 + f64::from(i))).collect();
        let quality = Quality::of(&tallies, &synchronised, 1);
        let rise = 0.1f64.exp() - 1.0;
        let (low, high) = quality.rise.interval.unwrap();
        assert!((quality.rise.value - rise).abs() < 1e-12 && high - low < 1e-12);
        let (low, high) = quality.perplexity.interval.unwrap();
        assert!(low < quality.perplexity.value && quality.perplexity.value < high);
        assert!((quality.accuracy.value - 0.3).abs() < 1e-12 && (quality.kl.value - 0.01).abs() < 1e-12);
    }
}
