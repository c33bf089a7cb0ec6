//! Questions to what one thread knows.

use super::Thread;
use super::causality::States;
use super::clock::VectorClock;

/// What one thread knows.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    states: &'a States,
    pub(super) thread: Thread,
    /// Of its next operation.
    pub(super) clock: u32,
    known: Option<&'a VectorClock>,
}

impl<'a> View<'a> {
    pub(super) fn new(
        states: &'a States,
        thread: Thread,
        clock: u32,
        known: Option<&'a VectorClock>,
    ) -> Self {
        Self { states, thread, clock, known }
    }

    /// Whether the operation of `who` at `clock` precedes the thread's next.
    #[inline]
    pub(super) fn knows(&self, who: Thread, clock: u32) -> bool {
        who == self.thread || self.known.is_some_and(|known| known.contains(who, clock, self.states))
    }

    /// The first of the threads `first + lane` whose operation at `clock` does not precede the thread's next.
    #[inline]
    pub(super) fn first_unknown(&self, first: Thread, mut lanes: u32, clock: u32) -> Option<Thread> {
        let everybody =
            first.async_copy().is_none() && self.known.is_some_and(|known| known.floor(first.block) >= clock);
        if everybody {
            return None;
        }
        while lanes != 0 {
            let who = Thread { block: first.block, index: first.index + lanes.trailing_zeros() };
            if !self.knows(who, clock) {
                return Some(who);
            }
            lanes &= lanes - 1;
        }
        None
    }
}
