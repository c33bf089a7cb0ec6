//! Where messages land. Each slot has one writer and one reader; whoever cannot go on is parked.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::words::Words;
use crate::comm::{Element, Header, sequence};

/// One cell: free while its flag is 0, otherwise it holds the message of the call with that flag.
///
/// The writer waits for a free cell before it writes, so that taking a message acknowledges it. With two slots by
/// parity only a phase called alone can ever wait there.
#[derive(Debug, Default)]
pub(super) struct Slot {
    cell: Mutex<Cell>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Cell {
    flag: u32,
    header: Option<Header>,
    payload: Words,
    /// Somebody is parked: only then is a wake-up paid for.
    parked: bool,
}

/// Why a wait ended without what was waited for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The limit passed; the sequence number of the last message that came, 0 for none.
    Late { seen: u64 },
    /// The group failed or the peer left.
    Interrupted,
    /// The message is of another call.
    Unexpected(Header),
}

/// How long to wait, and what ends a wait early.
pub(super) struct Patience<'a> {
    pub(super) limit: Duration,
    pub(super) interrupted: &'a dyn Fn() -> bool,
}

impl Slot {
    /// Leaves a message; returns whether it had to wait for the previous one to be taken.
    pub(super) fn put<T: Element>(
        &self,
        header: &Header,
        payload: &[T],
        patience: &Patience<'_>,
    ) -> Result<bool, Stop> {
        let (mut cell, waited) = self.wait(|cell| cell.flag == 0, patience)?;
        cell.payload.copy_from(payload);
        cell.header = Some(header.clone());
        cell.flag = sequence::flag(header.sequence);
        self.wake(&cell);
        Ok(waited)
    }

    /// Hands the message that `expected` describes to `read`, then frees the cell.
    pub(super) fn take<T: Element>(
        &self,
        expected: &Header,
        patience: &Patience<'_>,
        read: impl FnOnce(&[T]),
    ) -> Result<(), Stop> {
        let (mut cell, _) = self.wait(|cell| cell.flag != 0, patience)?;
        if let Some(found) = cell.header.as_ref().filter(|&found| found != expected) {
            return Err(Stop::Unexpected(found.clone()));
        }
        read(cell.payload.as_slice());
        cell.flag = 0;
        self.wake(&cell);
        Ok(())
    }

    /// Makes a parked rank look again at what interrupts it.
    pub(super) fn nudge(&self) {
        self.wake(&self.lock());
    }

    fn wait(
        &self,
        ready: impl Fn(&Cell) -> bool,
        patience: &Patience<'_>,
    ) -> Result<(MutexGuard<'_, Cell>, bool), Stop> {
        let mut cell = self.lock();
        if ready(&cell) {
            return Ok((cell, false));
        }
        let start = Instant::now();
        loop {
            // The lock is held since the cell was found not ready, and an interruption is raised after the last
            // message and before the nudge: neither can be missed.
            if (patience.interrupted)() {
                return Err(Stop::Interrupted);
            }
            let left = patience.limit.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(Stop::Late { seen: cell.header.as_ref().map_or(0, |header| header.sequence) });
            }
            cell.parked = true;
            (cell, _) = self.changed.wait_timeout(cell, left).unwrap_or_else(PoisonError::into_inner);
            cell.parked = false;
            if ready(&cell) {
                return Ok((cell, true));
            }
        }
    }

    fn wake(&self, cell: &Cell) {
        if cell.parked {
            self.changed.notify_one();
        }
    }

    /// A rank that panicked while it held the lock has failed its group; the cell itself is sound.
    fn lock(&self) -> MutexGuard<'_, Cell> {
        self.cell.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The slots of one buffer: for every rank its slots, each twice.
#[derive(Debug)]
pub(super) struct SlotTable {
    slots: Vec<Slot>,
    per_rank: usize,
}

impl SlotTable {
    pub(super) fn new(world: usize, per_rank: usize) -> Self {
        Self { slots: (0..world * per_rank * 2).map(|_| Slot::default()).collect(), per_rank }
    }

    pub(super) fn slot(&self, rank: usize, slot: usize, parity: usize) -> &Slot {
        &self.slots[(rank * self.per_rank + slot) * 2 + parity]
    }

    pub(super) fn nudge(&self) {
        self.slots.iter().for_each(Slot::nudge);
    }
}
