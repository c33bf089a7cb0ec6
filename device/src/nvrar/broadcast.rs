//! Broadcast: all-gather in the node. Every rank pushes its shard to its neighbours.

use super::call::{Call, Deal, Pass, Share};
use super::fused::{Shards, push};
use super::tensor;
use super::watch::Source;
use super::wire::Wire;
use crate::params::PHASE_BROADCAST;

/// Sends the own shard.
#[inline(always)]
pub unsafe fn send<W: Wire, D: Deal>(call: &Call, pass: &Pass, shards: &Shards) {
    if call.watch.over {
        return;
    }
    let (first, units) = shards.part(call, pass, shards.place.local);
    let Share { first: mut i, end, step } = D::share(units);
    while i < end {
        push::<W>(call, pass, &shards.place, i, tensor::load(call.own.data, first + i, call.own.halves));
        i += step;
    }
}

/// Receives the neighbours' shards.
#[inline(always)]
pub unsafe fn receive<W: Wire, D: Deal>(call: &mut Call, pass: &Pass, shards: &Shards) {
    let place = shards.place;
    let mut local = place.local;
    for _ in 1..place.gpus {
        local = if local + 1 == place.gpus { 0 } else { local + 1 };
        let from = Source { peer: place.neighbour(local), phase: PHASE_BROADCAST, step: 0 };
        let (first, units) = shards.part(call, pass, local);
        let slot = call.own_slot(pass, place.broadcast_slot(local));
        let Share { first: mut i, end, step } = D::share(units);
        while i < end {
            let unit = call.receive_one::<W>(pass, slot + W::offset(i), from);
            if !call.watch.over {
                tensor::store(call.own.data, first + i, call.own.halves, unit);
            }
            i += step;
        }
    }
}
