//! The model in plain f32 arithmetic on the CPU: the judge for every other back end, and what runs where
//! there is no GPU. Ranks are threads; they meet only in their communicator.

mod attention;
mod math;
mod matrix;
mod probe;
mod rank;
mod segment;

use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use math::Threads;
pub use probe::RankProbe;
use rank::{MAX_ROWS, Rank};

use crate::comm::memory::Options;
use crate::comm::{CommError, Communicator, Shape, memory};
use crate::model::{Config, TensorSource};
use crate::runner::{Batch, Output, RunError, Runner, Segment, SyncCounts, check_agreement};
use crate::spd::Plan;

/// What a rank's thread is told. Ranks execute the same commands in the same order.
enum Command {
    Forward(Arc<Batch>),
    Segment(Arc<Segment>),
    Probe { segment: Arc<Segment>, outbox: Sender<(usize, RankProbe)> },
    Truncate { sequence: usize, len: usize },
    SetPlan(Arc<Plan>),
}

/// What a rank answers: its output (logits on the first rank alone) and its collectives so far.
type Reply = Result<(Output, SyncCounts), RunError>;

/// A rank's thread and the two ends of its line.
struct Worker {
    commands: Option<Sender<Command>>,
    replies: Receiver<Reply>,
    thread: Option<JoinHandle<()>>,
}

/// The reference back end: one thread a rank.
pub struct Reference {
    config: Config,
    workers: Vec<Worker>,
    threads: usize,
    weight_bytes: Vec<usize>,
    lengths: Vec<usize>,
    syncs: SyncCounts,
    /// What ended the ranks, if anything did.
    failed: Option<String>,
}

/// How ranks are laid out and how many threads they share.
#[derive(Debug, Clone)]
pub struct ReferenceOptions {
    /// Nodes × ranks per node; the number of ranks is their product.
    pub shape: Shape,
    /// Threads for all ranks together.
    pub threads: usize,
    /// The communicator's time limit and log.
    pub comm: Options,
}

impl ReferenceOptions {
    /// `shape` on all of the machine's cores. Ranks may take any time to load their shards: no limit on meetings.
    pub fn new(shape: Shape) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self { shape, threads, comm: Options { meeting_timeout: None, ..Options::default() } }
    }
}

impl Reference {
    /// Loads the model, every rank its shard. `loaded_bytes` grows while it goes.
    pub fn load(
        config: &Config,
        source: &Arc<dyn TensorSource>,
        plan: &Plan,
        options: &ReferenceOptions,
        loaded_bytes: &Arc<AtomicU64>,
    ) -> Result<Self, RunError> {
        let world = options.shape.world();
        plan.check(config, world)?;
        let plan = Arc::new(plan.clone());
        let threads = Threads((options.threads / world).max(1));
        let refused = |what, source| {
            let pool = std::thread::available_parallelism().map_or(1, usize::from);
            RunError::Threads { what, ranks: world, pool, source }
        };
        start_pool().map_err(|e| refused("the pool".to_owned(), e))?;
        let mut workers = Vec::with_capacity(world);
        let mut loading = Vec::with_capacity(world);
        for (rank, comm) in memory::group(options.shape, options.comm.clone()).into_iter().enumerate() {
            let (config, source, plan) = (config.clone(), source.clone(), plan.clone());
            let loaded_bytes = loaded_bytes.clone();
            let (commands, inbox) = channel();
            let (outbox, replies) = channel();
            let (ready, loaded) = channel();
            let work = move || {
                // None loads before all are there: should one get no thread, the others end at once.
                if let Err(e) = comm.register(0) {
                    return drop(ready.send(Err(e.into())));
                }
                let mut rank = match Rank::load(&config, source, &plan, comm, threads, &loaded_bytes) {
                    Ok(rank) => rank,
                    Err(e) => return drop(ready.send(Err(e))),
                };
                drop(ready.send(Ok(rank.weight_bytes())));
                serve(&mut rank, &inbox, &outbox);
            };
            let thread = std::thread::Builder::new().name(format!("rank {rank}")).spawn(work);
            let thread = Some(thread.map_err(|e| refused(format!("rank {rank}"), e))?);
            workers.push(Worker { commands: Some(commands), replies, thread });
            loading.push(loaded);
        }
        let answers = loading.iter().enumerate().map(|(rank, loaded)| answer(rank, loaded));
        let weight_bytes = first_cause(answers.collect())?;
        let (config, threads) = (config.clone(), options.threads);
        Ok(Self {
            config,
            workers,
            threads,
            weight_bytes,
            lengths: Vec::new(),
            syncs: SyncCounts::default(),
            failed: None,
        })
    }

    /// Bytes of weights that each rank holds.
    pub fn weight_bytes(&self) -> &[usize] {
        &self.weight_bytes
    }

    /// Tells every rank the same and collects the first one's answer.
    fn broadcast(&mut self, command: impl Fn() -> Command) -> Result<Output, RunError> {
        if let Some(first) = &self.failed {
            return Err(RunError::Failed { first: first.clone() });
        }
        for worker in &self.workers {
            // A rank that is gone shows when its answer is asked for.
            drop(worker.commands.as_ref().map(|c| c.send(command())));
        }
        let answers = self.workers.iter().enumerate().map(|(rank, worker)| answer(rank, &worker.replies));
        let answers = first_cause(answers.collect());
        if let Err(first) = &answers {
            self.failed = Some(first.to_string());
        }
        let mut answers = answers?.into_iter();
        let (output, syncs) = answers.next().unwrap_or_default();
        self.syncs = syncs;
        for (rank, (other, _)) in answers.enumerate() {
            check_agreement(rank + 1, &output.hidden_states, &other.hidden_states)?;
        }
        Ok(output)
    }
}

