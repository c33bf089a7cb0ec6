//! Processes that become the ranks of one world: how they find each other, meet, and learn of each other's failure.
//!
//! [`launch`] reads from the environment which rank a process is. [`Mesh`] connects all of them over TCP: each rank to each other one, so that news travels in one hop and a process that dies is noticed by all.

mod error;
mod hosts;
pub mod launch;
mod listen;
mod mesh;
pub mod mpi;
mod rendezvous;
mod report;
#[cfg(test)]
mod tests;
mod wire;

use std::{fmt::Debug, time::Duration};

pub use error::BootstrapError;
pub use hosts::shape_of_hosts;
pub(in crate::comm) use mesh::{Inbox, Unwritten};
pub use mesh::{Listener, Mesh, MeshOptions};
pub use report::{Report, Reports};

use super::CommError;

/// A rank of a world of processes, before and beside any collective: what communicators use to exchange addresses
/// and to agree on what they do, and how a failure is made known.
///
/// Shared between the threads of a process. Meetings of one group are entered by one thread after the other.
pub trait Bootstrap: Debug + Send + Sync {
    /// This process's rank.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn world(&self) -> usize {
        self.hosts().len()
    }

    /// What tells each rank's host from others, by rank; [`shape_of_hosts`] makes a shape of it.
    fn hosts(&self) -> &[String];

    /// Collective over `members` (ranks of the world, in any order, equal on all of them, this one among them): brings
    /// `mine`, and returns what each brought, in the order of `members`. `call` says what is asked for and must be
    /// equal on all. Without a limit the wait is for as long as all ranks live.
    ///
    /// # Errors
    /// [`CommError::Disagreement`] on all that see it, alike; [`CommError::Absent`] names who did not come within the limit;
    /// [`CommError::PeerFailed`] as soon as any rank of the world has failed. The failure of this rank is for the
    /// caller to tell, with [`fail`](Self::fail).
    fn meet(
        &self,
        members: &[usize],
        call: &str,
        mine: &[u8],
        limit: Option<Duration>,
    ) -> Result<Vec<Vec<u8>>, CommError>;

    /// The limit of [`all_gather`](Self::all_gather).
    fn meeting_limit(&self) -> Option<Duration>;

    /// [`meet`](Self::meet) of the whole world, in rank order, within [`meeting_limit`](Self::meeting_limit).
    ///
    /// # Errors
    /// As [`meet`](Self::meet).
    fn all_gather(&self, call: &str, mine: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        let members: Vec<_> = (0..self.world()).collect();
        self.meet(&members, call, mine, self.meeting_limit())
    }

    /// Tells all others, as far as they can be reached, that this rank fails and why; `blames` is the rank whose
    /// silence or failure it follows from. Only a rank's first failure counts.
    fn fail(&self, cause: &str, blames: Option<usize>);

    /// [`fail`](Self::fail) with a communicator's error.
    fn fail_with(&self, error: &CommError) {
        self.fail(&error.to_string(), error.blames());
    }

    /// All failures known of, this rank's own among them.
    fn reports(&self) -> Reports;

    /// The first failure of another rank that this one heard of, and its cause.
    fn failure(&self) -> Option<(usize, String)> {
        let reports = self.reports();
        let others = |(rank, _): &(usize, &Report)| *rank != self.rank();
        reports.first().filter(others).map(|(rank, report)| (rank, report.cause.clone()))
    }
}
