//! Reduce: reduce-scatter in the node. Every rank pushes to each neighbour what the neighbour owns; the owner sums in
//! rank order.

use super::call::{Call, Pass};
use super::element::Element;
use super::fused::{Parts, push};
use super::schedule::Place;
use super::tensor;
use super::watch::Source;
use super::wire::Wire;
use crate::params::PHASE_REDUCE;
use crate::ptx::special::here;

/// Sends what the neighbours own.
#[inline(always)]
pub unsafe fn send<W: Wire>(call: &Call, pass: &Pass, parts: &impl Parts) {
    if call.watch.over {
        return;
    }
    let place = parts.place();
    let mut local = place.local;
    for _ in 1..place.gpus {
        local = if local + 1 == place.gpus { 0 } else { local + 1 };
        let slot = call.slot(pass, place.neighbour(local), place.reduce_slot(place.local));
        for (at, i) in parts.units(call, pass, local) {
            W::send(slot + W::offset(i), call.own.unit(at), pass.flag());
        }
    }
}

/// Sums what this rank owns, `M` neighbours' messages at a time, rounded once. With `onward` each sum is pushed to the
/// neighbours at once, as the broadcast phase does.
#[inline(always)]
pub unsafe fn sum<E: Element, W: Wire, const M: usize>(
    call: &mut Call,
    pass: &Pass,
    parts: &impl Parts,
    onward: bool,
) {
    let place = parts.place();
    for (at, i) in parts.units(call, pass, place.local) {
        let own = call.own.unit(at);
        let sum = E::narrow(sum_of_node::<E, W, M>(call, pass, &place, i, own));
        if !call.watch.over {
            tensor::store(call.own.data, at, call.own.halves, sum);
            if onward {
                push::<W>(call, pass, &place, i, sum);
            }
        }
    }
}

/// Receives unit `i` of a slot from each neighbour, `M` at a time, and adds all up with the `own` one, in rank order,
/// in fp32.
#[inline(always)]
pub unsafe fn sum_of_node<E: Element, W: Wire, const M: usize>(
    call: &mut Call,
    pass: &Pass,
    place: &Place,
    i: u32,
    own: [u32; 4],
) -> E::Wide {
    let mut sum = E::NOTHING;
    let mut first = 0;
    // In rank order, without the rank itself.
    let neighbour = |n: u32| if n < place.local { n } else { n + 1 };
    while first + 1 < place.gpus {
        let mut places = [0; M];
        for m in 0..M {
            let local = neighbour(first + m as u32);
            if local < place.gpus {
                places[m] = call.own_slot(pass, place.reduce_slot(local)) + W::offset(i);
            }
        }
        let from = |m| {
            let peer = place.neighbour(neighbour(first + m as u32));
            Source { peer, phase: PHASE_REDUCE, step: 0 }
        };
        let received = call.receive::<W, M>(pass, places, from);
        let own = own.map(here);
        for m in 0..M {
            let local = neighbour(first + m as u32);
            if local < place.gpus {
                let is_behind_own = local == place.local + 1;
                sum = if is_behind_own { E::add(sum, E::widen(own)) } else { sum };
                sum = E::add(sum, E::widen(received[m]));
            }
        }
        first += M as u32;
    }
    if place.local + 1 == place.gpus { E::add(sum, E::widen(own)) } else { sum }
}
