//! Devices that run kernels: modules, streams, launches, and a scheduler with a seed.
//!
//! Streams of all devices advance together, a warp's turn at a time, in one thread of the host. A run is a pure
//! function of what was enqueued, the policy and the seed. Time (`%globaltimer`, `nanosleep`) is one nanosecond
//! per warp instruction, and passes faster the longer nothing but time changes, so that time limits in kernels
//! expire.

mod control;
mod deferred;
mod diagnosis;
mod gather;
mod grid;
mod host;
mod report;
mod run;
mod step;
mod stream;
mod warp;

use std::collections::BTreeMap;
use std::sync::Arc;

use grid::Image;
pub use report::{Deadlock, Place, Report, RunError, Waiter};
use stream::{Command, Stream};
pub use stream::{EventId, StreamId};

use crate::memory::{Clock, DeviceId, Memory, MemoryOptions, Owner, Thread};
use crate::program::Module;

/// In which order warps get their turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// One after the other, 64 instructions each.
    #[default]
    RoundRobin,
    /// Any warp, for any short time.
    Random,
    /// One warp as far as it goes: until it waits, or has changed nothing for a thousand instructions.
    Adversarial,
}

/// The hardware that kernels see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceOptions {
    /// `%nsmid`
    pub multiprocessors: u32,
    /// Blocks that run at a time; others wait until one ends.
    pub max_resident_blocks: usize,
}

impl Default for DeviceOptions {
    /// 132 multiprocessors, 132 resident blocks.
    fn default() -> Self {
        Self { multiprocessors: 132, max_resident_blocks: 132 }
    }
}

/// The most devices of a machine.
pub const MAX_DEVICES: u32 = 64;

/// A machine to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineOptions {
    /// How many devices it has, up to [`MAX_DEVICES`].
    pub devices: u32,
    /// What each of them is.
    pub device: DeviceOptions,
    /// What memory checks, and whether it is weak.
    pub memory: MemoryOptions,
    /// Reading a register that the lane has not written is a fault.
    pub check_registers: bool,
    /// The schedule.
    pub policy: Policy,
    /// Of the schedule.
    pub seed: u64,
    /// Warp instructions after which a run stops; `None` for no limit.
    pub max_instructions: Option<u64>,
}

impl Default for MachineOptions {
    fn default() -> Self {
        Self {
            devices: 1,
            device: DeviceOptions::default(),
            memory: MemoryOptions::default(),
            check_registers: true,
            policy: Policy::default(),
            seed: 0,
            max_instructions: None,
        }
    }
}

/// A module on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ModuleId(usize);

/// A kernel on a device; the default is the first that was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct KernelId(usize);

/// One launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// What to run.
    pub kernel: KernelId,
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y and z.
    pub block: [u32; 3],
    /// Blocks of a cluster in x, y and z; they start together. `[1; 3]` for none.
    pub cluster: [u32; 3],
    /// Beyond the kernel's static shared memory.
    pub dynamic_shared_bytes: u32,
    /// The parameters as they lie in `.param` space.
    pub params: Vec<u8>,
    /// Programmatic dependent launch: it may start before the kernel before it in the stream has ended.
    pub programmatic: bool,
}

/// A launch that a device would refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// Too many threads, none, or against `.maxntid` or `.reqntid`.
    #[error(
        "kernel {kernel} cannot run with blocks of {block:?} threads (1024 at most; the kernel's bound is {bound:?})"
    )]
    BlockSize {
        /// The kernel.
        kernel: String,
        /// As launched.
        block: [u32; 3],
        /// The kernel's own bound.
        bound: Option<[u32; 3]>,
    },
    /// No blocks, or too many.
    #[error("kernel {kernel} cannot run as a grid of {grid:?} blocks")]
    GridSize {
        /// The kernel.
        kernel: String,
        /// As launched.
        grid: [u32; 3],
    },
    /// Clusters that are too large, or do not divide the grid.
    #[error(
        "kernel {kernel} cannot run as a grid of {grid:?} blocks in clusters of {cluster:?} (each divides the grid; \
         {limit} blocks at most)"
    )]
    ClusterSize {
        /// The kernel.
        kernel: String,
        /// As launched.
        grid: [u32; 3],
        /// As launched.
        cluster: [u32; 3],
        /// Of a device: what is portable, or resident at once if that is less.
        limit: usize,
    },
    /// Not the kernel's parameters.
    #[error("kernel {kernel} takes {expected} bytes of parameters, not {found}")]
    Params {
        /// The kernel.
        kernel: String,
        /// Of the declaration.
        expected: u32,
        /// As launched.
        found: usize,
    },
    /// More than a block can have.
    #[error("kernel {kernel} would need {bytes} bytes of shared memory per block; a device has {limit}")]
    SharedMemory {
        /// The kernel.
        kernel: String,
        /// Static and dynamic.
        bytes: u64,
        /// Of a block.
        limit: u32,
    },
    /// The stream is another device's.
    #[error("kernel {kernel} was loaded on device {loaded}, the stream is of device {stream}")]
    Device {
        /// The kernel.
        kernel: String,
        /// Where it is.
        loaded: u32,
        /// Where it was to run.
        stream: u32,
    },
}

