//! The unified virtual address space: every allocation of every device, by address.
//!
//! The space is cut into slots of 4 GiB. An allocation takes as many as it needs, begins 256 MiB into the first
//! and is never moved; a slot is never given to another. So an address finds its allocation by one index, also
//! after it was freed, and 256 MiB around every allocation belong to nobody else.

use super::region::Region;
use super::{
    AccessKind, Allocation, BlockId, DeviceId, Fault, FaultyAccess, Owner, Result, Site, Thread, Width,
};

/// Where shared memory appears in the generic address space: byte 0 of the accessing thread's block.
pub const SHARED_WINDOW: u64 = 1 << SLOT_BITS;
/// In the window of shared memory, block `rank` of the accessing thread's cluster begins at `rank + 1` times this.
const CLUSTER_STRIDE: u64 = 1 << 24;
/// Kept free for the callers' local memory window, 4 GiB.
pub const LOCAL_WINDOW: u64 = 2 << SLOT_BITS;

const SLOT_BITS: u32 = 32;
/// The first slot of allocations.
const FIRST_SLOT: usize = 64;
/// Of the first byte of an allocation in its slot. Not more than 256-byte aligned, so that kernels which need
/// more are found out.
const GUARD_BYTES: u64 = (256 << 20) + 256;
/// Addresses stay below 2^47, as on real machines.
const MAX_SLOTS: usize = 1 << 15;

/// The place in a cluster's window of `offset` in the shared memory of block `rank` (what `mapa` answers).
pub fn cluster_address(rank: u32, offset: u64) -> u64 {
    (u64::from(rank) + 1) * CLUSTER_STRIDE + offset % CLUSTER_STRIDE
}

/// The rank in its cluster of the block that a place in the window names, if it does, and the offset there.
#[inline]
pub fn cluster_offset(place: u64) -> (Option<u32>, u64) {
    (((place / CLUSTER_STRIDE) as u32).checked_sub(1), place % CLUSTER_STRIDE)
}

/// An allocation, freed or not.
#[derive(Debug)]
struct Entry {
    allocation: Allocation,
    /// Devices that may access it, one bit each.
    devices: u64,
    freed: bool,
    region: Region,
}

/// A region of global memory or of one block's shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RegionId {
    Global(usize),
    Shared(BlockId),
}

/// The bytes that an access touches.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) region: RegionId,
    pub(super) offset: usize,
}

/// An access that is to be resolved.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request {
    pub(super) kind: AccessKind,
    pub(super) thread: Thread,
    pub(super) site: Site,
    pub(super) address: u64,
    pub(super) bytes: u64,
    /// 1, 2, 4 or 8.
    pub(super) alignment_bytes: u64,
}

impl Request {
    pub(super) fn new(kind: AccessKind, thread: Thread, site: Site, address: u64, width: Width) -> Self {
        let bytes = width.bytes();
        Self { kind, thread, site, address, bytes, alignment_bytes: bytes }
    }

    pub(super) fn access(&self) -> FaultyAccess {
        let Self { kind, thread, site, address, bytes, .. } = *self;
        FaultyAccess { kind, thread, site, address, bytes }
    }
}

/// All allocations.
#[derive(Debug, Default)]
pub(super) struct AddressSpace {
    /// Index into `entries` plus one, by slot.
    slots: Vec<u32>,
    entries: Vec<Entry>,
    /// By device: who may access its memory, one bit each.
    peers: Vec<u64>,
}

impl AddressSpace {
    pub(super) fn allocate(&mut self, owner: Owner, bytes: u64, name: &str) -> Result<u64> {
        let slot = self.slots.len().max(FIRST_SLOT);
        let too_large = || Box::new(Fault::TooLarge { bytes, name: name.to_owned() });
        let taken = bytes.checked_add(2 * GUARD_BYTES).ok_or_else(too_large)?.div_ceil(1 << SLOT_BITS);
        let end = usize::try_from(taken).ok().and_then(|taken| slot.checked_add(taken));
        let end = end.filter(|&end| end <= MAX_SLOTS).ok_or_else(too_large)?;
        let region = Region::try_new(bytes).ok_or_else(too_large)?;
        let address = ((slot as u64) << SLOT_BITS) + GUARD_BYTES;
        let devices = match owner {
            Owner::Device(device) => self.peers_mut(device).to_owned(),
            Owner::Host | Owner::Shared => u64::MAX,
        };
        let allocation = Allocation { name: name.to_owned(), owner, address, bytes };
        self.entries.push(Entry { allocation, devices, freed: false, region });
        self.slots.resize(slot, 0);
        self.slots.resize(end, self.entries.len() as u32);
        Ok(address)
    }

    /// Frees the allocation that begins at `address`.
    pub(super) fn free(&mut self, address: u64) -> Result<()> {
        match self.index(address).map(|index| &mut self.entries[index]) {
            Some(entry) if entry.allocation.address == address && !entry.freed => {
                entry.freed = true;
                entry.region = Region::default();
                Ok(())
            }
            _ => Err(Box::new(Fault::NotAnAllocation { address })),
        }
    }

