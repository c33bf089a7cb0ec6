//! The memory of the machine: several devices and the host in one address space, and suspicion of every access.
//!
//! Three things are switched apart by [`MemoryOptions`]:
//!
//! - **Addresses** are always checked: bounds per allocation, alignment, use after free, peer access; on request,
//!   that every byte read has been written. Costs one index per warp where its lanes meet in one allocation.
//! - **Races**: two accesses to a common byte, one of them a store, that causality does not order and that are not
//!   morally strong, are a [`Fault::Race`] that names both. Shared and global memory alike.
//! - **Weak memory**: with a seed, loads read old values and stores take an early place in their location's order
//!   wherever the model below allows it. The same seed and calls give the same values.
//!
//! # The model
//! It follows the *Memory Consistency Model* of the PTX ISA (Lustig, Sahasrabuddhe, Giroux: *A Formal Analysis of
//! the NVIDIA PTX Memory Consistency Model*, ASPLOS 2019).
//!
//! *Causality.* Every thread has a clock, and a set of operations that precede its next one. `release` puts what
//! precedes into something, `acquire` takes from it: a [`Clock`] (barriers, mbarriers, streams, events; kept by
//! the caller), or a strong store. A release pattern is a release store, or a release fence and a later strong
//! store; an acquire pattern is an acquire load, or a strong load and a later acquire fence. They synchronise if
//! the load reads that store, or one that atomics have made of it, the two are morally strong (both strong, each
//! one's scope includes the other's thread, the same bytes), and so are the first operation of the one pattern and
//! the last of the other. `fence.sc` synchronises with all morally strong ones before it. So a `.gpu` fence does
//! not order what a peer sees, nor a `.cta` fence what another block sees. Causality is transitive across scopes.
//! A store also precedes whatever follows a morally strong read of it. The begin and the end of a grid are fences of
//! system scope of all its threads, as CUDA's stream order has it: who hears of a grid's end by a later grid's relaxed
//! store, and has ended a grid itself since, comes after it.
//!
//! *Values.* The stores to each location stand in one coherence order. A load may read any store in it that is not
//! older than one it must know: one that precedes it in causality, or that was read by an operation that does. A
//! store takes its place anywhere after those. Atomics read the newest store and follow it at once, unless that is
//! not morally strong with them: then another store may come between, and updates get lost. Each element of a
//! vector access is an access of its own; one of up to 8 aligned bytes is never torn. After at most 4096 ticks a
//! store is seen by everybody, so that spins end. While nothing but time passes, ticks come faster.
//!
//! *Load buffering.* A load may be satisfied after a later store of its thread is visible: the machine puts some loads
//! off until an instruction touches their registers (so address, data and control dependencies hold), or accesses the
//! same bytes, or is anything but arithmetic, a branch, or a plain or relaxed load or store.
//!
//! *Agents.* Asynchronous copies are agents of their own: what they read and write is ordered by what precedes
//! their start and by the wait for their end, and by nothing else. The host is one, too. *Messages* are what a network
//! writes for a thread ([`Memory::begin_message`]): relaxed stores of system scope, each of whose units arrives whole.
//!
//! # Where it differs from PTX
//! Stricter, so that an outcome that PTX allows is never seen:
//! - A load is put off by at most 128 instructions of its warp, behind at most three others, and never beyond an atomic
//!   operation.
//! - Plain loads of one thread from one location never go back, as only strong ones are promised.
//! - A granule (8 aligned bytes) has one coherence order, whatever the sizes of the stores.
//! - [`Memory::write`] and [`Memory::fill`] by threads and the host are seen by everybody at once.
//!
//! Laxer, so that a fault may be missed:
//! - Proxies are told apart by the race check alone, and in shared memory alone: there a bulk copy, or what a tensor
//!   core reads by itself, comes after a store of the generic proxy only with `fence.proxy.async` on the way. Signals to
//!   mbarriers need none, nor do stores over what was copied.
//! - A granule remembers 65 groups of racing candidates and 48 readers of one store; beyond, a candidate is forgotten, and
//!   the store counts as read by everybody.
//! - `ld.const` may read global memory, and `ld.global.nc` what the same kernel writes.
//! - A strong store behind an atomic of the same thread on the same location carries on what the atomic has picked up
//!   from other threads; in PTX only atomics do.
//! - Lanes of one warp may store the same value by one plain instruction (the CUDA programming guide has one of
//!   them win, PTX calls it a race).
//!
//! Narrower: a release is carried on by later strong stores of its thread only while they are the newest of the
//! location; an acquire load takes what the store that it reads carries, not what an earlier relaxed load of the
//! location saw; and an acquire fence that is narrower than the load before it, in a chain of atomics that acquire
//! and release, reaches the last of them alone. Programs that need those would be accused wrongly.
//!
//! # Cost
//! A set of operations is a place per chain of finished grids, and for blocks of running grids a floor for all
//! threads (what a `bar.sync` leaves), single threads beyond it, and ranges of asynchronous copies; threads share
//! one set until they learn something. A whole-block barrier costs O(threads), other synchronisation O(size of the
//! sets), an access O(records of its granule), mostly 1 or 2. Shadow memory of the race check is 48 bytes for 8,
//! for pages of 4 KiB that threads have touched. `cargo run --release --example memory_speed` measures each mode.
//!
//! ```
//! use ptx_emulator::memory::*;
//!
//! # fn main() -> Result<()> {
//! let mut memory = Memory::new(MemoryOptions { race: true, ..MemoryOptions::default() });
//! let flag = memory.allocate(Owner::Device(DeviceId(0)), 4, "flag")?;
//! memory.fill(Thread::HOST, flag, 4, &[0])?;
//! let mut stream = Clock::default();
//! memory.release(Thread::HOST, &mut stream);
//! let grid = memory.begin_grid(DeviceId(0), &stream);
//! let block = memory.begin_block(&BlockSpec { grid, index: 0, n_threads: 2, shared_bytes: 0 });
//! let (writer, reader) = (Thread::new(block, 0), Thread::new(block, 1));
//! memory.store(&Access::weak(writer, Site(1)), flag, Width::B4, 1)?;
//! let fault = memory.load(&Access::weak(reader, Site(2)), flag, Width::B4).unwrap_err();
//! assert!(matches!(*fault, Fault::Race { .. }));
//! # Ok(())
//! # }
//! ```

