//! A decode step's time by what it is spent on.

use serde::Serialize;

use super::decode::{Workload, fill};
use super::stats::Percentiles;
use crate::runner::profile::{KernelClass, STEPS_AHEAD, StepProfile};
use crate::runner::{RunError, Runner};

/// The parts of a step: the classes, the gaps and the host add up to the step.
///
/// Kernels overlap: with programmatic dependent launch one begins while the one before it still runs, and its time
/// from begin to end contains waiting. So a class is measured by whole graphs, from end to end, in two ways: what it
/// takes *alone*, and what is *saved* without it. The first counts what other classes would hide, the second nothing
/// of what is hidden twice; their mean gives each of two overlapping classes half of what they share (it is the
/// Shapley value as long as classes overlap in pairs), so the classes add up to the graph but for the gaps.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Breakdown {
    /// The step as it was decoded: the median.
    pub step_us: f64,
    /// The step's graph, replayed without waiting in between.
    pub graph_us: Percentiles,
    /// In the order of [`KernelClass::ALL`].
    pub classes: Vec<ClassTime>,
    /// The graph less all classes: waiting between kernels, and what more than two classes share.
    pub gaps_us: f64,
    /// The step less the graph: the host, which reads the tokens and launches the next graph.
    pub host_us: f64,
}

/// One class of kernels.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassTime {
    /// Which.
    pub class: KernelClass,
    /// Kernels and copies of a step.
    pub kernels: usize,
    /// Its part of the step: the mean of what it takes alone and what is saved without it.
    pub us: f64,
    /// The step's graph with these alone.
    pub alone_us: Percentiles,
    /// What the graph takes less without these: all that speeding them up could bring.
    pub saved_us: f64,
}

impl Breakdown {
    /// From a profile with at least one series, and the median step.
    pub fn of(profile: &StepProfile, step_us: f64) -> Self {
        let graph_us = Percentiles::of(&profile.whole_us);
        let classes = profile.classes.iter().map(|class| {
            let alone_us = Percentiles::of(&class.alone_us);
            let saved_us = match class.kernels {
                0 => 0.0,
                _ => graph_us.median - Percentiles::of(&class.without_us).median,
            };
            let us = f64::midpoint(alone_us.median, saved_us);
            ClassTime { class: class.class, kernels: class.kernels, us, alone_us, saved_us }
        });
        let classes: Vec<ClassTime> = classes.collect();
        let all_us: f64 = classes.iter().map(|class| class.us).sum();
        Self {
            step_us,
            graph_us,
            classes,
            gaps_us: graph_us.median - all_us,
            host_us: step_us - graph_us.median,
        }
    }

    /// Names and times of all parts, which add up to the step.
    pub fn parts(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let classes = self.classes.iter().map(|class| (class.class.name(), class.us));
        classes.chain([("gaps", self.gaps_us), ("host", self.host_us)])
    }
}

/// Takes a step apart in the middle of the workload's decode, whose median step is known; none where the runner
/// has no kernels to tell apart. The runner's sequences are cleared first and afterwards.
///
/// # Errors
/// What the runner reports; a workload that decodes fewer than [`STEPS_AHEAD`] tokens.
pub fn breakdown(runner: &mut dyn Runner, w: Workload, step_us: f64) -> Result<Option<Breakdown>, RunError> {
    let Some(spare) = w.decode.checked_sub(STEPS_AHEAD) else {
        return Err(RunError::BadCall(
            "a step is taken apart by replaying it 9 times: decode at least 9 tokens",
        ));
    };
    let tokens = fill(runner, Workload { prompt: w.prompt + spare / 2, ..w })?;
    let profile = runner.profile_step(&tokens)?;
    for sequence in 0..w.batch {
        runner.truncate(sequence, 0)?;
    }
    Ok(profile.map(|profile| Breakdown::of(&profile, step_us)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::profile::ClassProfile;

    fn profile(whole_us: f64, classes: [(usize, f64, f64); 5]) -> StepProfile {
        let classes = KernelClass::ALL.into_iter().zip(classes).map(|(class, (kernels, alone, without))| {
            ClassProfile { class, kernels, alone_us: vec![alone; 3], without_us: vec![without; 3] }
        });
        StepProfile { whole_us: vec![whole_us; 3], classes: classes.collect() }
    }

    #[test]
    fn the_parts_add_up_to_the_step() {
        let classes =
            [(128, 700.0, 280.0), (32, 100.0, 880.0), (97, 90.0, 930.0), (0, 0.0, 0.0), (3, 60.0, 941.0)];
        let breakdown = Breakdown::of(&profile(1000.0, classes), 1030.0);
        let parts: Vec<_> = breakdown.parts().collect();
        assert_eq!(parts.iter().map(|(_, us)| us).sum::<f64>(), 1030.0);
        assert_eq!(parts[5..], [("gaps", 40.5), ("host", 30.0)]);
        let saved: Vec<_> = breakdown.classes.iter().map(|class| class.saved_us).collect();
        assert_eq!(saved, [720.0, 120.0, 70.0, 0.0, 59.0], "a class without kernels saves nothing");
    }

    #[test]
    fn classes_that_overlap_share_what_they_share() {
        // Of 800 and 300 µs alone, 100 run at the same time.
        let classes = [(1, 800.0, 300.0), (1, 300.0, 800.0), (0, 0.0, 0.0), (0, 0.0, 0.0), (0, 0.0, 0.0)];
        let breakdown = Breakdown::of(&profile(1000.0, classes), 1000.0);
        let us: Vec<_> = breakdown.classes.iter().map(|class| class.us).collect();
        assert_eq!((&us[..2], breakdown.gaps_us), (&[750.0, 250.0][..], 0.0));
    }
}
