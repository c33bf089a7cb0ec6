//! What can go wrong between ranks.

use std::{fmt, ops::Range, time::Duration};

use super::{dtype::DType, rank_list::RankList, schedule::Phase, topology::Shape};
use crate::driver::GpuError;

/// A failed synchronisation. Ranks are those of the world, also in groups split from it.
///
/// [`Timeout`](Self::Timeout), [`Mismatch`](Self::Mismatch), [`PeerFailed`](Self::PeerFailed),
/// [`Absent`](Self::Absent) and [`Disagreement`](Self::Disagreement) are final: every later call returns the same
/// error; [`Gpu`](Self::Gpu) is as final as the driver makes it. The others are wrong arguments, found before
/// anything was sent; they leave the communicator as it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommError {
    /// A message did not come in time.
    #[error(
        "rank {rank} waited {waited:?} for rank {peer} in {phase}, step {step}: expected sequence {expected}, \
         last seen {seen}; the peer is stopped, late, or makes other calls"
    )]
    Timeout {
        /// Who waited.
        rank: usize,
        /// For whom.
        peer: usize,
        /// In which phase.
        phase: Phase,
        /// In which round of the phase.
        step: usize,
        /// The sequence number waited for.
        expected: u64,
        /// The last one that came, 0 for none.
        seen: u64,
        /// The limit.
        waited: Duration,
    },
    /// A peer takes part in another call than this rank.
    #[error(
        "rank {rank} expects {expected} from rank {peer} in {phase}, step {step}, but got {found}; all ranks \
         must make the same calls in the same order"
    )]
    Mismatch {
        /// Who noticed.
        rank: usize,
        /// Whose message it is.
        peer: usize,
        /// In which phase.
        phase: Phase,
        /// In which round of the phase.
        step: usize,
        /// What this rank's call expects.
        expected: Header,
        /// What came.
        found: Header,
    },
    /// Another rank failed, panicked or left.
    #[error("rank {rank} cannot go on because rank {peer} failed: {cause}")]
    PeerFailed {
        /// Who is told.
        rank: usize,
        /// Who failed first.
        peer: usize,
        /// Its own error.
        cause: String,
    },
    /// Some ranks did not come to `register` or `split`.
    #[error("rank {rank} waited {waited:?} in {call}, but {} did not come", RankList(missing))]
    Absent {
        /// Who waited.
        rank: usize,
        /// In which call.
        call: String,
        /// Who is missing.
        missing: Vec<usize>,
        /// The limit.
        waited: Duration,
    },
    /// Ranks came to `register` or `split` with different requests.
    #[error(
        "rank {rank} calls {call}, but rank {other} calls {other_call}; all ranks must make the same collective \
         calls, with the same sizes, in the same order"
    )]
    Disagreement {
        /// The lowest rank.
        rank: usize,
        /// What it asked for.
        call: String,
        /// The first rank that differs.
        other: usize,
        /// What that one asked for.
        other_call: String,
    },
    /// The tensor is larger than its buffer.
    #[error("{numel} {dtype} elements do not fit the {bytes} bytes registered; register a larger buffer")]
    TooLarge {
        /// Elements asked for.
        numel: usize,
        /// Their type.
        dtype: DType,
        /// What there is.
        bytes: usize,
    },
    /// A slice that goes with the tensor has another length.
    #[error("{what} has {found} elements, but {expected} are needed")]
    Length {
        /// Which slice.
        what: &'static str,
        /// Elements needed.
        expected: usize,
        /// Elements given.
        found: usize,
    },
    /// A tensor is not made of rows.
    #[error("{numel} elements are not whole rows of {hidden}, the length of the gain")]
    Rows {
        /// Elements of the tensor.
        numel: usize,
        /// Elements of the gain.
        hidden: usize,
    },
    /// The pieces of an all-gather are not well-formed.
    #[error("offsets {offsets:?} do not split a tensor over {world} ranks: {} ascending numbers are needed", world + 1)]
    Offsets {
        /// As given.
        offsets: Vec<usize>,
        /// Ranks of the group.
        world: usize,
    },
    /// The buffer was registered with another communicator, or by another rank.
    #[error("the buffer belongs to another communicator or rank; register it with the one that uses it")]
    ForeignBuffer,
    /// A group is made of another number of GPUs than its shape says.
    #[error("topology {shape} has {} ranks, but {devices} GPUs were given: one is needed for each", shape.world())]
    WrongDevices {
        /// The shape.
        shape: Shape,
        /// GPUs given.
        devices: usize,
    },
    /// A world of processes has another number of ranks than its shape says.
    #[error("topology {shape} has {} ranks, but {processes} processes were started: one is needed for each", shape.world())]
    WrongWorld {
        /// The shape.
        shape: Shape,
        /// Processes of the world.
        processes: usize,
    },
    /// The symmetric heap has no place for a buffer.
    #[error(
        "no {needed_bytes} bytes are free at one place of all ranks' symmetric heaps of {heap_bytes} bytes; drop \
         buffers, or make the heap larger"
    )]
    HeapFull {
        /// Bytes of the buffer's slots.
        needed_bytes: usize,
        /// Size of the heap.
        heap_bytes: usize,
    },
    /// NVSHMEM cannot be used.
    #[error("NVSHMEM: {reason}")]
    Nvshmem {
        /// What it said, and what to do.
        reason: String,
    },
    /// This communicator cannot do it.
    #[error("not offered: {what}")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
    },
    /// The rank's GPU failed.
    #[error(transparent)]
    Gpu(#[from] GpuError),
}

impl CommError {
    /// `peer` is gone, and `rank` needs it.
    pub(in crate::comm) fn left(rank: usize, peer: usize) -> Self {
        Self::PeerFailed { rank, peer, cause: "it left the group while others waited for it".to_owned() }
    }

    /// The rank whose silence or failure this is an answer to, if that is what it is.
    pub fn blames(&self) -> Option<usize> {
        match self {
            Self::Timeout { peer, .. } | Self::PeerFailed { peer, .. } => Some(*peer),
            Self::Absent { missing, .. } => missing.first().copied(),
            _ => None,
        }
    }
}

/// Which collective a message belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Collective {
    /// All three phases.
    AllReduce,
    /// One phase alone.
    Stage(Phase),
    /// An all-gather.
    AllGather,
}

impl Collective {
    /// Each of them; a collective's place is its number on the wire.
    pub const ALL: [Self; 5] = [
        Self::AllReduce,
        Self::Stage(Phase::Reduce),
        Self::Stage(Phase::Put),
        Self::Stage(Phase::Broadcast),
        Self::AllGather,
    ];
}

/// What a message says about itself, so that a peer in another call is an error and not a wrong sum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The call's number on its buffer.
    pub sequence: u64,
    /// The kind of call.
    pub collective: Collective,
    /// Elements of the whole tensor.
    pub numel: usize,
    /// Their type.
    pub dtype: DType,
    /// The elements in this message.
    pub range: Range<usize>,
}

impl fmt::Display for Collective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllReduce => f.write_str("all-reduce"),
            Self::Stage(phase) => write!(f, "{phase} stage"),
            Self::AllGather => f.write_str("all-gather"),
        }
    }
}

impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sequence, collective, numel, dtype, range } = self;
        write!(f, "elements {range:?} of {collective} {sequence} over {numel} {dtype} elements")
    }
}
