//! Put: exchange of the own shard between nodes by recursive doubling. All of a round is sent before any of it
//! is received.

use super::call::{Call, Deal, Pass, Share};
use super::element::Element;
use super::fused::Shards;
use super::tensor;
use super::watch::Source;
use super::wire::Wire;
use crate::params::PHASE_PUT;

/// All rounds.
#[inline(always)]
pub unsafe fn exchange<E: Element, W: Wire, D: Deal>(call: &mut Call, pass: &Pass, shards: &Shards) {
    let last = shards.place.last_round();
    for round in 0..=last {
        let Some((peer, sends, receives)) = shards.place.exchange(round) else { continue };
        if sends {
            send::<W, D>(call, pass, shards, peer, round);
        }
        if receives {
            receive::<E, W, D>(call, pass, shards, peer, round, round == last);
        }
    }
}

#[inline(always)]
unsafe fn send<W: Wire, D: Deal>(call: &Call, pass: &Pass, shards: &Shards, peer: u32, round: u32) {
    if call.watch.over {
        return;
    }
    let (first, units) = shards.part(call, pass, shards.place.local);
    let slot = call.slot(pass, peer, shards.place.put_slot(round));
    let Share { first: mut i, end, step } = D::share(units);
    while i < end {
        let unit = tensor::load(call.own.data, first + i, call.own.halves);
        W::send(slot + W::offset(i), unit, pass.flag());
        i += step;
    }
}

/// Adds what comes to the shard, rounded, or puts it in its place.
#[inline(always)]
pub unsafe fn receive<E: Element, W: Wire, D: Deal>(
    call: &mut Call,
    pass: &Pass,
    shards: &Shards,
    peer: u32,
    round: u32,
    replaces: bool,
) {
    let (first, units) = shards.part(call, pass, shards.place.local);
    let slot = call.own_slot(pass, shards.place.put_slot(round));
    let from = Source { peer, phase: PHASE_PUT, step: round };
    let Share { first: mut i, end, step } = D::share(units);
    while i < end {
        let own = tensor::load(call.own.data, first + i, call.own.halves);
        let unit = call.receive_one::<W>(pass, slot + W::offset(i), from);
        let sum = E::narrow(E::add(E::widen(own), E::widen(unit)));
        if !call.watch.over {
            let result = if replaces { unit } else { sum };
            tensor::store(call.own.data, first + i, call.own.halves, result);
        }
        i += step;
    }
}
