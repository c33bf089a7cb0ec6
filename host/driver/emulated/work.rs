//! What streams queue, and what graphs record: the same work, with points of its own for every replay.

use std::sync::Arc;

use ptx_emulator::EventId;

use super::module::LoadedKernel;
use crate::driver::LaunchConfig;

/// A point in a stream's work, reached once: an event of the machine that is recorded once.
pub(super) type Point = EventId;

/// Memory of the host. Whoever enqueued the copy keeps it valid and untouched until the stream has run it.
#[derive(Debug, Clone, Copy)]
pub(super) struct HostRange {
    pub(super) at: *mut u8,
    pub(super) bytes: usize,
}

// SAFETY: an address; dereferencing it is what the enqueuer's promise is about, on whichever thread.
unsafe impl Send for HostRange {}
// SAFETY: as for Send.
unsafe impl Sync for HostRange {}

/// A kernel with its configuration and parameters.
#[derive(Debug, Clone)]
pub(super) struct KernelLaunch {
    pub(super) kernel: Arc<LoadedKernel>,
    pub(super) config: LaunchConfig,
    pub(super) parameters: Arc<[u8]>,
}

/// One entry of a stream's queue; `P` names points.
#[derive(Debug, Clone)]
pub(super) enum Work<P> {
    Launch(KernelLaunch),
    /// Host to device.
    CopyIn {
        to: u64,
        from: HostRange,
    },
    /// Device to host.
    CopyOut {
        to: HostRange,
        from: u64,
    },
    /// Within the machine.
    Copy {
        to: u64,
        from: u64,
        bytes: usize,
    },
    /// `bytes` of copies of the pattern.
    Fill {
        to: u64,
        bytes: usize,
        pattern: Arc<[u8]>,
    },
    /// The point is reached when all before it has ended.
    Record(P),
    /// What follows begins after the point.
    Wait(P),
}

impl<P> Work<P> {
    /// The same work with points of another kind.
    pub(super) fn map<Q>(&self, point: impl FnOnce(&P) -> Q) -> Work<Q> {
        match self {
            Self::Launch(launch) => Work::Launch(launch.clone()),
            &Self::CopyIn { to, from } => Work::CopyIn { to, from },
            &Self::CopyOut { to, from } => Work::CopyOut { to, from },
            &Self::Copy { to, from, bytes } => Work::Copy { to, from, bytes },
            &Self::Fill { to, bytes, ref pattern } => Work::Fill { to, bytes, pattern: Arc::clone(pattern) },
            Self::Record(at) => Work::Record(point(at)),
            Self::Wait(at) => Work::Wait(point(at)),
        }
    }

    /// Whether it is a node of a graph: points are edges.
    pub(super) fn is_node(&self) -> bool {
        !matches!(self, Self::Record(_) | Self::Wait(_))
    }
}
