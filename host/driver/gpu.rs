//! What a back end provides: plain calls on plain ids.
//!
//! Rules for all of it, stated once:
//! - A back end is used from several threads at once and keeps what it needs (a context) current by itself.
//! - Calls on a stream are asynchronous and in order; the others act at once. While a stream is captured, its
//!   calls are recorded instead of run.
//! - `# Safety` everywhere: ids come from this back end and are not destroyed yet; device ranges are allocated
//!   on it or on a peer with access enabled; memory that a call on a stream touches, host memory included,
//!   stays valid and is not touched otherwise until the stream has run it, and as long as a graph that
//!   recorded it can be launched.

use std::ffi::CStr;
use std::fmt;
use std::ptr::NonNull;

use bytemuck::{Pod, Zeroable};

use super::{GpuError, LaunchConfig, PtxVersion, Result};
use crate::kernels::TensorMap;

/// An address in device memory, as kernels take it: 8 bytes of a launch's parameters.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct DevicePtr(pub u64);

impl DevicePtr {
    /// The address `bytes` further on.
    pub const fn add_bytes(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $name(pub u64);
    )*};
}
ids!(
    /// A stream. In the cuda back end, a `CUstream` as an integer.
    StreamId,
    /// An event. In the cuda back end, a `CUevent` as an integer.
    EventId,
    /// A loaded PTX module. In the cuda back end, a `CUmodule` as an integer.
    ModuleId,
    /// A kernel of a module. In the cuda back end, a `CUfunction` as an integer.
    KernelId,
    /// An instantiated graph. In the cuda back end, a `CUgraphExec` as an integer.
    GraphId
);

/// A compute capability: `9.0` is Hopper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Capability {
    /// `9` of 9.0.
    pub major: u32,
    /// `0` of 9.0.
    pub minor: u32,
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What a device is and what its limits are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Properties {
    /// The device's number within its back end.
    pub ordinal: u32,
    /// How messages name it: `cuda:0 (NVIDIA H200)`.
    pub label: String,
    /// The product's name.
    pub name: String,
    /// The driver behind it: `CUDA 13.0`.
    pub driver: String,
    /// The newest PTX that it takes.
    pub newest_ptx: PtxVersion,
    /// Its compute capability.
    pub capability: Capability,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Device memory in all.
    pub total_memory_bytes: u64,
    /// L2 cache.
    pub l2_bytes: u64,
    /// Shared memory that one block can have after opting in.
    pub shared_bytes_per_block: u32,
    /// Shared memory of one multiprocessor.
    pub shared_bytes_per_multiprocessor: u32,
    /// 32-bit registers of one multiprocessor.
    pub registers_per_multiprocessor: u32,
    /// Threads that one block can have.
    pub max_threads_per_block: u32,
    /// Threads resident on one multiprocessor.
    pub max_threads_per_multiprocessor: u32,
}

/// Device memory, free and in all, as the device counts it (other processes included).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryInfo {
    /// Not allocated.
    pub free_bytes: u64,
    /// What the device has.
    pub total_bytes: u64,
}

/// Page-locked host memory that the device can address.
#[derive(Debug, Clone, Copy)]
pub struct PinnedAllocation {
    /// For the host.
    pub host: NonNull<u8>,
    /// For kernels.
    pub device: DevicePtr,
}

/// What memory is filled with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// One byte, repeated.
    U8(u8),
    /// Two bytes, repeated; the address is a multiple of 2.
    U16(u16),
    /// Four bytes, repeated; the address is a multiple of 4.
    U32(u32),
}

/// Which work the device prefers when several streams have some.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StreamPriority {
    /// The usual.
    #[default]
    Normal,
    /// Before the usual.
    High,
}

/// A compiled kernel's needs and limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelAttributes {
    /// Registers per thread.
    pub registers: u32,
    /// Statically declared shared memory per block.
    pub static_shared_bytes: u32,
    /// Local memory per thread: stack and spills.
    pub local_bytes: u32,
    /// Threads that one block of this kernel can have.
    pub max_threads_per_block: u32,
    /// Dynamic shared memory that a launch may ask for until it is raised.
    pub dynamic_shared_bytes: u32,
    /// Where the first parameter lies in the block that a launch passes. Not 0 where a parameter is aligned to more than
    /// the architecture's parameter space, as those with tensor maps are.
    pub parameters_at: u32,
}

/// Device and pinned host memory.
#[expect(clippy::missing_safety_doc, reason = "stated once for the module")]
pub trait GpuMemory {
    /// How much device memory is free.
    fn memory_info(&self) -> Result<MemoryInfo>;
    /// Allocates `bytes` > 0 of device memory, aligned to 256, contents undefined.
    fn allocate(&self, bytes: usize) -> Result<DevicePtr>;
    /// Frees device memory after the work that was enqueued before has finished.
    unsafe fn free(&self, memory: DevicePtr) -> Result<()>;
    /// Allocates `bytes` > 0 of pinned host memory, zeroed.
    fn allocate_pinned(&self, bytes: usize) -> Result<PinnedAllocation>;
    /// Frees pinned host memory.
    unsafe fn free_pinned(&self, memory: PinnedAllocation) -> Result<()>;
    /// Copies from host to device.
    unsafe fn copy_h2d(&self, stream: StreamId, to: DevicePtr, from: *const u8, bytes: usize) -> Result<()>;
    /// Copies from device to host.
    unsafe fn copy_d2h(&self, stream: StreamId, to: *mut u8, from: DevicePtr, bytes: usize) -> Result<()>;
    /// Copies within the device, or to or from a peer.
    unsafe fn copy_d2d(&self, stream: StreamId, to: DevicePtr, from: DevicePtr, bytes: usize) -> Result<()>;
    /// Writes `count` copies of the pattern.
    unsafe fn fill(&self, stream: StreamId, to: DevicePtr, pattern: Pattern, count: usize) -> Result<()>;
}

