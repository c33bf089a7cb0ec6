//! All-reduce and all-gather between GPUs.
//!
//! These launches are one rank's (or, on one GPU, several ranks') part of a collective; `comm::gpu` allocates what
//! they point to and keeps the ranks' calls alike. `docs/sync.md` has the protocol.

use half::bf16;

use super::{Addr, Launch, params};

/// Threads of a block that keep the books, beside its workers.
pub const CLERKS: u32 = params::CLERKS;
/// Threads beside the workers where messages are put: clerks and couriers.
const PUT_LANES: u32 = params::CLERKS + params::COURIERS;

/// By element type and format.
const ONE_SHOT: [[&str; 2]; 3] = [
    ["allreduce_bf16_oneshot_cells", "allreduce_bf16_oneshot_words"],
    ["allreduce_f16_oneshot_cells", "allreduce_f16_oneshot_words"],
    ["allreduce_f32_oneshot_cells", "allreduce_f32_oneshot_words"],
];
const TWO_SHOT: [[&str; 2]; 3] = [
    ["allreduce_bf16_twoshot_cells", "allreduce_bf16_twoshot_words"],
    ["allreduce_f16_twoshot_cells", "allreduce_f16_twoshot_words"],
    ["allreduce_f32_twoshot_cells", "allreduce_f32_twoshot_words"],
];
/// By algorithm and format.
const NORM: [[&str; 2]; 2] = [
    ["allreduce_bf16_oneshot_cells_norm", "allreduce_bf16_oneshot_words_norm"],
    ["allreduce_bf16_twoshot_cells_norm", "allreduce_bf16_twoshot_words_norm"],
];
const GATHER: [&str; 2] = ["allgather_cells", "allgather_words"];

/// The kernels that put between nodes; their all-reduces by element type.
pub(super) const ALL_REDUCE_PUT: [&str; 3] = ["allreduce_bf16_put", "allreduce_f16_put", "allreduce_f32_put"];
pub(super) const ALL_GATHER_PUT: &str = "allgather_put";

/// The all-reduce kernels.
pub(super) const ALL_REDUCE: [[&str; 2]; 8] = {
    let ([a, b, c], [d, e, f], [g, h]) = (ONE_SHOT, TWO_SHOT, NORM);
    [a, b, c, d, e, f, g, h]
};
/// The all-gather kernels.
pub(super) const ALL_GATHER: &[&str] = &GATHER;

/// Elements of a sum, and what only one type takes.
#[derive(Debug, Clone, Copy)]
pub enum Elements {
    /// The upper half of a binary32.
    Bf16(Slices),
    /// IEEE 754 binary16.
    F16,
    /// IEEE 754 binary32.
    F32,
}

impl Elements {
    /// Their place in tables of kernels.
    const fn index(&self) -> usize {
        match self {
            Self::Bf16(_) => 0,
            Self::F16 => 1,
            Self::F32 => 2,
        }
    }
}

/// What the sum of a bf16 tensor takes along.
#[derive(Debug, Clone, Copy)]
pub struct Slices {
    /// `[numel]` that the rank adds to its contribution, or null.
    pub addend: Addr<bf16>,
    /// What follows the sum; by stores only, in two shots a single pass.
    pub norm: Option<NormAfter>,
    /// Bytes from one rank's `addend`, `residual` and `out` to the next one's.
    pub stride: u64,
}

/// How the ranks of one node share the work of a sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// Every rank sends all it has to every other and sums all by itself. One node only.
    OneShot,
    /// Every rank sums its shard: reduce, put, broadcast.
    TwoShot,
}

/// How a message travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// 8-byte cells of 4 bytes of data and 4 of flag.
    Cells,
    /// 4-byte words that say by themselves that they have arrived: full bandwidth.
    Words,
}

impl Algorithm {
    /// Both.
    pub const ALL: [Self; 2] = [Self::OneShot, Self::TwoShot];

    /// As in results: `one-shot`, `two-shot`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OneShot => "one-shot",
            Self::TwoShot => "two-shot",
        }
    }
}

impl Format {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Cells, Self::Words];

    /// As in results: `cells`, `words`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cells => "cells",
            Self::Words => "words",
        }
    }

    /// Bytes on the wire of a unit of 16 bytes.
    pub const fn unit_bytes(self) -> usize {
        match self {
            Self::Cells => 32,
            Self::Words => 16,
        }
    }
}

