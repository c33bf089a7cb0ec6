//! Grids and blocks: who belongs to which device, and the shared memory of blocks.

use super::region::Region;
use super::{BlockId, DeviceId, GridId};

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
        Self { devices: vec![None], blocks: vec![Block { info, shared: Region::default() }] }
    }

    pub(super) fn begin_grid(&mut self, device: DeviceId) -> GridId {
        self.devices.push(Some(device));
        GridId(self.devices.len() as u32 - 1)
    }

    pub(super) fn begin_block(&mut self, spec: &BlockSpec) -> BlockId {
        let BlockSpec { grid, index, shared_bytes, .. } = *spec;
        let info = BlockInfo { grid, index, device: self.devices[grid.0 as usize] };
        self.blocks.push(Block { info, shared: Region::new(shared_bytes as usize) });
        BlockId(self.blocks.len() as u32 - 1)
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
