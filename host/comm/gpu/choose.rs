//! Which algorithm, format and grid a call uses: pure functions of bytes, dtype and topology.

/// Overrides parts of the measured choice; equal on all ranks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tuning {
    /// How ranks of one node share the work.
    pub algorithm: Option<Algorithm>,
    /// How messages travel.
    pub format: Option<Format>,
    /// Blocks of the grid.
    pub blocks: Option<u32>,
    /// Threads of a block.
    pub threads: Option<u32>,
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
