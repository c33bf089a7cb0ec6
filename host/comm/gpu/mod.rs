//! Ranks that are GPUs: NVRAR in one launch per collective.
//!
//! A rank is a thread and a GPU ([`GpuComm::group`]): peers write into each other's *regions* by direct stores, or
//! through pinned host memory ([`PeerMemory`]), and neither MPI nor NVSHMEM is needed. Or it is a process and a GPU
//! ([`GpuComm::in_processes`]), with regions in a [`SymmetricHeap`]. The protocol is that of `docs/sync.md`, the kernels
//! are those of `device/src/nvrar/`. What is refused: two ranks on one GPU in different launches (they would wait
//! for each other's multiprocessors; [`Loopback`] shares one launch), more than [`MAX_RANKS`] ranks, epilogues and
//! addends of other types than bf16.
//!
//! A rank that is alone exchanges nothing, but addend and epilogue are computed all the same, so that an engine
//! synchronises only through the trait, whatever the number of ranks.

mod checks;
mod choose;
mod crew;
mod failure;
mod group;
mod heap;
mod layout;
mod loopback;
mod meeting;
#[cfg(feature = "nvshmem")]
pub mod nvshmem;
mod options;
mod processes;
mod region;
#[cfg(test)]
mod schedule_tests;
mod solo;
mod table;

use std::cell::Cell;
use std::sync::Arc;

use half::bf16;

use self::checks::{check_devices, check_distinct, check_in_flight, check_rows, check_slices, open_paths};
pub use self::choose::Tuning;
use self::crew::{Crew, Part, Sum, max_blocks};
use self::failure::Alarms;
use self::group::{Group, Item, World};
pub use self::heap::SymmetricHeap;
use self::layout::Layout;
pub use self::loopback::{Loopback, LoopbackBuffer, LoopbackPuts, LoopbackSlices};
pub use self::options::{GroupOptions, PeerMemory};
use self::processes::Processes;
use self::region::Regions;
pub use self::table::{Measured, TuningTable};
use super::{AllGather, AllReduce, CommError, Communicator, Counts, DType, Epilogue, Shape, Stage, Topology};
use crate::driver::{Device, DeviceBuffer, KernelLibrary, Stream};
use crate::kernels::Addr;
use crate::kernels::nvrar::NormAfter;
pub use crate::kernels::nvrar::{Algorithm, Format};
pub use crate::kernels::params::MAX_RANKS;

/// A rank on one GPU. Addends and epilogues are bf16.
#[derive(Debug)]
pub struct GpuComm {
    topology: Topology,
    crew: Crew,
    group: Arc<Group>,
    counts: Cell<Counts>,
    tuning: Cell<Option<Tuning>>,
}

/// Part of a buffer in device memory, whose owner keeps it alive.
#[derive(Debug, Clone, Copy)]
pub struct DeviceSlice {
    at: Addr<bf16>,
    len: usize,
}

impl DeviceSlice {
    /// `len` elements from `at` on.
    ///
    /// # Safety
    /// They are device memory of the communicator's GPU, and stay allocated until its streams have run all that
    /// was enqueued with them, and while graphs that recorded it can be launched. Until then nothing writes to them
    /// but the call that they were given to, and where that writes to them nothing reads them.
    ///
    /// # Panics
    /// If `at` is not 16-byte aligned.
    pub unsafe fn new(at: Addr<bf16>, len: usize) -> Self {
        assert!(
            at.raw().is_multiple_of(16),
            "a slice begins at {:#x}, which is not 16-byte aligned",
            at.raw()
        );
        Self { at, len }
    }
}

/// Symmetric memory: this rank's part, and the slots that its peers write into.
///
/// All ranks' slots live until the last rank has dropped its buffer. What was enqueued with it has to have run by
/// then, and graphs that recorded it are not launched any more.
#[derive(Debug)]
pub struct GpuBuffer {
    part: Part,
    bytes: usize,
    /// Group and rank that registered it.
    owner: (Arc<Group>, usize),
}

