//! Grids and blocks: who belongs to which device, and the shared memory of blocks.

use std::sync::Arc;

use super::region::Region;
use super::space::{self, Place, Request, cluster_offset};
use super::{BlockId, DeviceId, GridId, Result, SHARED_WINDOW};

/// A block about to run, for [`Memory::begin_block`](super::Memory::begin_block).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSpec {
    /// Its grid.
    pub grid: GridId,
    /// Its linear index in the grid, x fastest.
    pub index: u64,
    /// How many threads it has.
    pub n_threads: u32,
    /// Shared memory, static and dynamic together.
    pub shared_bytes: u64,
}

/// A block that runs or ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockInfo {
    /// Its grid.
    pub grid: GridId,
    /// Its linear index in the grid, x fastest.
    pub index: u64,
    /// Its device; `None` for the host.
    pub device: Option<DeviceId>,
}

#[derive(Debug)]
pub(super) struct Block {
    pub(super) info: BlockInfo,
    pub(super) shared: Region,
    /// The blocks of its cluster, by rank; none where it is alone.
    cluster: Arc<[BlockId]>,
    pub(super) ended: bool,
}

/// All grids and blocks since the start.
#[derive(Debug)]
pub(super) struct Blocks {
    devices: Vec<Option<DeviceId>>,
    blocks: Vec<Block>,
}

impl Blocks {
    /// The host alone.
    pub(super) fn new() -> Self {
        let info = BlockInfo { grid: GridId(0), index: 0, device: None };
        let host = Block { info, shared: Region::default(), cluster: Arc::default(), ended: false };
        Self { devices: vec![None], blocks: vec![host] }
    }

    pub(super) fn begin_grid(&mut self, device: Option<DeviceId>) -> GridId {
        self.devices.push(device);
        GridId(self.devices.len() as u32 - 1)
    }

    pub(super) fn begin_block(&mut self, spec: &BlockSpec) -> BlockId {
        let BlockSpec { grid, index, shared_bytes, .. } = *spec;
        let info = BlockInfo { grid, index, device: self.devices[grid.0 as usize] };
        let shared = Region::new(shared_bytes as usize);
        self.blocks.push(Block { info, shared, cluster: Arc::default(), ended: false });
        BlockId(self.blocks.len() as u32 - 1)
    }

    /// Blocks become a cluster, ranks in this order.
    pub(super) fn join_cluster(&mut self, blocks: &[BlockId]) {
        let cluster: Arc<[BlockId]> = blocks.into();
        for &block in blocks {
            self.get_mut(block).cluster = Arc::clone(&cluster);
        }
    }

    pub(super) fn end_block(&mut self, block: BlockId) {
        let block = self.get_mut(block);
        (block.shared, block.ended) = (Region::default(), true);
    }

    /// The block whose shared memory an address in the window names, and the offset there.
    #[inline]
    pub(super) fn resolve(&self, request: &Request) -> Result<Place> {
        let own = request.thread.block;
        let here = self.get(own);
        let (rank, offset) = cluster_offset(request.address - SHARED_WINDOW);
        let Some(rank) = rank else { return space::resolve_shared(request, own, offset, &here.shared) };
        let alone = [own];
        let cluster = if here.cluster.is_empty() { &alone } else { &*here.cluster };
        match cluster.get(rank as usize) {
            Some(&block) if self.get(block).ended => Err(space::explain_ended(request, rank, offset)),
            Some(&block) => space::resolve_shared(request, block, offset, &self.get(block).shared),
            None => space::resolve_shared(request, own, request.address - SHARED_WINDOW, &here.shared),
        }
    }

    #[inline]
    pub(super) fn get(&self, block: BlockId) -> &Block {
        &self.blocks[block.0 as usize]
    }

    #[inline]
    pub(super) fn get_mut(&mut self, block: BlockId) -> &mut Block {
        &mut self.blocks[block.0 as usize]
    }
}
