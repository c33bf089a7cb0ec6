//! Proxies: generic writes that a proxy fence has made known to the asynchronous proxy.
//!
//! An operation of another proxy comes after a write only if a proxy fence lies on the way from one to the other (PTX
//! ISA, "Proxy-Preserved Base Causality Order"): by whoever knows of the write, and before whatever makes the fence known.

use std::sync::Arc;

use super::Causality;
use crate::memory::clock::VectorClock;
use crate::memory::view::View;
use crate::memory::{BlockId, Thread};

/// `fence.proxy.async`
#[derive(Debug)]
pub(super) struct ProxyFence {
    clock: u32,
    /// What precedes it, the thread's own operations included.
    known: Arc<VectorClock>,
}

impl Causality {
    pub(in crate::memory) fn proxy_fence(&mut self, by: Thread) {
        let Some(clock) = self.thread(by).map(|state| state.clock) else { return };
        let known = self.advance(by);
        let fences = &mut self.states.blocks[by.block.0 as usize].proxy_fences;
        fences.entry(by.index).or_default().push(ProxyFence { clock, known });
    }

    /// Whether a proxy fence lies between the write of `who` at `clock` and the next operation of an agent.
    pub(in crate::memory) fn is_proxy_fenced(&self, who: Thread, clock: u32, view: &View<'_>) -> bool {
        // Mostly the writer's, or that of the thread that the agent acts for.
        let issuer = view.thread.async_copy().and_then(|number| self.copy(view.thread.block, number));
        let usual = [Some(who), issuer.map(|copy| copy.issuer)];
        let mut others = [who.block, view.thread.block].into_iter().flat_map(|block| self.fencing(block));
        usual.into_iter().flatten().any(|by| self.lies_between(by, who, clock, view))
            || others.any(|by| self.lies_between(by, who, clock, view))
    }

    /// Threads of a block that have executed proxy fences.
    fn fencing(&self, block: BlockId) -> impl Iterator<Item = Thread> {
        let fences = self.states.blocks[block.0 as usize].proxy_fences.keys();
        fences.map(move |&index| Thread { block, index })
    }

    /// Whether a fence `by` a thread does: the last one that the agent knows of follows all that those before it do.
    fn lies_between(&self, by: Thread, who: Thread, clock: u32, view: &View<'_>) -> bool {
        let Some(fences) = self.states.blocks[by.block.0 as usize].proxy_fences.get(&by.index) else {
            return false;
        };
        let known = fences.partition_point(|fence| view.knows(by, fence.clock));
        fences[..known].last().is_some_and(|fence| fence.known.contains(who, clock, &self.states))
    }
}
