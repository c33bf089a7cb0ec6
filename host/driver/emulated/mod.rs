//! Devices that execute PTX on the CPU (`ptx-emulator`), every access checked.
//!
//! A *machine* is one or more devices with a memory, a clock and a schedule of their own; [`EmulatorOptions`] says
//! which. Everything it does is a function of the options and of what the host enqueues.
//!
//! - Work runs while somebody waits for a stream, an event or a device, or asks whether an event is reached: one
//!   waiting thread drives the machine for all, so kernels of several devices that wait for each other make
//!   progress together, whichever ranks' threads wait. A host loop that only looks at pinned memory moves nothing.
//! - Pinned memory is exchanged between slices of work, so the host sees what kernels wrote, and kernels what the
//!   host wrote, after a while.
//! - A kernel's fault, a race or a deadlock ends the machine: all of its devices report it, again and again, as a
//!   CUDA context does.
//! - Registers and occupancy stand in for a compiler's (see [`module`]).

mod capture;
mod graphs;
mod memory;
mod module;
mod options;
mod pes;
mod pinned;
mod state;
mod streams;
mod work;

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub(super) use ptx_emulator::MAX_DEVICES;
pub use ptx_emulator::nvshmem::Unit as PutUnit;

pub use options::{EMULATE_VARIABLE, EmulatorOptions, InvalidEmulatorOption, Schedule};

use super::{Capability, Device, Gpu, GpuError, Properties, PtxVersion, Result};
use state::{State, Step, Until};

/// Time between slices in which other threads get the lock.
const BREATH: Duration = Duration::from_micros(50);
/// How long a machine that cannot move waits for another thread of the host to enqueue something.
const PATIENCE: Duration = Duration::from_secs(60);
/// While only time passes in a machine, real time that other threads get to enqueue something before the next slice.
const PAUSE: Duration = Duration::from_millis(200);

impl Device {
    /// The devices of a new emulated machine.
    pub fn emulated(options: &EmulatorOptions) -> Vec<Self> {
        EmulatedGpu::all(&World::new(options))
    }
}

/// A Hopper GPU of few multiprocessors.
fn properties(ordinal: u32, options: &EmulatorOptions) -> Properties {
    Properties {
        ordinal,
        label: format!("emulate:{ordinal} ({options})"),
        name: "PTX emulator".to_owned(),
        driver: format!("ptx-emulator {}", env!("CARGO_PKG_VERSION")),
        newest_ptx: PtxVersion { major: 9, minor: 0 },
        capability: Capability { major: 9, minor: 0 },
        multiprocessors: options.multiprocessors,
        total_memory_bytes: options.memory_gib << 30,
        l2_bytes: 50 << 20,
        shared_bytes_per_block: 227 << 10,
        shared_bytes_per_multiprocessor: 228 << 10,
        registers_per_multiprocessor: 64 << 10,
        max_threads_per_block: 1024,
        max_threads_per_multiprocessor: 2048,
    }
}

/// One machine, shared by its devices and the threads of the host.
#[derive(Debug)]
struct World {
    state: Mutex<State>,
    /// Something was enqueued, or has ended.
    changed: Condvar,
    /// Threads that want the lock to enqueue something: whoever drives the machine lets them.
    wanting: AtomicUsize,
    options: EmulatorOptions,
}

/// A device of an emulated machine.
struct EmulatedGpu {
    world: Arc<World>,
    properties: Properties,
}

impl fmt::Debug for EmulatedGpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EmulatedGpu").field(&self.properties.label).finish()
    }
}

