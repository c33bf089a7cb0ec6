//! The machine with what its host side queues and holds.

mod memory;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::thread::ThreadId;

use ptx_emulator::memory::{DeviceId, MemoryOptions};
use ptx_emulator::{
    DeviceOptions, Kernel, Launch, Machine, MachineOptions, Module, ModuleId, Outcome, Policy, RunError,
    StreamId,
};

use super::capture::{Capture, Mark, Recorded};
use super::module::LoadedKernel;
use super::options::{EmulatorOptions, Schedule};
use super::pinned::Pinned;
use super::work::{KernelLaunch, Point, Work};

/// Instructions of warps between two looks at what the host does, and while another thread of it may enqueue work.
const SLICE: u64 = 200_000;
const SHORT_SLICE: u64 = 20_000;
/// Blocks of a multiprocessor that run at a time. Hardware has up to 32; fewer stay in the host's caches.
pub(super) const RESIDENT_BLOCKS: u32 = 4;

/// Everything behind the lock of a machine.
#[derive(Debug)]
pub(super) struct State {
    pub(super) machine: Machine,
    pub(super) streams: BTreeMap<u64, Stream>,
    pub(super) events: HashMap<u64, Event>,
    pub(super) modules: HashMap<u64, (ModuleId, Arc<Module>)>,
    /// With the module that each belongs to.
    pub(super) kernels: HashMap<u64, (Arc<LoadedKernel>, u64)>,
    pub(super) graphs: HashMap<u64, Graph>,
    pub(super) captures: Vec<Capture>,
    pinned: Vec<Pinned>,
    /// Device memory in use: device and bytes, by address.
    allocations: HashMap<u64, (u32, u64)>,
    /// What ended the machine.
    pub(super) failure: Option<String>,
    last_id: u64,
    /// Changes whenever the host hands over something to do.
    pub(super) enqueued: u64,
    /// Whether a thread runs the machine at the moment.
    pub(super) driven: bool,
    /// Threads of the host that have used the machine.
    users: HashMap<ThreadId, User>,
}

thread_local! {
    /// Gone when the thread is.
    static ALIVE: Arc<()> = Arc::new(());
}

/// A thread of the host.
#[derive(Debug)]
struct User {
    alive: Weak<()>,
    /// For what, if it does.
    waits: Option<Until>,
}

/// What a thread of the host waits for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Until {
    /// All work of the stream has ended.
    Stream(u64),
    /// All work of the device has ended.
    Device(u32),
    /// The point is reached.
    Point(Point),
}

/// A stream of the host's, which feeds one of the machine's.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) device: u32,
    machine: StreamId,
    queue: VecDeque<Work<Point>>,
    /// Removed when its work has ended.
    is_dying: bool,
}

/// An event and what it recorded last.
#[derive(Debug, Default)]
pub(super) struct Event {
    pub(super) timing: bool,
    pub(super) last: Record,
}

/// Where an event was recorded.
#[derive(Debug, Clone, Copy, Default)]
pub(super) enum Record {
    #[default]
    Never,
    At(Point),
    /// While the stream that the capture began on, this one, was captured.
    Captured(u64, Mark),
}

/// An instantiated graph.
#[derive(Debug)]
pub(super) struct Graph {
    pub(super) recorded: Recorded,
    /// The end of its last launch: launches of one graph follow each other.
    pub(super) last: Option<Point>,
}

/// How a slice of work ended.
pub(super) enum Step {
    Moved,
    /// Nothing is left to do.
    Idle,
    /// Nothing can move, unless the host enqueues something; with the report.
    Stuck(String),
}

impl State {
    pub(super) fn new(options: &EmulatorOptions) -> Self {
        let &EmulatorOptions { devices, seed, schedule, race, weak, multiprocessors, .. } = options;
        let machine = Machine::new(MachineOptions {
            devices,
            device: DeviceOptions {
                multiprocessors,
                max_resident_blocks: (multiprocessors * RESIDENT_BLOCKS) as usize,
            },
            memory: MemoryOptions { race, weak: weak.then_some(seed), ..MemoryOptions::default() },
            policy: match schedule {
                Schedule::RoundRobin => Policy::RoundRobin,
                Schedule::Random => Policy::Random,
                Schedule::Adversarial => Policy::Adversarial,
            },
            seed,
            ..MachineOptions::default()
        });
        Self {
            machine,
            streams: BTreeMap::new(),
            events: HashMap::new(),
            modules: HashMap::new(),
            kernels: HashMap::new(),
            graphs: HashMap::new(),
            captures: Vec::new(),
            pinned: Vec::new(),
            allocations: HashMap::new(),
            failure: None,
            last_id: 0,
            enqueued: 0,
            driven: false,
            users: HashMap::new(),
        }
    }