/// Streams and events.
#[expect(clippy::missing_safety_doc, reason = "stated once for the module")]
pub trait GpuStreams {
    /// Creates a stream that does not wait for any default stream.
    fn create_stream(&self, priority: StreamPriority) -> Result<StreamId>;
    /// Destroys a stream; its work still finishes.
    unsafe fn destroy_stream(&self, stream: StreamId) -> Result<()>;
    /// Blocks until all work of the stream has finished, and reports what failed in it.
    unsafe fn synchronize_stream(&self, stream: StreamId) -> Result<()>;
    /// Creates an event; without `timing` it is cheaper and cannot be measured with.
    fn create_event(&self, timing: bool) -> Result<EventId>;
    /// Destroys an event.
    unsafe fn destroy_event(&self, event: EventId) -> Result<()>;
    /// Records the event after the stream's work so far.
    unsafe fn record_event(&self, event: EventId, stream: StreamId) -> Result<()>;
    /// Makes the stream's later work wait for the event's latest record.
    unsafe fn wait_event(&self, stream: StreamId, event: EventId) -> Result<()>;
    /// Blocks until the event's latest record has happened.
    unsafe fn synchronize_event(&self, event: EventId) -> Result<()>;
    /// Whether the event's latest record has happened.
    unsafe fn event_reached(&self, event: EventId) -> Result<bool>;
    /// Time between two recorded timing events that have happened.
    unsafe fn elapsed_us(&self, start: EventId, end: EventId) -> Result<f64>;
}

/// PTX modules, kernels and launches.
#[expect(clippy::missing_safety_doc, reason = "stated once for the module")]
pub trait GpuModules {
    /// Compiles and loads PTX whose header fits the device (the caller has checked).
    fn load_module(&self, ptx: &CStr) -> Result<ModuleId>;
    /// Unloads a module and its kernels.
    unsafe fn unload_module(&self, module: ModuleId) -> Result<()>;
    /// A kernel by its entry point's name, or [`GpuError::NoSuchKernel`].
    unsafe fn kernel(&self, module: ModuleId, entry: &CStr) -> Result<KernelId>;
    /// A kernel's needs and limits.
    unsafe fn kernel_attributes(&self, kernel: KernelId) -> Result<KernelAttributes>;
    /// Raises the dynamic shared memory that launches of the kernel may ask for.
    unsafe fn set_dynamic_shared(&self, kernel: KernelId, bytes: u32) -> Result<()>;
    /// How many blocks of the kernel one multiprocessor holds at once.
    unsafe fn resident_blocks(
        &self,
        kernel: KernelId,
        block_threads: u32,
        dynamic_shared_bytes: u32,
    ) -> Result<u32>;
    /// The map as kernels' parameters hold it (`cuTensorMapEncodeTiled`).
    fn encode_tensor_map(&self, map: &TensorMap) -> Result<[u8; TensorMap::BYTES]>;
    /// Launches a kernel. `parameters` is the PTX parameter space: each `.param` at its natural alignment.
    /// The configuration has been checked; additionally, what the kernel does with these parameters is within
    /// the module's safety rules.
    unsafe fn launch(
        &self,
        stream: StreamId,
        kernel: KernelId,
        config: &LaunchConfig,
        parameters: &[u8],
    ) -> Result<()>;
}

/// Recording a stream's work and replaying it.
#[expect(clippy::missing_safety_doc, reason = "stated once for the module")]
pub trait GpuGraphs {
    /// Starts recording a stream instead of running it. Other threads' calls are not affected.
    unsafe fn begin_capture(&self, stream: StreamId) -> Result<()>;
    /// Ends the recording, on the thread that began it, and drops what was recorded.
    unsafe fn abandon_capture(&self, stream: StreamId) -> Result<()>;
    /// Ends the recording, on the thread that began it; returns the graph, ready to launch, and its node count.
    unsafe fn end_capture(&self, stream: StreamId) -> Result<(GraphId, usize)>;
    /// Runs the graph on a stream, after its earlier launches.
    unsafe fn launch_graph(&self, graph: GraphId, stream: StreamId) -> Result<()>;
    /// Destroys a graph; launches under way still finish.
    unsafe fn destroy_graph(&self, graph: GraphId) -> Result<()>;
}

/// A back end's device. See the module for the rules.
pub trait Gpu: GpuMemory + GpuStreams + GpuModules + GpuGraphs + fmt::Debug + Send + Sync {
    /// The back end's name: `cuda`. Ids and addresses mean nothing to another back end.
    fn backend(&self) -> &'static str;
    /// What the device is.
    fn properties(&self) -> &Properties;
    /// Blocks until all work on the device has finished, and reports what failed in it.
    fn synchronize(&self) -> Result<()>;
    /// Whether this device could address the memory of another one of the same back end.
    fn can_access_peer(&self, peer_ordinal: u32) -> Result<bool>;
    /// Lets this device's kernels and copies address the other one's memory; doing it again is fine.
    fn enable_peer_access(&self, peer_ordinal: u32) -> Result<()>;

    /// [`GpuError::InvalidLaunch`] on this device.
    fn invalid_launch(&self, kernel: &str, reason: String) -> GpuError {
        GpuError::InvalidLaunch { device: self.properties().label.clone(), kernel: kernel.to_owned(), reason }
    }
}
