//! One call, seen from one thread: numbers, places, waiting, and the books that every call keeps.
//!
//! The last warp of each block is its *clerk*: the clerk of block 0 greets all ranks and awaits their
//! greetings; every clerk reports that its block has read the call's number, and the last one to do so
//! sets the number of the next call. All other threads move data, thread i with thread i of the peers.

use super::tensor::Contribution;
use super::watch::{Source, Watch};
use super::wire::Wire;
use crate::params::{
    CLERKS, Collective, GREETING_BYTES, MAX_RANKS, PHASE_REDUCE, ROW_ARRIVED, ROW_BYTES, ROW_CALLS,
    ROW_REGIONS, ROW_SEQUENCE,
};
use crate::ptx::atomic::{increment_acq_rel_gpu, load_u64_gpu, store_u64_gpu};
use crate::ptx::barrier::{arrive, sync_some};
use crate::ptx::global::{ld_b64, ld_b64_here};
use crate::ptx::special::{ctaid_x, ctaid_y, ctaid_z, lane, nctaid_x, nctaid_z, ntid_x, tid_x};
use crate::ptx::system::{fence, ld_v2_b64, st_v2_b64};
use crate::ptx::{Global, pdl};

/// The barrier at which a block's clerk learns that all its threads have read the number.
const NUMBER_READ: u32 = 1;

/// One thread's view of a call.
pub struct Call<'a> {
    /// The launch's arguments.
    pub p: &'a Collective,
    /// This rank in its group.
    pub rank: u32,
    /// Ranks of the group.
    pub world: u32,
    /// Its row.
    pub row: Global,
    /// Its own region.
    pub home: Global,
    /// The rank after it, the first one again after the last.
    successor: u32,
    /// The successor's region.
    next_door: Global,
    /// The number of the first pass.
    pub sequence: u64,
    /// What this rank brings.
    pub own: Contribution,
    /// The thread's patience.
    pub watch: Watch,
}

/// One pass: a range of units, exchanged under a number of its own.
#[derive(Clone, Copy)]
pub struct Pass {
    /// Its number.
    pub sequence: u64,
    /// Its first unit, of the tensor or of each shard.
    pub first: u32,
    /// The slots of its number's parity, relative to a region.
    slots: u32,
}

impl Pass {
    /// What marks its messages.
    #[inline(always)]
    pub fn flag(&self) -> u32 {
        self.sequence as u32
    }
}

/// How a greeting gets to a rank.
pub trait Post {
    /// Writes two cells `offset` bytes into the region of rank `to`; each lane that greets calls it for its own rank.
    unsafe fn greet(call: &Call, to: u32, offset: u64, cells: [u64; 2]);
}

/// By a store into the rank's region.
pub struct Stores;

impl Post for Stores {
    #[inline(always)]
    unsafe fn greet(call: &Call, to: u32, offset: u64, cells: [u64; 2]) {
        st_v2_b64(call.region(to) + offset, cells);
    }
}

/// Which units of a part a thread has, and every how many.
#[derive(Clone, Copy)]
pub struct Share {
    /// The first.
    pub first: u32,
    /// Behind the last.
    pub end: u32,
    /// From one to the next.
    pub step: u32,
}

/// How the units of a part are dealt to the threads of the grid.
pub trait Deal {
    /// This thread's share of `units`.
    fn share(units: u32) -> Share;
}

/// To all workers in turn.
pub struct InTurn;

impl Deal for InTurn {
    #[inline(always)]
    fn share(units: u32) -> Share {
        let (first, step) = Call::worker();
        Share { first, end: units, step }
    }
}

/// The number after `sequence`: the parity always changes, and the low half is never 0 or 1.
#[inline(always)]
pub fn next(sequence: u64) -> u64 {
    let following = sequence + 1;
    if (following as u32) < 2 { following + 2 } else { following }
}

