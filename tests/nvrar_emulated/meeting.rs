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
    /// What the ranks have brought to the meeting that is to come, and whether they have left for good.
    brought: Vec<Option<Vec<u8>>>,
    gone: Vec<bool>,
    /// What they brought to the last one.
    last: Vec<Vec<u8>>,
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
        let state = State { brought: vec![None; world], gone: vec![false; world], ..State::default() };
        let hosts = (0..world).map(|rank| format!("host {rank}")).collect();
        let table = Arc::new(Table { state: Mutex::new(state), changed: Condvar::new(), hosts });
        (0..world).map(|rank| Arc::new(Self { table: Arc::clone(&table), rank })).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.table.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the rank's turn.
    pub(crate) fn sit_down(&self) {
        let mut state = self.lock();
        state.gone[self.rank] = false;
        while state.turn != self.rank {
            state = self.table.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The rank does no more for now; its thread ends.
    pub(crate) fn leave(&self) {
        let mut state = self.lock();
        state.gone[self.rank] = true;
        self.hand_on(&mut state);
    }

    /// The turn goes to the next rank; after the last one, to the first.
    fn hand_on(&self, state: &mut State) {
        state.turn = (self.rank + 1) % state.brought.len();
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
        let mut state = self.lock();
        state.brought[self.rank] = Some(mine.to_vec());
        if self.rank + 1 == self.world() {
            let brought: Option<Vec<_>> = state.brought.iter_mut().map(Option::take).collect();
            state.last = brought.unwrap_or_else(|| panic!("{call}: a rank has not come"));
        }
        self.hand_on(&mut state);
        drop(state);
        self.sit_down();
        Ok(members.iter().map(|&member| self.lock().last[member].clone()).collect())
    }

    fn meeting_limit(&self) -> Option<Duration> {
        None
    }

    fn fail(&self, _: &str, _: Option<usize>) {}

    fn reports(&self) -> Reports {
        Reports::default()
    }
}
