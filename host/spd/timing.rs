//! Plans side by side: how long each takes.

use serde::Serialize;

use super::Plan;
use crate::bench::decode::{Workload, decode};
use crate::bench::stats::Percentiles;
use crate::runner::{RunError, Runner};

/// A time over rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Timing {
    /// The time itself.
    pub ms: Percentiles,
    /// How much shorter it is than the first plan's of the same round.
    pub saved_ms: Percentiles,
}

impl Timing {
    /// Of one sample a round, and the first plan's of the same rounds.
    fn of(ms: &[f64], first: &[f64]) -> Self {
        let saved: Vec<f64> = first.iter().zip(ms).map(|(first, ms)| first - ms).collect();
        Self { ms: Percentiles::of(ms), saved_ms: Percentiles::of(&saved) }
    }

    /// Part of the first plan's time that is saved, in percent.
    pub fn saved_percent(&self) -> f64 {
        100.0 * self.saved_ms.median / (self.ms.median + self.saved_ms.median)
    }
}

/// Times of one plan under one workload.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Times {
    /// Sequences together.
    pub batch: usize,
    /// Prompt tokens of each.
    pub prompt: usize,
    /// Prefill of all prompts and the first token.
    pub first_token: Timing,
    /// Decode step of the whole batch: of each round the median.
    pub step: Timing,
}

/// What rounds took, in ms, one sample each.
#[derive(Default, Clone)]
struct Samples {
    first_token: Vec<f64>,
    step: Vec<f64>,
}

/// Times every plan under every workload. Each round goes through all plans, every second one backwards, so that a
/// machine that slows down slows all of them alike; the first plan is what the others are compared with. One list a
/// plan, in the workloads' order. `progress` is called after every run.
///
/// # Errors
/// What the runner reports.
pub fn times(
    runner: &mut dyn Runner,
    plans: &[Plan],
    workloads: &[Workload],
    rounds: usize,
    mut progress: impl FnMut(),
) -> Result<Vec<Vec<Times>>, RunError> {
    let mut times = vec![Vec::with_capacity(workloads.len()); plans.len()];
    for &workload in workloads {
        // Page faults and the thread pool's start belong to no measurement.
        decode(runner, Workload { decode: workload.decode.min(4), ..workload }, || {})?;
        let mut samples = vec![Samples::default(); plans.len()];
        for round in 0..rounds {
            for position in 0..plans.len() {
                let i = if round % 2 == 0 { position } else { plans.len() - 1 - position };
                runner.set_plan(&plans[i])?;
                // Nor does the capture of a graph, which a new plan needs.
                decode(runner, Workload { prompt: 1, decode: 2, ..workload }, || {})?;
                let measured = decode(runner, workload, || {})?;
                samples[i].first_token.push(measured.time_to_first_token_ms.median);
                samples[i].step.push(measured.step_ms.median);
                progress();
            }
        }
        for (times, own) in times.iter_mut().zip(&samples) {
            times.push(Times {
                batch: workload.batch,
                prompt: workload.prompt,
                first_token: Timing::of(&own.first_token, &samples[0].first_token),
                step: Timing::of(&own.step, &samples[0].step),
            });
        }
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_compared_one_by_one() {
        // The machine slows down: the times scatter, the differences do not.
        let (first, ms) = ([10.0, 12.0, 14.0], [9.0, 11.0, 13.0]);
        let timing = Timing::of(&ms, &first);
        assert_eq!(timing.saved_ms, Percentiles { p10: 1.0, median: 1.0, p90: 1.0 });
        assert_eq!((timing.ms.median, timing.saved_percent()), (11.0, 100.0 / 12.0));
        assert_eq!(Timing::of(&first, &first).saved_percent(), 0.0);
    }
}