impl<'a> Call<'a> {
    /// Waits for the kernel ahead. Clerks then keep the books, and are done: the answer is whether this thread is
    /// one.
    ///
    /// Clerks have loads of their own, so that nothing stands between those of the others ([`Call::begin`]) and
    /// the first ones of the tensor that follow: all of them wait for memory together.
    #[inline(always)]
    pub unsafe fn is_kept_by_clerk<P: Post>(p: &Collective, halves: u32) -> bool {
        pdl::launch_dependents();
        pdl::wait();
        if tid_x() < ntid_x() - CLERKS {
            return false;
        }
        Call::begin(p, halves).keep_books::<P>();
        true
    }

    /// Reads what a call begins with. `halves` is the tensor's length in values of 2 bytes.
    #[inline(always)]
    pub unsafe fn begin(p: &'a Collective, halves: u32) -> Self {
        let y = ctaid_y();
        let row = p.rows + u64::from(y) * ROW_BYTES;
        let slice = u64::from(y) * p.slice_stride;
        let (rank, world) = (p.first_rank + y, p.nodes * p.gpus_per_node);
        let successor = if rank + 1 == world { 0 } else { rank + 1 };
        let region = |rank: u32| row + ROW_REGIONS + u64::from(rank) * 8;
        let sequence = load_u64_gpu(row + ROW_SEQUENCE);
        let watch = Watch::new(p.failed + u64::from(y) * 4, row, p.limit_ns);
        let (home, next_door) = (ld_b64_here(region(rank)), ld_b64_here(region(successor)));
        let own = Contribution {
            data: p.data + u64::from(y) * p.data_stride,
            addend: if p.addend == 0 { 0 } else { p.addend + slice },
            halves,
            idle: row + ROW_REGIONS,
        };
        Self { p, rank, world, row, home, successor, next_door, sequence, own, watch }
    }

    /// Threads of a block that move data.
    #[inline(always)]
    pub fn workers() -> u32 {
        ntid_x() - CLERKS
    }

    /// The first pass.
    #[inline(always)]
    pub fn first_pass(&self) -> Pass {
        self.pass(self.sequence, self.p.first_unit)
    }

    /// The pass after another. What this thread cleared in that one is empty before any peer hears of the next.
    #[inline(always)]
    pub fn pass_after(&self, pass: &Pass) -> Pass {
        fence();
        self.pass(next(pass.sequence), pass.first + self.p.pass_units)
    }

    #[inline(always)]
    fn pass(&self, sequence: u64, first: u32) -> Pass {
        let parity = (sequence & 1) * self.p.parity_stride;
        Pass { sequence, first, slots: (self.p.slots + parity) as u32 }
    }

    /// How many of `units` from a pass's first one on belong to it.
    #[inline(always)]
    pub fn units_of(&self, pass: &Pass, units: u32) -> u32 {
        units.saturating_sub(pass.first).min(self.p.pass_units)
    }

    /// This thread among all that move data for its rank, and their number.
    #[inline(always)]
    pub fn worker() -> (u32, u32) {
        (ctaid_x() * Self::workers() + tid_x(), nctaid_x() * Self::workers())
    }

    /// The region of a rank; in `_put` kernels the PE of a rank of another node.
    #[inline(always)]
    pub unsafe fn region(&self, rank: u32) -> Global {
        if rank == self.successor {
            return self.next_door;
        }
        ld_b64(self.row + ROW_REGIONS + u64::from(rank) * 8)
    }

    /// Where a slot of a pass begins on a peer.
    #[inline(always)]
    pub unsafe fn slot(&self, pass: &Pass, peer: u32, slot: u32) -> Global {
        self.region(peer) + self.slot_offset(pass, slot)
    }

    /// Where a slot of a pass begins on this rank.
    #[inline(always)]
    pub fn own_slot(&self, pass: &Pass, slot: u32) -> Global {
        self.home + self.slot_offset(pass, slot)
    }

    /// Where a slot of a pass begins in any region, which is shorter than 4 GiB.
    #[inline(always)]
    pub fn slot_offset(&self, pass: &Pass, slot: u32) -> u64 {
        u64::from(pass.slots + slot * self.p.slot_stride as u32)
    }

    /// The peer after another, beginning with the rank itself.
    #[inline(always)]
    pub fn after(&self, peer: u32) -> u32 {
        if peer + 1 == self.world { 0 } else { peer + 1 }
    }

