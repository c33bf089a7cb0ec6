//! NVSHMEM from Rust: symmetric memory that GPUs of many processes and nodes put into.
//!
//! Two sides, told apart by the target:
//! - On the host ([`Library`], [`Nvshmem`]): `libnvshmem_host.so.3` is opened at run time, so programs build without
//!   CUDA or NVSHMEM and start without them. About sixty functions are declared by hand in [`Api`]; a small safe
//!   layer covers initialisation, symmetric memory, teams and modules.
//! - In kernels (target `nvptx64`, `no_std`): the module `device` declares functions that NVSHMEM's device bitcode
//!   defines, to be linked into the PTX.
//!
//! Works with the releases 3.4.5 and 3.8.0; the structures used are version 1, which both take. Host library and
//! device bitcode must be of one release: [`Library::expect_release`] refuses others.
//!
//! What is refused: an initialisation that left the library without a device (3.4.5 reports success), and a second
//! one in the same process.
#![cfg_attr(target_arch = "nvptx64", no_std)]

#[cfg(target_arch = "nvptx64")]
pub mod device;

#[cfg(not(target_arch = "nvptx64"))]
mod api;
#[cfg(not(target_arch = "nvptx64"))]
mod error;
#[cfg(not(target_arch = "nvptx64"))]
mod library;
#[cfg(not(target_arch = "nvptx64"))]
mod memory;
#[cfg(not(target_arch = "nvptx64"))]
mod release;
#[cfg(not(target_arch = "nvptx64"))]
mod session;
#[cfg(not(target_arch = "nvptx64"))]
mod team;
#[cfg(not(target_arch = "nvptx64"))]
pub mod types;

#[cfg(not(target_arch = "nvptx64"))]
pub use self::{
    api::Api,
    error::Error,
    library::{HOME_VARIABLE, Library},
    memory::SymmetricMemory,
    release::Release,
    session::{Module, Nvshmem, UniqueId},
    team::Team,
};
