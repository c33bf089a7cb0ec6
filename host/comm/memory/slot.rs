//! Where messages land. Each slot has one writer and one reader; whoever cannot go on is parked.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::comm::{
    Element, Header,
    cpu::{Countdown, Stop, Words},
    sequence,
};

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
    /// How many are parked: only then is a wake-up paid for. Reader and writer can both be, for one that has been
    /// woken may come to run only after the other has parked.
    parked: usize,
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
        let mut countdown = Countdown::new(Some(patience.limit));
        loop {
            // The lock is held since the cell was found not ready, and an interruption is raised after the last
            // message and before the nudge: neither can be missed.
            if (patience.interrupted)() {
                return Err(Stop::Interrupted);
            }
            if countdown.is_over() {
                return Err(Stop::Late { seen: cell.header.as_ref().map_or(0, |header| header.sequence) });
            }
            cell.parked += 1;
            cell = countdown.park(&self.changed, cell);
            cell.parked -= 1;
            if ready(&cell) {
                return Ok((cell, true));
            }
        }
    }

    fn wake(&self, cell: &Cell) {
        if cell.parked > 0 {
            self.changed.notify_all();
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

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        thread,
        time::Instant,
    };

    use super::*;
    use crate::comm::{Collective, DType};

    fn header(sequence: u64) -> Header {
        Header { sequence, collective: Collective::AllReduce, numel: 1, dtype: DType::F32, range: 0..1 }
    }

    #[test]
    fn a_writer_waits_until_its_last_message_is_taken() {
        let (slot, taken) = (Slot::default(), AtomicBool::new(false));
        let patience = || Patience { limit: Duration::from_secs(60), interrupted: &|| false };
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(50));
                taken.store(true, Ordering::SeqCst);
                slot.take(&header(2), &patience(), |got: &[f32]| assert_eq!(got, [1.0])).unwrap();
            });
            assert_eq!(slot.put(&header(2), &[1.0f32], &patience()), Ok(false));
            assert_eq!(slot.put(&header(4), &[2.0f32], &patience()), Ok(true));
            assert!(taken.load(Ordering::SeqCst));
        });
        slot.take(&header(4), &patience(), |got: &[f32]| assert_eq!(got, [2.0])).unwrap();
    }

    #[test]
    fn no_wake_up_is_lost_when_both_sides_park_in_turn() {
        let slot = Slot::default();
        let patience = || Patience { limit: Duration::from_secs(20), interrupted: &|| false };
        thread::scope(|scope| {
            scope.spawn(|| {
                (2..50_000).for_each(|s| {
                    slot.put(&header(s), &[s as f32], &patience()).unwrap();
                })
            });
            for sequence in 2..50_000 {
                let read = |got: &[f32]| assert_eq!(got, [sequence as f32]);
                slot.take(&header(sequence), &patience(), read).unwrap();
            }
        });
    }

    #[test]
    fn a_message_of_another_call_is_not_read() {
        let slot = Slot::default();
        let patience = Patience { limit: Duration::ZERO, interrupted: &|| false };
        let never = |_: &[f32]| panic!("read a message of another call");
        assert_eq!(slot.take(&header(2), &patience, never), Err(Stop::Late { seen: 0 }));
        slot.put(&header(2), &[1.0f32], &patience).unwrap();
        assert_eq!(slot.take(&header(4), &patience, never), Err(Stop::Unexpected(header(2))));
        assert_eq!(slot.put(&header(4), &[1.0f32], &patience), Err(Stop::Late { seen: 2 }));
    }

    #[test]
    fn an_interruption_ends_a_wait_at_once() {
        let (slot, stop) = (Slot::default(), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(20));
                stop.store(true, Ordering::SeqCst);
                slot.nudge();
            });
            let interrupted = || stop.load(Ordering::SeqCst);
            let patience = Patience { limit: Duration::from_secs(60), interrupted: &interrupted };
            let start = Instant::now();
            assert_eq!(slot.take(&header(2), &patience, |_: &[f32]| ()), Err(Stop::Interrupted));
            assert!(start.elapsed() < Duration::from_secs(30));
        });
    }
}
