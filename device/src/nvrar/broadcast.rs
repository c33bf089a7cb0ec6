//! Broadcast: all-gather in the node. Every rank pushes what it owns to its neighbours.

use super::call::{Call, Pass};
use super::fused::{Parts, push};
use super::schedule::Place;
use super::tensor;
use super::watch::Source;
use super::wire::Wire;
use crate::params::PHASE_BROADCAST;

/// Sends what this rank owns.
#[inline(always)]
pub unsafe fn send<W: Wire>(call: &Call, pass: &Pass, parts: &impl Parts) {
    if call.watch.over {
        return;
    }
    let place = parts.place();
    for (at, i) in parts.units(call, pass, place.local) {
        push::<W>(call, pass, &place, i, tensor::load(call.own.data, at, call.own.halves));
    }
}

/// Receives what the neighbours own.
#[inline(always)]
pub unsafe fn receive<W: Wire>(call: &mut Call, pass: &Pass, parts: &impl Parts) {
    let place = parts.place();
    let mut local = place.local;
    for _ in 1..place.gpus {
        local = if local + 1 == place.gpus { 0 } else { local + 1 };
        for (at, i) in parts.units(call, pass, local) {
            let unit = receive_one::<W>(call, pass, &place, local, i);
            if !call.watch.over {
                tensor::store(call.own.data, at, call.own.halves, unit);
            }
        }
    }
}

/// Receives unit `i` of what the neighbour `local` owns.
#[inline(always)]
pub unsafe fn receive_one<W: Wire>(
    call: &mut Call,
    pass: &Pass,
    place: &Place,
    local: u32,
    i: u32,
) -> [u32; 4] {
    let from = Source { peer: place.neighbour(local), phase: PHASE_BROADCAST, step: 0 };
    let slot = call.own_slot(pass, place.broadcast_slot(local));
    call.receive_one::<W>(pass, slot + W::offset(i), from)
}
