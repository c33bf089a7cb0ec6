//! GPUs: memory, streams, PTX modules, launches and graphs, over interchangeable back ends.
//!
//! Two layers:
//! - [`Gpu`] is what a back end implements: flat calls on plain ids, object-safe, `unsafe` where an id or a
//!   pointer must be live. `cuda` is the driver API over cust (feature `cuda`); `emulated` executes the same
//!   PTX on the CPU and checks every access (feature `emulate`).
//! - [`Device`], [`DeviceBuffer`], [`PinnedBuffer`], [`Stream`], [`Event`], [`Module`], [`Kernel`] and [`Graph`]
//!   own what they name, keep their device alive, and are written once for all back ends. No type of cust
//!   appears in them.
//!
//! [`KernelLibrary`] joins them with the typed launches of [`crate::kernels`].
//!
//! What is refused: GPUs below compute capability 8.0, drivers older than CUDA 11.4 (PTX 7.4), PTX for
//! another architecture; each with a [`GpuError`] that names the call, the device and the reason.
//!
//! What stays the caller's business: [`Kernel::launch`] and [`Graph::launch`] are `unsafe`, since only the
//! caller knows what a kernel does with its pointers.

mod buffer;
#[cfg(feature = "cuda")]
mod cuda;
mod device;
#[cfg(feature = "emulate")]
mod emulated;
mod error;
mod gpu;
mod graph;
mod launch;
mod library;
mod module;
mod ptx;
mod stream;

pub use buffer::{DeviceBuffer, PinnedBuffer};
pub use device::Device;
#[cfg(feature = "emulate")]
pub use emulated::{EMULATE_VARIABLE, EmulatorOptions, InvalidEmulatorOption, PutUnit, Schedule};
pub use error::{GpuError, Result};
pub use gpu::{
    Capability, DevicePtr, EventId, Gpu, GpuGraphs, GpuMemory, GpuModules, GpuStreams, GraphId,
    KernelAttributes, KernelId, MemoryInfo, ModuleId, Pattern, PinnedAllocation, Properties, StreamId,
    StreamPriority,
};
pub use graph::Graph;
pub use launch::{Dim3, LaunchConfig};
pub use library::KernelLibrary;
pub use module::{Kernel, Module};
pub use ptx::{PtxHeader, PtxTarget, PtxVersion};
pub use stream::{Event, Stream};
