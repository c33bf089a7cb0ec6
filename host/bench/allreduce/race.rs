//! How every contender is timed and checked.

use std::sync::Arc;

use super::AllReduceBenchError as Error;
use super::record::{Call, Launching};
use crate::bench::stats::Percentiles;
use crate::comm::bootstrap::Bootstrap;
use crate::comm::{CommError, DType};
use crate::driver::{Device, Event, Graph, Stream};

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    /// Calls between the two events of a sample.
    pub calls: usize,
    /// Samples of a measurement.
    pub samples: usize,
    /// Samples before the first that counts.
    pub warm_ups: usize,
}

impl Effort {
    /// What results are made with.
    pub const FULL: Self = Self { calls: 20, samples: 50, warm_ups: 5 };
    /// What tells candidates apart.
    pub const BRIEF: Self = Self { calls: 20, samples: 15, warm_ups: 2 };
    /// What an emulated device does in short time.
    pub const LEAST: Self = Self { calls: 1, samples: 1, warm_ups: 0 };
}

/// One call and its tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Task {
    /// Which call.
    pub call: Call,
    /// Elements.
    pub numel: usize,
    /// Their type.
    pub dtype: DType,
    /// Elements of a row, for the norm.
    pub hidden: usize,
}

impl Task {
    /// Of the tensor.
    pub fn bytes(&self) -> usize {
        self.numel * self.dtype.size_bytes()
    }
}

/// One rank of a contender, on a thread of its own while it is measured.
pub trait Contestant: Send {
    /// What results call it.
    const NAME: &'static str;

    /// Its GPU.
    fn device(&self) -> &Device;

    /// Where its work goes.
    fn stream(&self) -> &Arc<Stream>;

    /// Enqueues fresh data, so that sums of sums stay finite and every sample adds up random numbers.
    fn refill(&mut self, task: &Task) -> Result<(), Error>;

    /// Enqueues one call.
    fn enqueue(&mut self, task: &Task) -> Result<(), Error>;

    /// What failed in the work that the stream has run.
    fn check(&self) -> Result<(), Error>;

    /// Compares what a call on fresh data left with the sum computed on the host.
    fn verify(&mut self, task: &Task) -> Result<(), Error>;
}

/// Checks one call on every rank.
///
/// # Errors
/// A wrong element; what the ranks report.
pub fn verify<C: Contestant>(ranks: &mut [C], task: &Task) -> Result<(), Error> {
    each(ranks.iter_mut(), |rank| {
        rank.refill(task)?;
        rank.enqueue(task)?;
        rank.stream().synchronize()?;
        rank.check()?;
        rank.verify(task)
    })
    .map(drop)
}

/// Times a call: µs per call on the slowest rank, over samples; `others` are the processes of ranks that are not here.
///
/// # Errors
/// What the ranks report.
pub fn time<C: Contestant>(
    ranks: &mut [C],
    task: &Task,
    launching: Launching,
    effort: Effort,
    others: Option<&dyn Bootstrap>,
) -> Result<Percentiles, Error> {
    // No rank's calls begin while another one's graph is made: making one may wait for the device.
    let prepared = each(ranks.iter_mut(), |rank| Prepared::new(rank, task, launching, effort))?;
    let by_rank = each(ranks.iter_mut().zip(prepared), |(rank, prepared)| prepared.run(rank, task))?;
    let here = slowest(&by_rank);
    let Some(others) = others else { return Ok(Percentiles::of(&here)) };
    let all = others.all_gather("the times of a measurement", bytemuck::cast_slice(&here))?;
    let times = |bytes: &Vec<u8>| bytes.chunks_exact(8).map(bytemuck::pod_read_unaligned).collect();
    Ok(Percentiles::of(&slowest(&all.iter().map(times).collect::<Vec<Vec<f64>>>())))
}

/// Of each sample the longest time.
fn slowest(by_rank: &[Vec<f64>]) -> Vec<f64> {
    let n_samples = by_rank.iter().map(Vec::len).min().unwrap_or(0);
    let longest = |sample: usize| by_rank.iter().map(|rank| rank[sample]).fold(0.0, f64::max);
    (0..n_samples).map(longest).collect()
}

/// What a rank needs before its calls begin.
struct Prepared {
    graph: Option<Graph>,
    events: Vec<(Event, Event)>,
    effort: Effort,
}