mod access;
mod accesses;
mod agents;
mod blocks;
mod causality;
mod clock;
mod fault;
mod granule;
mod history;
mod lanes;
mod messages;
mod ordered;
mod region;
mod shadow;
mod space;
#[cfg(test)]
mod tests;
mod tracking;
mod view;
mod weak;

pub use access::{
    Access, AccessKind, BlockId, DeviceId, GridId, Order, Scope, Site, Thread, WarpAccess, Width,
};
pub use blocks::{BlockInfo, BlockSpec};
pub use causality::Moment;
pub use clock::Clock;
pub use fault::{Allocation, Fault, FaultyAccess, Owner, RacingAccess, Result};
pub use lanes::Row;
pub use space::{LOCAL_WINDOW, SHARED_WINDOW, cluster_address, cluster_offset};

use blocks::Blocks;
use causality::Causality;
use space::AddressSpace;
use weak::Weak;

/// How suspicious memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryOptions {
    /// Reading a byte that was never written is a fault.
    pub check_initialised: bool,
    /// Unordered conflicting accesses are a fault.
    pub race: bool,
    /// Memory is weak: with this seed, stores become visible late and in another order where PTX allows it.
    pub weak: Option<u64>,
}

impl Default for MemoryOptions {
    /// Initialised bytes are checked; races are not, and memory is sequentially consistent.
    fn default() -> Self {
        Self { check_initialised: true, race: false, weak: None }
    }
}

/// The memory of several devices and the host, in one address space, with everybody who accesses it.
#[derive(Debug)]
pub struct Memory {
    options: MemoryOptions,
    space: AddressSpace,
    blocks: Blocks,
    causality: Causality,
    weak: Option<Weak>,
    changes: u64,
}

/// Allocations.
impl Memory {
    /// An empty memory.
    pub fn new(options: MemoryOptions) -> Self {
        Self {
            options,
            space: AddressSpace::default(),
            blocks: Blocks::new(),
            causality: Causality::new(),
            weak: options.weak.map(Weak::new),
            changes: 0,
        }
    }

    /// Allocates `bytes` of uninitialised memory, aligned to 256 bytes, and returns its address.
    ///
    /// # Errors
    /// [`Fault::TooLarge`] when the address space (128 TiB, 4 GiB and more per allocation) is used up.
    pub fn allocate(&mut self, owner: Owner, bytes: u64, name: &str) -> Result<u64> {
        self.space.allocate(owner, bytes, name)
    }

    /// Frees the allocation that begins at `address`. Its addresses are never used again.
    ///
    /// # Errors
    /// [`Fault::NotAnAllocation`] when none begins there, or no longer.
    pub fn free(&mut self, address: u64) -> Result<()> {
        self.space.free(address)
    }

    /// Lets threads of device `from` access memory of device `to`, that of today and of later.
    pub fn enable_peer(&mut self, from: DeviceId, to: DeviceId) {
        self.space.enable_peer(from, to);
    }
}

impl Memory {
    /// A number that grows whenever bytes change, by whomever: what a thread that spins may wait for.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Whether more than the bytes matters: who wrote them, and who knows of that.
    #[inline]
    fn is_ordered(&self) -> bool {
        self.options.race || self.options.weak.is_some()
    }
}