    /// A number that nothing has had before, never 0.
    pub(super) fn new_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    pub(super) fn kernel(&self, id: u64) -> Arc<LoadedKernel> {
        Arc::clone(&self.kernels.get(&id).expect("the caller's kernel is alive").0)
    }

    pub(super) fn load(&mut self, device: u32, module: Arc<Module>) -> Result<u64, RunError> {
        let loaded = self.machine.load(DeviceId(device), &module)?;
        let id = self.new_id();
        self.modules.insert(id, (loaded, module));
        Ok(id)
    }

    /// A kernel of a loaded module by its name: its number in the machine, and what its text says.
    pub(super) fn find_kernel(&self, module: u64, entry: &str) -> Option<(ptx_emulator::KernelId, &Kernel)> {
        let (loaded, module) = self.modules.get(&module).expect("the caller's module is alive");
        let kernel = module.kernels().iter().find(|kernel| kernel.name() == entry)?;
        Some((self.machine.kernel(*loaded, entry)?, kernel))
    }
}

/// Streams.
impl State {
    pub(super) fn new_stream(&mut self, device: u32) -> u64 {
        let id = self.new_id();
        let machine = self.machine.stream(DeviceId(device));
        self.streams.insert(id, Stream { device, machine, queue: VecDeque::new(), is_dying: false });
        id
    }

    /// Its work still ends.
    pub(super) fn destroy_stream(&mut self, stream: u64) {
        self.stream(stream).is_dying = true;
        self.bury_streams();
    }

    fn bury_streams(&mut self) {
        let machine = &mut self.machine;
        self.streams.retain(|_, s| {
            let is_over = s.is_dying && s.queue.is_empty() && machine.is_idle(s.machine);
            if is_over {
                machine.retire_stream(s.machine);
            }
            !is_over
        });
    }

    fn stream(&mut self, stream: u64) -> &mut Stream {
        self.streams.get_mut(&stream).expect("the caller's stream is alive")
    }

    /// Whether it has come to that.
    pub(super) fn is_done(&self, until: Until) -> bool {
        match until {
            Until::Stream(stream) => self.is_idle(stream),
            Until::Device(device) => self.is_device_idle(device),
            Until::Point(point) => self.is_reached(point),
        }
    }

    fn is_idle(&self, stream: u64) -> bool {
        // A stream that is gone has nothing to do.
        self.streams.get(&stream).is_none_or(|s| s.queue.is_empty() && self.machine.is_idle(s.machine))
    }

    fn is_device_idle(&self, device: u32) -> bool {
        self.streams.iter().filter(|(_, s)| s.device == device).all(|(&id, _)| self.is_idle(id))
    }

    /// What has been waited for happens before what the host does next.
    pub(super) fn note_done(&mut self, until: Until) {
        let machine = &mut self.machine;
        match until {
            Until::Stream(id) => {
                if let Some(stream) = self.streams.get(&id) {
                    machine.synchronise(stream.machine);
                }
            }
            Until::Device(device) => machine.synchronise_device(DeviceId(device)),
            Until::Point(point) => machine.synchronise_event(point),
        }
    }

    /// Queues work, or records it where the stream is captured.
    pub(super) fn enqueue(&mut self, stream: u64, work: Work<Mark>) {
        match self.capture_of(stream) {
            Some(capture) => capture.push(stream, work),
            None => self.queue(stream, work.map(|_| unreachable!("points are made by `record` and `wait`"))),
        }
    }

    pub(super) fn queue(&mut self, stream: u64, work: Work<Point>) {
        self.enqueued += 1;
        self.stream(stream).queue.push_back(work);
    }

    /// The capture that a stream takes part in.
    pub(super) fn capture_of(&mut self, stream: u64) -> Option<&mut Capture> {
        self.captures.iter_mut().find(|capture| capture.streams().any(|lane| lane == stream))
    }

    /// The work of each lane of a graph, for one more launch of it.
    pub(super) fn instantiate(&mut self, graph: u64) -> Vec<Vec<Work<Point>>> {
        let machine = &mut self.machine;
        let graph = self.graphs.get(&graph).expect("the caller's graph is alive");
        graph.recorded.instantiate(|| machine.event())
    }

    pub(super) fn new_point(&mut self) -> Point {
        self.machine.event()
    }

    pub(super) fn is_reached(&self, point: Point) -> bool {
        self.machine.is_reached(point)
    }

    /// When, in emulated time.
    pub(super) fn reached_at_ns(&self, point: Point) -> Option<u64> {
        self.machine.reached_at_ns(point)
    }
}

