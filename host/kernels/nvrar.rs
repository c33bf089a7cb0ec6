//! All-reduce and all-gather between GPUs.
//!
//! These launches are one rank's (or, on one GPU, several ranks') part of a collective; `comm::gpu` allocates what
//! they point to and keeps the ranks' calls alike. `docs/sync.md` has the protocol.

use half::bf16;

use super::{Addr, Launch, params};

/// Threads of a block that keep the books, beside its workers.
pub const CLERKS: u32 = params::CLERKS;

const ONE_SHOT: [[&str; 2]; 3] = [
    ["allreduce_bf16_oneshot_cells", "allreduce_bf16_oneshot_words"],
    ["allreduce_f16_oneshot_cells", "allreduce_f16_oneshot_words"],
    ["allreduce_f32_oneshot_cells", "allreduce_f32_oneshot_words"],
];
const NORM: [&str; 2] = ["allreduce_bf16_oneshot_cells_norm", "allreduce_bf16_oneshot_words_norm"];

/// Every kernel of this module.
pub(super) const NAMES: [&str; 8] = {
    let [[a, b], [c, d], [e, f]] = ONE_SHOT;
    [a, b, c, d, e, f, NORM[0], NORM[1]]
};

/// Element types of a collective.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ElementType {
    /// The upper half of a binary32.
    Bf16,
    /// IEEE 754 binary16.
    F16,
    /// IEEE 754 binary32.
    F32,
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

impl Format {
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
    /// Units of 16 bytes in a pass.
    pub pass_units: u32,
    /// Passes, at least 1.
    pub passes: u32,
    /// Blocks per rank.
    pub blocks: u32,
    /// Threads of a block that move data, whole warps.
    pub workers: u32,
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
    pub element: ElementType,
    /// `[numel]`, summed in place; readable up to the next multiple of 16 bytes.
    pub data: Addr<u8>,
    /// Bytes from one rank's `data` to the next one's.
    pub data_stride: u64,
    /// `[numel]` that the rank adds to its contribution, or null; bf16 tensors only.
    pub addend: Addr<bf16>,
    /// Bytes from one rank's `addend`, `residual` and `out` to the next one's.
    pub slice_stride: u64,
    /// Elements.
    pub numel: u32,
    /// What ranks compare beside `numel`.
    pub meta: u32,
    /// What follows the sum; bf16 tensors and one-shot only.
    pub norm: Option<NormAfter>,
}

impl AllReduce {
    /// A block's workers and its clerk, `blocks` × ranks of them.
    pub fn launch(&self) -> Launch {
        let Execution { format, blocks, workers, .. } = self.execution;
        let entry = match self.norm {
            Some(_) => NORM[format as usize],
            None => ONE_SHOT[self.element as usize][format as usize],
        };
        let grid = [blocks, self.ranks.count, 1];
        Launch::new(entry, grid, workers + CLERKS, 0, &self.params())
    }

    fn params(&self) -> params::Collective {
        let &Self { ranks, execution, data, data_stride, addend, slice_stride, numel, meta, norm, .. } = self;
        let nothing =
            NormAfter { residual: Addr::NULL, gain: Addr::NULL, out: Addr::NULL, hidden: 0, eps: 0.0 };
        let norm = norm.unwrap_or(nothing);
        params::Collective {
            rows: ranks.rows.raw(),
            failed: ranks.failed.raw(),
            data: data.raw(),
            addend: addend.raw(),
            residual: norm.residual.raw(),
            gain: norm.gain.raw(),
            out: norm.out.raw(),
            data_stride,
            slice_stride,
            limit_ns: ranks.limit_ns,
            slots: execution.slots,
            parity_stride: execution.parity_stride,
            slot_stride: execution.slot_stride,
            numel,
            pass_units: execution.pass_units,
            passes: execution.passes,
            phases: params::PHASE_REDUCE | params::PHASE_PUT | params::PHASE_BROADCAST,
            nodes: ranks.nodes,
            gpus_per_node: ranks.gpus_per_node,
            first_rank: ranks.first,
            meta,
            group: ranks.group,
            hidden: norm.hidden,
            eps: norm.eps,
            reserved: 0,
        }
    }
}