    /// Tells the block's clerk that this thread has used the call's number. Every thread but the clerk's
    /// calls it once.
    #[inline(always)]
    pub fn number_is_read() {
        arrive::<NUMBER_READ>(ntid_x());
    }

    /// Takes the units at `places` that are messages of `pass`; all are looked at in turn until all are there. A place
    /// may be there twice. After a failure the units are worth nothing.
    #[inline(always)]
    pub unsafe fn receive<W: Wire, const K: usize>(
        &mut self,
        pass: &Pass,
        places: [Global; K],
        from: impl Fn(usize) -> Source,
    ) -> [[u32; 4]; K] {
        let mut units = [[0; 4]; K];
        while !self.watch.over {
            let mut missing = K;
            for k in 0..K {
                let (unit, arrived) = W::look(places[k], pass.flag());
                units[k] = unit;
                missing = if arrived { missing } else { k };
            }
            if missing == K {
                self.watch.is_rewarded();
                for k in 0..K {
                    W::clear(places[k]);
                }
                break;
            }
            if self.watch.is_first_to_give_up() {
                let mut place = 0;
                for k in 0..K {
                    place = if k == missing { places[k] } else { place };
                }
                let seen = W::seen(place);
                self.watch.report_timeout(self.p, self.rank, from(missing), pass.sequence, seen);
            }
        }
        units
    }

    /// Takes the unit of a pass at one place.
    #[inline(always)]
    pub unsafe fn receive_one<W: Wire>(&mut self, pass: &Pass, place: Global, from: Source) -> [u32; 4] {
        let [unit] = self.receive::<W, 1>(pass, [place], |_| from);
        unit
    }

    /// The clerk's work: greets, sets the next number, awaits the greetings.
    ///
    /// Greetings take turns by call, not by number: a call may have an even number of passes.
    #[inline(always)]
    unsafe fn keep_books<P: Post>(&mut self) {
        let (block, blocks) = (ctaid_x() + ctaid_z(), nctaid_x() * nctaid_z());
        let greets = block == 0 && lane() < self.world && lane() != self.rank && !self.watch.over;
        let (numel, meta) = (self.p.numel, self.p.meta);
        let cell = |data: u32| self.sequence << 32 | u64::from(data);
        let calls = load_u64_gpu(self.row + ROW_CALLS);
        let greetings = (calls & 1) * (MAX_RANKS as u64 * GREETING_BYTES);
        if greets {
            let offset = greetings + u64::from(self.rank) * GREETING_BYTES;
            P::greet(self, lane(), offset, [cell(numel), cell(meta)]);
        }
        sync_some::<NUMBER_READ>(ntid_x());
        if lane() == 0 {
            let last = blocks - 1;
            if increment_acq_rel_gpu(self.row + ROW_ARRIVED, last) == last {
                let mut number = self.sequence;
                for _ in 0..self.p.passes {
                    number = next(number);
                }
                store_u64_gpu(self.row + ROW_SEQUENCE, number);
                store_u64_gpu(self.row + ROW_CALLS, calls + 1);
            }
        }
        if greets {
            let place = self.home + greetings + u64::from(lane()) * GREETING_BYTES;
            self.await_greeting(place, [cell(numel), cell(meta)]);
        }
    }

    #[inline(always)]
    unsafe fn await_greeting(&mut self, place: Global, expected: [u64; 2]) {
        let from = Source { peer: lane(), phase: PHASE_REDUCE, step: 0 };
        let flag = (self.sequence as u32, self.sequence as u32);
        while !self.watch.over {
            let found = ld_v2_b64(place);
            let flags = ((found[0] >> 32) as u32, (found[1] >> 32) as u32);
            if flags == flag {
                st_v2_b64(place, [0; 2]);
                if found != expected && self.watch.claim() {
                    let found = [found[0] as u32, found[1] as u32];
                    self.watch.report_mismatch(self.p, self.rank, from, self.sequence, found);
                }
                return;
            }
            if self.watch.is_first_to_give_up() {
                self.watch.report_timeout(self.p, self.rank, from, self.sequence, flags.0);
            }
        }
    }
}
