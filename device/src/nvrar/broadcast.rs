//! Broadcast: all-gather in the node. Every rank pushes what it owns to its neighbours.

use super::call::{Call, Pass};
use super::fused::{Parts, push};
use super::schedule::Place;
use super::tensor::{self, NONE};
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
    let mut units = parts.units(call, pass, place.local);
    loop {
        let (at, i) = units();
        if at == NONE {
            break;
        }
        push::<W>(call, pass, &place, i, tensor::load(call.own.data, at, call.own.halves));
    }
}

/// Receives what the neighbours own.
#[inline(always)]
pub unsafe fn receive<W: Wire>(call: &mut Call, pass: &Pass, parts: &impl Parts) {
    let place = parts.place();
    for n in 1..place.gpus {
        let local = place.after(n);
        let slot = call.own_slot(pass, place.broadcast_slot(local));
        let mut units = parts.units(call, pass, local);
        loop {
            let (at, i) = units();
            if at == NONE {
                break;
            }
            let unit = call.receive_one::<W>(pass, slot + W::offset(i), source(&place, local));
            if !call.watch.over {
                tensor::store(call.own.data, at, call.own.halves, unit);
            }
        }
    }
}

/// From whom what `local` owns is awaited.
#[inline(always)]
pub fn source(place: &Place, local: u32) -> Source {
    Source { peer: place.neighbour(local), phase: PHASE_BROADCAST, step: 0 }
}
