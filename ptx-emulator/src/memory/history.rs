//! The stores to one granule (8 aligned bytes) that still matter: to readers that may see an older one, and to
//! readers that synchronise through one.

use super::causality::Release;
use super::view::View;
use super::{Scope, Thread};

/// Observers of one store that are told apart; with more, it counts as observed by everybody.
const MAX_OBSERVERS: usize = 48;

/// Who read some bytes of a store, and when by its clock.
#[derive(Debug, Clone, Copy)]
struct Observer {
    who: Thread,
    clock: u32,
    mask: u8,
}

/// One store.
#[derive(Debug, Clone)]
pub(super) struct Message {
    /// The bytes stored, one bit each.
    pub(super) mask: u8,
    /// Their values, in place.
    pub(super) value: u64,
    pub(super) by: Thread,
    pub(super) clock: u32,
    /// Of a strong store.
    pub(super) scope: Option<Scope>,
    /// Nothing may come between it and the store before it.
    pub(super) atomic: bool,
    /// When everybody sees it, in ticks.
    pub(super) visible_at: u64,
    pub(super) releases: Vec<Release>,
    observers: Vec<Observer>,
    /// There were more observers than are told apart.
    is_crowded: bool,
    /// Everybody sees it, or something newer.
    settled: bool,
}

impl Message {
    pub(super) fn new(mask: u8, value: u64, by: Thread, clock: u32) -> Self {
        Self {
            mask,
            value,
            by,
            clock,
            scope: None,
            atomic: false,
            visible_at: 0,
            releases: Vec::new(),
            observers: Vec::new(),
            is_crowded: false,
            settled: false,
        }
    }

    /// A thread read bytes of it, which whoever knows of that read has to respect.
    pub(super) fn observed(&mut self, mask: u8, by: &View<'_>) {
        if self.is_crowded || self.by == by.thread {
            return;
        }
        // Whoever knows of a later read of the same bytes knows of the first.
        if self.observers.iter().any(|it| it.who == by.thread && it.mask & mask == mask) {
            return;
        }
        if self.observers.len() < MAX_OBSERVERS {
            self.observers.push(Observer { who: by.thread, clock: by.clock, mask });
        } else {
            self.is_crowded = true;
        }
    }

    /// Whether the thread knows that the store, or a read of bytes of `mask`, precedes its next operation.
    fn is_known(&self, mask: u8, to: &View<'_>) -> bool {
        self.settled || to.knows(self.by, self.clock) || self.is_observed(mask, to)
    }

    fn is_observed(&self, mask: u8, to: &View<'_>) -> bool {
        let knows = |it: &Observer| it.mask & mask != 0 && to.knows(it.who, it.clock);
        self.is_crowded || self.observers.iter().any(knows)
    }
}

/// The stores to a granule, in coherence order: the order in which everybody sees those to a common byte.
#[derive(Debug, Default)]
pub(super) struct History {
    /// The bytes before the first store, and which of them had been written.
    base: u64,
    base_mask: u8,
    messages: Vec<Message>,
}