/// Where a call of [`Machine::advance`] left the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All streams are empty.
    Idle,
    /// There is more to do.
    Running,
    /// Nothing can move unless something more is enqueued.
    Stalled(Box<Deadlock>),
}

/// Instructions executed so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// By warps.
    pub warp_instructions: u64,
    /// By threads: lanes that a guard kept out do not count.
    pub thread_instructions: u64,
}

#[derive(Debug)]
struct Loaded {
    module: Arc<Module>,
    addresses: Vec<u64>,
    /// The number of its first kernel among all images.
    first_image: usize,
}

/// Devices, their memory and their streams.
#[derive(Debug)]
pub struct Machine {
    options: MachineOptions,
    memory: Memory,
    modules: Vec<Loaded>,
    images: Vec<Arc<Image>>,
    sites: u32,
    streams: Vec<Stream>,
    /// Streams that were handed back, and by device, the end of all that they did.
    spare_streams: Vec<StreamId>,
    spare_ends: BTreeMap<DeviceId, Clock>,
    events: Vec<Option<host::Reached>>,
    random: Random,
    time_ns: u64,
    counters: Counters,
    launches: u64,
    output: String,
    /// Changes that somebody may wait for, besides those of memory.
    progress: u64,
    stall: run::Stall,
}

impl Machine {
    /// A machine with nothing on it.
    ///
    /// # Panics
    /// If it is to have more than [`MAX_DEVICES`].
    pub fn new(options: MachineOptions) -> Self {
        assert!(options.devices <= MAX_DEVICES, "a machine has at most {MAX_DEVICES} devices");
        Self {
            options,
            memory: Memory::new(options.memory),
            modules: Vec::new(),
            images: Vec::new(),
            sites: 0,
            streams: Vec::new(),
            spare_streams: Vec::new(),
            spare_ends: BTreeMap::new(),
            events: Vec::new(),
            random: Random(options.seed),
            time_ns: 1,
            counters: Counters::default(),
            launches: 0,
            output: String::new(),
            progress: 0,
            stall: run::Stall::default(),
        }
    }

    /// Memory, for allocations, peer access and the host's reads and writes (as [`Thread::HOST`]).
    pub fn memory(&mut self) -> &mut Memory {
        &mut self.memory
    }

    /// Instructions executed so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What kernels printed since the last call.
    pub fn take_output(&mut self) -> String {
        std::mem::take(&mut self.output)
    }

    /// Places a module's variables on a device.
    ///
    /// # Errors
    /// Those of allocation, and [`RunError::NoDevice`].
    pub fn load(&mut self, device: DeviceId, module: &Arc<Module>) -> Result<ModuleId, RunError> {
        if device.0 >= self.options.devices {
            return Err(RunError::NoDevice { device: device.0, devices: self.options.devices });
        }
        let mut addresses = Vec::new();
        for variable in &module.variables {
            let bytes = variable.bytes.max(1);
            addresses.push(self.memory.allocate(Owner::Device(device), bytes, &variable.name)?);
        }
        for (variable, &address) in module.variables.iter().zip(&addresses) {
            let mut image = variable.image.clone();
            for &(offset, other) in &variable.addresses {
                let element = image[offset..].first_chunk_mut().expect("an address is an element of 8 bytes");
                *element = u64::from_le_bytes(*element).wrapping_add(addresses[other as usize]).to_le_bytes();
            }
            self.memory.write(Thread::HOST, address, &image)?;
        }
        let first_image = self.images.len();
        for kernel in 0..module.kernels.len() {
            let image = Image::new(Arc::clone(module), kernel, device, &addresses, self.sites);
            self.sites += image.kernel().program.code.len() as u32;
            self.images.push(Arc::new(image));
        }
        self.modules.push(Loaded { module: Arc::clone(module), addresses, first_image });
        Ok(ModuleId(self.modules.len() - 1))
    }

