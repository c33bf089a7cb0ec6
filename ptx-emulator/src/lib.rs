//! PTX, executed on the CPU: exactly, slowly and suspiciously.

mod exec;
//mod machine;
pub mod memory;
mod program;
pub mod text;

pub use exec::Cause;
/*pub use machine::{
    DeviceOptions, Launch, LaunchError, Machine, MachineOptions, Outcome, Policy, Report, RunError, StreamId,
};*/
pub use program::{Kernel, LoadError, Module, Refusal};
