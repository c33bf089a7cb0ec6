//! Who accesses memory, from where in the program, how strongly, and how widely.

use std::fmt;

/// A device of the machine, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub u32);

/// A thread block that runs or ran; never used again for another block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub(super) u32);

/// A grid that runs or ran; never used again for another grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GridId(pub(super) u32);

/// An instruction of the program; what it stands for is known to the caller alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site(pub u32);

impl Site {
    /// An access that no instruction of the program made: a copy, a fill, the host.
    pub const NONE: Self = Self(u32::MAX);
}

/// An agent that accesses memory: a thread of a block, one asynchronous copy of it
/// ([`Memory::begin_async`](super::Memory::begin_async)), or a message
/// ([`Memory::begin_message`](super::Memory::begin_message)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Thread {
    /// Its block.
    pub block: BlockId,
    /// Its linear index within the block, x fastest; for an asynchronous copy, [`Thread::async_copy`] tells.
    pub index: u32,
}

const ASYNC: u32 = 1 << 31;
/// Of an asynchronous copy: it is of the asynchronous proxy.
const PROXY: u32 = 1 << 30;
/// Of an asynchronous copy: it is none, but an `mbarrier.init`.
const INIT: u32 = 1 << 29;
/// Of a thread: it is a message, and alone in its block.
const MESSAGE: u32 = 1 << 30;

impl Thread {
    /// The host, as an agent that reads and writes device memory directly.
    pub const HOST: Self = Self { block: BlockId(0), index: 0 };

    /// Thread `index` of `block`.
    pub const fn new(block: BlockId, index: u32) -> Self {
        Self { block, index }
    }

    /// The agent of the `number`-th asynchronous copy of `block`.
    pub(super) const fn copy(block: BlockId, number: u32) -> Self {
        Self { block, index: ASYNC | number }
    }

    /// The same, of the asynchronous proxy.
    pub(super) const fn proxy(block: BlockId, number: u32) -> Self {
        Self { block, index: ASYNC | PROXY | number }
    }

    /// The agent of an `mbarrier.init`, numbered among the asynchronous copies of `block`.
    pub(super) const fn init(block: BlockId, number: u32) -> Self {
        Self { block, index: ASYNC | INIT | number }
    }

    /// Whether its accesses are of the asynchronous proxy (PTX ISA, "Async Proxy").
    pub const fn is_of_async_proxy(self) -> bool {
        self.index & (ASYNC | PROXY) == ASYNC | PROXY
    }

    /// The message that is all of `block`.
    pub(super) const fn message(block: BlockId) -> Self {
        Self { block, index: MESSAGE }
    }

    /// Whether it is a message on its way.
    pub const fn is_message(self) -> bool {
        self.index & (ASYNC | MESSAGE) == MESSAGE
    }

    /// Its place among the threads of its block; of an asynchronous copy, none's.
    pub(super) const fn state_index(self) -> usize {
        (self.index & !MESSAGE) as usize
    }

    /// The running number of the asynchronous copy that this agent is, or `None` for a thread.
    pub const fn async_copy(self) -> Option<u32> {
        if self.index & ASYNC != 0 { Some(self.index & !ASYNC) } else { None }
    }
}

impl fmt::Display for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.async_copy() {
            _ if *self == Self::HOST => f.write_str("host"),
            Some(number) if number & INIT != 0 => write!(f, "`mbarrier.init` of block #{}", self.block.0),
            Some(number) => write!(f, "asynchronous copy {} of block #{}", number & !PROXY, self.block.0),
            None if self.is_message() => write!(f, "message #{}", self.block.0),
            None => write!(f, "thread {} of block #{}", self.index, self.block.0),
        }
    }
}

/// The ordering of an access or a fence (PTX ISA, *Memory Consistency Model*, operation types).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// `.weak`: a plain access. Its scope means nothing.
    Weak,
    /// `.relaxed`; `.volatile` and `.mmio` are relaxed accesses of scope `.sys`.
    Relaxed,
    /// `.acquire`
    Acquire,
    /// `.release`
    Release,
    /// `.acq_rel`
    AcqRel,
    /// `.sc`, of fences only; as an access it is `AcqRel`.
    Sc,
}

impl Order {
    pub(super) const fn is_strong(self) -> bool {
        !matches!(self, Self::Weak)
    }

    pub(crate) const fn acquires(self) -> bool {
        matches!(self, Self::Acquire | Self::AcqRel | Self::Sc)
    }

    pub(crate) const fn releases(self) -> bool {
        matches!(self, Self::Release | Self::AcqRel | Self::Sc)
    }
}

/// The set of threads that a strong operation speaks to, from the narrowest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// `.cta`: the own block.
    Cta,
    /// `.cluster`: the own cluster; of a launch without clusters, the own block.
    Cluster,
    /// `.gpu`: all threads of the own device.
    Gpu,
    /// `.sys`: all threads of all devices, and the host.
    Sys,
}

/// What an access does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessKind {
    /// A load.
    Load,
    /// A store.
    Store,
    /// An atomic read-modify-write: `atom`, `red`.
    Atomic,
}

impl fmt::Display for AccessKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Load => "load",
            Self::Store => "store",
            Self::Atomic => "atomic",
        })
    }
}

/// The side of an access that does not depend on its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Who.
    pub thread: Thread,
    /// Which instruction.
    pub site: Site,
    /// How strongly.
    pub order: Order,
    /// Towards whom, if strong.
    pub scope: Scope,
}

impl Access {
    /// A plain access.
    pub const fn weak(thread: Thread, site: Site) -> Self {
        Self { thread, site, order: Order::Weak, scope: Scope::Cta }
    }
}

/// The size of one memory access. An element of a vector access is an access of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// One byte.
    B1,
    /// Two bytes.
    B2,
    /// Four bytes.
    B4,
    /// Eight bytes: one single access if naturally aligned.
    B8,
}

impl Width {
    /// In bytes: 1, 2, 4 or 8.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::B1 => 1,
            Self::B2 => 2,
            Self::B4 => 4,
            Self::B8 => 8,
        }
    }

    /// The width of that many bytes, if it is one.
    pub const fn from_bytes(bytes: u64) -> Option<Self> {
        match bytes {
            1 => Some(Self::B1),
            2 => Some(Self::B2),
            4 => Some(Self::B4),
            8 => Some(Self::B8),
            _ => None,
        }
    }

    /// One bit per byte.
    pub(super) const fn mask(self) -> u8 {
        match self {
            Self::B1 => 0x01,
            Self::B2 => 0x03,
            Self::B4 => 0x0f,
            Self::B8 => 0xff,
        }
    }
}

/// The same access by lanes of one warp, for [`Memory::load_lanes`](super::Memory::load_lanes).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WarpAccess {
    /// The thread of lane 0; lane `i` is thread `index + i`.
    pub first: Thread,
    /// Which lanes take part.
    pub mask: u32,
    /// Which instruction.
    pub site: Site,
    /// How strongly.
    pub order: Order,
    /// Towards whom, if strong.
    pub scope: Scope,
}

impl WarpAccess {
    /// The access of one lane.
    pub const fn lane(&self, lane: u32) -> Access {
        let thread = Thread { block: self.first.block, index: self.first.index + lane };
        Access { thread, site: self.site, order: self.order, scope: self.scope }
    }
}
