//! Which algorithm, format and grid are fastest here: everything that differs is measured, tensor by tensor.

use super::AllReduceBenchError as Error;
use super::contest::Sweep;
use super::ours::{self, OurRank};
use super::race::{Effort, Task, time, verify};
use super::record::{Call, Launching, Measurement, OURS};
use crate::comm::gpu::{Algorithm, Format, GroupOptions, Measured, Tuning};
use crate::driver::Device;

/// What comes near the fastest counts as equal to it, as a ratio: then the built-in choice stays.
const EQUAL: f64 = 1.01;
/// Cells carry half their bytes, so long messages cannot gain by them.
const MOST_CELL_BYTES: usize = 256 << 10;

/// What was found for one tensor.
#[derive(Debug, Clone)]
pub struct Tuned {
    /// The best choice.
    pub measured: Measured,
    /// µs of one call with it, the median.
    pub us: f64,
    /// µs with the built-in choice.
    pub built_in_us: f64,
    /// That choice.
    pub built_in: Tuning,
    /// How many were measured.
    pub candidates: usize,
}

/// Measures all candidates for each tensor of the sweep's plain and fused calls, telling `done` of each tensor. Also
/// returns every measurement.
///
/// # Errors
/// Devices that cannot form a group; a wrong sum; what the devices report.
pub fn tune(
    devices: &[Device],
    sweep: &Sweep,
    options: &GroupOptions,
    effort: Effort,
    mut done: impl FnMut(&Tuned),
) -> Result<(Vec<Tuned>, Vec<Measurement>), Error> {
    let tasks: Vec<Task> = sweep.tasks().into_iter().map(|(task, _)| task).collect();
    let mut ranks = ours::ranks_for(devices, sweep, options, &tasks)?;
    let (mut found, mut lines) = (Vec::new(), Vec::new());
    for task in tasks.iter().filter(|task| matches!(task.call, Call::Plain | Call::Fused)) {
        let (tuned, measured) = tune_one(&mut ranks, sweep, task, effort)?;
        done(&tuned);
        found.push(tuned);
        lines.extend(measured);
    }
    Ok((found, lines))
}

fn tune_one(
    ranks: &mut [OurRank],
    sweep: &Sweep,
    task: &Task,
    effort: Effort,
) -> Result<(Tuned, Vec<Measurement>), Error> {
    let mut seen: Vec<(Tuning, f64)> = Vec::new();
    let mut lines = Vec::new();
    for candidate in std::iter::once(Tuning::default()).chain(candidates(task)) {
        ranks.iter().for_each(|rank| rank.set_tuning(Some(candidate)));
        let resolved = ranks[0].tuning_of(task)?;
        if seen.iter().any(|(other, _)| *other == resolved) {
            continue;
        }
        verify(ranks, task)?;
        let us = time(ranks, task, Launching::Graph, effort, None)?;
        seen.push((resolved, us.median));
        let (tp, topology) = (ranks.len(), sweep.shape.to_string());
        lines.push(Measurement::new(
            (OURS, &resolved.to_string()),
            task.call,
            Launching::Graph,
            task.dtype,
            tp,
            topology,
            task.bytes(),
            task.hidden,
            us,
        ));
    }
    ranks.iter().for_each(|rank| rank.set_tuning(None));
    let built_in = seen[0];
    let best = seen.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or(built_in);
    let (tuning, us) = if built_in.1 <= best.1 * EQUAL { built_in } else { best };
    let hidden = (task.call == Call::Fused).then_some(task.hidden);
    let measured = Measured { dtype: task.dtype, hidden, bytes: task.bytes(), tuning };
    let candidates = seen.len();
    Ok((Tuned { measured, us, built_in_us: built_in.1, built_in: built_in.0, candidates }, lines))
}

/// What may be fastest for a task; several may come to the same once they are fitted to its size.
fn candidates(task: &Task) -> Vec<Tuning> {
    let formats: &[Format] = match task.bytes() <= MOST_CELL_BYTES {
        true => &[Format::Cells, Format::Words],
        false => &[Format::Words],
    };
    let mut all = Vec::new();
    for &format in formats {
        let format = Some(format);
        if task.call == Call::Fused {
            for algorithm in Algorithm::ALL.map(Some) {
                for (row_blocks, workers) in
                    [1, 2, 4, 8].into_iter().flat_map(|n| [64, 128, 256].map(|w| (n, w)))
                {
                    let (workers, row_blocks) = (Some(workers), Some(row_blocks));
                    all.push(Tuning { algorithm, format, workers, row_blocks, ..Tuning::default() });
                }
            }
            continue;
        }
        for algorithm in Algorithm::ALL.map(Some) {
            for workers in [64, 128, 256, 384] {
                for blocks in [1, 2, 4, 8, 16, 32, 64, 128] {
                    // Up to eight units of 16 bytes for each worker.
                    if 8 * 16 * blocks as usize * workers as usize >= task.bytes() / 2 {
                        let (blocks, workers) = (Some(blocks), Some(workers));
                        all.push(Tuning {
                            algorithm,
                            format,
                            blocks,
                            workers,
                            row_blocks: None,
                            pass_units: None,
                        });
                    }
                }
            }
            all.push(Tuning { algorithm, format, ..Tuning::default() });
        }
    }
    all
}
