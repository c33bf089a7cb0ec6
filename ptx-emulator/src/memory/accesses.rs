//! Accesses by one agent: single ones, and ranges.

use super::region::Region;
use super::space::{self, Place, RegionId, Request};
use super::{
    Access, AccessKind, Allocation, Fault, LOCAL_WINDOW, Memory, Result, SHARED_WINDOW, Site, Thread, Width,
};

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
        self.changes += u64::from(self.region_mut(place.region).store(place.offset, width, value));
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
            self.changes += u64::from(self.region_mut(place.region).store(place.offset, width, new));
        }
        Ok(old)
    }

    /// Reads a range, of any alignment, by `agent`: [`Thread::HOST`], or an asynchronous copy.
    ///
    /// # Errors
    /// Any [`Fault`] about addresses, or [`Fault::Race`].
    pub fn read(&mut self, agent: Thread, address: u64, out: &mut [u8]) -> Result<()> {
        self.read_by(&Access::weak(agent, Site::NONE), address, out)
    }

    /// As [`Memory::read`], by a plain `access`, so that faults name its instruction.
    ///
    /// # Errors
    /// Any [`Fault`] about addresses, or [`Fault::Race`].
    pub fn read_by(&mut self, access: &Access, address: u64, out: &mut [u8]) -> Result<()> {
        let Some((request, place)) = self.range(AccessKind::Load, access, address, out.len())? else {
            return Ok(());
        };
        self.check_initialised(&request, place)?;
        if self.is_piecewise(access.thread) {
            return self.read_piecewise(access, place, out);
        }
        self.range_ordered(access, place, out.len(), request.kind)?;
        out.copy_from_slice(self.region(place.region).bytes(place.offset, out.len()));
        Ok(())
    }

    /// The newest bytes of a range of one allocation, whoever wrote them, as a debugger sees them: nothing is checked
    /// but that the allocation is there, and nobody is said to have read them.
    ///
    /// # Errors
    /// Any [`Fault`] about addresses.
    pub fn peek(&self, address: u64, out: &mut [u8]) -> Result<()> {
        let host = Access::weak(Thread::HOST, Site::NONE);
        if let Some((_, place)) = self.range(AccessKind::Load, &host, address, out.len())? {
            out.copy_from_slice(self.region(place.region).bytes(place.offset, out.len()));
        }
        Ok(())
    }

    /// Checks the addresses of a range that `agent` is about to read.
    ///
    /// # Errors
    /// Any [`Fault`] about addresses.
    pub fn check_range(&self, agent: Thread, address: u64, bytes: u64) -> Result<()> {
        let length = usize::try_from(bytes).unwrap_or(usize::MAX);
        self.range(AccessKind::Load, &Access::weak(agent, Site::NONE), address, length).map(drop)
    }

    /// Writes a range, of any alignment, by `agent`: [`Thread::HOST`], or an asynchronous copy.
    ///
    /// # Errors
    /// Any [`Fault`] about addresses, or [`Fault::Race`].
    pub fn write(&mut self, agent: Thread, address: u64, bytes: &[u8]) -> Result<()> {
        self.write_by(&Access::weak(agent, Site::NONE), address, bytes)
    }

    /// As [`Memory::write`], by a plain `access`, so that faults name its instruction.
    ///
    /// # Errors
    /// Any [`Fault`] about addresses, or [`Fault::Race`].
    pub fn write_by(&mut self, access: &Access, address: u64, bytes: &[u8]) -> Result<()> {
        if let Some((request, place)) = self.range(AccessKind::Store, access, address, bytes.len())? {
            if self.is_piecewise(access.thread) {
                return self.write_piecewise(access, place, bytes);
            }
            self.range_ordered(access, place, bytes.len(), request.kind)?;
            self.changes += 1;
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
        if pattern.is_empty() && bytes > 0 {
            return Err(Box::new(Fault::EmptyPattern { address, bytes }));
        }
        let length = usize::try_from(bytes).unwrap_or(usize::MAX);
        let access = Access::weak(agent, Site::NONE);
        if let Some((request, place)) = self.range(AccessKind::Store, &access, address, length)? {
            self.range_ordered(&access, place, length, request.kind)?;
            self.changes += 1;
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
    #[inline]
    pub(super) fn resolve(&self, request: &Request) -> Result<Place> {
        let block = request.thread.block;
        let here = self.blocks.get(block);
        if request.address.wrapping_sub(SHARED_WINDOW) < LOCAL_WINDOW - SHARED_WINDOW {
            return self.blocks.resolve(request);
        }
        self.space.resolve(request, here.info.device)
    }

    fn range(
        &self,
        kind: AccessKind,
        &Access { thread, site, .. }: &Access,
        address: u64,
        bytes: usize,
    ) -> Result<Option<(Request, Place)>> {
        let bytes = bytes as u64;
        let request = Request { kind, thread, site, address, bytes, alignment_bytes: 1 };
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
    pub(super) fn region(&self, region: RegionId) -> &Region {
        match region {
            RegionId::Global(index) => self.space.region(index),
            RegionId::Shared(block) => &self.blocks.get(block).shared,
        }
    }

    #[inline]
    pub(super) fn region_mut(&mut self, region: RegionId) -> &mut Region {
        match region {
            RegionId::Global(index) => self.space.region_mut(index),
            RegionId::Shared(block) => &mut self.blocks.get_mut(block).shared,
        }
    }

    pub(super) fn allocation(&self, region: RegionId) -> Allocation {
        match region {
            RegionId::Global(index) => self.space.allocation(index).clone(),
            RegionId::Shared(block) => space::shared_allocation(&self.blocks.get(block).shared),
        }
    }
}
