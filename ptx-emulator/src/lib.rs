#![doc = include_str!("../README.md")]

mod exec;
mod machine;
pub mod memory;
mod program;
pub mod text;

pub use exec::Cause;
pub use machine::{
    Counters, Deadlock, DeviceOptions, EventId, KernelId, Launch, LaunchError, MAX_DEVICES, Machine,
    MachineOptions, ModuleId, Outcome, Place, Policy, Report, RunError, StreamId, Waiter,
};
pub use program::{Kernel, LoadError, Module, Refusal};
