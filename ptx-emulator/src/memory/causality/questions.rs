//! What threads know, and whom they speak to.

use std::sync::Arc;

use super::{Causality, Release};
use crate::memory::view::View;
use crate::memory::{BlockId, DeviceId, Scope, Thread};

impl Causality {
    /// What `thread` knows, to ask it more than once.
    #[inline]
    pub(in crate::memory) fn view(&self, thread: Thread) -> View<'_> {
        let block = &self.states.blocks[thread.block.0 as usize];
        let (known, clock) = match thread.async_copy() {
            Some(number) => (block.copies.iter().find(|it| it.0 == number).map(|it| &it.1), 0),
            None => (self.thread(thread).map(|it| &it.known), self.clock(thread)),
        };
        View::new(&self.states, thread, clock, known.map(Arc::as_ref))
    }

    #[inline]
    fn clock(&self, thread: Thread) -> u32 {
        self.thread(thread).map_or(0, |it| it.clock)
    }

    /// Whether an operation of `scope` in `from` speaks to threads of `to`.
    #[inline]
    pub(in crate::memory) fn includes(&self, scope: Scope, from: BlockId, to: BlockId) -> bool {
        match scope {
            Scope::Sys => true,
            Scope::Gpu => self.device(from) == self.device(to),
            Scope::Cluster => self.cluster(from) == self.cluster(to),
            Scope::Cta => from == to,
        }
    }

    pub(super) fn cluster(&self, block: BlockId) -> BlockId {
        self.states.blocks[block.0 as usize].cluster
    }

    pub(super) fn device(&self, block: BlockId) -> Option<DeviceId> {
        self.states.grids[self.states.blocks[block.0 as usize].grid.0 as usize].device
    }

    /// Whether an acquire of `scope` in `block` pairs with `release`: each has to speak to the other.
    pub(super) fn synchronises(&self, release: &Release, scope: Scope, block: BlockId) -> bool {
        self.includes(release.scope, release.block, block) && self.includes(scope, block, release.block)
    }
}
