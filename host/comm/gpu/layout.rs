//! Where what lies in a region: greetings, then the slots of each format, twice (by parity).

use crate::comm::Shape;
use crate::kernels::nvrar::Format;
use crate::kernels::params::{GREETINGS_BYTES, UNIT_BYTES};

/// Most bytes of a format's slots, of one parity.
const MAX_AREA_BYTES: [usize; 2] = [4 << 20, 32 << 20];
/// Area sizes are multiples of it, and so are their offsets.
const ALIGN_BYTES: usize = 4096;

/// The slots of one format and one parity; those of the other parity follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Area {
    /// From the region's begin to the slots of even calls.
    pub(super) offset: usize,
    /// Size of one parity's slots.
    pub(super) bytes: usize,
}

/// A region for one buffer, the same on all ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    areas: [Area; 2],
    /// The region's size.
    pub(super) bytes: usize,
}

impl Layout {
    /// For tensors of at most `bytes`; larger areas than there may be are worked through in passes.
    pub(super) fn new(shape: Shape, bytes: usize) -> Self {
        let mut end = (GREETINGS_BYTES as usize).next_multiple_of(ALIGN_BYTES);
        let areas = [Format::Cells, Format::Words].map(|format| {
            let message = bytes.div_ceil(UNIT_BYTES as usize).next_multiple_of(64) * format.unit_bytes();
            // The two-shot form has more slots, of a shard each: between nodes of one rank, of the whole tensor.
            let Shape { nodes, gpus_per_node } = shape;
            let put_rounds = if nodes == 1 { 0 } else { nodes.ilog2() as usize + 2 };
            let slots = (shape.world() + 2).max((2 * gpus_per_node + put_rounds).div_ceil(gpus_per_node));
            let wanted = (message.max(ALIGN_BYTES)).saturating_mul(slots).next_multiple_of(ALIGN_BYTES);
            let area = Area { offset: end, bytes: wanted.min(MAX_AREA_BYTES[format as usize]) };
            end += 2 * area.bytes;
            area
        });
        Self { areas, bytes: end }
    }

    /// The slots of a format.
    pub(super) fn area(&self, format: Format) -> Area {
        self.areas[format as usize]
    }
}
