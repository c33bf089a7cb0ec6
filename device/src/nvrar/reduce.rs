//! Reduce: reduce-scatter in the node. Every rank pushes to each neighbour the shard that the neighbour owns;
//! the owner sums in rank order.

use super::call::{Call, Deal, Pass, Share};
use super::element::Element;
use super::fused::{Shards, push};
use super::tensor;
use super::watch::Source;
use super::wire::Wire;
use crate::params::PHASE_REDUCE;

/// Sends what the neighbours own.
#[inline(always)]
pub unsafe fn send<W: Wire, D: Deal>(call: &Call, pass: &Pass, shards: &Shards) {
    if call.watch.over {
        return;
    }
    let place = &shards.place;
    let mut local = place.local;
    for _ in 1..place.gpus {
        local = if local + 1 == place.gpus { 0 } else { local + 1 };
        let (first, units) = shards.part(call, pass, local);
        let slot = call.slot(pass, place.neighbour(local), place.reduce_slot(place.local));
        let Share { first: mut i, end, step } = D::share(units);
        while i < end {
            W::send(slot + W::offset(i), call.own.unit(first + i), pass.flag());
            i += step;
        }
    }
}

/// Sums the own shard, `K` neighbours' messages at a time, in rank order, in fp32, rounded once. With `onward` each
/// sum is pushed to the neighbours at once, as the broadcast phase does.
#[inline(always)]
pub unsafe fn sum<E: Element, W: Wire, D: Deal, const K: usize>(
    call: &mut Call,
    pass: &Pass,
    shards: &Shards,
    onward: bool,
) {
    let place = shards.place;
    let (first, units) = shards.part(call, pass, place.local);
    let Share { first: mut i, end, step } = D::share(units);
    while i < end {
        let own = call.own.unit(first + i);
        let mut sum = E::widen(own);
        let mut base = 0;
        while base < place.gpus {
            let mut places = [0; K];
            for k in 0..K {
                let local = base + k as u32;
                if local < place.gpus && local != place.local {
                    places[k] = call.own_slot(pass, place.reduce_slot(local)) + W::offset(i);
                }
            }
            let from = |k| Source { peer: place.neighbour(base + k as u32), phase: PHASE_REDUCE, step: 0 };
            let received = call.receive::<W, K>(pass, places, from);
            for k in 0..K {
                let local = base + k as u32;
                if local < place.gpus {
                    let unit = E::widen(if local == place.local { own } else { received[k] });
                    sum = if local == 0 { unit } else { E::add(sum, unit) };
                }
            }
            base += K as u32;
        }
        if !call.watch.over {
            let sum = E::narrow(sum);
            tensor::store(call.own.data, first + i, call.own.halves, sum);
            if onward {
                push::<W>(call, pass, &place, i, sum);
            }
        }
        i += step;
    }
}