/// The ranks of one launch, consecutive ones of a group, on one GPU.
#[derive(Debug, Clone, Copy)]
pub struct Ranks {
    /// A row per rank: sequence number, failure record, every rank's region ([`params::ROW_BYTES`] each).
    pub rows: Addr<u8>,
    /// A word per rank: not 0 once it has failed.
    pub failed: Addr<u32>,
    /// The first of them.
    pub first: u32,
    /// How many.
    pub count: u32,
    /// Nodes of the group.
    pub nodes: u32,
    /// Ranks in each node.
    pub gpus_per_node: u32,
    /// Number of the group, for failure records.
    pub group: u32,
    /// Longest wait for a peer.
    pub limit_ns: u64,
}

/// How a call is executed; equal on all ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Execution {
    /// How the work is shared.
    pub algorithm: Algorithm,
    /// How messages travel.
    pub format: Format,
    /// Where in a region the format's slots begin, in bytes.
    pub slots: u64,
    /// Bytes from the slots of even calls to those of odd ones.
    pub parity_stride: u64,
    /// Bytes from one slot to the next.
    pub slot_stride: u64,
    /// Units of 16 bytes in a pass: of the tensor, of each shard (two-shot) or of each piece (all-gather); in two shots
    /// with a norm, of each slot.
    pub pass_units: u32,
    /// Passes, at least 1.
    pub passes: u32,
    /// Blocks per rank.
    pub blocks: u32,
    /// Threads of a block that move data, whole warps.
    pub workers: u32,
    /// Blocks that share a row to be normalised, a cluster; each has units of it.
    pub row_blocks: u32,
    /// How messages get to other nodes.
    pub far: Far,
}

/// How messages get to ranks of other nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Far {
    /// By stores into their regions, as within a node.
    #[default]
    Stores,
    /// By NVSHMEM's puts: other kernels, several nodes only, in two shots, in words, a pass for each launch.
    Puts,
}

/// Residual and RMSNorm behind a sum.
#[derive(Debug, Clone, Copy)]
pub struct NormAfter {
    /// `[numel]`, the sum is added to it.
    pub residual: Addr<bf16>,
    /// `[hidden]`.
    pub gain: Addr<bf16>,
    /// `[numel]`, written.
    pub out: Addr<bf16>,
    /// Width of a row, a multiple of 8.
    pub hidden: u32,
    /// Added to the mean square.
    pub eps: f32,
}

/// `data ← Σ over ranks of (data + addend)`, and what follows.
#[derive(Debug, Clone, Copy)]
pub struct AllReduce {
    /// Who takes part in this launch.
    pub ranks: Ranks,
    /// How.
    pub execution: Execution,
    /// Of `data`.
    pub elements: Elements,
    /// `[numel]`, summed in place; readable up to the next multiple of 16 bytes.
    pub data: Addr<u8>,
    /// Bytes from one rank's `data` to the next one's.
    pub data_stride: u64,
    /// Their number.
    pub numel: u32,
    /// What ranks compare beside `numel`.
    pub meta: u32,
    /// [`params::PHASE_REDUCE`] and so on: all of them, or with [`Algorithm::TwoShot`] one alone, in a single pass.
    pub phases: u32,
    /// Unit that the first pass begins with, of the tensor or of each shard; 0 unless it is a phase alone
    /// or messages are put.
    pub first_unit: u32,
}

impl AllReduce {
    /// A block's workers and who serves them, `blocks` × ranks of them.
    ///
    /// # Panics
    /// If a norm is to follow puts, or its rows are shared by no block.
    pub fn launch(&self) -> Launch {
        let Execution { format, blocks, workers, .. } = self.execution;
        let norm = self.norm();
        if self.execution.far == Far::Puts {
            assert!(norm.is_none(), "a norm behind messages that are put is a launch of its own");
            let params = params::Collective { passes: 1, ..self.params() };
            let entry = ALL_REDUCE_PUT[self.elements.index()];
            return Launch::new(entry, [blocks, self.ranks.count, 1], workers + PUT_LANES, 0, &params);
        }
        let entry = match (norm, self.execution.algorithm) {
            (Some(_), algorithm) => NORM[algorithm as usize][format as usize],
            (None, Algorithm::OneShot) => ONE_SHOT[self.elements.index()][format as usize],
            (None, Algorithm::TwoShot) => TWO_SHOT[self.elements.index()][format as usize],
        };
        // Rows are dealt in z, so that a row and its parts are told apart without a division; the parts meet.
        let (parts, cluster) = match norm {
            Some(_) => {
                assert!(self.execution.row_blocks > 0, "a row is shared by at least one block");
                (self.execution.row_blocks, self.execution.row_blocks)
            }
            None => (blocks, 1),
        };
        let grid = [parts, self.ranks.count, blocks / parts];
        Launch::new(entry, grid, workers + CLERKS, 0, &self.params()).in_clusters(cluster)
    }

