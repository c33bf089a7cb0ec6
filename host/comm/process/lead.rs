//! Decisions that one rank makes for all, such as to stop at Ctrl-C: the others follow at the same step.

use std::{sync::Arc, time::Duration};

use crate::comm::{
    Collective, CommError, DType, Header, Phase,
    bootstrap::{Bootstrap, Inbox, Mesh, Unwritten},
    cpu::Stop,
};

/// Rank 0's yes or no, step by step.
///
/// What it says at one step counts at the next one, on all ranks: by then the word is there, and nobody waits for it.
#[derive(Debug)]
pub struct Lead {
    mesh: Arc<Mesh>,
    inbox: Inbox,
    numbers: Vec<u64>,
    limit: Duration,
    step: u64,
    /// What rank 0 said last.
    said: bool,
}

impl Lead {
    /// Collective over the world; `limit` is the longest wait for a word.
    ///
    /// # Errors
    /// As [`Bootstrap::meet`].
    pub fn new(mesh: &Arc<Mesh>, limit: Duration) -> Result<Self, CommError> {
        let inbox = mesh.inbox();
        let numbers = mesh.all_gather("lead", &inbox.number().to_le_bytes())?;
        let number = |item: &Vec<u8>| item.as_slice().try_into().map_or(0, u64::from_le_bytes);
        let numbers = numbers.iter().map(number).collect();
        Ok(Self { mesh: Arc::clone(mesh), inbox, numbers, limit, step: 0, said: false })
    }

    /// Rank 0 says `word`; all get what it said at the step before, at first no.
    ///
    /// # Errors
    /// [`CommError::PeerFailed`], [`CommError::Timeout`].
    pub fn follow(&mut self, word: bool) -> Result<bool, CommError> {
        let (step, before) = (self.step, self.said);
        self.step += 1;
        let header = |sequence| {
            let (collective, dtype) = (Collective::AllGather, DType::F32);
            Header { sequence, collective, numel: 1, dtype, range: 0..1 }
        };
        if self.mesh.rank() == 0 {
            self.said = word;
            for peer in 1..self.mesh.world() {
                let (to, word) = ((peer, self.numbers[peer], 0), [f32::from(u8::from(word))]);
                self.inbox.send(to, &header(step), &word, self.limit).map_err(|why| match why {
                    Unwritten::Late => self.late(peer, step, 0),
                    Unwritten::Failed => self.interruption(peer),
                })?;
            }
            return Ok(before);
        }
        let Some(last) = step.checked_sub(1) else { return Ok(false) };
        let mut said = false;
        let taken = self.inbox.take((0, 0), &header(last), self.limit, |word: &[f32]| said = word[0] != 0.0);
        taken.map_err(|why| match why {
            Stop::Late { seen } => self.late(0, last, seen),
            Stop::Interrupted | Stop::Unexpected(_) => self.interruption(0),
        })?;
        Ok(said)
    }

    fn late(&self, peer: usize, expected: u64, seen: u64) -> CommError {
        let (rank, waited) = (self.mesh.rank(), self.limit);
        CommError::Timeout { rank, peer, phase: Phase::Broadcast, step: 0, expected, seen, waited }
    }

    fn interruption(&self, peer: usize) -> CommError {
        self.mesh.peer_failure().unwrap_or_else(|| CommError::left(self.mesh.rank(), peer))
    }
}
