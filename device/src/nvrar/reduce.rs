//! Reduce: reduce-scatter in the node. Every rank pushes to each neighbour what the neighbour owns; the owner sums in
//! rank order.

use super::call::{Call, Pass};
use super::element::Element;
use super::fused::{Parts, push};
use super::schedule::Place;
use super::tensor::{self, NONE};
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
    for n in 1..place.gpus {
        let local = place.after(n);
        let slot = call.slot(pass, place.neighbour(local), place.reduce_slot(place.local));
        let mut units = parts.units(call, pass, local);
        loop {
            let (at, i) = units();
            if at == NONE {
                break;
            }
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
    // One neighbour alone is not looked at `M` times.
    if parts.place().gpus == 2 {
        return sum_units::<E, W, 1>(call, pass, parts, onward);
    }
    sum_units::<E, W, M>(call, pass, parts, onward);
}

#[inline(always)]
unsafe fn sum_units<E: Element, W: Wire, const M: usize>(
    call: &mut Call,
    pass: &Pass,
    parts: &impl Parts,
    onward: bool,
) {
    let place = parts.place();
    let mut units = parts.units(call, pass, place.local);
    loop {
        let (at, i) = units();
        if at == NONE {
            break;
        }
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
    let (mut sum, mut first) = (E::NOTHING, 0);
    while first + 1 < place.gpus {
        sum = add_some::<E, W, M>(call, pass, place, i, own, first, sum);
        first += M as u32;
    }
    add_own_as_last::<E>(place, own, sum)
}

/// The own unit is the last one of the last rank of a node.
#[inline(always)]
pub fn add_own_as_last<E: Element>(place: &Place, own: [u32; 4], sum: E::Wide) -> E::Wide {
    if place.local + 1 == place.gpus { E::add(sum, E::widen(own)) } else { sum }
}

/// Adds what comes from `M` neighbours, from number `first` of them on, and the own unit where its turn is among them.
#[inline(always)]
pub unsafe fn add_some<E: Element, W: Wire, const M: usize>(
    call: &mut Call,
    pass: &Pass,
    place: &Place,
    i: u32,
    own: [u32; 4],
    first: u32,
    mut sum: E::Wide,
) -> E::Wide {
    let others = place.gpus - 1;
    // In rank order, without the rank itself; the last one stands in for those that there are not.
    let neighbour = |m: usize| {
        let n = (first + m as u32).min(others - 1);
        if n < place.local { n } else { n + 1 }
    };
    let place_of = |m| call.own_slot(pass, place.reduce_slot(neighbour(m))) + W::offset(i);
    let places: [_; M] = core::array::from_fn(place_of);
    let from = |m| Source { peer: place.neighbour(neighbour(m)), phase: PHASE_REDUCE, step: 0 };
    let received = call.receive::<W, M>(pass, places, from);
    let own = own.map(here);
    for m in 0..M {
        if first + (m as u32) < others {
            let is_behind_own = neighbour(m) == place.local + 1;
            sum = if is_behind_own { E::add(sum, E::widen(own)) } else { sum };
            sum = E::add(sum, E::widen(received[m]));
        }
    }
    sum
}