impl World {
    fn new(options: &EmulatorOptions) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State::new(options)),
            changed: Condvar::new(),
            wanting: AtomicUsize::new(0),
            options: options.clone(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.wanting.fetch_add(1, Ordering::Relaxed);
        let mut state = self.lock_again();
        self.wanting.fetch_sub(1, Ordering::Relaxed);
        state.note_user();
        state
    }

    fn lock_again(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| {
            let mut state = poisoned.into_inner();
            state.failure.get_or_insert_with(|| "the emulator itself has panicked before".to_owned());
            state.driven = false;
            state
        })
    }

    /// Waits, and drives the machine if nobody else does. Returns early where the machine has failed.
    fn wait_until(&self, until: Until) {
        let thread = std::thread::current().id();
        let mut state = self.lock();
        state.set_waiting(thread, Some(until));
        // Somebody may be waiting for this thread to do more.
        self.changed.notify_all();
        while state.failure.is_none() && !state.is_done(until) {
            state = if state.driven { self.sleep(state, PAUSE) } else { self.drive(state) };
        }
        state.set_waiting(thread, None);
        if state.failure.is_none() {
            state.note_done(until);
        }
    }

    /// Sleeps until something changes, or for so long.
    fn sleep<'a>(&self, state: MutexGuard<'a, State>, limit: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Runs one slice, and gives others the lock.
    fn drive<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.driven = true;
        state = match state.step() {
            Ok(Step::Moved) if state.is_quiet() => self.await_others(state, PAUSE),
            Ok(Step::Moved | Step::Idle) => state,
            Ok(Step::Stuck(report)) => {
                let enqueued = state.enqueued;
                let mut state = self.await_others(state, PATIENCE);
                let is_stuck = state.enqueued == enqueued && !state.has_host_changes();
                if is_stuck && state.failure.is_none() {
                    state.fail(report);
                }
                state
            }
            Err(error) => {
                state.fail(error.to_string());
                state
            }
        };
        state.driven = false;
        self.changed.notify_all();
        if !state.others_are_busy() {
            return state;
        }
        drop(state);
        // Whoever enqueues something soon enqueues more, and who was woken wants the lock.
        loop {
            std::thread::sleep(BREATH);
            if self.wanting.load(Ordering::Relaxed) == 0 {
                return self.lock_again();
            }
        }
    }

    /// Runs one slice, if nobody else does.
    fn drive_once(&self) {
        let state = self.lock();
        if state.failure.is_none() && !state.driven {
            drop(self.drive(state));
        }
    }

    /// Gives other threads time to enqueue something or to write pinned memory, which tells nobody, unless all of them
    /// wait themselves.
    fn await_others<'a>(&self, mut state: MutexGuard<'a, State>, limit: Duration) -> MutexGuard<'a, State> {
        let (enqueued, end) = (state.enqueued, Instant::now() + limit);
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if !state.others_are_busy()
                || left.is_zero()
                || state.enqueued != enqueued
                || state.failure.is_some()
                || state.has_host_changes()
            {
                return state;
            }
            state = self.sleep(state, left.min(PAUSE));
        }
    }
}

impl EmulatedGpu {
    /// All devices of a machine.
    fn all(world: &Arc<World>) -> Vec<Device> {
        let device = |ordinal| {
            let properties = properties(ordinal, &world.options);
            Device::new(Arc::new(Self { world: Arc::clone(world), properties }))
        };
        (0..world.options.devices).map(device).collect()
    }

    fn label(&self) -> String {
        self.properties.label.clone()
    }

    fn failed(&self, report: &str) -> GpuError {
        GpuError::Emulated { device: self.label(), report: report.to_owned() }
    }

    /// Calls `f` on the machine, unless it has failed.
    fn with<T>(&self, f: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        let mut state = self.world.lock();
        let result = match &state.failure {
            Some(report) => Err(self.failed(report)),
            None => f(&mut state),
        };
        drop(state);
        self.world.changed.notify_all();
        result
    }

    /// Waits, and reports what went wrong meanwhile or before.
    fn wait(&self, until: Until) -> Result<()> {
        self.world.wait_until(until);
        self.with(|_| Ok(()))
    }

    /// An error as a call of CUDA's would give it.
    fn call_error(&self, call: &'static str, code: u32, name: &str, reason: impl Into<String>) -> GpuError {
        GpuError::Call { call, device: self.label(), code, name: name.to_owned(), reason: reason.into() }
    }
}

impl Gpu for EmulatedGpu {
    fn backend(&self) -> &'static str {
        "emulate"
    }

    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn synchronize(&self) -> Result<()> {
        self.refuse_while_capturing("synchronize")?;
        self.wait(Until::Device(self.properties.ordinal))
    }

    fn can_access_peer(&self, peer_ordinal: u32) -> Result<bool> {
        Ok(peer_ordinal < self.world.options.devices)
    }

    fn enable_peer_access(&self, peer_ordinal: u32) -> Result<()> {
        self.with(|state| {
            state.enable_peer(self.properties.ordinal, peer_ordinal);
            Ok(())
        })
    }
}
