//! All-reduce between GPUs: ours, NCCL's and whatever another program measured, in one table.
//!
//! Every contender is measured the same way ([`race`]): one thread per rank, random data, 20 calls between two
//! events on each GPU, the ranks aligned by a call before the first event; a sample is the slowest rank's time per
//! call. NCCL runs in child processes ([`child`]), because it reads its environment once.

pub mod child;
pub mod contest;
#[cfg(feature = "cli")]
pub mod figure;
#[cfg(feature = "cli")]
pub mod join;
mod nccl;
mod numbers;
#[cfg(feature = "nvshmem")]
mod nvshmem;
mod ours;
pub mod race;
pub mod record;
pub mod setup;
pub mod sizes;
pub mod tune;
pub mod tuning_file;

pub use record::{Call, Launching, Measurement};

use crate::bench::library::LibraryError;
use crate::comm::CommError;
use crate::driver::GpuError;
use crate::engine::EngineError;

/// The version of the NCCL that is compared with; why there is none.
///
/// # Errors
/// One sentence for people.
pub fn nccl_version() -> Result<String, String> {
    nccl::version().map_err(|error| error.to_string())
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum AllReduceBenchError {
    /// The communicator.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// A device or its driver.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// Too few GPUs.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// NCCL is not here.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// NCCL refused a call.
    #[error("{call} failed on NCCL {version}: {reason}")]
    Nccl {
        /// The function.
        call: &'static str,
        /// The library's version.
        version: String,
        /// What the library said.
        reason: String,
    },
    /// A function that the library does not have.
    #[error("NCCL has no {call}: it is older than this function")]
    NoSuchCall {
        /// The function.
        call: &'static str,
    },
    /// A sum is not what it should be.
    #[error(
        "{contender}, {call} of {bytes} bytes in {dtype}: element {index} on rank {rank} is {found}, but {expected} is \
         right; its times would mean nothing"
    )]
    Wrong {
        /// Whose call.
        contender: String,
        /// Which call.
        call: Call,
        /// Of the tensor.
        bytes: usize,
        /// Of the tensor.
        dtype: crate::comm::DType,
        /// Who noticed.
        rank: usize,
        /// The first wrong element.
        index: usize,
        /// What is there.
        found: f32,
        /// What should be.
        expected: f32,
    },
    /// A rank's thread ended by a panic.
    #[error("rank {rank} died while it was measured; its message stands above")]
    RankDied {
        /// The rank.
        rank: usize,
    },
}