impl GpuBuffer {
    /// The first element, for kernels that write what is to be summed or gathered.
    pub fn addr<T>(&self) -> Addr<T> {
        Addr::new(self.part.data.ptr().0)
    }

    /// The memory itself, up to 255 bytes longer than what was registered.
    pub fn memory(&self) -> &DeviceBuffer<u8> {
        &self.part.data
    }

    /// What was registered.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl GpuComm {
    /// The only rank of its group, on the device that `kernels` were loaded on.
    ///
    /// # Errors
    /// What the driver refuses.
    pub fn solo(kernels: Arc<KernelLibrary>) -> Result<Self, CommError> {
        let mut alone =
            Self::group_with(&[kernels], Shape { nodes: 1, gpus_per_node: 1 }, GroupOptions::default())?;
        Ok(alone.pop().expect("a group of one has a rank"))
    }

    /// One rank per device, in rank order; each goes to the thread that is to be that rank. Loads the embedded
    /// kernels on every device.
    ///
    /// # Errors
    /// A number of devices that is not the shape's, a device twice, GPUs without a path to each other (use
    /// [`PeerMemory::HostStaged`]), and what the driver refuses.
    pub fn group(devices: &[Device], shape: Shape, options: GroupOptions) -> Result<Vec<Self>, CommError> {
        let dependent = options.dependent_launch && options.in_flight <= 1;
        let load = |device| Ok(Arc::new(KernelLibrary::load(device)?.programmatic(dependent)));
        let kernels = devices.iter().map(load).collect::<Result<Vec<_>, CommError>>()?;
        Self::group_with(&kernels, shape, options)
    }

    /// [`group`](Self::group) on kernels that are loaded already, one library per rank.
    ///
    /// # Errors
    /// As [`group`](Self::group).
    pub fn group_with(
        kernels: &[Arc<KernelLibrary>],
        shape: Shape,
        options: GroupOptions,
    ) -> Result<Vec<Self>, CommError> {
        check_devices(kernels, shape)?;
        if let PeerMemory::Nvshmem { .. } = options.memory {
            return Err(CommError::Unsupported { what: "NVSHMEM between ranks of one process" });
        }
        check_in_flight(kernels, &options)?;
        if options.memory == PeerMemory::Direct {
            open_paths(kernels)?;
        }
        let alarms = kernels.iter().map(|kernels| {
            let stream = kernels.device().stream()?;
            let alarms = Alarms::new(kernels.device(), 1, &stream)?;
            stream.synchronize()?;
            Ok((Arc::new(alarms), 0))
        });
        let alarms = alarms.collect::<Result<Vec<_>, CommError>>()?;
        let world = World::of_threads(options, alarms.clone());
        let max_blocks = max_blocks(kernels, 1, world.options.in_flight);
        let group = Group::new(&world, shape, (0..shape.world()).collect());
        let ranks = kernels.iter().zip(alarms).enumerate();
        let new = |(rank, (kernels, (alarms, _)))| Self::new(&group, rank, kernels, alarms, max_blocks);
        Ok(ranks.map(new).collect())
    }

    fn new(
        group: &Arc<Group>,
        rank: usize,
        kernels: &Arc<KernelLibrary>,
        alarms: Arc<Alarms>,
        max_blocks: u32,
    ) -> Self {
        let Shape { nodes, gpus_per_node } = group.shape;
        let crew = Crew {
            kernels: Arc::clone(kernels),
            alarms,
            first_alarm: 0,
            first: rank,
            count: 1,
            max_blocks,
            shape: group.shape,
            group: group.number,
            puts: group.world.processes.as_ref().and_then(Processes::puts).cloned(),
        };
        let topology = Topology { nodes, gpus_per_node, rank };
        Self { topology, crew, group: Arc::clone(group), counts: Cell::default(), tuning: Cell::default() }
    }

    /// From now on uses this in place of what the group's options say; equal on all ranks.
    pub fn set_tuning(&self, tuning: Option<Tuning>) {
        self.tuning.set(tuning);
    }

