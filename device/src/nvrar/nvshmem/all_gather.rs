//! The all-gather over puts: every piece enters each other node once, by a put, and is passed on there.

use super::courier::{self, InRuns};
use crate::nvrar::call::{Call, Deal, Pass, Share};
use crate::nvrar::gather::{Piece, pass_on, receive};
use crate::nvrar::schedule::Place;
use crate::nvrar::wire::Words;
use crate::params::Gather;

#[inline(always)]
unsafe fn all_gather(p: &Gather) {
    let c = &p.collective;
    let Some(mut call) = courier::begin(c, c.numel * p.element_halves) else { return };
    let place = Place::new(c.nodes, c.gpus_per_node, call.rank);
    let pass = call.first_pass();
    let mine = Piece::new(p, &call, call.rank);
    if courier::is_courier() {
        Call::number_is_read();
        let others = (0..place.nodes).filter(|&node| node != place.node).map(|node| place.counterpart(node));
        return courier::post(&call, &pass, place.node, mine.units, others);
    }
    courier::stage(&call, &pass, place.node, mine.units, |i| mine.load(i));
    Call::number_is_read();
    send_to_neighbours(&call, &pass, &place, &mine);
    receive::<Words, InRuns>(p, &mut call, &pass, &place);
}

#[inline(always)]
unsafe fn send_to_neighbours(call: &Call, pass: &Pass, place: &Place, mine: &Piece) {
    let Share { first: mut i, end, step } = InRuns::share(mine.units);
    while i < end && !call.watch.over {
        pass_on::<Words>(call, pass, place, call.rank, i, mine.load(i));
        i += step;
    }
}

kernel! {
    /// All-gather in place over several nodes, of floats of 2 or 4 bytes; NaNs may change their bits ([`Words`]).
    ///
    /// # Shape and layout
    /// Units `first_unit..first_unit + pass_units` of each rank's piece, counted from the piece's begin.
    ///
    /// # Thread mapping
    /// Any grid in x, one rank; whole warps: workers, `COURIERS` lanes that post, `CLERKS` that keep the books. Each
    /// block has a run of consecutive units of each piece.
    ///
    /// # Memory order
    /// See [`crate::nvrar::nvshmem`].
    ///
    /// # Safety
    /// As the all-reduce's.
    #[launch_bounds(416, 1)]
    pub fn allgather_put(p: Gather) {
        all_gather(&p);
    }
}