impl History {
    pub(super) fn new(base: u64, base_mask: u8) -> Self {
        Self { base, base_mask, messages: Vec::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// The newest store to any byte of `mask`.
    pub(super) fn newest(&self, mask: u8) -> Option<usize> {
        self.messages.iter().rposition(|message| message.mask & mask != 0)
    }

    pub(super) fn get(&self, at: usize) -> &Message {
        &self.messages[at]
    }

    pub(super) fn get_mut(&mut self, at: usize) -> &mut Message {
        &mut self.messages[at]
    }

    /// Whether a strong store by `by` at `clock` to `mask` has been read by somebody the thread knows of, itself
    /// included.
    pub(super) fn is_observed(&self, by: Thread, clock: u32, mask: u8, to: &View<'_>) -> bool {
        let it = self.messages.iter().find(|it| it.by == by && it.clock == clock && it.mask == mask);
        it.is_some_and(|message| message.scope.is_some() && message.is_observed(mask, to))
    }

    /// The bytes as of message `upto`, or before all.
    pub(super) fn value(&self, upto: Option<usize>) -> u64 {
        let messages = upto.map_or(&[][..], |upto| &self.messages[..=upto]);
        messages.iter().fold(self.base, blend)
    }

    /// The bytes that have been written as of message `upto`, or before all.
    pub(super) fn written(&self, upto: Option<usize>) -> u8 {
        let messages = upto.map_or(&[][..], |upto| &self.messages[..=upto]);
        messages.iter().fold(self.base_mask, |mask, message| mask | message.mask)
    }

    /// The bytes that everybody will see in the end.
    pub(super) fn last_value(&self) -> u64 {
        self.value(self.messages.len().checked_sub(1))
    }

    /// What a thread may read from `mask` in place of the newest: older states of the granule, as of a message or
    /// before all.
    pub(super) fn older(&self, mask: u8, by: &View<'_>) -> Vec<Option<usize>> {
        let mut states = Vec::new();
        let mut newer: Option<&Message> = None;
        for (at, message) in self.messages.iter().enumerate().rev().filter(|(_, it)| it.mask & mask != 0) {
            match newer {
                Some(newer) if newer.is_known(mask, by) => return states,
                Some(_) => states.push(Some(at)),
                None => {}
            }
            newer = Some(message);
        }
        if newer.is_some_and(|oldest| !oldest.is_known(mask, by)) {
            states.push(None);
        }
        states
    }

    /// Where before the end a store to `mask` may take its place: after what the thread knows, and not within an
    /// atomic read-modify-write.
    pub(super) fn insertable(&self, mask: u8, by: &View<'_>) -> Vec<usize> {
        let mut places = Vec::new();
        for (at, message) in self.messages.iter().enumerate().rev() {
            if message.mask & mask != 0 {
                if message.is_known(mask, by) {
                    break;
                }
                if !message.atomic {
                    places.push(at);
                }
            }
        }
        places
    }

    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    pub(super) fn push(&mut self, message: Message) {
        self.messages.push(message);
    }

    pub(super) fn insert(&mut self, at: usize, message: Message) {
        self.messages.insert(at, message);
    }

    /// Forgets stores that `mask` hides: nobody can read them any more, nor synchronise through them.
    pub(super) fn hide(&mut self, mask: u8) {
        self.messages.retain(|message| message.mask & !mask != 0);
    }

    /// All bytes of `mask` have new values, which everybody sees at once.
    pub(super) fn overwrite(&mut self, mask: u8, value: u64) {
        let mut message = Message::new(mask, value, Thread::HOST, 0);
        message.settled = true;
        self.messages.push(message);
        self.settle(0);
    }

    /// Everybody sees, from now on, what was due by `now`. Stores that nobody can read any more are forgotten.
    pub(super) fn settle(&mut self, now: u64) {
        for message in &mut self.messages {
            message.settled |= message.visible_at <= now;
        }
        // From the newest: hidden behind later stores that everybody sees.
        let mut hidden = 0u8;
        let mut at = self.messages.len();
        while at > 0 {
            at -= 1;
            let Message { mask, settled, .. } = self.messages[at];
            if mask & !hidden == 0 {
                self.messages.remove(at);
            } else if settled {
                hidden |= mask;
            }
        }
        // A plain store that everybody sees is as good as the bytes themselves.
        let plain = self.messages.iter().take_while(|it| it.settled && it.scope.is_none()).count();
        self.base_mask |= self.messages[..plain].iter().fold(0, |mask, message| mask | message.mask);
        self.base = self.messages.drain(..plain).fold(self.base, |value, message| blend(value, &message));
    }
}

fn blend(value: u64, message: &Message) -> u64 {
    let bytes = expand(message.mask);
    value & !bytes | message.value & bytes
}

/// A bit per byte as a byte per byte.
pub(super) fn expand(mask: u8) -> u64 {
    // Copy the mask to all bytes, keep bit i in byte i, and fill bytes that are not zero.
    let bits = (u64::from(mask) * 0x0101_0101_0101_0101) & 0x8040_2010_0804_0201;
    let low = ((bits + 0x7f7f_7f7f_7f7f_7f7f) | bits) & 0x8080_8080_8080_8080;
    (low >> 7) * 0xff
}

#[cfg(test)]
mod tests {
    use super::super::BlockId;
    use super::*;

    fn message(mask: u8, value: u64, visible_at: u64, scope: Option<Scope>) -> Message {
        let mut message = Message::new(mask, value & expand(mask), Thread::new(BlockId(1), 0), 1);
        (message.visible_at, message.scope) = (visible_at, scope);
        message
    }

    #[test]
    fn bits_become_bytes() {
        assert_eq!(expand(0b1001_0110), 0xff00_00ff_00ff_ff00);
        assert_eq!((expand(0), expand(0xff)), (0, u64::MAX));
    }

    #[test]
    fn hidden_stores_are_forgotten_and_settled_plain_ones_become_the_bytes() {
        let mut history = History::new(u64::from_le_bytes([9; 8]), 0xff);
        history.push(message(0xff, u64::from_le_bytes([1; 8]), 50, Some(Scope::Sys)));
        history.push(message(0x0f, u64::from_le_bytes([2; 8]), 10, None));
        history.push(message(0xf0, u64::from_le_bytes([3; 8]), 10, None));
        let newest = u64::from_le_bytes([2, 2, 2, 2, 3, 3, 3, 3]);
        history.settle(9);
        assert_eq!(
            (history.len(), history.value(None), history.last_value()),
            (3, u64::from_le_bytes([9; 8]), newest)
        );
        // The first is hidden by the other two together.
        history.settle(10);
        assert!(history.is_empty());
        assert_eq!(history.value(None), newest);
    }

    #[test]
    fn strong_stores_stay_until_they_are_hidden() {
        let mut history = History::new(0, 0xff);
        history.push(message(0x0f, 1, 1, Some(Scope::Gpu)));
        history.settle(5);
        assert_eq!(history.len(), 1);
        history.overwrite(0x03, 7);
        assert_eq!((history.len(), history.last_value()), (2, 7));
        history.overwrite(0xff, 8);
        assert!(history.is_empty());
        assert_eq!(history.value(None), 8);
    }
}