    /// Whether messages to other nodes are put, rather than stored into their memory.
    pub fn puts_between_nodes(&self) -> bool {
        self.topology.nodes > 1 && self.crew.puts.is_some()
    }

    /// What a sum would be executed with, everything named. `hidden` is the length of a row where residual and norm
    /// follow.
    ///
    /// # Errors
    /// As [`enqueue`](Communicator::enqueue).
    pub fn tuning_of(
        &self,
        buf: &GpuBuffer,
        (numel, dtype): (usize, DType),
        hidden: Option<usize>,
    ) -> Result<Tuning, CommError> {
        self.check_tensor(buf, numel, dtype)?;
        check_rows((numel, dtype), false, hidden)?;
        let at = Addr::NULL;
        let norm = |hidden| NormAfter { residual: at, gain: at, out: at, hidden: hidden as u32, eps: 0.0 };
        let sum = self.sum((numel, dtype), Addr::NULL, hidden.map(norm));
        let (execution, is_fused) = self.crew.execution_of(&buf.part, self.options(), &sum)?;
        Ok(Tuning {
            algorithm: Some(execution.algorithm),
            format: Some(execution.format),
            blocks: Some(execution.blocks),
            workers: Some(execution.workers),
            row_blocks: is_fused.then_some(execution.row_blocks),
            pass_units: None,
        })
    }

    fn sum(&self, (numel, dtype): (usize, DType), addend: Addr<bf16>, norm: Option<NormAfter>) -> Sum {
        Sum { numel, dtype, addend, norm, tuning: self.tuning.get(), slice_stride: 0 }
    }

    fn options(&self) -> &GroupOptions {
        &self.group.world.options
    }

    /// The regions of all ranks, which are threads of this process.
    fn regions(&self, layout: &Layout, bytes: usize) -> Result<Regions, CommError> {
        let [mine] = <[_; 1]>::try_from(self.crew.regions(layout, self.options().memory)?)
            .expect("a crew of one has one region");
        let call = format!("register({bytes} bytes)");
        let items = self.group.meeting.exchange(self.topology.rank, call, Item::Region(mine))?;
        let region = |item: &Item| match item {
            Item::Region(region) => Arc::clone(region),
            other => unreachable!("ranks agreed to register, not on {other:?}"),
        };
        Ok(Regions::of(items.iter().map(region).collect(), 1))
    }

    /// No rank's kernels wait for a rank that is still asking the driver for memory.
    fn await_parts(&self, is_made: bool, bytes: usize) -> Result<(), CommError> {
        let (group, rank) = (&self.group, self.topology.rank);
        let absent = match &group.world.processes {
            Some(processes) => processes.first_without_part(group, is_made, bytes)?,
            None => {
                let made = group.meeting.exchange(rank, "register".to_owned(), Item::Made(is_made))?;
                made.iter().position(|item| matches!(item, Item::Made(false)))
            }
        };
        let Some(peer) = absent.filter(|&peer| peer != rank) else { return Ok(()) };
        let (rank, peer) = (group.members[rank], group.members[peer]);
        let cause = format!("it could not allocate its part of {bytes} bytes of symmetric memory");
        Err(CommError::PeerFailed { rank, peer, cause })
    }

    /// Refuses what does not fit before anything is enqueued.
    fn check_tensor(&self, buf: &GpuBuffer, numel: usize, dtype: DType) -> Result<(), CommError> {
        self.check()?;
        if !Arc::ptr_eq(&buf.owner.0, &self.group) || buf.owner.1 != self.topology.rank {
            return Err(CommError::ForeignBuffer);
        }
        if numel.checked_mul(dtype.size_bytes()).is_none_or(|needed| needed > buf.bytes) {
            return Err(CommError::TooLarge { numel, dtype, bytes: buf.bytes });
        }
        Ok(())
    }

    fn count(&self, add: impl FnOnce(&mut Counts)) {
        if self.topology.world() > 1 {
            let mut counts = self.counts.get();
            add(&mut counts);
            self.counts.set(counts);
        }
    }
}