    /// A kernel by its name.
    pub fn kernel(&self, module: ModuleId, name: &str) -> Option<KernelId> {
        let loaded = &self.modules[module.0];
        let index = loaded.module.kernels.iter().position(|kernel| kernel.name == name)?;
        Some(KernelId(loaded.first_image + index))
    }

    /// Address and size of a variable by its name.
    pub fn variable(&self, module: ModuleId, name: &str) -> Option<(u64, u64)> {
        let loaded = &self.modules[module.0];
        let index = loaded.module.variables.iter().position(|variable| variable.name == name)?;
        Some((loaded.addresses[index], loaded.module.variables[index].bytes))
    }

    /// A new stream of a device.
    pub fn stream(&mut self, device: DeviceId) -> StreamId {
        if let Some(at) = self.spare_streams.iter().position(|spare| self.streams[spare.0].device == device) {
            let spare = self.spare_streams.swap_remove(at);
            self.streams[spare.0] = Stream::new(device);
            return spare;
        }
        self.streams.push(Stream::new(device));
        StreamId(self.streams.len() - 1)
    }

    /// Hands back a stream whose work has ended; [`Machine::stream`] may give it out again, as new. Nothing happens while
    /// it still has something to do.
    pub fn retire_stream(&mut self, stream: StreamId) {
        let Stream { device, ref end, .. } = self.streams[stream.0];
        if self.is_idle(stream) && !self.spare_streams.contains(&stream) {
            self.memory.join(self.spare_ends.entry(device).or_default(), end);
            self.spare_streams.push(stream);
        }
    }

    /// A new event, not yet recorded.
    pub fn event(&mut self) -> EventId {
        self.events.push(None);
        EventId(self.events.len() - 1)
    }

    /// Queues a launch. It runs in [`Machine::run`] or [`Machine::advance`].
    ///
    /// # Errors
    /// What a device would refuse.
    pub fn launch(&mut self, stream: StreamId, launch: &Launch) -> Result<(), LaunchError> {
        let image = &self.images[launch.kernel.0];
        grid::check(image.kernel(), launch, self.options.device.max_resident_blocks)?;
        let device = self.streams[stream.0].device;
        if image.device != device {
            let kernel = image.kernel().name.clone();
            return Err(LaunchError::Device { kernel, loaded: image.device.0, stream: device.0 });
        }
        self.enqueue(stream, Command::Launch(launch.clone()));
        Ok(())
    }

    /// Queues a copy between any two places of memory.
    pub fn copy(&mut self, stream: StreamId, to: u64, from: u64, bytes: u64) {
        self.enqueue(stream, Command::Copy { to, from, bytes });
    }

    /// Queues a fill with copies of `pattern`.
    pub fn fill(&mut self, stream: StreamId, to: u64, bytes: u64, pattern: &[u8]) {
        self.enqueue(stream, Command::Fill { to, bytes, pattern: pattern.into() });
    }

    /// Queues the recording of an event.
    pub fn record(&mut self, stream: StreamId, event: EventId) {
        self.events[event.0] = None;
        self.enqueue(stream, Command::Record(event));
    }

    /// Queues a wait for an event. One that was never recorded holds the stream until it is.
    pub fn wait(&mut self, stream: StreamId, event: EventId) {
        self.enqueue(stream, Command::Wait(event));
    }

    /// Whether an event has been recorded and reached.
    pub fn is_reached(&self, event: EventId) -> bool {
        self.events[event.0].is_some()
    }

    /// Whether a stream has nothing left to do.
    pub fn is_idle(&self, stream: StreamId) -> bool {
        self.streams[stream.0].is_idle()
    }

    fn enqueue(&mut self, stream: StreamId, command: Command) {
        // What the host did so far happens before.
        let mut since = Clock::default();
        self.memory.release(Thread::HOST, &mut since);
        self.streams[stream.0].queue.push_back((command, since));
    }
}

/// SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators").
#[derive(Debug, Clone, Copy)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}
