//! Why processes did not become ranks of one world.

use std::{io, time::Duration};

use crate::comm::rank_list::RankList;

/// A start that failed. Each says which process has to be looked at.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The address of rank 0 cannot be listened on.
    #[error("rank 0 cannot listen on {address} ({source}): {}", what_to_do(source.kind()))]
    Listen {
        /// Where.
        address: String,
        /// The system's answer.
        source: io::Error,
    },
    /// Rank 0 does not answer.
    #[error(
        "rank {rank} could not reach rank 0 at {address} within {waited:?} ({reason}): is rank 0 running, and are \
         MASTER_ADDR and MASTER_PORT the same everywhere?"
    )]
    Unreachable {
        /// Who tried.
        rank: usize,
        /// Where.
        address: String,
        /// The limit.
        waited: Duration,
        /// The last attempt's end.
        reason: String,
    },
    /// Some ranks did not come.
    #[error(
        "rank {rank} waited {waited:?} for {}, which did not start or cannot reach it",
        RankList(missing)
    )]
    Missing {
        /// Who waited.
        rank: usize,
        /// Who is missing.
        missing: Vec<usize>,
        /// The limit.
        waited: Duration,
    },
    /// Two processes say that they are the same rank.
    #[error("two processes say that they are rank {rank} of {world}: give each its own RANK")]
    Twice {
        /// The rank.
        rank: usize,
        /// Ranks of the world.
        world: usize,
    },
    /// A process expects another number of ranks.
    #[error(
        "rank {rank} expects {found} ranks, but rank 0 expects {world}: start all with the same WORLD_SIZE"
    )]
    World {
        /// Who differs.
        rank: usize,
        /// Its number of ranks.
        found: usize,
        /// Rank 0's.
        world: usize,
    },
    /// A rank that the world does not have.
    #[error("a process says that it is rank {rank}, but a world of {world} has ranks 0 to {}", world.saturating_sub(1))]
    NoSuchRank {
        /// The rank.
        rank: usize,
        /// Ranks of the world.
        world: usize,
    },
    /// A process of another release.
    #[error(
        "rank {rank} is fewsync {found}, but rank 0 is fewsync {version}: start the same release everywhere"
    )]
    Version {
        /// Who differs.
        rank: usize,
        /// Its release and protocol.
        found: String,
        /// Rank 0's.
        version: String,
    },
    /// Rank 0 called the start off.
    #[error("rank {rank} cannot start because rank 0 called it off: {reason}")]
    CalledOff {
        /// Who is told.
        rank: usize,
        /// Rank 0's error.
        reason: String,
    },
    /// A connection failed in the middle of the start.
    #[error("rank {rank} lost its connection to {peer} while starting: {source}")]
    Lost {
        /// Who lost it.
        rank: usize,
        /// To whom.
        peer: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The system lends no socket or thread.
    #[error("rank {rank} cannot get {what}: {source}")]
    System {
        /// Who asked.
        rank: usize,
        /// For what.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// MPI did not start, or not as needed.
    #[error("MPI cannot start the ranks: {reason}")]
    Mpi {
        /// Why.
        reason: String,
    },
}

/// What lets rank 0 listen.
fn what_to_do(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::AddrInUse => {
            "the port is taken, perhaps by another run or a second rank 0; set MASTER_PORT to a free port"
        }
        io::ErrorKind::AddrNotAvailable => {
            "that is no address of its host; set MASTER_ADDR to rank 0's host (for rank 0 alone to 0.0.0.0, if the \
             others reach it by a translated address)"
        }
        io::ErrorKind::PermissionDenied => "set MASTER_PORT to a port from 1024 on",
        _ => "set MASTER_ADDR to a name or an address of rank 0's host",
    }
}
