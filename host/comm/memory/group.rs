//! What the ranks of one group share: their meetings, their failure, and whom to wake then.

use std::sync::{
    Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
    atomic::{AtomicBool, Ordering},
};

use super::{
    meeting::{Meeting, Outcome, Proposal},
    slot::SlotTable,
};
use crate::comm::{
    CommError, Shape,
    cpu::{Countdown, Options},
    schedule,
};

/// The first failure of a rank, by its number in the world.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) rank: usize,
    pub(super) cause: String,
}

/// A world and all groups split from it: one failure ends them all, for the rank that failed may be awaited in
/// any of them.
#[derive(Debug, Default)]
pub(super) struct Family {
    failure: OnceLock<Failure>,
    groups: Mutex<Vec<Weak<Group>>>,
}

/// One communicator as all of its ranks see it.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) shape: Shape,
    pub(super) options: Options,
    pub(super) family: Arc<Family>,
    /// The number in the world of each rank.
    members: Vec<usize>,
    left: Vec<AtomicBool>,
    meeting: Mutex<Meeting>,
    met: Condvar,
    tables: Mutex<Vec<Weak<SlotTable>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Family {
    pub(super) fn failure(&self) -> Option<&Failure> {
        self.failure.get()
    }

    /// Records the failure of world rank `rank`, unless there is an earlier one, and wakes everybody.
    pub(super) fn fail(&self, rank: usize, cause: String) {
        if self.failure.set(Failure { rank, cause }).is_ok() {
            // Upgraded first: dropping a group's last handle under this lock is then harmless.
            let groups: Vec<_> = lock(&self.groups).iter().filter_map(Weak::upgrade).collect();
            groups.iter().for_each(|group| group.nudge());
        }
    }
}

impl Group {
    pub(super) fn new(shape: Shape, members: Vec<usize>, options: Options, family: Arc<Family>) -> Arc<Self> {
        let group = Arc::new(Self {
            shape,
            options,
            left: members.iter().map(|_| AtomicBool::new(false)).collect(),
            meeting: Mutex::new(Meeting::new(members.len())),
            met: Condvar::new(),
            tables: Mutex::default(),
            members,
            family,
        });
        let mut groups = lock(&group.family.groups);
        groups.retain(|known| known.strong_count() > 0);
        groups.push(Arc::downgrade(&group));
        drop(groups);
        group
    }

    pub(super) fn world_rank(&self, rank: usize) -> usize {
        self.members[rank]
    }

    pub(super) fn has_left(&self, rank: usize) -> bool {
        self.left[rank].load(Ordering::Acquire)
    }

    /// From here on nobody waits for a message that `rank` has not yet sent.
    pub(super) fn leave(&self, rank: usize) {
        self.left[rank].store(true, Ordering::Release);
        self.nudge();
    }

    /// The failure of a rank, as the error of `rank`.
    pub(super) fn failure(&self, rank: usize) -> Option<CommError> {
        let failure = self.family.failure()?;
        let (rank, peer) = (self.world_rank(rank), failure.rank);
        Some(CommError::PeerFailed { rank, peer, cause: failure.cause.clone() })
    }

    /// Makes the `turn`-th collective request of `rank` and waits for everybody's.
    pub(super) fn meet(&self, rank: usize, turn: u64, proposal: Proposal) -> Result<Outcome, CommError> {
        let call = proposal.to_string();
        // Who was in the previous meeting is only on its way out.
        let mut meeting =
            self.wait_meeting(rank, &call, lock(&self.meeting), |meeting| meeting.turn() == turn)?;
        if meeting.propose(rank, proposal) {
            let outcome = meeting.conclude(self);
            if let Some(table) = outcome.table() {
                let mut tables = lock(&self.tables);
                tables.retain(|known| known.strong_count() > 0);
                tables.push(Arc::downgrade(table));
            }
            self.met.notify_all();
        }
        let mut meeting = self.wait_meeting(rank, &call, meeting, Meeting::is_concluded)?;
        let outcome = meeting.depart();
        if meeting.turn() != turn {
            self.met.notify_all();
        }
        Ok(outcome)
    }

    pub(super) fn new_table(&self) -> Arc<SlotTable> {
        Arc::new(SlotTable::new(self.members.len(), schedule::slots_per_rank(self.shape)))
    }

    fn wait_meeting<'a>(
        &self,
        rank: usize,
        call: &str,
        mut meeting: MutexGuard<'a, Meeting>,
        ready: impl Fn(&Meeting) -> bool,
    ) -> Result<MutexGuard<'a, Meeting>, CommError> {
        let limit = self.options.meeting_timeout;
        let mut countdown = Countdown::new(limit);
        while !ready(&meeting) {
            let missing = meeting.missing();
            let left_out = missing.iter().copied().find(|&peer| peer != rank && self.has_left(peer));
            if let Some(failure) = self.failure(rank) {
                return Err(failure);
            }
            if let Some(peer) = left_out {
                return Err(CommError::left(self.world_rank(rank), self.world_rank(peer)));
            }
            if countdown.is_over() {
                return Err(CommError::Absent {
                    rank: self.world_rank(rank),
                    call: call.to_owned(),
                    missing: missing.iter().map(|&peer| self.world_rank(peer)).collect(),
                    waited: limit.unwrap_or_default(),
                });
            }
            meeting = countdown.park(&self.met, meeting);
        }
        Ok(meeting)
    }

    fn nudge(&self) {
        let meeting = lock(&self.meeting);
        self.met.notify_all();
        drop(meeting);
        let tables: Vec<_> = lock(&self.tables).iter().filter_map(Weak::upgrade).collect();
        tables.iter().for_each(|table| table.nudge());
    }
}
