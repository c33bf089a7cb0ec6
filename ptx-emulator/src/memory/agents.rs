//! Who runs, and what orders them.

use super::weak::Weak;
use super::{BlockId, BlockInfo, BlockSpec, Clock, DeviceId, GridId, Memory, Moment, Order, Scope, Thread};

/// Grids, blocks and what orders them.
impl Memory {
    /// A grid that starts on `device` after everything in `after` (the end of its stream).
    pub fn begin_grid(&mut self, device: DeviceId, after: &Clock) -> GridId {
        if self.is_ordered() {
            self.causality.begin_grid(Some(device), after);
        }
        self.blocks.begin_grid(Some(device))
    }

    /// All blocks of `grid` have ended; whoever acquires the clock comes after the grid.
    pub fn end_grid(&mut self, grid: GridId) -> Clock {
        if self.is_ordered() { self.causality.end_grid(grid) } else { Clock::default() }
    }

    /// A block starts, with uninitialised shared memory.
    pub fn begin_block(&mut self, spec: &BlockSpec) -> BlockId {
        if self.is_ordered() {
            self.causality.begin_block(spec.grid, spec.n_threads);
        }
        self.blocks.begin_block(spec)
    }

    /// All threads of `block` have exited. Its shared memory is gone.
    pub fn end_block(&mut self, block: BlockId) {
        if self.is_ordered() {
            self.causality.end_block(block);
        }
        self.blocks.end_block(block);
    }

    /// Blocks that have begun and done nothing yet become a cluster, ranks in this order: they reach each other's
    /// shared memory at [`cluster_address`](super::cluster_address) in the window, and scope `.cluster` means them.
    pub fn join_cluster(&mut self, blocks: &[BlockId]) {
        if self.is_ordered() {
            self.causality.join_cluster(blocks);
        }
        self.blocks.join_cluster(blocks);
    }

    /// Where a block runs or ran.
    pub fn block(&self, block: BlockId) -> BlockInfo {
        self.blocks.get(block).info
    }

    /// Whether a block has begun and not ended.
    pub fn is_running(&self, block: BlockId) -> bool {
        !self.blocks.get(block).ended
    }

    /// Everything that `thread` did so far happens before whoever acquires `clock`: the arrival at a barrier.
    pub fn release(&mut self, thread: Thread, clock: &mut Clock) {
        if self.is_ordered() {
            self.causality.release(thread, clock);
        }
    }

    /// Everything released into `clock` happens before what `thread` does from now on: the end of a wait.
    pub fn acquire(&mut self, thread: Thread, clock: &Clock) {
        if self.is_ordered() {
            self.causality.acquire(thread, clock);
        }
    }

    /// As [`Memory::acquire`], at the end of `griddepcontrol.wait`: it precedes the thread as what its grid began after.
    pub fn begin_after(&mut self, thread: Thread, clock: &Clock) {
        if self.is_ordered() {
            self.causality.begin_after(thread, clock);
        }
    }

    /// Adds what `more` holds to `clock`.
    pub fn join(&self, clock: &mut Clock, more: &Clock) {
        if self.is_ordered() {
            self.causality.join(clock, more);
        }
    }

    /// The threads `indices` of `block` have all arrived at a barrier and all leave it (`bar.sync`,
    /// `bar.warp.sync`).
    pub fn barrier(&mut self, block: BlockId, indices: impl Iterator<Item = u32> + Clone) {
        if self.is_ordered() {
            self.causality.barrier(block, indices);
        }
    }

    /// A fence of `thread`: `fence.acq_rel`, `fence.sc`, `membar` (which is `.sc`).
    pub fn fence(&mut self, thread: Thread, order: Order, scope: Scope) {
        if self.is_ordered() {
            self.causality.fence(thread, order, scope);
        }
    }

    /// Adds to `clock` what `thread` has fenced for threads of `scope`: what a relaxed signal carries.
    pub fn release_fenced(&mut self, thread: Thread, scope: Scope, clock: &mut Clock) {
        if self.is_ordered() {
            self.causality.release_fenced(thread, scope, clock);
        }
    }

    /// Asynchronous copies that `thread` starts at one [`Memory::moment`]: an agent for the accesses of `cp.async` up to
    /// a commit.
    pub fn begin_async(&mut self, thread: Thread) -> Thread {
        if self.is_ordered() { self.causality.begin_async(thread, Thread::copy) } else { thread }
    }

    /// An agent of the asynchronous proxy: for one `cp.async.bulk`, or what a tensor core reads for `thread`. In shared
    /// memory its accesses come after a store of the generic proxy only with a [proxy fence](Memory::proxy_fence) between.
    pub fn begin_proxy(&mut self, thread: Thread) -> Thread {
        if self.is_ordered() { self.causality.begin_async(thread, Thread::proxy) } else { thread }
    }

    /// An agent for one `mbarrier.init` of `thread`, of which [`Memory::fence_inits`] may tell others.
    pub fn begin_init(&mut self, thread: Thread) -> Thread {
        if self.is_ordered() { self.causality.begin_async(thread, Thread::init) } else { thread }
    }

    /// The agent has written the object: that precedes what `thread` does from now on.
    pub fn end_init(&mut self, thread: Thread, init: Thread) {
        if self.is_ordered() {
            self.causality.end_init(thread, init);
        }
    }

    /// `fence.mbarrier_init.release.cluster` of `thread`: a release of its [initialisations](Memory::begin_init), and of
    /// nothing else that it did or knows of.
    pub fn fence_inits(&mut self, thread: Thread) {
        if self.is_ordered() {
            self.causality.fence_inits(thread);
        }
    }

    /// `fence.proxy.async` of `thread`, for shared memory: what it knows of becomes known to the asynchronous proxy.
    pub fn proxy_fence(&mut self, thread: Thread) {
        if self.is_ordered() {
            self.causality.proxy_fence(thread);
        }
    }

    /// The present moment of `thread`: copies that it starts at different ones come after different operations.
    pub fn moment(&self, thread: Thread) -> Moment {
        if self.is_ordered() { self.causality.moment(thread) } else { Moment::default() }
    }

    /// The asynchronous copy is complete for whoever acquires `clock`: the waiting thread, or the phase of its
    /// mbarrier.
    pub fn end_async(&mut self, copy: Thread, clock: &mut Clock) {
        if self.is_ordered() {
            self.causality.end_async(copy, clock);
        }
    }

    /// A step of time: bounds how long stores stay invisible.
    #[inline]
    pub fn tick(&mut self) {
        if let Some(weak) = &mut self.weak {
            weak.tick();
            self.settle_due();
        }
    }

    /// For how many instructions of its warp a load is put off, if it is.
    #[inline]
    pub(crate) fn put_off(&mut self) -> Option<u32> {
        self.weak.as_mut().and_then(Weak::put_off)
    }

    /// How many stores are, perhaps, not yet visible to everybody.
    pub fn pending(&self) -> usize {
        self.weak.as_ref().map_or(0, Weak::pending)
    }
}
