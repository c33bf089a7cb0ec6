//! What a CPU rank needs of the others, whatever carries it to them.

use std::fmt::Debug;

use super::Options;
use crate::comm::{CommError, Element, Header, Shape};

/// How one rank's messages reach its peers, how its group meets, and what is known of failures. Ranks are those of the
/// group, except where an error names them.
pub trait Link: Debug + Sized {
    /// Where the messages of one buffer land.
    type Slots: Debug;

    /// The group's shape.
    fn shape(&self) -> Shape;

    /// This rank.
    fn rank(&self) -> usize;

    /// The number in the world of a rank.
    fn world_rank(&self, rank: usize) -> usize;

    /// How the group behaves.
    fn options(&self) -> &Options;

    /// Collective: slots for a buffer of `bytes`.
    ///
    /// # Errors
    /// As [`Communicator::register`](crate::comm::Communicator::register).
    fn register(&self, bytes: usize) -> Result<Self::Slots, CommError>;

    /// Collective: the group of the ranks with this colour, ordered by key.
    ///
    /// # Errors
    /// As [`Communicator::split`](crate::comm::Communicator::split).
    fn split(&self, colour: usize, key: usize) -> Result<Self, CommError>;

    /// Whether the slots were registered by this rank with this group.
    fn owns(&self, slots: &Self::Slots) -> bool;

    /// Sends a message; returns whether it had to wait for an earlier one to be taken.
    ///
    /// # Errors
    /// Why it was not sent.
    fn put<T: Element>(
        &self,
        slots: &Self::Slots,
        to: Place,
        header: &Header,
        payload: &[T],
    ) -> Result<bool, Stop>;

    /// Waits for the message that `expected` describes, and hands it to `read`.
    ///
    /// # Errors
    /// Why it was not taken.
    fn take<T: Element>(
        &self,
        slots: &Self::Slots,
        from: Place,
        expected: &Header,
        read: impl FnOnce(&[T]),
    ) -> Result<(), Stop>;

    /// Tells all others that this rank fails.
    fn fail(&self, error: &CommError);

    /// The failure of a rank, as this one's error.
    fn failure(&self) -> Option<CommError>;

    /// The error of this rank, interrupted while it waited for `peer`.
    fn interruption(&self, peer: usize) -> CommError {
        let left = || CommError::left(self.world_rank(self.rank()), self.world_rank(peer));
        self.failure().unwrap_or_else(left)
    }
}

/// Which of a peer's messages: those of one slot and parity follow each other.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Who is at the other end.
    pub peer: usize,
    /// The receiver's slot.
    pub slot: usize,
    /// The slot's copy.
    pub parity: usize,
}

/// Why a wait ended without what was waited for.
#[derive(Debug, PartialEq, Eq)]
pub enum Stop {
    /// The limit passed.
    Late {
        /// The sequence number of the last message that came, 0 for none.
        seen: u64,
    },
    /// The group failed or the peer left.
    Interrupted,
    /// The message is of another call.
    Unexpected(Header),
}
