//! Meetings: every member brings something to each other one, and takes what all have brought.

use std::time::Duration;

use super::shared::Shared;
use crate::comm::{CommError, bootstrap::wire::Packer, cpu::Countdown};

impl Shared {
    pub(super) fn meet(
        &self,
        members: &[usize],
        call: &str,
        mine: &[u8],
        limit: Option<Duration>,
    ) -> Result<Vec<Vec<u8>>, CommError> {
        let rank = self.rank;
        let mut state = self.lock();
        let turn = state.turns.entry(members.to_vec()).or_default();
        let key = (members.to_vec(), *turn);
        *turn += 1;
        state.meetings.entry(key.clone()).or_default().insert(rank, (call.to_owned(), mine.to_vec()));
        drop(state);
        let body = Packer::default().numbers(members).u64(key.1).bytes(call.as_bytes()).bytes(mine);
        self.bring(members, &body.finish());

        let mut countdown = Countdown::new(limit);
        let mut state = self.lock();
        let brought = loop {
            let here = &state.meetings[&key];
            let missing: Vec<_> = members.iter().copied().filter(|peer| !here.contains_key(peer)).collect();
            if missing.is_empty() {
                break state.meetings.remove(&key).unwrap_or_default();
            }
            if let Some(failure) = self.failure(&state) {
                return Err(failure);
            }
            if let Some(&peer) = missing.iter().find(|&&peer| state.left[peer]) {
                return Err(CommError::left(rank, peer));
            }
            if countdown.is_over() {
                let (call, waited) = (call.to_owned(), limit.unwrap_or_default());
                return Err(CommError::Absent { rank, call, missing, waited });
            }
            state = countdown.park(&self.changed, state);
        };
        let (&first, (first_call, _)) = brought.first_key_value().expect("this rank has brought something");
        if let Some((&other, (other_call, _))) = brought.iter().find(|(_, (call, _))| call != first_call) {
            let (call, other_call) = (first_call.clone(), other_call.clone());
            return Err(CommError::Disagreement { rank: first, call, other, other_call });
        }
        Ok(members.iter().map(|peer| brought[peer].1.clone()).collect())
    }
}
