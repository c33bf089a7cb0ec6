//! What can go wrong.

use std::path::PathBuf;

use crate::Release;

/// A failure, in one sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The host library is in none of the usual places.
    #[error(
        "libnvshmem_host.so.3 was not found in Python's packages or on the loader's path: 'pip install \
         nvidia-nvshmem-cu13', or name NVSHMEM's folder by NVSHMEM_HOME"
    )]
    NotFound,
    /// A file that is there cannot be opened.
    #[error("{} cannot be opened as NVSHMEM's host library: {reason}", path.display())]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// What the loader said.
        reason: String,
    },
    /// The library lacks a function.
    #[error("{} has no function {symbol}: it is no NVSHMEM of the releases 3.4 to 3.8", path.display())]
    NoSymbol {
        /// Which file.
        path: PathBuf,
        /// What is missing.
        symbol: &'static str,
    },
    /// Device code of another release than the host library.
    #[error(
        "the kernels were built with NVSHMEM {device}, but the host library is {host}: build them again with the \
         bitcode of {host}, or use the host library of {device}"
    )]
    ReleaseMismatch {
        /// Of the device code.
        device: Release,
        /// Of the host library.
        host: Release,
    },
    /// Not three numbers.
    #[error("'{text}' is no release of NVSHMEM such as 3.4.5")]
    NotARelease {
        /// What was read.
        text: String,
    },
    /// The process has initialised NVSHMEM before.
    #[error("NVSHMEM can be initialised once in a process, and was")]
    AlreadyInitialized,
    /// The library came up without a device.
    #[error(
        "NVSHMEM was initialised without a GPU (status {status}, 2 is needed): a driver and a device per process are \
         needed, chosen before the call"
    )]
    NoDevice {
        /// `nvshmemx_init_status`.
        status: i32,
    },
    /// A call returned another status than success.
    #[error("{call} failed with status {status}{}", .hint)]
    Call {
        /// Which one.
        call: &'static str,
        /// What it returned.
        status: i32,
        /// What to do, if anything is known.
        hint: &'static str,
    },
    /// The symmetric heap has no room.
    #[error("NVSHMEM's symmetric heap has no {bytes} bytes left: raise NVSHMEM_SYMMETRIC_SIZE")]
    OutOfMemory {
        /// What was asked for.
        bytes: usize,
    },
    /// Not a PE of this job.
    #[error("PE {pe} was named, but there are {n_pes}")]
    NoSuchPe {
        /// As given.
        pe: usize,
        /// How many there are.
        n_pes: usize,
    },
}