impl Prepared {
    fn new<C: Contestant>(
        rank: &mut C,
        task: &Task,
        launching: Launching,
        effort: Effort,
    ) -> Result<Self, Error> {
        let event = || rank.device().timing_event();
        let events = (0..effort.samples).map(|_| Ok((event()?, event()?))).collect::<Result<_, Error>>()?;
        let stream = Arc::clone(rank.stream());
        let calls = || (0..effort.calls).try_for_each(|_| rank.enqueue(task));
        let graph = match launching {
            Launching::Eager => None,
            Launching::Graph => Some(stream.capture(calls)?),
        };
        Ok(Self { graph, events, effort })
    }

    fn run<C: Contestant>(self, rank: &mut C, task: &Task) -> Result<Vec<f64>, Error> {
        let Effort { calls, samples, warm_ups } = self.effort;
        for sample in 0..warm_ups + samples {
            rank.refill(task)?;
            // Aligns the ranks: none leaves it before all have entered.
            rank.enqueue(task)?;
            let counted = sample.checked_sub(warm_ups).map(|i| &self.events[i]);
            counted.map_or(Ok(()), |(start, _)| start.record(rank.stream()))?;
            match &self.graph {
                // SAFETY: buffers and kernels are the rank's, which outlives this call; only its stream uses them.
                Some(graph) => unsafe { graph.launch(rank.stream())? },
                None => (0..calls).try_for_each(|_| rank.enqueue(task))?,
            }
            counted.map_or(Ok(()), |(_, end)| end.record(rank.stream()))?;
        }
        rank.stream().synchronize()?;
        rank.check()?;
        let us = |(start, end): &(Event, Event)| Ok(end.elapsed_us(start)? / calls as f64);
        self.events.iter().map(us).collect()
    }
}

/// Runs the work of all ranks at the same time, a thread each.
///
/// # Errors
/// The first failure that is not a rank's waiting for another in vain, if there is one.
pub fn each<I: Send, T: Send>(
    ranks: impl Iterator<Item = I>,
    work: impl Fn(I) -> Result<T, Error> + Sync,
) -> Result<Vec<T>, Error> {
    let work = &work;
    let outcomes: Vec<Result<T, Error>> = std::thread::scope(|scope| {
        let threads: Vec<_> = ranks.map(|rank| scope.spawn(move || work(rank))).collect();
        let join = |(rank, thread): (usize, std::thread::ScopedJoinHandle<'_, _>)| {
            thread.join().unwrap_or(Err(Error::RankDied { rank }))
        };
        threads.into_iter().enumerate().map(join).collect()
    });
    let waited =
        |error: &Error| matches!(error, Error::Comm(CommError::Timeout { .. } | CommError::Absent { .. }));
    let mut values = Vec::with_capacity(outcomes.len());
    let mut cause: Option<Error> = None;
    for outcome in outcomes {
        match outcome {
            Ok(value) => values.push(value),
            Err(error) if cause.as_ref().is_none_or(waited) => cause = Some(error),
            Err(_) => {}
        }
    }
    cause.map_or(Ok(values), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_the_slowest_ranks() {
        assert_eq!(slowest(&[vec![1.0, 5.0, 2.0], vec![3.0, 4.0, 2.5]]), [3.0, 5.0, 2.5]);
    }

    #[test]
    fn the_cause_of_a_failure_is_named() {
        let absent = |rank| {
            let call = "register".to_owned();
            let waited = std::time::Duration::from_secs(1);
            Error::Comm(CommError::Absent { rank, call, missing: vec![1], waited })
        };
        let run = |ranks: usize| {
            each(0..ranks, |rank| match rank {
                0 => Err(absent(0)),
                1 => Err(Error::NoSuchCall { call: "ncclAllReduce" }),
                _ => Ok(rank),
            })
        };
        assert!(matches!(run(1), Err(Error::Comm(_))));
        assert!(matches!(run(3), Err(Error::NoSuchCall { .. })));
        let died = each(0..2, |rank| if rank == 1 { panic!("on purpose") } else { Ok(rank) });
        assert!(matches!(died, Err(Error::RankDied { rank: 1 })));
        assert_eq!(each(0..4, Ok).unwrap(), [0, 1, 2, 3]);
    }
}
