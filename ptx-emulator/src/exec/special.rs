//! Special registers (PTX ISA, "Special Registers").

use super::context::{Context, Environment};
use super::rows::{Class, LANES, Row};
use crate::program::Typed;

/// A special register that the emulator has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Special {
    Tid(usize),
    Ntid(usize),
    Ctaid(usize),
    Nctaid(usize),
    /// The place of the block in its cluster, and the cluster's size.
    ClusterCtaid(usize),
    ClusterNctaid(usize),
    ClusterRank,
    ClusterBlocks,
    LaneId,
    WarpId,
    WarpCount,
    SmId,
    SmCount,
    GridId,
    LaneMask(MaskKind),
    Clock {
        high: bool,
    },
    Clock64,
    GlobalTimer,
    GlobalTimerHalf {
        high: bool,
    },
    DynamicSharedBytes,
    TotalSharedBytes,
    ReservedShared,
    ReservedSharedBytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MaskKind {
    Equal,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

impl Special {
    /// The register of a name, and its class.
    pub(crate) fn parse(name: &str) -> Option<(Self, Class)> {
        if let Some((vector, part)) = name.split_once('.') {
            let axis = ["x", "y", "z"].iter().position(|&found| found == part)?;
            let which = match vector {
                "%tid" => Self::Tid(axis),
                "%ntid" => Self::Ntid(axis),
                "%ctaid" => Self::Ctaid(axis),
                "%nctaid" => Self::Nctaid(axis),
                "%cluster_ctaid" => Self::ClusterCtaid(axis),
                "%cluster_nctaid" => Self::ClusterNctaid(axis),
                _ => return None,
            };
            return Some((which, Class::Word));
        }
        let which = match name {
            "%cluster_ctarank" => Self::ClusterRank,
            "%cluster_nctarank" => Self::ClusterBlocks,
            "%laneid" => Self::LaneId,
            "%warpid" => Self::WarpId,
            "%nwarpid" => Self::WarpCount,
            "%smid" => Self::SmId,
            "%nsmid" => Self::SmCount,
            "%gridid" => return Some((Self::GridId, Class::Double)),
            "%lanemask_eq" => Self::LaneMask(MaskKind::Equal),
            "%lanemask_lt" => Self::LaneMask(MaskKind::Less),
            "%lanemask_le" => Self::LaneMask(MaskKind::LessEqual),
            "%lanemask_gt" => Self::LaneMask(MaskKind::Greater),
            "%lanemask_ge" => Self::LaneMask(MaskKind::GreaterEqual),
            "%clock" => Self::Clock { high: false },
            "%clock_hi" => Self::Clock { high: true },
            "%clock64" => return Some((Self::Clock64, Class::Double)),
            "%globaltimer" => return Some((Self::GlobalTimer, Class::Double)),
            "%globaltimer_lo" => Self::GlobalTimerHalf { high: false },
            "%globaltimer_hi" => Self::GlobalTimerHalf { high: true },
            "%dynamic_smem_size" => Self::DynamicSharedBytes,
            "%total_smem_size" => Self::TotalSharedBytes,
            "%reserved_smem_offset_begin"
            | "%reserved_smem_offset_end"
            | "%reserved_smem_offset_0"
            | "%reserved_smem_offset_1" => Self::ReservedShared,
            "%reserved_smem_offset_cap" => Self::ReservedSharedBytes,
            _ => return None,
        };
        Some((which, Class::Word))
    }

    /// Whether it shows the passing of time, so that a loop that reads it may end by itself.
    pub(crate) fn shows_time(self) -> bool {
        matches!(self, Self::Clock { .. } | Self::Clock64 | Self::GlobalTimer | Self::GlobalTimerHalf { .. })
    }

    fn value(self, environment: &Environment, lane: usize) -> u64 {
        let bit = 1u64 << lane;
        let time = environment.time_ns;
        match self {
            Self::Tid(axis) => u64::from(environment.thread_of(lane)[axis]),
            Self::Ntid(axis) => u64::from(environment.block_size[axis]),
            Self::Ctaid(axis) => u64::from(environment.block[axis]),
            Self::Nctaid(axis) => u64::from(environment.grid_size[axis]),
            Self::ClusterCtaid(axis) => u64::from(environment.block[axis] % environment.cluster_size[axis]),
            Self::ClusterNctaid(axis) => u64::from(environment.cluster_size[axis]),
            Self::ClusterRank => u64::from(environment.cluster_rank()),
            Self::ClusterBlocks => u64::from(environment.cluster_size.iter().product::<u32>()),
            Self::LaneId => lane as u64,
            Self::WarpId => u64::from(environment.first_thread) / LANES as u64,
            Self::WarpCount => u64::from(environment.threads()).div_ceil(LANES as u64),
            Self::SmId => u64::from(environment.multiprocessor),
            Self::SmCount => u64::from(environment.multiprocessors),
            Self::GridId => environment.grid_id,
            Self::LaneMask(MaskKind::Equal) => bit,
            Self::LaneMask(MaskKind::Less) => bit - 1,
            Self::LaneMask(MaskKind::LessEqual) => (bit << 1) - 1,
            Self::LaneMask(MaskKind::Greater) => !((bit << 1) - 1) & 0xFFFF_FFFF,
            Self::LaneMask(MaskKind::GreaterEqual) => !(bit - 1) & 0xFFFF_FFFF,
            Self::Clock { high } | Self::GlobalTimerHalf { high } => {
                time >> if high { 32 } else { 0 } & 0xFFFF_FFFF
            }
            Self::Clock64 | Self::GlobalTimer => time,
            Self::DynamicSharedBytes => u64::from(environment.dynamic_shared_bytes),
            Self::TotalSharedBytes => u64::from(environment.shared_bytes),
            // The system reserves no shared memory here: its region is empty, and an access to it out of bounds.
            Self::ReservedShared => u64::from(environment.shared_bytes),
            Self::ReservedSharedBytes => 0,
        }
    }
}

pub(crate) fn read(context: &mut Context<'_>, d: Typed, which: Special) {
    let row: Row<u64> = std::array::from_fn(|lane| which.value(context.environment, lane));
    context.rows.put_wide(d.slot, d.class, &row);
}
