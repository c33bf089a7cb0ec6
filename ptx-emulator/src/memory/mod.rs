//! The memory of the machine: every byte checked.

mod access;
mod blocks;
mod causality;
mod clock;
mod fault;
mod granule;
mod history;
mod lanes;
mod ordered;
mod region;
mod shadow;
mod space;
#[cfg(test)]
mod tests;
mod tracking;
mod weak;

pub use access::{
    Access, AccessKind, BlockId, DeviceId, GridId, Order, Scope, Site, Thread, WarpAccess, Width,
};
pub use blocks::{BlockInfo, BlockSpec};
pub use clock::Clock;
pub use fault::{Allocation, Fault, FaultyAccess, Owner, RacingAccess, Result};
pub use lanes::Row;
pub use space::{LOCAL_WINDOW, SHARED_WINDOW};

use blocks::Blocks;
use causality::Causality;
use region::Region;
use space::{AddressSpace, Place, RegionId, Request};
use weak::Weak;

/// How suspicious memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryOptions {
    /// Reading a byte that was never written is a fault.
    pub check_initialised: bool,
    /// Unordered conflicting accesses are a fault.
    pub race: bool,
    /// Memory is weak: with this seed, stores become visible late and in another order where PTX allows it.
    pub weak: Option<u64>,
}

impl Default for MemoryOptions {
    /// Initialised bytes are checked; races are not, and memory is sequentially consistent.
    fn default() -> Self {
        Self { check_initialised: true, race: false, weak: None }
    }
}

/// The memory of several devices and the host, in one address space, with everybody who accesses it.
#[derive(Debug)]
pub struct Memory {
    options: MemoryOptions,
    space: AddressSpace,
    blocks: Blocks,
    causality: Causality,
    weak: Option<Weak>,
}

/// Allocations.
impl Memory {
    /// An empty memory.
    pub fn new(options: MemoryOptions) -> Self {
        Self {
            options,
            space: AddressSpace::default(),
            blocks: Blocks::new(),
            causality: Causality::new(),
            weak: options.weak.map(Weak::new),
        }
    }

    /// Allocates `bytes` of uninitialised memory, aligned to 256 bytes, and returns its address.
    ///
    /// # Errors
    /// [`Fault::TooLarge`] when the address space (128 TiB, 4 GiB and more per allocation) is used up.
    pub fn allocate(&mut self, owner: Owner, bytes: u64, name: &str) -> Result<u64> {
        self.space.allocate(owner, bytes, name)
    }

    /// Frees the allocation that begins at `address`. Its addresses are never used again.
    ///
    /// # Errors
    /// [`Fault::NotAnAllocation`] when none begins there, or no longer.
    pub fn free(&mut self, address: u64) -> Result<()> {
        self.space.free(address)
    }

    /// Lets threads of device `from` access memory of device `to`, that of today and of later.
    pub fn enable_peer(&mut self, from: DeviceId, to: DeviceId) {
        self.space.enable_peer(from, to);
    }
}

/// Grids, blocks and what orders them.
impl Memory {
    /// A grid that starts on `device` after everything in `after` (the end of its stream).
    pub fn begin_grid(&mut self, device: DeviceId, after: &Clock) -> GridId {
        if self.is_ordered() {
            self.causality.begin_grid(device, after);
        }
        self.blocks.begin_grid(device)
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
        self.blocks.get_mut(block).shared = Region::default();
    }

