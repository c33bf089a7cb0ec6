//! Which algorithm, format and grid are fastest here: everything that differs is measured, tensor by tensor.

use std::sync::Arc;

use super::AllReduceBenchError as Error;
use super::contest::Sweep;
use super::ours::{self, OurRank};
use super::race::{Effort, Task, time, verify};
use super::record::{Call, Launching, Measurement, OURS};
use crate::comm::bootstrap::Bootstrap;
use crate::comm::gpu::{Algorithm, Format, GpuComm, GroupOptions, Measured, Tuning};
use crate::driver::{Device, KernelLibrary};

/// What comes near the fastest counts as equal to it, as a ratio: then the built-in choice stays.
const EQUAL: f64 = 1.01;
/// Cells carry half their bytes, so long messages cannot gain by them.
const MOST_CELL_BYTES: usize = 256 << 10;
/// Most units of 16 bytes that are worth giving to a worker, of a message of half the tensor.
const MOST_UNITS: usize = 8;
/// The same where messages are put, of which few large ones may be faster.
const MOST_UNITS_PUT: usize = 32;

/// What was found for each tensor, and every measurement.
pub type Found = (Vec<Tuned>, Vec<Measurement>);

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

/// Measures all candidates for each tensor of the sweep's plain and fused calls, telling `done` of each tensor.
///
/// What is put between nodes has residual and norm in a launch of its own: there fused calls take the choice of their
/// sum, and are not measured.
///
/// # Errors
/// Devices that cannot form a group; a wrong sum; what the devices report.
pub fn tune(
    devices: &[Device],
    sweep: &Sweep,
    options: &GroupOptions,
    effort: Effort,
    done: impl FnMut(&Tuned),
) -> Result<Found, Error> {
    let tasks = tasks(sweep);
    let mut ranks = ours::ranks_for(devices, sweep, options, &tasks)?;
    tune_ranks(&mut ranks, sweep, &tasks, effort, None, done)
}

/// Collective: [`tune`] by ranks that are processes, each with its communicator on its kernels. The slowest rank's time
/// counts, so all ranks find the same.
///
/// # Errors
/// A wrong sum; what the devices and the other ranks report.
pub fn tune_in_processes(
    comm: GpuComm,
    kernels: &Arc<KernelLibrary>,
    sweep: &Sweep,
    effort: Effort,
    others: &dyn Bootstrap,
    done: impl FnMut(&Tuned),
) -> Result<Found, Error> {
    let tasks = tasks(sweep);
    let rank = ours::rank(comm, Arc::clone(kernels), sweep.dtype, ours::room_for(&tasks))?;
    tune_ranks(&mut [rank], sweep, &tasks, effort, Some(others), done)
}

/// Plain and fused calls of the sweep.
fn tasks(sweep: &Sweep) -> Vec<Task> {
    let tasks = sweep.tasks().into_iter().map(|(task, _)| task);
    tasks.filter(|task| matches!(task.call, Call::Plain | Call::Fused)).collect()
}

fn tune_ranks(
    ranks: &mut [OurRank],
    sweep: &Sweep,
    tasks: &[Task],
    effort: Effort,
    others: Option<&dyn Bootstrap>,
    mut done: impl FnMut(&Tuned),
) -> Result<Found, Error> {
    let puts = ranks[0].puts_between_nodes();
    let (mut found, mut lines) = (Vec::new(), Vec::new());
    for task in tasks.iter().filter(|task| !puts || task.call == Call::Plain) {
        let (tuned, measured) = tune_one(ranks, sweep, task, effort, others)?;
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
    others: Option<&dyn Bootstrap>,
) -> Result<(Tuned, Vec<Measurement>), Error> {
    let puts = ranks[0].puts_between_nodes();
    let mut seen: Vec<(Tuning, f64)> = Vec::new();
    let mut lines = Vec::new();
    for candidate in std::iter::once(Tuning::default()).chain(candidates(task, puts)) {
        ranks.iter().for_each(|rank| rank.set_tuning(Some(candidate)));
        let resolved = ranks[0].tuning_of(task)?;
        if seen.iter().any(|(other, _)| *other == resolved) {
            continue;
        }
        verify(ranks, task)?;
        let us = time(ranks, task, Launching::Graph, effort, others)?;
        seen.push((resolved, us.median));
        let (tp, topology) = (sweep.shape.world(), sweep.shape.to_string());
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
fn candidates(task: &Task, puts: bool) -> Vec<Tuning> {
    let formats: &[Format] = match task.bytes() <= MOST_CELL_BYTES && !puts {
        true => &[Format::Cells, Format::Words],
        false => &[Format::Words],
    };
    let most_units = if puts { MOST_UNITS_PUT } else { MOST_UNITS };
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
                    if most_units * 16 * blocks as usize * workers as usize >= task.bytes() / 2 {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::DType;

    fn plain(bytes: usize) -> Task {
        Task { call: Call::Plain, numel: bytes / 2, dtype: DType::Bf16, hidden: 0 }
    }

    #[test]
    fn what_is_put_travels_in_words_and_may_take_fewer_blocks() {
        let fewest = |bytes, puts| {
            let grids = candidates(&plain(bytes), puts).into_iter();
            grids.filter_map(|it| Some(it.blocks? * it.workers?)).min()
        };
        for bytes in [1 << 10, 64 << 10, 4 << 20] {
            let formats = |puts| candidates(&plain(bytes), puts).into_iter().map(|it| it.format);
            assert!(formats(true).all(|format| format == Some(Format::Words)));
            let cells = formats(false).any(|format| format == Some(Format::Cells));
            assert_eq!(cells, bytes <= MOST_CELL_BYTES);
        }
        assert_eq!((fewest(1 << 10, false), fewest(1 << 10, true)), (Some(64), Some(64)));
        assert_eq!((fewest(1 << 20, false), fewest(1 << 20, true)), (Some(4096), Some(1024)));
    }
}
