//! Messages of collectives: a header, and elements as they lie in memory.
//!
//! Each buffer has an inbox on each rank; its number, which only its owner gives out, addresses it. Messages from one
//! rank stay in order. There is no acknowledgement, and none is needed to bound what waits here: within a phase, who
//! sends also hears from its receiver, so a sender is at most one call of that phase ahead.

use std::{
    collections::VecDeque,
    io::{self, Read},
    sync::Arc,
    time::Duration,
};

use super::shared::{DATA, Shared, Unwritten};
use crate::comm::{
    Collective, DType, Element, Header,
    bootstrap::wire::{Packer, Unpacker, nonsense},
    cpu::{Countdown, Stop, Words},
};

/// Pieces of memory kept for later messages.
const MAX_SPARE: usize = 64;

/// A message that came.
#[derive(Debug)]
pub(super) struct Envelope {
    slot: usize,
    header: Header,
    payload: Words,
}

/// What one peer has sent to an inbox.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: VecDeque<Envelope>,
    /// Sequence number of the last message, 0 for none.
    last: u64,
}

/// Where the messages of one buffer arrive. Dropped, it takes no more.
#[derive(Debug)]
pub(in crate::comm) struct Inbox {
    shared: Arc<Shared>,
    number: u64,
}

impl Inbox {
    pub(super) fn open(shared: &Arc<Shared>) -> Self {
        let mut state = shared.lock();
        let number = state.next_inbox;
        state.next_inbox += 1;
        let empty = (0..shared.hosts.len()).map(|_| Queue::default()).collect();
        state.inboxes.insert(number, empty);
        Self { shared: Arc::clone(shared), number }
    }

    /// What peers address it with.
    pub(in crate::comm) fn number(&self) -> u64 {
        self.number
    }

    /// Sends a message to slot `slot` of `peer`'s inbox `number`.
    pub(in crate::comm) fn send<T: Element>(
        &self,
        (peer, number, slot): (usize, u64, usize),
        header: &Header,
        payload: &[T],
        limit: Duration,
    ) -> Result<(), Unwritten> {
        let head = Packer::default().u8(DATA).u64(number).u64(slot as u64);
        let head = pack_header(head, header).finish();
        self.shared.write(peer, &[&head, bytemuck::cast_slice(payload)], limit)
    }

    /// Waits for the next message from `peer`, which must be the expected one, and hands it to `read`.
    pub(in crate::comm) fn take<T: Element>(
        &self,
        (peer, slot): (usize, usize),
        expected: &Header,
        limit: Duration,
        read: impl FnOnce(&[T]),
    ) -> Result<(), Stop> {
        let mut countdown = Countdown::new(Some(limit));
        let mut state = self.shared.lock();
        let envelope = loop {
            let inbox = state.inboxes.get_mut(&self.number).expect("an inbox stays open until it is dropped");
            if let Some(envelope) = inbox[peer].waiting.pop_front() {
                break envelope;
            }
            let seen = inbox[peer].last;
            if state.gave_up(peer) || state.reports.stop(self.shared.rank) {
                return Err(Stop::Interrupted);
            }
            if countdown.is_over() {
                return Err(Stop::Late { seen });
            }
            state = countdown.park(&self.shared.changed, state);
        };
        drop(state);
        if (envelope.slot, &envelope.header) != (slot, expected) {
            return Err(Stop::Unexpected(envelope.header));
        }
        read(envelope.payload.as_slice());
        let mut state = self.shared.lock();
        if state.spare.len() < MAX_SPARE {
            state.spare.push(envelope.payload);
        }
        Ok(())
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.shared.lock().inboxes.remove(&self.number);
    }
}

impl Shared {
    /// Reads a message of a collective and lays it where it belongs.
    pub(super) fn receive(&self, peer: usize, from: &mut Unpacker<impl Read>) -> io::Result<()> {
        let (number, slot) = (from.u64()?, from.index()?);
        let header = unpack_header(from)?;
        let mut payload = self.lock().spare.pop().unwrap_or_default();
        from.0.read_exact(payload.as_bytes_mut(header.range.len() * header.dtype.size_bytes()))?;
        // An inbox that is gone belonged to a buffer that is gone: nobody waits.
        if let Some(inbox) = self.lock().inboxes.get_mut(&number) {
            inbox[peer].last = header.sequence;
            inbox[peer].waiting.push_back(Envelope { slot, header, payload });
        }
        Ok(())
    }
}

fn pack_header(packer: Packer, header: &Header) -> Packer {
    let Header { sequence, collective, numel, dtype, range } = header;
    let place = |found: Option<usize>| found.expect("the tables are complete") as u8;
    packer
        .u64(*sequence)
        .u8(place(Collective::ALL.iter().position(|known| known == collective)))
        .u8(place(DType::ALL.iter().position(|known| known == dtype)))
        .u64(*numel as u64)
        .u64(range.start as u64)
        .u64(range.end as u64)
}

fn unpack_header(from: &mut Unpacker<impl Read>) -> io::Result<Header> {
    let unknown = || nonsense("a message of unknown form");
    let sequence = from.u64()?;
    let collective = Collective::ALL.get(usize::from(from.u8()?)).copied().ok_or_else(unknown)?;
    let dtype = DType::ALL.get(usize::from(from.u8()?)).copied().ok_or_else(unknown)?;
    let (numel, range) = (from.index()?, from.index()?..from.index()?);
    if range.start > range.end || range.end > numel || numel > isize::MAX as usize / 8 {
        return Err(unknown());
    }
    Ok(Header { sequence, collective, numel, dtype, range })
}