    /// Where a block runs or ran.
    pub fn block(&self, block: BlockId) -> BlockInfo {
        self.blocks.get(block).info
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

    /// An asynchronous copy that `thread` starts now: an agent for the accesses of `cp.async` up to a commit,
    /// or of one `cp.async.bulk`.
    pub fn begin_async(&mut self, thread: Thread) -> Thread {
        if self.is_ordered() { self.causality.begin_async(thread) } else { thread }
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

    /// How many stores are, perhaps, not yet visible to everybody.
    pub fn pending(&self) -> usize {
        self.weak.as_ref().map_or(0, Weak::pending)
    }
}

/// Single accesses, at generic addresses.
impl Memory {
    /// Loads `width` at `address`, which must be aligned to it.
    ///
    /// # Errors
    /// Any [`Fault`] about addresses, or [`Fault::Race`].
    #[inline]
    pub fn load(&mut self, access: &Access, address: u64, width: Width) -> Result<u64> {
        let request = Request::new(AccessKind::Load, access.thread, access.site, address, width);
        let place = self.resolve(&request)?;
        self.check_initialised(&request, place)?;
        if self.is_ordered() {
            return self.load_ordered(access, place, width.mask());
        }
        Ok(self.region(place.region).load(place.offset, width))
    }

    /// Stores the low bytes of `value` at `address`, which must be aligned to `width`.
    ///
    /// # Errors
    /// Any [`Fault`] about addresses, or [`Fault::Race`].
    #[inline]
    pub fn store(&mut self, access: &Access, address: u64, width: Width, value: u64) -> Result<()> {
        let request = Request::new(AccessKind::Store, access.thread, access.site, address, width);
        let place = self.resolve(&request)?;
        if self.is_ordered() {
            return self.store_ordered(access, place, width.mask(), value);
        }
        self.region_mut(place.region).store(place.offset, width, value);
        Ok(())
    }

    /// Atomically replaces the value at `address` by `update` of it, if that is `Some`. Returns the old value.
    ///
    /// # Errors
    /// Any [`Fault`] about addresses, or [`Fault::Race`].
    pub fn rmw(
        &mut self,
        access: &Access,
        address: u64,
        width: Width,
        update: impl FnOnce(u64) -> Option<u64>,
    ) -> Result<u64> {
        let request = Request::new(AccessKind::Atomic, access.thread, access.site, address, width);
        let place = self.resolve(&request)?;
        self.check_initialised(&request, place)?;
        if self.is_ordered() {
            return self.rmw_ordered(access, place, width, update);
        }
        let old = self.region(place.region).load(place.offset, width);
        if let Some(new) = update(old) {
            self.region_mut(place.region).store(place.offset, width, new);
        }
        Ok(old)
    }

    /// Reads a range, of any alignment, by `agent`: [`Thread::HOST`], or an asynchronous copy.
    ///
    /// # Errors
    /// Any [`Fault`] about addresses, or [`Fault::Race`].
    pub fn read(&mut self, agent: Thread, address: u64, out: &mut [u8]) -> Result<()> {
        let Some((request, place)) = self.range(AccessKind::Load, agent, address, out.len())? else {
            return Ok(());
        };
        self.check_initialised(&request, place)?;
        if self.is_piecewise(agent) {
            return self.read_piecewise(&Access::weak(agent, request.site), place, out);
        }
        self.range_ordered(agent, place, out.len(), request.kind)?;
        out.copy_from_slice(self.region(place.region).bytes(place.offset, out.len()));
        Ok(())
    }

    /// The newest bytes of a range of one allocation, whoever wrote them, as a debugger sees them: nothing is checked
    /// but that the allocation is there, and nobody is said to have read them.
    ///
    /// # Errors
    /// Any [`Fault`] about addresses.
    pub fn peek(&self, address: u64, out: &mut [u8]) -> Result<()> {
        if let Some((_, place)) = self.range(AccessKind::Load, Thread::HOST, address, out.len())? {
            out.copy_from_slice(self.region(place.region).bytes(place.offset, out.len()));
        }
        Ok(())
    }

    /// Writes a range, of any alignment, by `agent`: [`Thread::HOST`], or an asynchronous copy.
    ///
    /// # Errors
    /// Any [`Fault`] about addresses, or [`Fault::Race`].
    pub fn write(&mut self, agent: Thread, address: u64, bytes: &[u8]) -> Result<()> {
        if let Some((request, place)) = self.range(AccessKind::Store, agent, address, bytes.len())? {
            if self.is_piecewise(agent) {
                return self.write_piecewise(&Access::weak(agent, request.site), place, bytes);
            }
            self.range_ordered(agent, place, bytes.len(), request.kind)?;
            self.region_mut(place.region).bytes_mut(place.offset, bytes.len()).copy_from_slice(bytes);
            self.settle_range(place, bytes.len());
        }
        Ok(())
    }

    /// Fills a range with copies of `pattern`; a last copy may be cut short.
    ///
    /// # Errors
    /// Any [`Fault`] about addresses, or [`Fault::Race`].
    pub fn fill(&mut self, agent: Thread, address: u64, bytes: u64, pattern: &[u8]) -> Result<()> {
        let length = usize::try_from(bytes).unwrap_or(usize::MAX);
        if let Some((request, place)) = self.range(AccessKind::Store, agent, address, length)? {
            self.range_ordered(agent, place, length, request.kind)?;
            for chunk in
                self.region_mut(place.region).bytes_mut(place.offset, length).chunks_mut(pattern.len())
            {
                chunk.copy_from_slice(&pattern[..chunk.len()]);
            }
            self.settle_range(place, length);
        }
        Ok(())
    }
}

impl Memory {
    /// Whether more than the bytes matters: who wrote them, and who knows of that.
    #[inline]
    fn is_ordered(&self) -> bool {
        self.options.race || self.options.weak.is_some()
    }

    #[inline]
    fn resolve(&self, request: &Request) -> Result<Place> {
        let block = request.thread.block;
        let here = self.blocks.get(block);
        if request.address.wrapping_sub(SHARED_WINDOW) < LOCAL_WINDOW - SHARED_WINDOW {
            return space::resolve_shared(request, &here.shared);
        }
        self.space.resolve(request, here.info.device)
    }

    fn range(
        &self,
        kind: AccessKind,
        thread: Thread,
        address: u64,
        bytes: usize,
    ) -> Result<Option<(Request, Place)>> {
        let bytes = bytes as u64;
        let request = Request { kind, thread, site: Site::NONE, address, bytes, alignment_bytes: 1 };
        if bytes == 0 { Ok(None) } else { Ok(Some((request, self.resolve(&request)?))) }
    }

    #[inline]
    fn check_initialised(&self, request: &Request, place: Place) -> Result<()> {
        if !self.options.check_initialised {
            return Ok(());
        }
        match self.region(place.region).first_uninitialised(place.offset, request.bytes as usize) {
            None => Ok(()),
            Some(first) => Err(Box::new(Fault::Uninitialised {
                access: request.access(),
                allocation: self.allocation(place.region),
                offset: first as i64,
            })),
        }
    }

    #[inline]
    fn region(&self, region: RegionId) -> &Region {
        match region {
            RegionId::Global(index) => self.space.region(index),
            RegionId::Shared(block) => &self.blocks.get(block).shared,
        }
    }

    #[inline]
    fn region_mut(&mut self, region: RegionId) -> &mut Region {
        match region {
            RegionId::Global(index) => self.space.region_mut(index),
            RegionId::Shared(block) => &mut self.blocks.get_mut(block).shared,
        }
    }

    fn allocation(&self, region: RegionId) -> Allocation {
        match region {
            RegionId::Global(index) => self.space.allocation(index).clone(),
            RegionId::Shared(block) => space::shared_allocation(&self.blocks.get(block).shared),
        }
    }
}
