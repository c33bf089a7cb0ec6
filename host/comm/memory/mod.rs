//! Ranks that are threads of one process, exchanging through its memory.
//!
//! A message is copied into the peer's slot with its header, and taken from there; the freed slot is the
//! acknowledgement.

mod group;
mod meeting;
mod slot;
#[cfg(test)]
mod tests;

use std::{
    cell::Cell,
    sync::{Arc, Weak},
};

use group::Group;
use meeting::{Outcome, Proposal};
use slot::{Patience, SlotTable};

pub use super::cpu::{Options, Transfer};
use super::{
    CommError, Element, Header, Shape,
    cpu::{CpuBuffer, CpuComm, Link, Place, Stop},
};

/// A rank of a group of threads.
///
/// Dropping it leaves the group: who then still waits for this rank gets [`CommError::PeerFailed`] at once, and
/// if the drop is part of a panic, so does every rank of the world.
pub type MemoryComm = CpuComm<Member>;

/// Symmetric memory of a [`MemoryComm`].
pub type MemoryBuffer = CpuBuffer<Member>;

/// One communicator per rank, in rank order; each goes to the thread that is to be that rank.
pub fn group(shape: Shape, options: Options) -> Vec<MemoryComm> {
    let world = shape.world();
    let group = Group::new(shape, (0..world).collect(), options, Arc::default());
    (0..world).map(|rank| CpuComm::new(Member::new(Arc::clone(&group), rank))).collect()
}

/// One thread's place in a group.
#[derive(Debug)]
pub struct Member {
    group: Arc<Group>,
    rank: usize,
    meetings: Cell<u64>,
}

/// The slots of a buffer, and whose view of them this is.
#[derive(Debug)]
pub struct Slots {
    table: Arc<SlotTable>,
    owner: Weak<Group>,
    rank: usize,
}

impl Member {
    fn new(group: Arc<Group>, rank: usize) -> Self {
        Self { group, rank, meetings: Cell::default() }
    }

    fn meet(&self, proposal: Proposal) -> Result<Outcome, CommError> {
        let turn = self.meetings.replace(self.meetings.get() + 1);
        match self.group.meet(self.rank, turn, proposal)? {
            Outcome::Refused(error) => Err(error),
            outcome => Ok(outcome),
        }
    }

    fn patiently<R>(&self, peer: usize, wait: impl FnOnce(&Patience<'_>) -> R) -> R {
        let interrupted = || self.group.family.failure().is_some() || self.group.has_left(peer);
        wait(&Patience { limit: self.group.options.timeout, interrupted: &interrupted })
    }
}

impl Link for Member {
    type Slots = Slots;

    fn shape(&self) -> Shape {
        self.group.shape
    }

    fn rank(&self) -> usize {
        self.rank
    }

    fn world_rank(&self, rank: usize) -> usize {
        self.group.world_rank(rank)
    }

    fn options(&self) -> &Options {
        &self.group.options
    }

    fn register(&self, bytes: usize) -> Result<Slots, CommError> {
        match self.meet(Proposal::Register { bytes })? {
            Outcome::Registered(table) => {
                Ok(Slots { table, owner: Arc::downgrade(&self.group), rank: self.rank })
            }
            outcome => unreachable!("ranks agreed to register, not on {outcome:?}"),
        }
    }

    fn split(&self, colour: usize, key: usize) -> Result<Self, CommError> {
        match self.meet(Proposal::Split { colour, key })? {
            Outcome::Split(places) => {
                let (group, rank) = &places[self.rank];
                Ok(Self::new(Arc::clone(group), *rank))
            }
            outcome => unreachable!("ranks agreed to split, not on {outcome:?}"),
        }
    }

    fn owns(&self, slots: &Slots) -> bool {
        slots.rank == self.rank && std::ptr::eq(slots.owner.as_ptr(), Arc::as_ptr(&self.group))
    }

    fn put<T: Element>(
        &self,
        slots: &Slots,
        to: Place,
        header: &Header,
        payload: &[T],
    ) -> Result<bool, Stop> {
        let slot = slots.table.slot(to.peer, to.slot, to.parity);
        self.patiently(to.peer, |patience| slot.put(header, payload, patience))
    }

    fn take<T: Element>(
        &self,
        slots: &Slots,
        from: Place,
        expected: &Header,
        read: impl FnOnce(&[T]),
    ) -> Result<(), Stop> {
        let slot = slots.table.slot(self.rank, from.slot, from.parity);
        self.patiently(from.peer, |patience| slot.take(expected, patience, read))
    }

    fn fail(&self, error: &CommError) {
        self.group.family.fail(self.group.world_rank(self.rank), error.to_string());
    }

    fn failure(&self) -> Option<CommError> {
        self.group.failure(self.rank)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.group.family.fail(self.group.world_rank(self.rank), "its thread panicked".to_owned());
        }
        self.group.leave(self.rank);
    }
}
