//! What an instruction beyond registers works on.

use super::asynchronous::AsyncState;
use super::barrier::Barriers;
use super::cluster::Cluster;
use super::registers::Pool;
use super::rows::{LANES, Row, Rows};
use crate::external::{Bound, Library};
use crate::memory::{Access, Memory, Order, Scope, Site, Thread, WarpAccess};
use crate::program::{Address, Frame};

/// Local memory and `.param` variables of one lane: bytes, and which of them were written.
#[derive(Debug, Clone, Default)]
pub(crate) struct Private {
    bytes: Vec<u8>,
    written: Vec<bool>,
    /// Bytes that nobody wrote may be read; they are zero or left over.
    trusted: bool,
}

impl Private {
    pub(crate) fn resize(&mut self, bytes: usize) {
        self.bytes.resize(bytes, 0);
        self.written.resize(bytes, false);
    }

    /// Makes room for a call's variables at `base`, none of them written.
    pub(crate) fn open(&mut self, base: u32, bytes: u32) {
        let end = (base + bytes) as usize;
        self.resize(end.max(self.bytes.len()));
        self.written[base as usize..].fill(false);
    }

    /// Writes the first bytes: the parameters of an entry.
    pub(crate) fn fill(&mut self, bytes: &[u8]) {
        self.bytes[..bytes.len()].copy_from_slice(bytes);
        self.written[..bytes.len()].fill(true);
    }

    /// The value at an offset; an error says what is wrong with it.
    pub(crate) fn load(&self, offset: u64, bytes: usize) -> Result<u64, Cause> {
        let range = self.range(offset, bytes)?;
        if !self.trusted && self.written[range.clone()].contains(&false) {
            return Err(Cause::UninitialisedPrivate { offset });
        }
        let mut value = [0; 8];
        value[..bytes].copy_from_slice(&self.bytes[range]);
        Ok(u64::from_le_bytes(value))
    }

    pub(crate) fn store(&mut self, offset: u64, bytes: usize, value: u64) -> Result<(), Cause> {
        let range = self.range(offset, bytes)?;
        self.bytes[range.clone()].copy_from_slice(&value.to_le_bytes()[..bytes]);
        self.written[range].fill(true);
        Ok(())
    }

    fn range(&self, offset: u64, bytes: usize) -> Result<std::ops::Range<usize>, Cause> {
        if !offset.is_multiple_of(bytes as u64) {
            return Err(Cause::Misaligned { address: offset, bytes: bytes as u32 });
        }
        match usize::try_from(offset).ok().filter(|start| start + bytes <= self.bytes.len()) {
            Some(start) => Ok(start..start + bytes),
            None => Err(Cause::PrivateBounds { offset, bytes: bytes as u32, size: self.bytes.len() as u64 }),
        }
    }

    /// Hands out all bytes, eight at a time.
    pub(crate) fn words(&self) -> impl Iterator<Item = u64> {
        self.bytes.chunks(8).map(|chunk| chunk.iter().fold(0, |word, &byte| word << 8 | u64::from(byte)))
    }

    /// Copies bytes with their state within one lane.
    pub(crate) fn copy(&mut self, from: u32, to: u32, bytes: u32) {
        let (from, to, bytes) = (from as usize, to as usize, bytes as usize);
        self.bytes.copy_within(from..from + bytes, to);
        self.written.copy_within(from..from + bytes, to);
    }
}

/// Private memory of the lanes of a warp.
#[derive(Debug, Clone)]
pub(crate) struct Privates {
    pub(crate) local: [Private; LANES],
    pub(crate) params: [Private; LANES],
}

impl Privates {
    /// Stops the check of initialisation.
    pub(crate) fn trust(&mut self) {
        self.local.iter_mut().chain(&mut self.params).for_each(|private| private.trusted = true);
    }
}

impl Default for Privates {
    fn default() -> Self {
        Self {
            local: std::array::from_fn(|_| Private::default()),
            params: std::array::from_fn(|_| Private::default()),
        }
    }
}

/// Where the variables of the current call begin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PrivateBase {
    pub(crate) local: u32,
    pub(crate) params: u32,
}

