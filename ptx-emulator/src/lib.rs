#![doc = include_str!("../README.md")]

mod exec;
pub mod external;
mod machine;
pub mod memory;
pub mod nvshmem;
mod program;
mod tensor;
pub mod text;

pub use exec::Cause;
pub use machine::{
    Counters, Deadlock, DeviceOptions, EventId, KernelId, Launch, LaunchError, MAX_DEVICES, Machine,
    MachineOptions, ModuleId, Outcome, Place, Policy, Report, RunError, StreamId, Waiter,
};
pub use program::{Kernel, LoadError, Module, Refusal};
pub use tensor::{Swizzle, TENSOR_MAP_BYTES, TensorMap, TensorMapError};