    pub(super) fn enable_peer(&mut self, from: DeviceId, to: DeviceId) {
        *self.peers_mut(to) |= bit(from);
        for entry in &mut self.entries {
            if entry.allocation.owner == Owner::Device(to) {
                entry.devices |= bit(from);
            }
        }
    }

    fn peers_mut(&mut self, device: DeviceId) -> &mut u64 {
        while self.peers.len() <= device.0 as usize {
            self.peers.push(bit(DeviceId(self.peers.len() as u32)));
        }
        &mut self.peers[device.0 as usize]
    }

    #[inline]
    fn index(&self, address: u64) -> Option<usize> {
        let slot = *self.slots.get((address >> SLOT_BITS) as usize)?;
        (slot as usize).checked_sub(1)
    }

    /// The allocation and the offset in it, after all checks but that of initialised bytes.
    #[inline]
    pub(super) fn resolve(&self, request: &Request, device: Option<DeviceId>) -> Result<Place> {
        if let Some(index) = self.index(request.address) {
            let entry = &self.entries[index];
            let offset = request.address.wrapping_sub(entry.allocation.address);
            let inside = offset < entry.region.len() && request.bytes <= entry.region.len() - offset;
            let aligned = request.address & (request.alignment_bytes - 1) == 0;
            let allowed = device.is_none_or(|device| entry.devices & bit(device) != 0);
            if inside && aligned && allowed {
                return Ok(Place { region: RegionId::Global(index), offset: offset as usize });
            }
        }
        Err(self.explain(request, device))
    }

    #[cold]
    fn explain(&self, request: &Request, device: Option<DeviceId>) -> Box<Fault> {
        let access = request.access();
        let Some(entry) = self.index(request.address).map(|index| &self.entries[index]) else {
            return Box::new(Fault::Unmapped { access });
        };
        let allocation = entry.allocation.clone();
        let offset = request.address.wrapping_sub(allocation.address) as i64;
        let end = (offset as u64).checked_add(request.bytes);
        Box::new(if entry.freed {
            Fault::UseAfterFree { access, allocation, offset }
        } else if offset < 0 || end.is_none_or(|end| end > allocation.bytes) {
            Fault::OutOfBounds { access, allocation, offset }
        } else if !request.address.is_multiple_of(request.alignment_bytes) {
            Fault::Misaligned { access, allocation, offset, alignment_bytes: request.alignment_bytes }
        } else {
            let device = device.unwrap_or(DeviceId(0));
            Fault::NoPeerAccess { access, allocation, device }
        })
    }

    #[inline]
    pub(super) fn region(&self, index: usize) -> &Region {
        &self.entries[index].region
    }

    #[inline]
    pub(super) fn region_mut(&mut self, index: usize) -> &mut Region {
        &mut self.entries[index].region
    }

    pub(super) fn allocation(&self, index: usize) -> &Allocation {
        &self.entries[index].allocation
    }
}

/// As [`AddressSpace::resolve`], in the shared memory of a block.
#[inline]
pub(super) fn resolve_shared(
    request: &Request,
    block: BlockId,
    offset: u64,
    shared: &Region,
) -> Result<Place> {
    if offset + request.bytes <= shared.len() && offset & (request.alignment_bytes - 1) == 0 {
        return Ok(Place { region: RegionId::Shared(block), offset: offset as usize });
    }
    Err(explain_shared(request, offset, shared))
}

#[cold]
fn explain_shared(request: &Request, offset: u64, shared: &Region) -> Box<Fault> {
    let (access, allocation, alignment_bytes) =
        (request.access(), shared_allocation(shared), request.alignment_bytes);
    let offset = offset as i64;
    Box::new(if offset as u64 + request.bytes > allocation.bytes {
        Fault::OutOfBounds { access, allocation, offset }
    } else {
        Fault::Misaligned { access, allocation, offset, alignment_bytes }
    })
}

/// An access to the shared memory of a block of the cluster that has ended.
#[cold]
pub(super) fn explain_ended(request: &Request, rank: u32, offset: u64) -> Box<Fault> {
    let name = format!("shared memory of block {rank} of the cluster");
    let allocation = Allocation { name, owner: Owner::Shared, address: SHARED_WINDOW, bytes: 0 };
    Box::new(Fault::UseAfterFree { access: request.access(), allocation, offset: offset as i64 })
}

pub(super) fn shared_allocation(shared: &Region) -> Allocation {
    let name = "shared memory".to_owned();
    Allocation { name, owner: Owner::Shared, address: SHARED_WINDOW, bytes: shared.len() }
}

/// Of a device in a set; a machine has at most 64.
fn bit(device: DeviceId) -> u64 {
    1 << device.0.min(63)
}