/// The place of a warp in its grid, and the time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Environment {
    pub(crate) block_size: [u32; 3],
    pub(crate) grid_size: [u32; 3],
    pub(crate) block: [u32; 3],
    /// Blocks of a cluster.
    pub(crate) cluster_size: [u32; 3],
    /// Linear index of lane 0 in the block.
    pub(crate) first_thread: u32,
    pub(crate) grid_id: u64,
    pub(crate) multiprocessor: u32,
    pub(crate) multiprocessors: u32,
    pub(crate) shared_bytes: u32,
    pub(crate) dynamic_shared_bytes: u32,
    pub(crate) time_ns: u64,
}

impl Environment {
    pub(crate) fn threads(&self) -> u32 {
        self.block_size.iter().product()
    }

    /// `%cluster_ctarank`, x fastest.
    pub(crate) fn cluster_rank(&self) -> u32 {
        let [x, y, z] = std::array::from_fn(|axis| self.block[axis] % self.cluster_size[axis]);
        let [width, height, _] = self.cluster_size;
        x + width * (y + height * z)
    }

    /// `%tid` of a lane.
    pub(crate) fn thread_of(&self, lane: usize) -> [u32; 3] {
        let linear = self.first_thread + lane as u32;
        let [x, y, _] = self.block_size;
        [linear % x, linear / x % y, linear / (x * y)]
    }
}

