//! Ranks that are processes, exchanging over the sockets of a [`Mesh`].
//!
//! A message goes to its receiver's inbox for the buffer; the receiver compares its header with the call that it is
//! in before anything is summed. Sums are those of [`memory`](super::memory), bit for bit. Neither side waits for the
//! other to be ready: what arrives is read into memory at once (see [`Mesh`]).

mod lead;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use lead::Lead;

pub use super::cpu::{Options, Transfer};
use super::{
    CommError, Element, Header, Shape,
    bootstrap::{Bootstrap, Inbox, Mesh, Unwritten},
    cpu::{CpuBuffer, CpuComm, Link, Place, Stop},
    topology::same_colour,
};

/// A rank of a group of processes.
///
/// When its process ends, or its [`Mesh`] is dropped, who waits for it gets [`CommError::PeerFailed`]. A rank that only
/// drops a group split from the world is missed when the limit is over.
pub type ProcessComm = CpuComm<Member>;

/// Symmetric memory of a [`ProcessComm`].
pub type ProcessBuffer = CpuBuffer<Member>;

/// Collective: this process's rank of the whole world, laid out as `shape`.
///
/// # Errors
/// [`CommError::WrongWorld`]; [`CommError::Disagreement`] where another process has another shape or other options;
/// [`CommError::Absent`], [`CommError::PeerFailed`].
pub fn world(mesh: Arc<Mesh>, shape: Shape, options: Options) -> Result<ProcessComm, CommError> {
    let processes = mesh.world();
    if shape.world() != processes {
        return Err(CommError::WrongWorld { shape, processes });
    }
    let Options { granule, first_sequence, .. } = options;
    let call = format!("world({shape}, granule {granule}, first sequence {first_sequence})");
    let rank = mesh.rank();
    let member =
        Member { mesh, group: Arc::new(Group { members: (0..processes).collect(), shape }), rank, options };
    match member.meet(&call, &[]) {
        Ok(_) => Ok(CpuComm::new(member)),
        Err(error) => {
            member.fail(&error);
            Err(error)
        }
    }
}

/// One process's place in a group.
#[derive(Debug)]
pub struct Member {
    mesh: Arc<Mesh>,
    group: Arc<Group>,
    rank: usize,
    options: Options,
}

#[derive(Debug)]
struct Group {
    /// The number in the world of each rank.
    members: Vec<usize>,
    shape: Shape,
}

/// This rank's inbox for a buffer, and the numbers of its peers'.
#[derive(Debug)]
pub struct Slots {
    inbox: Inbox,
    numbers: Vec<u64>,
    owner: Arc<Group>,
}

impl Member {
    fn meet(&self, call: &str, mine: &[u64]) -> Result<Vec<Vec<u64>>, CommError> {
        let mine: Vec<u8> = mine.iter().flat_map(|number| number.to_le_bytes()).collect();
        let all = self.mesh.meet(&self.group.members, call, &mine, self.options.meeting_timeout)?;
        let number = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
        Ok(all.iter().map(|item| item.chunks_exact(size_of::<u64>()).map(number).collect()).collect())
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
        self.group.members[rank]
    }

    fn options(&self) -> &Options {
        &self.options
    }

    fn register(&self, bytes: usize) -> Result<Slots, CommError> {
        // Open before its number is known to anybody.
        let inbox = self.mesh.inbox();
        let numbers = self.meet(&format!("register({bytes} bytes)"), &[inbox.number()])?;
        let numbers = numbers.iter().map(|item| item[0]).collect();
        Ok(Slots { inbox, numbers, owner: Arc::clone(&self.group) })
    }

    fn split(&self, colour: usize, key: usize) -> Result<Self, CommError> {
        let wishes = self.meet("split", &[colour as u64, key as u64])?;
        let wishes: Vec<_> = wishes.iter().map(|wish| (wish[0] as usize, wish[1] as usize)).collect();
        let ranks = same_colour(&wishes, self.rank);
        let members = ranks.iter().map(|&rank| self.world_rank(rank)).collect();
        let group = Arc::new(Group { members, shape: self.group.shape.subgroup(&ranks) });
        let rank = ranks.iter().position(|&rank| rank == self.rank).expect("a rank has its own colour");
        Ok(Self { mesh: Arc::clone(&self.mesh), group, rank, options: self.options.clone() })
    }

    fn owns(&self, slots: &Slots) -> bool {
        Arc::ptr_eq(&slots.owner, &self.group)
    }

    fn put<T: Element>(
        &self,
        slots: &Slots,
        to: Place,
        header: &Header,
        payload: &[T],
    ) -> Result<bool, Stop> {
        let address = (self.world_rank(to.peer), slots.numbers[to.peer], to.slot);
        match slots.inbox.send(address, header, payload, self.options.timeout) {
            Ok(()) => Ok(false),
            Err(Unwritten::Failed) => Err(Stop::Interrupted),
            Err(Unwritten::Late) => Err(Stop::Late { seen: 0 }),
        }
    }

    fn take<T: Element>(
        &self,
        slots: &Slots,
        from: Place,
        expected: &Header,
        read: impl FnOnce(&[T]),
    ) -> Result<(), Stop> {
        slots.inbox.take((self.world_rank(from.peer), from.slot), expected, self.options.timeout, read)
    }

    fn fail(&self, error: &CommError) {
        self.mesh.fail_with(error);
    }

    fn failure(&self) -> Option<CommError> {
        self.mesh.peer_failure()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.mesh.fail("its thread panicked", None);
        }
    }
}
