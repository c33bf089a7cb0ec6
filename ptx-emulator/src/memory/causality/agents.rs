//! Agents that act for threads: asynchronous copies, initialisations of mbarriers, and messages of a network.

use std::sync::Arc;

use super::{BlockState, Causality, Copy, Release, ThreadState, VectorClock, join};
use crate::memory::{BlockId, Clock, GridId, Scope, Thread};

/// Asynchronous copies.
impl Causality {
    /// An asynchronous copy by `thread`, which is not waited for by anybody yet.
    pub(in crate::memory) fn begin_async(
        &mut self,
        thread: Thread,
        make: fn(BlockId, u32) -> Thread,
    ) -> Thread {
        let known = self.advance(thread);
        let block = &mut self.states.blocks[thread.block.0 as usize];
        let copy = make(thread.block, block.n_copies);
        block.copies.extend(copy.async_copy().map(|number| Copy { number, issuer: thread, known }));
        block.n_copies += 1;
        copy
    }

    /// Adds the copy, and what precedes it, to `clock`.
    pub(in crate::memory) fn end_async(&mut self, copy: Thread, clock: &mut Clock) {
        let Some(number) = copy.async_copy() else { return };
        let copies = &mut self.states.blocks[copy.block.0 as usize].copies;
        if let Some(at) = copies.iter().position(|it| it.number == number) {
            let mut known = copies.remove(at).known;
            Arc::make_mut(&mut known).insert(copy, 0);
            join(&mut clock.0, &known, &self.states);
        }
    }
}

/// Initialisations of mbarriers: agents of their own, so that a thread can tell of them alone.
impl Causality {
    /// `init` precedes what the thread does next.
    pub(in crate::memory) fn end_init(&mut self, thread: Thread, init: Thread) {
        let mut clock = Clock::default();
        self.end_async(init, &mut clock);
        self.learn(thread, &clock.0);
        if let Some(state) = self.thread_mut(thread) {
            state.inits.push(init);
        }
    }

    /// Adds the initialisations so far, and nothing that precedes them, to what the thread has fenced for its cluster.
    pub(in crate::memory) fn fence_inits(&mut self, thread: Thread) {
        let Some(state) = self.thread_mut(thread) else { return };
        let mut known = VectorClock::default();
        state.inits.iter().for_each(|init| known.insert(*init, 0));
        let mut fences = std::mem::take(&mut state.fences);
        let release = Release { known: Arc::new(known), scope: Scope::Cluster, block: thread.block };
        self.merge_release(&mut fences, &release);
        if let Some(state) = self.thread_mut(thread) {
            state.fences = fences;
        }
    }
}

/// Messages.
impl Causality {
    /// A message that `sender` posts, as the only thread of a block of `grid`. It comes after what the sender has done,
    /// and carries what precedes the sender's grid: a kernel's begin is known to whoever hears from it.
    pub(in crate::memory) fn begin_message(&mut self, grid: GridId, sender: Thread) {
        let known = self.advance(sender);
        let block = BlockId(self.states.blocks.len() as u32);
        let began = self.thread(sender).map_or_else(Arc::default, |state| state.began.clone());
        let fences = vec![Release { known: began.clone(), scope: Scope::Sys, block }];
        let threads = vec![ThreadState { fences, began, ..ThreadState::new(known) }];
        self.states.blocks.push(BlockState::new(grid, block, threads));
    }

    /// The message comes after what `clock` has, and says so.
    pub(in crate::memory) fn order_message(&mut self, message: Thread, clock: &Clock) {
        self.learn(message, &clock.0);
        self.carry(message, |known, states| join(known, &clock.0, states));
    }

    /// The message has read some of its source: what it writes from now on tells of that.
    pub(in crate::memory) fn has_read(&mut self, message: Thread) {
        let Some(clock) = self.thread(message).map(|state| state.clock) else { return };
        self.carry(message, |known, _| Arc::make_mut(known).insert(message, clock));
        if let Some(state) = self.thread_mut(message) {
            state.clock += 1;
        }
    }

    fn carry(&mut self, message: Thread, add: impl FnOnce(&mut Arc<VectorClock>, &super::States)) {
        let Some(state) = self.thread_mut(message) else { return };
        let Some(mut release) = state.fences.pop() else { return };
        add(&mut release.known, &self.states);
        if let Some(state) = self.thread_mut(message) {
            state.fences.push(release);
        }
    }
}