/// What goes wrong while a kernel runs, besides what [`Fault`](crate::memory::Fault) tells of memory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Cause {
    #[error(transparent)]
    Memory(#[from] Box<crate::memory::Fault>),
    #[error("a register is read before lane {lane} has written it")]
    UninitialisedRegister { lane: u32 },
    #[error("byte {offset} of local or parameter memory is read before it was written")]
    UninitialisedPrivate { offset: u64 },
    #[error("access of {bytes} bytes at {offset} of local or parameter memory, which has {size} bytes")]
    PrivateBounds { offset: u64, bytes: u32, size: u64 },
    #[error("address {address:#x} is not a multiple of {bytes}, the size of the whole access")]
    Misaligned { address: u64, bytes: u32 },
    #[error("local memory and parameters cannot be accessed this way (address {address:#x})")]
    PrivateAddress { address: u64 },
    #[error("the instruction names global or constant memory, address {address:#x} lies in shared memory")]
    WrongSpace { address: u64 },
    #[error("`trap` was executed")]
    Trap,
    #[error("assertion failed: {0}")]
    Assertion(String),
    #[error(
        "lanes {waiting:#010x} wait here for lanes {missing:#010x} of their warp, which never come: {why}"
    )]
    Divergent { waiting: u32, missing: u32, why: &'static str },
    #[error("lanes of the warp name different member masks ({first:#010x} and {second:#010x})")]
    MemberMask { first: u32, second: u32 },
    #[error("lane {lane} executes this but is not in its member mask {members:#010x}")]
    NotMember { lane: u32, members: u32 },
    #[error("barrier {id} is used with {count} threads, not a multiple of 32 up to the block's {limit}")]
    BarrierCount { id: u32, count: u32, limit: u32 },
    #[error("barrier {id} is out of range (0 to 15)")]
    BarrierId { id: u32 },
    #[error("barrier {id} waits for {first} threads, and now others ask for {second}")]
    BarrierMismatch { id: u32, first: u32, second: u32 },
    #[error("block {rank} is none of the {blocks} blocks of the cluster")]
    ClusterRank { rank: u32, blocks: u32 },
    #[error("the barrier of the cluster: a thread {0}")]
    ClusterBarrier(&'static str),
    #[error("the mbarrier at {address:#x} is used before it was initialised or after it was invalidated")]
    MbarrierState { address: u64 },
    #[error("the mbarrier at {address:#x}: {why}")]
    MbarrierCount { address: u64, why: &'static str },
    #[error("an asynchronous copy of {bytes} bytes from {from:#x} to {to:#x}: {why}")]
    AsyncCopy { bytes: u64, from: u64, to: u64, why: &'static str },
    #[error("the tensor map of a copy ({address:#x}): {why}")]
    TensorMap { address: u64, why: &'static str },
    #[error("an asynchronous store of {bytes} bytes to {to:#x} is on its way when the block there ends")]
    LateStore { bytes: u64, to: u64 },
    #[error(
        "an asynchronous copy of {bytes} bytes to {to:#x} still uses shared memory of its block when that ends: nobody \
         has waited for it"
    )]
    LateCopy { bytes: u64, to: u64 },
    #[error("an indirect call to {address:#x}, which is no function")]
    CallTarget { address: u64 },
    #[error("{0}")]
    External(String),
    #[error("call depth beyond {0}")]
    CallDepth(usize),
    #[error("index {index} of a table of {entries} branch targets")]
    BranchIndex { index: u32, entries: usize },
    #[error("a product of a warpgroup: {0}")]
    Wgmma(&'static str),
    #[error("registers that warps hand to each other: {0}")]
    Registers(&'static str),
    #[error("warps of a warpgroup are out of step: another one has executed {what}")]
    OutOfStep { what: &'static str, first: crate::memory::Thread, site: Site },
    #[error("the matrix shapes of `wmma` and row addresses must be the same in all lanes")]
    MatrixAddress,
}

pub(crate) type Done<T = ()> = Result<T, Cause>;

/// Registers, memory and surroundings of the lanes that execute an instruction.
pub(crate) struct Context<'a> {
    pub(crate) rows: Rows<'a>,
    pub(crate) memory: &'a mut Memory,
    pub(crate) privates: &'a mut Privates,
    pub(crate) base: PrivateBase,
    pub(crate) environment: &'a Environment,
    pub(crate) barriers: &'a mut Barriers,
    pub(crate) cluster: &'a mut Cluster,
    pub(crate) asynchronous: &'a mut AsyncState,
    pub(crate) registers: &'a mut Pool,
    /// The thread of lane 0.
    pub(crate) first: Thread,
    pub(crate) site: Site,
    /// Text that kernels printed.
    pub(crate) output: &'a mut String,
    /// Counts changes that another warp may wait for, besides those of memory.
    pub(crate) progress: &'a mut u64,
    /// Functions of the embedder's, and where those are that the kernel calls.
    pub(crate) bound: &'a [Bound],
    pub(crate) libraries: &'a mut Vec<Box<dyn Library>>,
    /// The lane at work, where an instruction goes lane by lane.
    pub(crate) culprit: &'a mut Option<usize>,
}

impl Context<'_> {
    pub(crate) fn thread(&self, lane: usize) -> Thread {
        Thread::new(self.first.block, self.first.index + lane as u32)
    }

    pub(crate) fn access(&self, lane: usize, order: Order, scope: Scope) -> Access {
        Access { thread: self.thread(lane), site: self.site, order, scope }
    }

    pub(crate) fn warp_access(&self, mask: u32, order: Order, scope: Scope) -> WarpAccess {
        WarpAccess { first: self.first, mask, site: self.site, order, scope }
    }

    /// Addresses of all lanes, in the operand's space.
    #[inline]
    pub(crate) fn addresses(&self, address: &Address) -> Row<u64> {
        let mut row = self.rows.wide(address.base, address.class);
        let base = match address.frame {
            Frame::None => 0,
            Frame::Local => self.base.local,
            Frame::Params => self.base.params,
        };
        let offset = (address.offset as u64).wrapping_add(u64::from(base));
        for value in &mut row {
            *value = value.wrapping_add(offset);
        }
        row
    }

    /// The lanes that execute, lowest first.
    pub(crate) fn active(&self) -> impl Iterator<Item = usize> + Clone + use<> {
        lanes(self.rows.mask)
    }
}

/// The lanes of a mask, lowest first.
pub(crate) fn lanes(mut mask: u32) -> impl Iterator<Item = usize> + Clone {
    std::iter::from_fn(move || {
        let lane = mask.trailing_zeros() as usize;
        mask &= mask.wrapping_sub(1);
        (lane < LANES).then_some(lane)
    })
}
