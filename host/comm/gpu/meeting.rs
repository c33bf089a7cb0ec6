//! Where the ranks of a group meet on the host: each brings something, and takes what all have brought.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::comm::CommError;
use crate::comm::cpu::Countdown;

/// One meeting after the other, each of all ranks.
#[derive(Debug)]
pub(super) struct Meeting<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    /// The ranks in the world.
    members: Vec<usize>,
    limit: Option<Duration>,
}

#[derive(Debug)]
struct State<T> {
    /// Number of the meeting that is gathering.
    turn: u64,
    brought: Vec<Option<(String, T)>>,
    /// What the previous meeting came to.
    outcome: Option<Result<Arc<[T]>, CommError>>,
    /// Ranks that are gone.
    left: Vec<bool>,
    /// The first failure, which is every later meeting's: ranks that did not meet are in different calls.
    failed: Option<CommError>,
}

impl<T> Meeting<T> {
    pub(super) fn new(members: Vec<usize>, limit: Option<Duration>) -> Self {
        let none = members.iter().map(|_| None).collect();
        let left = vec![false; members.len()];
        let state = State { turn: 0, brought: none, outcome: None, left, failed: None };
        Self { state: Mutex::new(state), changed: Condvar::new(), members, limit }
    }

    /// Brings `item` to the next meeting and returns what each rank brought, in rank order. `call` says what the
    /// rank is asking for; all must ask for the same.
    ///
    /// # Errors
    /// `Disagreement`, `Absent`, or `PeerFailed` if a rank has left; from then on always.
    pub(super) fn exchange(&self, rank: usize, call: String, item: T) -> Result<Arc<[T]>, CommError> {
        let mut state = self.lock();
        if let Some(error) = &state.failed {
            return Err(error.clone());
        }
        let turn = state.turn;
        state.brought[rank] = Some((call.clone(), item));
        if state.brought.iter().all(Option::is_some) {
            self.conclude(&mut state);
        }
        let mut countdown = Countdown::new(self.limit);
        while state.turn == turn {
            if let Some(error) = &state.failed {
                return Err(error.clone());
            }
            let missing = |state: &State<T>| {
                (0..self.members.len()).filter(|&r| state.brought[r].is_none()).collect::<Vec<_>>()
            };
            if let Some(&gone) = missing(&state).iter().find(|&&peer| state.left[peer]) {
                let (rank, peer) = (self.members[rank], self.members[gone]);
                let cause = "it left the group while others waited for it".to_owned();
                return Err(self.fail(&mut state, CommError::PeerFailed { rank, peer, cause }));
            }
            if countdown.is_over() {
                let missing = missing(&state).into_iter().map(|peer| self.members[peer]).collect();
                let waited = self.limit.unwrap_or_default();
                let absent = CommError::Absent { rank: self.members[rank], call, missing, waited };
                return Err(self.fail(&mut state, absent));
            }
            state = countdown.park(&self.changed, state);
        }
        state.outcome.clone().expect("a concluded meeting has an outcome")
    }

    fn fail(&self, state: &mut State<T>, error: CommError) -> CommError {
        state.failed = Some(error.clone());
        self.changed.notify_all();
        error
    }

    /// From here on nobody waits for this rank.
    pub(super) fn leave(&self, rank: usize) {
        self.lock().left[rank] = true;
        self.changed.notify_all();
    }

    /// Nobody enters the next meeting before it has taken this one's outcome: it would have to pass through
    /// `exchange` again, and that meeting cannot conclude without it.
    fn conclude(&self, state: &mut State<T>) {
        let brought: Vec<_> = state.brought.iter_mut().filter_map(Option::take).collect();
        let other = brought.iter().position(|(call, _)| *call != brought[0].0);
        state.outcome = Some(match other {
            Some(other) => Err(self.fail(
                state,
                CommError::Disagreement {
                    rank: self.members[0],
                    call: brought[0].0.clone(),
                    other: self.members[other],
                    other_call: brought[other].0.clone(),
                },
            )),
            None => Ok(brought.into_iter().map(|(_, item)| item).collect()),
        });
        state.turn += 1;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meeting(limit_ms: u64) -> Meeting<usize> {
        Meeting::new(vec![0, 2, 4], Some(Duration::from_millis(limit_ms)))
    }

    #[test]
    fn everybody_gets_everything_again_and_again() {
        let meeting = meeting(60_000);
        std::thread::scope(|scope| {
            for rank in 0..3 {
                let meeting = &meeting;
                scope.spawn(move || {
                    for round in 0..1000 {
                        let all = meeting.exchange(rank, "go".into(), 10 * round + rank).unwrap();
                        assert_eq!(*all, [10 * round, 10 * round + 1, 10 * round + 2]);
                    }
                });
            }
        });
    }

    #[test]
    fn a_meeting_that_failed_is_over_for_who_comes_late() {
        let meeting = meeting(20);
        let first = meeting.exchange(0, "a".into(), 0).unwrap_err();
        assert_eq!(meeting.exchange(1, "a".into(), 1).unwrap_err().to_string(), first.to_string());
        assert_eq!(meeting.exchange(2, "a".into(), 2).unwrap_err().to_string(), first.to_string());
    }

    #[test]
    fn other_requests_absence_and_leaving_are_named() {
        let run = |calls: [Option<&str>; 3], limit_ms| {
            let meeting = meeting(limit_ms);
            std::thread::scope(|scope| {
                let ranks: Vec<_> = calls.into_iter().enumerate().collect();
                let threads: Vec<_> = ranks
                    .into_iter()
                    .filter_map(|(rank, call)| {
                        let (meeting, call) = (&meeting, call?.to_owned());
                        Some(scope.spawn(move || meeting.exchange(rank, call, rank).unwrap_err().to_string()))
                    })
                    .collect();
                threads.into_iter().map(|t| t.join().unwrap()).collect::<Vec<_>>()
            })
        };
        for error in run([Some("a"), Some("b"), Some("a")], 60_000) {
            assert!(error.starts_with("rank 0 calls a, but rank 2 calls b"), "{error}");
        }
        for error in run([Some("a"), None, Some("a")], 20) {
            assert!(error.contains("in a, but rank 2 did not come"), "{error}");
        }
        let meeting = meeting(60_000);
        meeting.leave(1);
        let error = meeting.exchange(0, "a".into(), 0).unwrap_err().to_string();
        assert!(error.starts_with("rank 0 cannot go on because rank 2 failed"), "{error}");
    }
}
