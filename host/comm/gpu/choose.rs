//! How a call is executed: algorithm, format, passes, grid. Pure functions of size, dtype, topology and tuning, so
//! that all ranks come to the same result by themselves.

use super::layout::Layout;
use crate::comm::Shape;
use crate::kernels::nvrar::{Algorithm, Execution, Format};
use crate::kernels::params::{GRANULE_UNITS, UNIT_BYTES};

/// Overrides parts of the measured choice; equal on all ranks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tuning {
    /// How ranks of one node share the work.
    pub algorithm: Option<Algorithm>,
    /// How messages travel.
    pub format: Option<Format>,
    /// Blocks of the grid, per rank.
    pub blocks: Option<u32>,
    /// Threads of a block that move data, whole warps.
    pub workers: Option<u32>,
}

/// What is to be summed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    /// Its size.
    pub(super) bytes: usize,
    /// Units of 16 bytes in a row, where rows are normalised.
    pub(super) row_units: Option<u32>,
    /// The group.
    pub(super) shape: Shape,
    /// Most blocks per rank.
    pub(super) max_blocks: u32,
}

const WARP: u32 = 32;
/// Most workers of a block; the clerk comes to them.
const MAX_WORKERS: u32 = 512;
const MAX_WORKERS_NORM: u32 = 384;
/// Largest message that travels in cells.
const CELLS_BYTES: usize = 32 << 10;

impl Call {
    /// The choice. None if a row does not fit a pass.
    pub(super) fn execution(&self, layout: &Layout, tuning: Tuning) -> Option<Execution> {
        let algorithm = Algorithm::OneShot;
        let format = tuning.format.unwrap_or(match self.bytes {
            0..=CELLS_BYTES => Format::Cells,
            _ => Format::Words,
        });
        let area = layout.area(format);
        let slots = self.shape.world();
        // Cells lie in groups of 32 units.
        let slot_units =
            (area.bytes / slots / format.unit_bytes()) as u32 / GRANULE_UNITS / 4 * GRANULE_UNITS * 4;
        let units = u32::try_from(self.bytes.div_ceil(UNIT_BYTES as usize)).ok()?;
        let step = self.row_units.unwrap_or(GRANULE_UNITS);
        let most = slot_units / step * step;
        if most == 0 {
            return None;
        }
        // Passes of nearly equal size, so that every thread has work in the last one, too.
        let pass_units = units.div_ceil(units.div_ceil(most).max(1)).next_multiple_of(step).clamp(step, most);
        let passes = units.div_ceil(pass_units).max(1);
        let (blocks, workers) = self.grid(units.min(pass_units), tuning);
        let last = units - (passes - 1) * pass_units;
        let blocks = match self.row_units {
            _ if passes == 1 => blocks,
            None => blocks.min(last / workers),
            Some(row) => blocks.min(last / row),
        };
        (blocks > 0).then_some(Execution {
            algorithm,
            format,
            slots: area.offset as u64,
            parity_stride: area.bytes as u64,
            slot_stride: (slot_units as usize * format.unit_bytes()) as u64,
            pass_units,
            passes,
            blocks,
            workers,
        })
    }

    fn grid(&self, pass_units: u32, tuning: Tuning) -> (u32, u32) {
        if let Some(row) = self.row_units {
            let workers = tuning.workers.unwrap_or(MAX_WORKERS_NORM).min(MAX_WORKERS_NORM);
            let workers = workers.min(row.next_multiple_of(WARP));
            let rows = pass_units.div_ceil(row).max(1);
            return (tuning.blocks.unwrap_or(rows).clamp(1, rows.min(self.max_blocks)), workers);
        }
        let workers = tuning.workers.unwrap_or(256).clamp(WARP, MAX_WORKERS) / WARP * WARP;
        let workers = workers.min(pass_units.max(1).next_multiple_of(WARP));
        let blocks = pass_units.div_ceil(workers).max(1);
        (tuning.blocks.unwrap_or(blocks).clamp(1, blocks.min(self.max_blocks)), workers)
    }
}
