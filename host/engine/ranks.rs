//! The ranks as threads of this process. The first is the caller's own thread, so that a model on one GPU runs
//! without any hand-over; each other rank has a thread that lives as long as the model.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::EngineError;
use crate::comm::CommError;
use crate::runner::RunError;

/// How long a rank polls for its next job before it sleeps: the host's part of a decode step is shorter, so a
/// rank in the middle of a text is never woken by the system, which would cost the step tens of µs.
const POLL: Duration = Duration::from_micros(200);

type Job<R> = Box<dyn FnOnce(&mut R) + Send>;

/// All ranks of a model. Every job goes to all of them, in the same order.
pub(super) struct Ranks<R> {
    others: Workers<R>,
    first: R,
    /// What ended the ranks' agreement, if anything did.
    failed: Option<String>,
}

/// The threads of all ranks but the first; they end with it.
struct Workers<R>(Vec<Worker<R>>);

struct Worker<R> {
    jobs: Option<Sender<Job<R>>>,
    thread: Option<JoinHandle<()>>,
}

impl<R: 'static> Ranks<R> {
    /// Makes one rank of each seed, all at the same time.
    ///
    /// # Errors
    /// No thread for a rank; the first cause among what the ranks report, whose threads have ended then.
    pub(super) fn make<S: Send + 'static>(
        seeds: Vec<S>,
        make: impl Fn(S) -> Result<R, RunError> + Send + Sync + 'static,
    ) -> Result<Self, RunError> {
        let n_ranks = seeds.len();
        let make = Arc::new(make);
        let mut seeds = seeds.into_iter();
        let first_seed = seeds.next().expect("a model has at least one rank");
        let (made, reports) = channel();
        let mut others = Workers(Vec::with_capacity(n_ranks - 1));
        let mut starts = Vec::with_capacity(n_ranks - 1);
        // No rank begins before all have their threads: it would wait for the missing ones.
        for rank in 1..n_ranks {
            let (start, seed) = channel();
            let (jobs, inbox) = channel();
            let (make, made) = (Arc::clone(&make), made.clone());
            let work = move || {
                let Ok(seed) = seed.recv() else { return };
                match make(seed) {
                    Ok(mut own) => {
                        drop(made.send((rank, Ok(()))));
                        drop(made);
                        while let Some(job) = next_job(&inbox) {
                            job(&mut own);
                        }
                    }
                    Err(error) => drop(made.send((rank, Err(error)))),
                }
            };
            let thread = std::thread::Builder::new().name(format!("rank {rank}")).spawn(work);
            let thread = thread.map_err(|source| refused(rank, n_ranks, source))?;
            others.0.push(Worker { jobs: Some(jobs), thread: Some(thread) });
            starts.push(start);
        }
        drop(made);
        for (start, seed) in starts.iter().zip(seeds) {
            // A rank that is gone shows when its report is missing.
            drop(start.send(seed));
        }
        let mut first = None;
        let report = make(first_seed).map(|made| first = Some(made));
        collect(n_ranks, report, &reports)?;
        let first = first.expect("the first rank reported that it was made");
        Ok(Self { others, first, failed: None })
    }

    /// The first rank.
    pub(super) fn first(&self) -> &R {
        &self.first
    }

    /// Number of ranks.
    pub(super) fn len(&self) -> usize {
        1 + self.others.0.len()
    }

    /// Runs a job on every rank; the answers in rank order.
    ///
    /// # Errors
    /// The first cause. Unless it was a refusal that all ranks share, every later call is refused with it: ranks
    /// that did different things have different caches, and a communicator that failed stays so.
    pub(super) fn all<T: Send + 'static>(
        &mut self,
        job: impl Fn(&mut R) -> Result<T, RunError> + Send + Sync + 'static,
    ) -> Result<Vec<T>, RunError> {
        if let Some(first) = &self.failed {
            return Err(RunError::Failed { first: first.clone() });
        }
        let job = Arc::new(job);
        let (outbox, answers) = channel();
        for (rank, worker) in self.others.0.iter().enumerate() {
            let (job, outbox) = (Arc::clone(&job), outbox.clone());
            let work: Job<R> = Box::new(move |own| drop(outbox.send((rank + 1, job(own)))));
            // A rank that is gone shows when its answer is missing.
            drop(worker.jobs.as_ref().map(|jobs| jobs.send(work)));
        }
        drop(outbox);
        let own = job(&mut self.first);
        let outcome = collect(self.len(), own, &answers);
        if let Err(error) = &outcome
            && !is_shared_refusal(error)
        {
            self.failed = Some(error.to_string());
        }
        outcome
    }
}

impl<R> Drop for Workers<R> {
    fn drop(&mut self) {
        for worker in &mut self.0 {
            worker.jobs = None;
        }
        for worker in &mut self.0 {
            // A rank that panicked has printed why.
            drop(worker.thread.take().map(JoinHandle::join));
        }
    }
}

fn refused(rank: usize, ranks: usize, source: std::io::Error) -> RunError {
    let pool = std::thread::available_parallelism().map_or(1, usize::from);
    RunError::Threads { what: format!("rank {rank}"), ranks, pool, source }
}

/// Found before anything is enqueued, from what all ranks hold alike.
fn is_shared_refusal(error: &RunError) -> bool {
    matches!(error, RunError::Engine(EngineError::KvCacheFull { .. }))
}

