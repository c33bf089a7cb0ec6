//! Devices that run kernels: modules, streams, launches, and a scheduler with a seed.
//!
//! Streams of all devices advance together, a warp's turn at a time, in one thread of the host. A run is a pure
//! function of what was enqueued, the policy and the seed. Time (`%globaltimer`, `nanosleep`) is one nanosecond
//! per warp instruction, and passes faster the longer nothing but time changes, so that time limits in kernels
//! expire.

mod accumulators;
mod control;
mod deferred;
mod diagnosis;
mod enqueue;
mod gather;
mod grid;
mod host;
mod launch;
mod library;
mod options;
mod random;
mod report;
mod run;
mod shared;
mod step;
mod stream;
mod wake;
mod warp;

use std::collections::BTreeMap;
use std::sync::Arc;

use grid::Image;
pub use launch::{Launch, LaunchError};
pub use options::{DeviceOptions, MAX_DEVICES, MachineOptions, Policy};
use random::Random;
pub use report::{Deadlock, Place, Report, RunError, Waiter};
use stream::Stream;
pub use stream::{EventId, StreamId};

use crate::external::Library;
use crate::memory::{Clock, DeviceId, Memory, Owner, Thread};
use crate::program::Module;

/// A module on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ModuleId(usize);

/// A kernel on a device; the default is the first that was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct KernelId(usize);

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
    libraries: Vec<Box<dyn Library>>,
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
            libraries: Vec::new(),
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
    /// Those of allocation, [`RunError::NoDevice`], and [`RunError::External`] for a function that is called and that no
    /// [library](Machine::provide) has.
    pub fn load(&mut self, device: DeviceId, module: &Arc<Module>) -> Result<ModuleId, RunError> {
        if device.0 >= self.options.devices {
            return Err(RunError::NoDevice { device: device.0, devices: self.options.devices });
        }
        let bound = (0..module.kernels.len()).map(|kernel| self.bind(module, kernel));
        let bound = bound.collect::<Result<Vec<_>, _>>()?;
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
        for (kernel, bound) in bound.into_iter().enumerate() {
            let image = Image::new(Arc::clone(module), kernel, device, &addresses, bound, self.sites);
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
}