impl Runner for Reference {
    fn config(&self) -> &Config {
        &self.config
    }

    fn tp(&self) -> usize {
        self.workers.len()
    }

    fn device(&self) -> String {
        let threads = self.threads;
        format!("cpu ({threads} {})", if threads == 1 { "thread" } else { "threads" })
    }

    fn forward(&mut self, batch: &Batch) -> Result<Output, RunError> {
        batch.check(&self.config, &self.lengths)?;
        let mut output = Output::default();
        for chunk in batch.chunks(MAX_ROWS) {
            let (chunk, keep_logits) = (Arc::new(chunk.batch), chunk.keep_logits);
            let part = self.broadcast(|| Command::Forward(chunk.clone()))?;
            for (row, keep) in part.logits.chunks_exact(self.config.vocab).zip(keep_logits) {
                if keep {
                    output.logits.extend_from_slice(row);
                }
            }
            output.hidden_states.resize(part.hidden_states.len(), Vec::new());
            for (all, part) in output.hidden_states.iter_mut().zip(&part.hidden_states) {
                all.extend_from_slice(part);
            }
        }
        for span in &batch.spans {
            self.lengths.resize(self.lengths.len().max(span.sequence + 1), 0);
            self.lengths[span.sequence] += span.tokens.len();
        }
        Ok(output)
    }

    fn run_segment(&mut self, segment: Segment) -> Result<Vec<f32>, RunError> {
        segment.check(&self.config)?;
        let head = segment.head;
        let segment = Arc::new(segment);
        let output = self.broadcast(|| Command::Segment(segment.clone()));
        let mut output = output.map_err(|e| match e {
            RunError::RanksDisagree { rank, .. } => {
                RunError::RanksDisagree { rank, block: segment.blocks.end }
            }
            other => other,
        })?;
        Ok(if head { output.logits } else { output.hidden_states.pop().unwrap_or_default() })
    }

    fn truncate(&mut self, sequence: usize, len: usize) -> Result<(), RunError> {
        if let Some(length) = self.lengths.get_mut(sequence) {
            *length = len.min(*length);
        }
        self.broadcast(|| Command::Truncate { sequence, len }).map(drop)
    }

    fn set_plan(&mut self, plan: &Plan) -> Result<(), RunError> {
        plan.check(&self.config, self.tp())?;
        self.lengths.clear();
        let plan = Arc::new(plan.clone());
        self.broadcast(|| Command::SetPlan(plan.clone())).map(drop)
    }

    fn sync_counts(&self) -> SyncCounts {
        self.syncs
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        for worker in &mut self.workers {
            worker.commands = None;
        }
        for worker in &mut self.workers {
            // A rank that panicked has printed why.
            drop(worker.thread.take().map(JoinHandle::join));
        }
    }
}

/// Starts the thread pool of the process, where it does not run yet: by itself it would start at its first use, and
/// panic where it cannot.
fn start_pool() -> io::Result<()> {
    // It starts once or never, also on a later call.
    static REFUSED: OnceLock<Option<String>> = OnceLock::new();
    let refused = REFUSED.get_or_init(|| {
        let started = rayon::ThreadPoolBuilder::new().build_global();
        // Without a source the error says that there is a pool already.
        started.err().filter(|e| std::error::Error::source(e).is_some()).map(|e| e.to_string())
    });
    refused.as_ref().map_or(Ok(()), |why| Err(io::Error::other(why.as_str())))
}

/// A rank's life: commands in, answers out, until the line is cut or a call fails.
fn serve(rank: &mut Rank, inbox: &Receiver<Command>, outbox: &Sender<Reply>) {
    for command in inbox {
        let output = match command {
            Command::Forward(batch) => rank.forward(&batch),
            Command::Segment(segment) => rank.segment(&segment),
            Command::Probe { segment, outbox } => rank.probe(&segment).map(|probe| {
                // Whoever asked has gone: so has the answer.
                drop(outbox.send((rank.number(), probe)));
                Output::default()
            }),
            Command::Truncate { sequence, len } => {
                rank.truncate(sequence, len);
                Ok(Output::default())
            }
            Command::SetPlan(plan) => {
                rank.set_plan(&plan);
                Ok(Output::default())
            }
        };
        let failed = output.is_err();
        let reply = output.map(|output| (output, rank.sync_counts()));
        if outbox.send(reply).is_err() || failed {
            return;
        }
    }
}

/// The next answer of a rank; a cut line means that its thread ended.
fn answer<T>(rank: usize, line: &Receiver<Result<T, RunError>>) -> Result<T, RunError> {
    line.recv().unwrap_or(Err(RunError::RankDied { rank }))
}

/// All answers, or the error that the others follow from: a rank that only lost its peer names the peer.
fn first_cause<T>(answers: Vec<Result<T, RunError>>) -> Result<Vec<T>, RunError> {
    let mut values = Vec::with_capacity(answers.len());
    let mut cause: Option<RunError> = None;
    for answer in answers {
        match answer {
            Ok(value) => values.push(value),
            Err(e)
                if cause.is_none() || matches!(cause, Some(RunError::Comm(CommError::PeerFailed { .. }))) =>
            {
                cause = Some(e);
            }
            Err(_) => {}
        }
    }
    cause.map_or(Ok(values), Err)
}
