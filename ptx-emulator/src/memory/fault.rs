//! What is wrong with an access: typed, with everything needed to say where.

use std::fmt;

use super::{AccessKind, DeviceId, Scope, Site, Thread};

/// A result of an operation on memory; faults are boxed to keep the good way fast.
pub type Result<T> = std::result::Result<T, Box<Fault>>;

/// An access that must not happen, or an operation on allocations that cannot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// No allocation lives at or near the address.
    #[error("{access}: no allocation is there")]
    Unmapped {
        /// The access.
        access: FaultyAccess,
    },
    /// The access begins or ends outside of the allocation that it is nearest to.
    #[error("{access}: out of bounds, from byte {offset} of {allocation}")]
    OutOfBounds {
        /// The access.
        access: FaultyAccess,
        /// The allocation that was missed.
        allocation: Allocation,
        /// The first byte accessed, relative to the start of the allocation; negative before it.
        offset: i64,
    },
    /// The allocation has been freed.
    #[error("{access}: byte {offset} of {allocation}, which has been freed")]
    UseAfterFree {
        /// The access.
        access: FaultyAccess,
        /// The allocation as it was.
        allocation: Allocation,
        /// The first byte accessed.
        offset: i64,
    },
    /// The address is not a multiple of the access size.
    #[error("{access}: the address is not a multiple of {alignment_bytes} (byte {offset} of {allocation})")]
    Misaligned {
        /// The access.
        access: FaultyAccess,
        /// The allocation.
        allocation: Allocation,
        /// The first byte accessed.
        offset: i64,
        /// The alignment that was needed.
        alignment_bytes: u64,
    },
    /// A byte that nobody has written is read.
    #[error("{access}: byte {offset} of {allocation} has never been written")]
    Uninitialised {
        /// The access.
        access: FaultyAccess,
        /// The allocation.
        allocation: Allocation,
        /// The first byte that is not initialised.
        offset: i64,
    },
    /// A device reaches into the memory of another without peer access.
    #[error("{access}: {allocation} is not accessible from device {}: enable peer access first", .device.0)]
    NoPeerAccess {
        /// The access.
        access: FaultyAccess,
        /// The allocation.
        allocation: Allocation,
        /// The device that the access came from.
        device: DeviceId,
    },
    /// Two accesses conflict and nothing orders them.
    #[error(
        "data race on byte {offset} of {allocation}: {second} is not ordered after {first}, \
         and they are not morally strong"
    )]
    Race {
        /// The access that came first in this run.
        first: RacingAccess,
        /// The access that revealed the race.
        second: RacingAccess,
        /// The allocation.
        allocation: Allocation,
        /// The first byte that both touch.
        offset: i64,
    },
    /// The asynchronous proxy accesses what the generic one has stored, and no proxy fence lies between the two.
    #[error(
        "byte {offset} of {allocation}: {second}, through the asynchronous proxy, follows {first}, through the generic \
         one, without `fence.proxy.async` between them"
    )]
    Proxy {
        /// The store of the generic proxy.
        first: RacingAccess,
        /// The access of the asynchronous proxy.
        second: RacingAccess,
        /// The allocation.
        allocation: Allocation,
        /// The first byte that both touch.
        offset: i64,
    },
    /// A range is to be filled with nothing.
    #[error("cannot fill {bytes} bytes at {address:#x} with a pattern of 0 bytes")]
    EmptyPattern {
        /// The range.
        address: u64,
        /// Its size.
        bytes: u64,
    },
    /// The address does not begin an allocation.
    #[error("cannot free {address:#x}: no allocation begins there")]
    NotAnAllocation {
        /// The address.
        address: u64,
    },
    /// The address space is full, or the request is absurd.
    #[error(
        "cannot allocate {bytes} bytes for {name:?}: the emulator's address space or this computer's ends before that"
    )]
    TooLarge {
        /// What was asked for.
        bytes: u64,
        /// For what.
        name: String,
    },
}

/// An access as it appears in faults about addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultyAccess {
    /// What it does.
    pub kind: AccessKind,
    /// Who.
    pub thread: Thread,
    /// Which instruction; [`Site::NONE`] for copies and fills.
    pub site: Site,
    /// The generic address; shared memory lies at [`SHARED_WINDOW`](super::SHARED_WINDOW).
    pub address: u64,
    /// The size.
    pub bytes: u64,
}

impl fmt::Display for FaultyAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, thread, address, bytes, .. } = self;
        write!(f, "{kind} of {bytes} bytes at {address:#x} by {thread}")
    }
}

/// An access as it appears in races.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RacingAccess {
    /// What it does.
    pub kind: AccessKind,
    /// Who; of several threads of a warp that did the same, the first.
    pub thread: Thread,
    /// Which instruction; [`Site::NONE`] for copies and fills.
    pub site: Site,
    /// Of a strong access; `None` of a plain one.
    pub scope: Option<Scope>,
}

impl fmt::Display for RacingAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, thread, scope, .. } = self;
        let strength = match scope {
            None => "plain",
            Some(Scope::Cta) => "strong .cta",
            Some(Scope::Cluster) => "strong .cluster",
            Some(Scope::Gpu) => "strong .gpu",
            Some(Scope::Sys) => "strong .sys",
        };
        write!(f, "the {strength} {kind} by {thread}")
    }
}

/// Where memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// On a device.
    Device(DeviceId),
    /// Pinned host memory, mapped on every device.
    Host,
    /// The shared memory of one block.
    Shared,
}

/// An allocation, as it appears in faults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocation {
    /// What the caller called it.
    pub name: String,
    /// Where it is.
    pub owner: Owner,
    /// Its first address.
    pub address: u64,
    /// Its size.
    pub bytes: u64,
}

impl fmt::Display for Allocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, bytes, .. } = self;
        match self.owner {
            Owner::Device(device) => write!(f, "{name:?} ({bytes} bytes on device {})", device.0),
            Owner::Host => write!(f, "{name:?} ({bytes} bytes of pinned host memory)"),
            Owner::Shared => write!(f, "the block's shared memory ({bytes} bytes)"),
        }
    }
}
