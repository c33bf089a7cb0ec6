//! Put: exchange of the own shard between nodes by recursive doubling. All of a round is sent before any of it
//! is received.

use super::call::{Call, Pass};
use super::element::Element;
use super::fused::Parts;
use super::tensor::{self, NONE};
use super::watch::Source;
use super::wire::Wire;
use crate::params::PHASE_PUT;

/// All rounds.
#[inline(always)]
pub unsafe fn exchange<E: Element, W: Wire>(call: &mut Call, pass: &Pass, parts: &impl Parts) {
    let place = parts.place();
    let last = place.last_round();
    for round in 0..=last {
        let Some((peer, sends, receives)) = place.exchange(round) else { continue };
        if sends {
            send::<W>(call, pass, parts, peer, round);
        }
        if receives {
            receive::<E, W>(call, pass, parts, peer, round, round == last);
        }
    }
}

#[inline(always)]
unsafe fn send<W: Wire>(call: &Call, pass: &Pass, parts: &impl Parts, peer: u32, round: u32) {
    if call.watch.over {
        return;
    }
    let place = parts.place();
    let slot = call.slot(pass, peer, place.put_slot(round));
    let mut units = parts.units(call, pass, place.local);
    loop {
        let (at, i) = units();
        if at == NONE {
            break;
        }
        let unit = tensor::load(call.own.data, at, call.own.halves);
        W::send(slot + W::offset(i), unit, pass.flag());
    }
}

/// Adds what comes to what this rank owns, rounded, or puts it in its place.
#[inline(always)]
pub unsafe fn receive<E: Element, W: Wire>(
    call: &mut Call,
    pass: &Pass,
    parts: &impl Parts,
    peer: u32,
    round: u32,
    replaces: bool,
) {
    let place = parts.place();
    let slot = call.own_slot(pass, place.put_slot(round));
    let from = Source { peer, phase: PHASE_PUT, step: round };
    let mut units = parts.units(call, pass, place.local);
    loop {
        let (at, i) = units();
        if at == NONE {
            break;
        }
        let own = tensor::load(call.own.data, at, call.own.halves);
        let unit = call.receive_one::<W>(pass, slot + W::offset(i), from);
        let sum = E::narrow(E::add(E::widen(own), E::widen(unit)));
        if !call.watch.over {
            let result = if replaces { unit } else { sum };
            tensor::store(call.own.data, at, call.own.halves, result);
        }
    }
}
