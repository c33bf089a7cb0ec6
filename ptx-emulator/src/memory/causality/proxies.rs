//! Proxies: generic writes that a proxy fence has made known to the asynchronous proxy.
//!
//! An operation of another proxy comes after a write only if a proxy fence lies on the way from one to the other (PTX
//! ISA, "Proxy-Preserved Base Causality Order"): by whoever knows of the write, and before whatever makes the fence known.

use std::sync::Arc;

use super::Causality;
use crate::memory::Thread;
use crate::memory::clock::VectorClock;
use crate::memory::view::View;

/// `fence.proxy.async`
#[derive(Debug)]
pub(super) struct ProxyFence {
    by: Thread,
    clock: u32,
    /// What precedes it, the thread's own operations included.
    known: Arc<VectorClock>,
}

impl Causality {
    pub(in crate::memory) fn proxy_fence(&mut self, by: Thread) {
        let Some(clock) = self.thread(by).map(|state| state.clock) else { return };
        let known = self.advance(by);
        self.states.blocks[by.block.0 as usize].proxy_fences.push(ProxyFence { by, clock, known });
    }

    /// Whether a proxy fence lies between the write of `who` at `clock` and the next operation of a view.
    pub(in crate::memory) fn is_proxy_fenced(&self, who: Thread, clock: u32, view: &View<'_>) -> bool {
        let lies_between = |fence: &ProxyFence| {
            view.knows(fence.by, fence.clock) && fence.known.contains(who, clock, &self.states)
        };
        let fences =
            |block: crate::memory::BlockId| self.states.blocks[block.0 as usize].proxy_fences.iter().rev();
        // Mostly the writer's own.
        fences(who.block).filter(|fence| fence.by == who).any(lies_between)
            || fences(who.block).any(lies_between)
            || who.block != view.thread.block && fences(view.thread.block).any(lies_between)
    }
}
