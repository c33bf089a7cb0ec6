//! The model in plain f32 arithmetic on the CPU: the judge for every other back end, and what runs where
//! there is no GPU. Ranks are threads, of this process or one in each of several; they meet only in their communicator.

mod attention;
mod math;
mod matrix;
mod probe;
mod rank;
mod segment;

use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use math::Threads;
pub use probe::RankProbe;
use rank::{MAX_ROWS, Rank};

use crate::comm::bootstrap::{Bootstrap, Mesh};
use crate::comm::cpu::{CpuComm, Link};
use crate::comm::memory::Options;
use crate::comm::{CommError, Communicator, Shape, memory, process};
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

/// What a rank answers: its output (logits from the first rank of a process alone) and its collectives so far.
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
    shape: Shape,
    /// The ranks of this process.
    workers: Vec<Worker>,
    /// The other processes, if ranks are processes.
    mesh: Option<Arc<Mesh>>,
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
        plan.check(config, options.shape.world())?;
        let comms = memory::group(options.shape, options.comm.clone());
        Self::with_ranks(comms, None, (config, source, plan), options, loaded_bytes)
    }

    /// Collective over all processes of a world: loads this process's rank, whose number is that of the process.
    /// Every process then makes the same calls, and gets the same logits. `options.threads` are those of this process.
    pub fn load_in_processes(
        config: &Config,
        source: &Arc<dyn TensorSource>,
        plan: &Plan,
        mesh: &Arc<Mesh>,
        options: &ReferenceOptions,
        loaded_bytes: &Arc<AtomicU64>,
    ) -> Result<Self, RunError> {
        plan.check(config, options.shape.world())?;
        let comm = process::world(Arc::clone(mesh), options.shape, options.comm.clone())?;
        Self::with_ranks(vec![comm], Some(mesh), (config, source, plan), options, loaded_bytes)
    }

    /// Starts a thread for each rank of this process.
    fn with_ranks<L: Link + Send + 'static>(
        comms: Vec<CpuComm<L>>,
        mesh: Option<&Arc<Mesh>>,
        (config, source, plan): (&Config, &Arc<dyn TensorSource>, &Plan),
        options: &ReferenceOptions,
        loaded_bytes: &Arc<AtomicU64>,
    ) -> Result<Self, RunError> {
        let (shape, n_ranks) = (options.shape, comms.len());
        let plan = Arc::new(plan.clone());
        let threads = Threads((options.threads / n_ranks).max(1));
        let refused = |what, source| {
            let pool = std::thread::available_parallelism().map_or(1, usize::from);
            RunError::Threads { what, ranks: n_ranks, pool, source }
        };
        start_pool().map_err(|e| refused("the pool".to_owned(), e))?;
        let mut workers = Vec::with_capacity(n_ranks);
        let mut loading = Vec::with_capacity(n_ranks);
        for (at, comm) in comms.into_iter().enumerate() {
            let (config, source, plan) = (config.clone(), source.clone(), plan.clone());
            let loaded_bytes = loaded_bytes.clone();
            let (commands, inbox) = channel();
            let (outbox, replies) = channel();
            let (ready, loaded) = channel();
            let rank = comm.topology().rank;
            let work = move || {
                // None loads before all are there: should one get no thread, the others end at once.
                if let Err(e) = comm.register(0) {
                    return drop(ready.send(Err(e.into())));
                }
                let loaded = Rank::load(&config, source, &plan, comm, at == 0, threads, &loaded_bytes);
                let mut rank = match loaded {
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
        Ok(Self {
            config: config.clone(),
            shape,
            workers,
            mesh: mesh.cloned(),
            threads: options.threads,
            weight_bytes,
            lengths: Vec::new(),
            syncs: SyncCounts::default(),
            failed: None,
        })
    }

    /// Bytes of weights that each rank of this process holds.
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
        self.compare_with_others(&output.hidden_states)?;
        Ok(output)
    }

    /// The agreement of ranks of several processes, by digests of their hidden states.
    fn compare_with_others(&self, hidden_states: &[Vec<f32>]) -> Result<(), RunError> {
        let Some(mesh) = self.mesh.as_ref().filter(|_| !hidden_states.is_empty()) else { return Ok(()) };
        let digest = |state: &Vec<f32>| {
            let mut hasher = DefaultHasher::new();
            state.iter().for_each(|value| hasher.write_u32(value.to_bits()));
            hasher.finish().to_le_bytes()
        };
        let mine: Vec<u8> = hidden_states.iter().flat_map(digest).collect();
        let all = mesh.all_gather("compare hidden states", &mine)?;
        let differs = |(rank, other): (usize, &Vec<u8>)| {
            let at = all[0].iter().zip(other).position(|(a, b)| a != b)?;
            Some(RunError::RanksDisagree { rank, block: at / size_of::<u64>() })
        };
        all.iter().enumerate().find_map(differs).map_or(Ok(()), Err)
    }
}

impl Runner for Reference {
    fn config(&self) -> &Config {
        &self.config
    }

    fn tp(&self) -> usize {
        self.shape.world()
    }

    fn device(&self) -> String {
        let threads = match self.threads {
            1 => "1 thread".to_owned(),
            threads => format!("{threads} threads"),
        };
        let each = if self.mesh.is_some() { " a process" } else { "" };
        format!("cpu ({threads}{each})")
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
fn serve<L: Link>(rank: &mut Rank<L>, inbox: &Receiver<Command>, outbox: &Sender<Reply>) {
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