impl Communicator for GpuComm {
    type Stream = Stream;
    type Slice = DeviceSlice;
    type Buffer = GpuBuffer;

    fn topology(&self) -> &Topology {
        &self.topology
    }

    fn register(&self, bytes: usize) -> Result<GpuBuffer, CommError> {
        self.check()?;
        let layout = Layout::new(self.group.shape, if self.topology.world() == 1 { 0 } else { bytes });
        let rank = self.topology.rank;
        let regions = match &self.group.world.processes {
            Some(processes) => processes.regions(&self.group, rank, &self.crew, &layout, bytes)?,
            None => self.regions(&layout, bytes)?,
        };
        let part = self.crew.part(bytes, layout, regions, self.options());
        let others = self.await_parts(part.is_ok(), bytes);
        let part = part?;
        others?;
        Ok(GpuBuffer { part, bytes, owner: (Arc::clone(&self.group), rank) })
    }

    /// Addend and epilogue are for bf16 tensors. The epilogue is part of the launch where rows are whole units of
    /// 8 elements and fit the registered slots.
    fn enqueue(&self, stream: &Stream, op: AllReduce<'_, Self>) -> Result<(), CommError> {
        self.check_tensor(op.buf, op.numel, op.dtype)?;
        check_slices(&op)?;
        let AllReduce { buf, numel, dtype, addend, epilogue } = op;
        let norm = match epilogue {
            Epilogue::None => None,
            Epilogue::ResidualRmsNorm { residual, gain, eps, out } => Some(NormAfter {
                residual: residual.at,
                gain: gain.at,
                out: out.at,
                hidden: gain.len as u32,
                eps,
            }),
        };
        let addend = addend.map_or(Addr::NULL, |addend| addend.at);
        let sum = self.sum((numel, dtype), addend, norm);
        if self.topology.world() == 1 {
            return solo::finish(&self.crew, stream, buf.addr(), &sum);
        }
        self.crew.all_reduce(stream, &buf.part, self.options(), sum)?;
        self.count(|counts| counts.all_reduces += 1);
        Ok(())
    }

    fn enqueue_stage(&self, stream: &Stream, op: Stage<'_, Self>) -> Result<(), CommError> {
        let Stage { phase, buf, numel, dtype } = op;
        self.check_tensor(buf, numel, dtype)?;
        if self.topology.world() > 1 {
            self.crew.phase(stream, &buf.part, self.options(), phase, (numel, dtype))?;
            self.count(|counts| counts.stages += 1);
        }
        Ok(())
    }

    /// A word of 4 bytes with all bits set, which is a NaN (or two), arrives as a neighbouring one.
    fn enqueue_gather(&self, stream: &Stream, op: AllGather<'_, Self>) -> Result<(), CommError> {
        let world = self.topology.world();
        let numel = match op.offsets.last() {
            Some(&end) if op.offsets.len() == world + 1 && op.offsets.is_sorted() => end,
            _ => return Err(CommError::Offsets { offsets: op.offsets.to_vec(), world }),
        };
        self.check_tensor(op.buf, numel, op.dtype)?;
        if world > 1 {
            self.crew.all_gather(stream, &op.buf.part, self.options(), op.offsets, op.dtype)?;
            self.count(|counts| counts.all_gathers += 1);
        }
        Ok(())
    }

    fn split(&self, colour: usize, key: usize) -> Result<Self, CommError> {
        self.check()?;
        let (group, rank) = self.group.split(self.topology.rank, colour, key)?;
        let Crew { kernels, alarms, max_blocks, .. } = &self.crew;
        Ok(Self::new(&group, rank, kernels, Arc::clone(alarms), *max_blocks))
    }

    fn check(&self) -> Result<(), CommError> {
        self.group.world.check(self.group.members[self.topology.rank])
    }

    fn counts(&self) -> Counts {
        self.counts.get()
    }
}

impl Drop for GpuComm {
    fn drop(&mut self) {
        self.group.meeting.leave(self.topology.rank);
    }
}
