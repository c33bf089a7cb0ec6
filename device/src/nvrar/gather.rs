//! All-gather: pieces go to the same local rank of other nodes (put), and each rank passes on in its node what it
//! holds (broadcast), so that every piece enters a node once.

use super::call::{Call, Deal, InTurn, Pass, Share, Stores};
use super::schedule::Place;
use super::watch::Source;
use super::wire::{Cells, Wire, Words};
use crate::params::{Gather, MAX_RANKS, PHASE_BROADCAST, PHASE_PUT, UNIT_BYTES};
use crate::ptx::Global;
use crate::ptx::global::{ld_v4, st_v4};
use crate::tile::bf16::{gather8, store8};

const HALVES_PER_UNIT: u32 = 8;

/// What this launch has of one rank's piece.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    /// Its first half.
    at: Global,
    halves: u32,
    first_unit: u32,
    /// Units from `first_unit` on.
    pub(super) units: u32,
}

impl Piece {
    #[inline(always)]
    pub(super) unsafe fn new(p: &Gather, call: &Call, rank: u32) -> Self {
        // Indexed by constants alone, the array stays in parameter space.
        let (mut start, mut end) = (0, 0);
        for r in 0..MAX_RANKS {
            if r as u32 == rank {
                (start, end) = (p.offsets[r], p.offsets[r + 1]);
            }
        }
        let halves = (end - start) * p.element_halves;
        let first_unit = p.collective.first_unit;
        let units = halves.div_ceil(HALVES_PER_UNIT).saturating_sub(first_unit);
        let at = call.own.data + u64::from(start * p.element_halves) * 2;
        Self { at, halves, first_unit, units: units.min(p.collective.pass_units) }
    }

    /// Whether unit `i` is whole and aligned.
    #[inline(always)]
    fn is_plain(&self, i: u32) -> bool {
        self.halves - (self.first_unit + i) * HALVES_PER_UNIT >= HALVES_PER_UNIT
            && self.at.is_multiple_of(UNIT_BYTES)
    }

    #[inline(always)]
    pub(super) unsafe fn load(&self, i: u32) -> [u32; 4] {
        let unit = self.first_unit + i;
        if self.is_plain(i) {
            return ld_v4(self.at + u64::from(unit) * UNIT_BYTES);
        }
        gather8(self.at, unit * HALVES_PER_UNIT, self.halves)
    }

    #[inline(always)]
    unsafe fn store(&self, i: u32, value: [u32; 4]) {
        let unit = self.first_unit + i;
        if self.is_plain(i) {
            return st_v4(self.at + u64::from(unit) * UNIT_BYTES, value);
        }
        store8(self.at, unit * HALVES_PER_UNIT, self.halves, value, false);
    }
}

/// The receiver's slot of the piece of `origin` that comes from its own node.
#[inline(always)]
fn broadcast_slot(place: &Place, origin: u32) -> u32 {
    place.nodes + origin
}

/// Sends unit `i` of the piece of `origin` to all neighbours.
#[inline(always)]
pub(super) unsafe fn pass_on<W: Wire>(
    call: &Call,
    pass: &Pass,
    place: &Place,
    origin: u32,
    i: u32,
    unit: [u32; 4],
) {
    let mut local = place.local;
    for _ in 1..place.gpus {
        local = if local + 1 == place.gpus { 0 } else { local + 1 };
        let slot = call.slot(pass, place.neighbour(local), broadcast_slot(place, origin));
        W::send(slot + W::offset(i), unit, pass.flag());
    }
}

#[inline(always)]
unsafe fn all_gather<W: Wire>(p: &Gather) {
    let c = &p.collective;
    if Call::is_kept_by_clerk::<Stores>(c, c.numel * p.element_halves) {
        return;
    }
    let mut call = Call::begin(c, c.numel * p.element_halves);
    let place = Place::new(c.nodes, c.gpus_per_node, call.rank);
    let (worker, workers) = Call::worker();
    let pass = call.first_pass();

    // The own piece, to other nodes and to neighbours.
    let mine = Piece::new(p, &call, call.rank);
    let mut i = worker;
    while i < mine.units && !call.watch.over {
        let unit = mine.load(i);
        for node in 0..place.nodes {
            if node != place.node {
                let slot = call.slot(&pass, place.counterpart(node), place.node);
                W::send(slot + W::offset(i), unit, pass.flag());
            }
        }
        pass_on::<W>(&call, &pass, &place, call.rank, i, unit);
        i += workers;
    }
    Call::number_is_read();
    receive::<W, InTurn>(p, &mut call, &pass, &place);
}

/// Receives all other pieces.
#[inline(always)]
pub(super) unsafe fn receive<W: Wire, D: Deal>(p: &Gather, call: &mut Call, pass: &Pass, place: &Place) {
    // Pieces from other nodes, which go on to the neighbours.
    for node in 0..place.nodes {
        if node == place.node {
            continue;
        }
        let origin = place.counterpart(node);
        let piece = Piece::new(p, call, origin);
        let slot = call.own_slot(pass, node);
        let from = Source { peer: origin, phase: PHASE_PUT, step: 0 };
        let Share { first: mut i, end, step } = D::share(piece.units);
        while i < end {
            let unit = call.receive_one::<W>(pass, slot + W::offset(i), from);
            if !call.watch.over {
                piece.store(i, unit);
                pass_on::<W>(call, pass, place, origin, i, unit);
            }
            i += step;
        }
    }

    // The neighbours' pieces, and those that they pass on.
    for origin in 0..call.world {
        let local = origin % place.gpus;
        if local == place.local {
            continue;
        }
        let piece = Piece::new(p, call, origin);
        let slot = call.own_slot(pass, broadcast_slot(place, origin));
        let from = Source { peer: place.neighbour(local), phase: PHASE_BROADCAST, step: 0 };
        let Share { first: mut i, end, step } = D::share(piece.units);
        while i < end {
            let unit = call.receive_one::<W>(pass, slot + W::offset(i), from);
            if !call.watch.over {
                piece.store(i, unit);
            }
            i += step;
        }
    }
}

macro_rules! gather {
    ($($name:ident: $wire:ident;)*) => {$(kernel! {
        /// All-gather in place, of floats of 2 or 4 bytes; NaNs may change their bits ([`Words`]).
        ///
        /// # Shape and layout
        /// Units `first_unit..first_unit + pass_units` of each rank's piece, counted from the piece's begin.
        ///
        /// # Thread mapping
        /// Any grid in x, a rank per block in y; whole warps, the last of each block its clerk. The units of each
        /// piece are dealt to the other threads in turn.
        ///
        /// # Memory order
        /// See [`crate::nvrar`]. One pass per launch: pieces may be empty, so that a thread need not hear from all.
        ///
        /// # Safety
        /// All blocks are resident at once; rows, regions and tensors exist as [`Collective`] says; all ranks
        /// make the same calls in the same order.
        ///
        /// [`Collective`]: crate::params::Collective
        #[launch_bounds(416, 1)]
        pub fn $name(p: Gather) {
            all_gather::<$wire>(&p);
        }
    })*};
}

gather! {
    allgather_cells: Cells;
    allgather_words: Words;
}