/// Running.
impl State {
    /// Runs a slice of what is queued.
    ///
    /// # Errors
    /// What a kernel or a copy did wrong; nothing runs any more from then on.
    pub(super) fn step(&mut self) -> Result<Step, RunError> {
        // First, so that what is fed comes after what the host wrote before it enqueued that.
        self.publish_pinned()?;
        let fed = self.feed()?;
        let slice = if self.others_are_busy() { SHORT_SLICE } else { SLICE };
        let outcome = self.machine.advance(slice)?;
        self.collect_pinned();
        self.bury_streams();
        Ok(match outcome {
            Outcome::Running => Step::Moved,
            // A copy of the host's may be what the machine waits for.
            _ if fed || self.can_feed() => Step::Moved,
            Outcome::Idle => Step::Idle,
            Outcome::Stalled(deadlock) => Step::Stuck(deadlock.to_string()),
        })
    }

    /// The present thread uses the machine.
    pub(super) fn note_user(&mut self) {
        let id = std::thread::current().id();
        if !self.users.contains_key(&id) {
            self.users.retain(|_, user| user.alive.strong_count() > 0);
            self.users.insert(id, User { alive: ALIVE.with(Arc::downgrade), waits: None });
        }
    }

    /// What a thread that uses the machine waits for from now on.
    pub(super) fn set_waiting(&mut self, thread: ThreadId, until: Option<Until>) {
        if let Some(user) = self.users.get_mut(&thread) {
            user.waits = until;
        }
    }

    /// Whether a thread of the host may enqueue something: one that lives, and does not wait or need not any more.
    pub(super) fn others_are_busy(&self) -> bool {
        let is_busy = |user: &User| user.waits.is_none_or(|until| self.is_done(until));
        self.users.values().any(|user| user.alive.strong_count() > 0 && is_busy(user))
    }

    /// Whether time is all that passes.
    pub(super) fn is_quiet(&self) -> bool {
        self.machine.is_quiet()
    }

    fn can_feed(&self) -> bool {
        self.streams.values().any(|s| !s.queue.is_empty() && self.machine.is_idle(s.machine))
    }

    /// Hands the machine all that can be handed over: up to the first copy from or to the host in each stream,
    /// which happens here, once all before it has ended.
    fn feed(&mut self) -> Result<bool, RunError> {
        let mut fed = false;
        let streams: Vec<u64> = self.streams.keys().copied().collect();
        for id in streams {
            while let Some(work) = self.next_of(id) {
                let machine = self.stream(id).machine;
                self.start(machine, work)?;
                fed = true;
            }
        }
        Ok(fed)
    }

    fn next_of(&mut self, stream: u64) -> Option<Work<Point>> {
        let stream = self.streams.get_mut(&stream)?;
        let by_host = matches!(stream.queue.front()?, Work::CopyIn { .. } | Work::CopyOut { .. });
        if by_host && !self.machine.is_idle(stream.machine) { None } else { stream.queue.pop_front() }
    }

    fn start(&mut self, stream: StreamId, work: Work<Point>) -> Result<(), RunError> {
        let machine = &mut self.machine;
        match work {
            Work::Launch(KernelLaunch { kernel, config, parameters }) => {
                let launch = Launch {
                    kernel: kernel.id,
                    grid: [config.grid.x, config.grid.y, config.grid.z],
                    block: [config.block.x, config.block.y, config.block.z],
                    cluster: config.cluster.map_or([1; 3], |cluster| [cluster.x, cluster.y, cluster.z]),
                    dynamic_shared_bytes: config.dynamic_shared_bytes,
                    params: parameters[..kernel.param_bytes()].to_vec(),
                    programmatic: config.programmatic,
                };
                machine.launch(stream, &launch).expect("the launch was checked when it was enqueued");
            }
            Work::CopyIn { to, from } => {
                // SAFETY: the enqueuer keeps the range valid and untouched until now.
                let bytes = unsafe { std::slice::from_raw_parts(from.at.cast_const(), from.bytes) };
                machine.host(stream, |memory, agent| memory.write(agent, to, bytes))?;
            }
            Work::CopyOut { to, from } => {
                // SAFETY: as for CopyIn.
                let bytes = unsafe { std::slice::from_raw_parts_mut(to.at, to.bytes) };
                machine.host(stream, |memory, agent| memory.read(agent, from, bytes))?;
            }
            Work::Copy { to, from, bytes } => machine.copy(stream, to, from, bytes as u64),
            Work::Fill { to, bytes, pattern } => machine.fill(stream, to, bytes as u64, &pattern),
            Work::Record(point) => machine.record(stream, point),
            Work::Wait(point) => machine.wait(stream, point),
        }
        Ok(())
    }

    /// Ends the machine: nothing that was queued runs any more.
    pub(super) fn fail(&mut self, reason: String) {
        self.failure = Some(reason);
        self.streams.values_mut().for_each(|stream| stream.queue.clear());
        self.collect_pinned();
    }
}