/// The next job; none where the line is cut.
fn next_job<R>(inbox: &Receiver<Job<R>>) -> Option<Job<R>> {
    let start = Instant::now();
    while start.elapsed() < POLL {
        match inbox.try_recv() {
            Ok(job) => return Some(job),
            Err(TryRecvError::Disconnected) => return None,
            Err(TryRecvError::Empty) => std::hint::spin_loop(),
        }
    }
    inbox.recv().ok()
}

/// Waits for all ranks: their answers in order, or the first cause. The first rank's answer is here already.
fn collect<T>(
    n_ranks: usize,
    first: Result<T, RunError>,
    answers: &Receiver<(usize, Result<T, RunError>)>,
) -> Result<Vec<T>, RunError> {
    let mut by_rank: Vec<Option<Result<T, RunError>>> = (0..n_ranks).map(|_| None).collect();
    by_rank[0] = Some(first);
    for (rank, answer) in answers {
        by_rank[rank] = Some(answer);
    }
    let answers = by_rank.into_iter().enumerate();
    first_cause(answers.map(|(rank, answer)| answer.unwrap_or(Err(RunError::RankDied { rank }))))
}

/// All answers, or the error that the others follow from: a rank that only waited in vain for its peer names it.
fn first_cause<T>(answers: impl Iterator<Item = Result<T, RunError>>) -> Result<Vec<T>, RunError> {
    let (mut values, mut cause) = (Vec::new(), None);
    for answer in answers {
        match answer {
            Ok(value) => values.push(value),
            Err(error) if cause.as_ref().is_none_or(follows_from_a_peer) => cause = Some(error),
            Err(_) => {}
        }
    }
    cause.map_or(Ok(values), Err)
}

fn follows_from_a_peer(error: &RunError) -> bool {
    use CommError::{Absent, PeerFailed, Timeout};
    matches!(error, RunError::Comm(PeerFailed { .. } | Timeout { .. } | Absent { .. }))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::RecvTimeoutError;

    use super::*;

    fn counters(n: usize) -> Ranks<usize> {
        Ranks::make((0..n).collect(), Ok).unwrap()
    }

    fn timeout(rank: usize) -> RunError {
        RunError::Comm(CommError::Timeout {
            rank,
            peer: 1 - rank,
            phase: crate::comm::Phase::Reduce,
            step: 0,
            expected: 7,
            seen: 6,
            waited: Duration::from_secs(10),
        })
    }

    #[test]
    fn every_rank_runs_every_job_in_order() {
        for n in [1, 2, 5] {
            let mut ranks = counters(n);
            for i in 0..100 {
                let seen = ranks.all(move |own| {
                    *own += 10;
                    Ok(*own)
                });
                assert_eq!(seen.unwrap(), (0..n).map(|rank| rank + 10 * (i + 1)).collect::<Vec<_>>());
            }
            assert_eq!((ranks.len(), *ranks.first()), (n, 1000));
        }
    }

    #[test]
    fn ranks_are_made_and_run_at_the_same_time() {
        let barrier = Arc::new(std::sync::Barrier::new(3));
        let meet = Arc::clone(&barrier);
        let make = move |rank| {
            meet.wait();
            Ok(rank)
        };
        let mut ranks = Ranks::make(vec![0, 1, 2], make).unwrap();
        let met = ranks.all(move |_| Ok(barrier.wait().is_leader())).unwrap();
        assert_eq!(met.iter().filter(|leads| **leads).count(), 1);
    }

    #[test]
    fn the_cause_is_named_and_later_calls_repeat_it() {
        // Rank 0 waits in vain for rank 1, whose own error is the cause.
        let mut ranks = counters(2);
        let fail = |own: &mut usize| match *own {
            0 => Err::<(), _>(timeout(0)),
            _ => Err(RunError::BadCall("the cause")),
        };
        assert_eq!(ranks.all(fail).unwrap_err().to_string(), "bad call: the cause");
        let again = ranks.all(|_| Ok(())).unwrap_err().to_string();
        assert!(again.contains("load it again") && again.contains("the cause"), "{again}");

        // A rank that panics is the cause too, and the others go on to their own end.
        let mut ranks = counters(2);
        let error = ranks.all(|own| if *own == 1 { panic!("on purpose") } else { Err::<(), _>(timeout(0)) });
        assert!(matches!(error, Err(RunError::RankDied { rank: 1 })), "{error:?}");
    }

    #[test]
    fn a_refusal_on_every_rank_is_not_the_end() {
        let full = || EngineError::KvCacheFull { sequence: 0, needed: 1, free: 0, total: 4, page_size: 16 };
        let mut ranks = counters(2);
        ranks.all(move |_| Err::<(), _>(full().into())).unwrap_err();
        ranks.all(|_| Ok(())).unwrap();
    }

    #[test]
    fn a_rank_that_cannot_be_made_ends_the_others() {
        let (alive, ended) = channel::<()>();
        let make = move |rank: usize| match rank {
            1 => Err(RunError::BadCall("no memory")),
            // Lives as long as the rank.
            _ => Ok(alive.clone()),
        };
        let error = Ranks::make(vec![0, 1, 2], make).err().map(|e| e.to_string());
        assert_eq!(error.as_deref(), Some("bad call: no memory"));
        assert_eq!(ended.recv_timeout(Duration::from_secs(20)), Err(RecvTimeoutError::Disconnected));
    }
}
