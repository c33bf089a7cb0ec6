//! How a group of GPU ranks behaves.

use std::sync::Arc;
use std::time::Duration;

use super::choose::Tuning;
use super::table::TuningTable;
use crate::comm::{DType, sequence};

/// Where the memory lies that peers write into.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PeerMemory {
    /// On the receiving GPU, written by direct peer stores (NVLink, or PCIe where it allows them).
    #[default]
    Direct,
    /// In pinned host memory, for GPUs without a path to each other; every message crosses PCIe twice.
    HostStaged,
    /// In NVSHMEM's symmetric heap, for ranks that are processes, on one host or many.
    Nvshmem {
        /// Store to ranks of other nodes wherever there is a path for it; otherwise every message between nodes is an
        /// NVSHMEM put.
        direct: bool,
    },
}

impl PeerMemory {
    /// As in results: `direct`, `host-staged`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::HostStaged => "host-staged",
            Self::Nvshmem { direct: true } => "nvshmem",
            Self::Nvshmem { direct: false } => "nvshmem, all put",
        }
    }
}

/// How a group behaves; equal on all ranks.
#[derive(Debug, Clone)]
pub struct GroupOptions {
    /// Where messages are received.
    pub memory: PeerMemory,
    /// Longest wait of a kernel for its peers; then the call fails by name on this rank.
    pub time_limit: Duration,
    /// Longest wait for all ranks to meet in `register` or `split`; none is for as long as all of them live.
    pub meeting_limit: Option<Duration>,
    /// Sequence number of a buffer's first call.
    pub first_sequence: u64,
    /// What to use instead of the chosen algorithm, format and grid, for all tensors.
    pub tuning: Option<Tuning>,
    /// Choices measured on these GPUs; they go before the built-in ones, and `tuning` before them.
    pub table: Option<Arc<TuningTable>>,
    /// Programmatic dependent launch, where the GPU has it and one collective is in flight at a time.
    pub dependent_launch: bool,
    /// Collectives that may run at the same time on a GPU: of several communicators, or of several buffers on several
    /// streams. They divide its multiprocessors, for a collective waits with all of its blocks for other ranks'. With
    /// more at once than this, ranks may wait for each other until the limit.
    pub in_flight: u32,
}

impl Default for GroupOptions {
    /// Direct, ten seconds in a kernel, two minutes on the host, built-in choices, dependent launch, one collective at a
    /// time.
    fn default() -> Self {
        Self {
            memory: PeerMemory::Direct,
            time_limit: Duration::from_secs(10),
            meeting_limit: Some(Duration::from_secs(120)),
            first_sequence: sequence::FIRST,
            tuning: None,
            table: None,
            dependent_launch: true,
            in_flight: 1,
        }
    }
}

impl GroupOptions {
    /// What overrides the built-in choice for a sum; `hidden` is the row's length where a norm follows.
    pub(super) fn tuning_of(&self, dtype: DType, hidden: Option<usize>, bytes: usize) -> Option<Tuning> {
        self.tuning.or_else(|| self.table.as_ref()?.lookup(dtype, hidden, bytes))
    }
}