    fn norm(&self) -> Option<NormAfter> {
        match self.elements {
            Elements::Bf16(slices) => slices.norm,
            Elements::F16 | Elements::F32 => None,
        }
    }

    fn params(&self) -> params::Collective {
        let &Self { ranks, execution, data, data_stride, numel, phases, first_unit, .. } = self;
        let collective = collective(&ranks, &execution, data, data_stride, numel, self.meta);
        let sum = params::Collective { phases, first_unit, ..collective };
        let Elements::Bf16(Slices { addend, norm, stride }) = self.elements else { return sum };
        let slices = params::Collective { addend: addend.raw(), slice_stride: stride, ..sum };
        let Some(norm) = norm else { return slices };
        params::Collective {
            residual: norm.residual.raw(),
            gain: norm.gain.raw(),
            out: norm.out.raw(),
            hidden: norm.hidden,
            eps: norm.eps,
            ..slices
        }
    }
}

/// Every rank gets every rank's piece, in place; one launch takes `pass_units` of each piece.
#[derive(Debug, Clone, Copy)]
pub struct AllGather<'a> {
    /// Who takes part in this launch.
    pub ranks: Ranks,
    /// How; `passes` is not looked at.
    pub execution: Execution,
    /// The tensor of all pieces.
    pub data: Addr<u8>,
    /// Bytes from one rank's `data` to the next one's.
    pub data_stride: u64,
    /// Bytes of an element: 2 or 4.
    pub element_bytes: u32,
    /// Elements: rank r's piece is `offsets[r]..offsets[r + 1]`; at most [`params::MAX_RANKS`] pieces.
    pub offsets: &'a [u32],
    /// Unit of each piece that the launch begins with.
    pub first_unit: u32,
    /// What ranks compare beside the number of elements.
    pub meta: u32,
}

impl AllGather<'_> {
    /// A block's workers and its clerk, `blocks` × ranks of them.
    pub fn launch(&self) -> Launch {
        let &Self { ranks, execution, data, data_stride, .. } = self;
        let end = self.offsets.last().copied().unwrap_or_default();
        let mut offsets = [end; params::MAX_RANKS + 1];
        offsets[..self.offsets.len()].copy_from_slice(self.offsets);
        let execution = Execution { passes: 1, ..execution };
        let collective = collective(&ranks, &execution, data, data_stride, end, self.meta);
        let params = params::Gather {
            collective: params::Collective { first_unit: self.first_unit, ..collective },
            offsets,
            element_halves: self.element_bytes / 2,
        };
        let grid = [execution.blocks, ranks.count, 1];
        let (entry, more) = match execution.far {
            Far::Stores => (GATHER[execution.format as usize], CLERKS),
            Far::Puts => (ALL_GATHER_PUT, PUT_LANES),
        };
        Launch::new(entry, grid, execution.workers + more, 0, &params)
    }
}

/// What all collectives take, without slices.
fn collective(
    ranks: &Ranks,
    execution: &Execution,
    data: Addr<u8>,
    data_stride: u64,
    numel: u32,
    meta: u32,
) -> params::Collective {
    params::Collective {
        rows: ranks.rows.raw(),
        failed: ranks.failed.raw(),
        data: data.raw(),
        addend: 0,
        residual: 0,
        gain: 0,
        out: 0,
        data_stride,
        slice_stride: 0,
        limit_ns: ranks.limit_ns,
        slots: execution.slots,
        parity_stride: execution.parity_stride,
        slot_stride: execution.slot_stride,
        numel,
        pass_units: execution.pass_units,
        passes: execution.passes,
        phases: 0,
        nodes: ranks.nodes,
        gpus_per_node: ranks.gpus_per_node,
        first_rank: ranks.first,
        meta,
        group: ranks.group,
        hidden: 0,
        eps: 0.0,
        first_unit: 0,
    }
}
