//! Synchronisation between ranks: one trait, whatever the ranks are made of.
//!
//! A [`Communicator`] sums a tensor over all ranks (or gathers its pieces), in place, in *symmetric memory*:
//! buffers that every rank has registered. The way it does so is a [`mod@schedule`], a pure function of the
//! [`Topology`]; [`memory`] executes it between threads of one process, [`process`] between processes
//! that [`bootstrap`] has connected, [`gpu`] between GPUs. `docs/sync.md` has the contract that every implementation
//! keeps.

pub mod bootstrap;
pub(crate) mod cpu;
mod dtype;
mod error;
pub mod gpu;
pub mod memory;
pub mod process;
mod rank_list;
pub mod schedule;
pub mod sequence;
mod topology;

pub use dtype::{DType, Element};
pub use error::{Collective, CommError, Header};
pub use schedule::Phase;
pub use topology::{Shape, Topology, TopologyError};

/// A group of ranks that can sum and gather tensors; one value per rank.
///
/// All methods but [`topology`](Self::topology), [`check`](Self::check) and [`counts`](Self::counts) are
/// *collective*: every rank of the group makes the same calls on the same buffers in the same order. A rank that
/// does not is reported, by it or by its peers, as a [`CommError`]; nobody waits for ever.
///
/// `enqueue*` puts work on a stream: the result is there once the stream got to it. The calls on one buffer form one
/// sequence: they are on one stream, or events put them into the same order on every rank. With a stream type that does
/// nothing, the call itself does the work.
///
/// After a collective all ranks hold the same bits: each sum is made once, in an order that depends only on
/// nodes and ranks per node. A group of one exchanges nothing; addend and epilogue still happen.
pub trait Communicator: Sized {
    /// What work is queued on.
    type Stream: ?Sized;
    /// Memory of this rank alone.
    type Slice: ?Sized;
    /// Symmetric memory, with the sequence number of its calls.
    type Buffer;

    /// Where this rank is in the group.
    fn topology(&self) -> &Topology;

    /// Collective: `bytes` of symmetric memory, zeroed on every rank before any rank returns.
    ///
    /// # Errors
    /// [`CommError::Disagreement`] on every rank if the sizes differ; [`CommError::Absent`] if a rank stays away.
    fn register(&self, bytes: usize) -> Result<Self::Buffer, CommError>;

    /// Collective: sums a tensor over all ranks, in place.
    ///
    /// # Errors
    /// Wrong arguments at once. What goes wrong later is in the error word: see [`check`](Self::check).
    fn enqueue(&self, stream: &Self::Stream, op: AllReduce<'_, Self>) -> Result<(), CommError>;

    /// Collective: one phase of the all-reduce by itself, on the same elements that it would take there.
    ///
    /// # Errors
    /// As [`enqueue`](Self::enqueue).
    fn enqueue_stage(&self, stream: &Self::Stream, op: Stage<'_, Self>) -> Result<(), CommError>;

    /// Collective: gives every rank the pieces of all ranks, in place.
    ///
    /// # Errors
    /// As [`enqueue`](Self::enqueue).
    fn enqueue_gather(&self, stream: &Self::Stream, op: AllGather<'_, Self>) -> Result<(), CommError>;

    /// Collective: a new group of the ranks with the same `colour`, ordered by `key`, then by present rank.
    ///
    /// The new topology keeps nodes and ranks per node where the members in that order come node by node,
    /// equally many from each; otherwise every member is a node of its own ([`Shape::subgroup`]).
    ///
    /// # Errors
    /// [`CommError::Disagreement`], [`CommError::Absent`] as for [`register`](Self::register).
    fn split(&self, colour: usize, key: usize) -> Result<Self, CommError>;

    /// Reads the error word: the first failure of this rank, or that of another rank it was told of.
    ///
    /// # Errors
    /// That failure, again at each call.
    fn check(&self) -> Result<(), CommError>;

    /// Collectives run so far by this rank in this group.
    fn counts(&self) -> Counts;
}

/// A sum over all ranks: `buf[..numel] ← Σ (buf[..numel] + addend)`, then the epilogue.
pub struct AllReduce<'a, C: Communicator> {
    /// Symmetric memory; its first `numel` elements are summed in place.
    pub buf: &'a mut C::Buffer,
    /// Elements of the tensor.
    pub numel: usize,
    /// Type of its elements.
    pub dtype: DType,
    /// `numel` elements that this rank adds to its contribution before the sum: the attention output of a block
    /// whose first all-reduce was dropped.
    pub addend: Option<&'a C::Slice>,
    /// What follows the sum.
    pub epilogue: Epilogue<'a, C>,
}

/// What an [`AllReduce`] does with the sum, beside leaving it in the buffer.
pub enum Epilogue<'a, C: Communicator> {
    /// Nothing.
    None,
    /// `residual += sum`, then `out = rmsnorm(residual) · gain` for each row of `gain.len()` elements.
    ResidualRmsNorm {
        /// `numel` elements: the residual stream.
        residual: &'a mut C::Slice,
        /// The norm's weight; its length is that of a row.
        gain: &'a C::Slice,
        /// Added to the mean of squares.
        eps: f32,
        /// `numel` elements, overwritten.
        out: &'a mut C::Slice,
    },
}

/// One [`Phase`] of an all-reduce alone.
pub struct Stage<'a, C: Communicator> {
    /// Which phase.
    pub phase: Phase,
    /// Symmetric memory.
    pub buf: &'a mut C::Buffer,
    /// Elements of the tensor.
    pub numel: usize,
    /// Type of its elements.
    pub dtype: DType,
}

/// An exchange of pieces: afterwards every rank has `buf[..offsets[world]]` complete.
pub struct AllGather<'a, C: Communicator> {
    /// Symmetric memory; rank r's piece lies in place at elements `offsets[r]..offsets[r + 1]`.
    pub buf: &'a mut C::Buffer,
    /// `world + 1` ascending element offsets, equal on all ranks.
    pub offsets: &'a [usize],
    /// Type of the elements.
    pub dtype: DType,
}

/// Collectives that a rank has completed in a group of two or more; a group of one synchronises nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls of [`Communicator::enqueue`].
    pub all_reduces: u64,
    /// Calls of [`Communicator::enqueue_gather`].
    pub all_gathers: u64,
    /// Calls of [`Communicator::enqueue_stage`].
    pub stages: u64,
}
