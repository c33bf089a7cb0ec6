//! Threads that stand in for processes, one at a time: each runs from one meeting to the next, in rank order, so that
//! what they do to a machine is the same in every run.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fewsync::comm::CommError;
use fewsync::comm::bootstrap::{Bootstrap, Reports};

/// What all ranks share.
#[derive(Debug)]
struct Table {
    state: Mutex<State>,
    changed: Condvar,
    hosts: Vec<String>,
}

#[derive(Debug, Default)]
struct State {
    /// Whose turn it is.
    turn: usize,
    /// Who takes turns.
    present: Vec<bool>,
    /// What the ranks have brought to the meeting that is to come.
    brought: Vec<Option<Vec<u8>>>,
    /// What they brought to the last one.
    last: Vec<Vec<u8>>,
    /// Who failed first, and why.
    failed: Option<(usize, String)>,
}

/// One rank's chair at the table.
#[derive(Debug)]
pub(crate) struct Chair {
    table: Arc<Table>,
    rank: usize,
}

impl Chair {
    /// All chairs of a table.
    pub(crate) fn all(world: usize) -> Vec<Arc<Self>> {
        let (brought, present) = (vec![None; world], vec![false; world]);
        let state = State { brought, present, ..State::default() };
        let hosts = (0..world).map(|rank| format!("host {rank}")).collect();
        let table = Arc::new(Table { state: Mutex::new(state), changed: Condvar::new(), hosts });
        (0..world).map(|rank| Arc::new(Self { table: Arc::clone(&table), rank })).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.table.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All ranks take turns from now on, the first one first.
    pub(crate) fn open(&self) {
        let mut state = self.lock();
        (state.turn, state.present) = (0, vec![true; self.world()]);
    }

    /// Waits for the rank's turn.
    pub(crate) fn sit_down(&self) {
        let mut state = self.lock();
        while state.turn != self.rank {
            state = self.table.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The rank does no more for now; its thread ends.
    pub(crate) fn leave(&self) {
        let mut state = self.lock();
        state.present[self.rank] = false;
        self.hand_on(&mut state);
    }

    fn check(&self) -> Result<(), CommError> {
        let failed = self.lock().failed.clone();
        failed.map_or(Ok(()), |(peer, cause)| Err(CommError::PeerFailed { rank: self.rank, peer, cause }))
    }

    /// The turn goes to the next rank; after the last one, to the first.
    fn hand_on(&self, state: &mut State) {
        let ranks = (self.rank + 1..self.world()).chain(0..=self.rank);
        state.turn = ranks.into_iter().find(|&rank| state.present[rank]).unwrap_or_default();
        self.table.changed.notify_all();
    }
}

impl Bootstrap for Chair {
    fn rank(&self) -> usize {
        self.rank
    }

    fn hosts(&self) -> &[String] {
        &self.table.hosts
    }

    fn meet(
        &self,
        members: &[usize],
        call: &str,
        mine: &[u8],
        _: Option<Duration>,
    ) -> Result<Vec<Vec<u8>>, CommError> {
        assert_eq!(members.len(), self.world(), "{call}: all ranks meet");
        self.check()?;
        let mut state = self.lock();
        state.brought[self.rank] = Some(mine.to_vec());
        // The last one who takes turns completes the meeting.
        if !state.present[self.rank + 1..].contains(&true) {
            let brought = state.brought.iter_mut().map(Option::take).collect();
            match brought {
                Some(brought) => state.last = brought,
                None => state.failed = Some((self.rank, format!("{call}: a rank has not come"))),
            }
        }
        self.hand_on(&mut state);
        drop(state);
        self.sit_down();
        self.check()?;
        Ok(members.iter().map(|&member| self.lock().last[member].clone()).collect())
    }

    fn meeting_limit(&self) -> Option<Duration> {
        None
    }

    fn fail(&self, cause: &str, _: Option<usize>) {
        self.lock().failed.get_or_insert_with(|| (self.rank, cause.to_owned()));
    }

    fn failure(&self) -> Option<(usize, String)> {
        self.lock().failed.clone().filter(|(rank, _)| *rank != self.rank)
    }

    fn reports(&self) -> Reports {
        Reports::default()
    }
}
