//! The hierarchical all-reduce over puts: reduce in the node, put between nodes, broadcast in the node.

use super::courier::{self, InRuns};
use crate::nvrar::call::{Call, Pass};
use crate::nvrar::element::{Bf16, Element, F16, F32};
use crate::nvrar::fused::{Parts, Shards};
use crate::nvrar::wire::Words;
use crate::nvrar::{broadcast, put, reduce, tensor};
use crate::params::{Collective, PHASE_BROADCAST, PHASE_PUT, PHASE_REDUCE};

/// Neighbours' messages that are awaited together; more take registers that calls need.
const TOGETHER: usize = 1;

#[inline(always)]
unsafe fn all_reduce<E: Element>(p: &Collective) {
    let Some(mut call) = courier::begin(p, p.numel * E::HALVES) else { return };
    let shards = Shards::new(&call);
    let pass = call.first_pass();
    let puts = p.phases & PHASE_PUT != 0;
    if courier::is_courier() {
        Call::number_is_read();
        if puts {
            post_all(&call, &pass, &shards);
        }
        return;
    }
    let reduces = p.phases & PHASE_REDUCE != 0;
    if reduces {
        reduce::send::<Words>(&call, &pass, &shards);
    }
    Call::number_is_read();
    if reduces && (p.gpus_per_node > 1 || p.addend != 0) {
        reduce::sum::<E, Words, TOGETHER>(&mut call, &pass, &shards, false);
    }
    if puts {
        exchange::<E>(&mut call, &pass, &shards);
    }
    if p.phases & PHASE_BROADCAST != 0 {
        broadcast::send::<Words>(&call, &pass, &shards);
        broadcast::receive::<Words>(&mut call, &pass, &shards);
    }
}

/// The workers' part of the rounds between nodes. Every round that sends is a message, also after a failure, so that
/// workers and couriers meet as often.
#[inline(always)]
unsafe fn exchange<E: Element>(call: &mut Call, pass: &Pass, shards: &Shards<InRuns>) {
    let place = shards.place();
    let (first, units) = shards.part(call, pass, place.local);
    for round in 0..=place.last_round() {
        let Some((peer, sends, receives)) = place.exchange(round) else { continue };
        if sends {
            let (data, halves) = (call.own.data, call.own.halves);
            courier::stage(call, pass, place.put_slot(round), units, |i| {
                tensor::load(data, first + i, halves)
            });
        }
        if receives {
            let replaces = round == place.last_round();
            put::receive::<E, Words>(call, pass, shards, peer, round, replaces);
        }
    }
}

/// The couriers' part.
#[inline(always)]
unsafe fn post_all(call: &Call, pass: &Pass, shards: &Shards<InRuns>) {
    let place = shards.place();
    let (_, units) = shards.part(call, pass, place.local);
    for round in 0..=place.last_round() {
        if let Some((peer, true, _)) = place.exchange(round) {
            courier::post(call, pass, place.put_slot(round), units, core::iter::once(peer));
        }
    }
}

macro_rules! over_puts {
    ($($name:ident: $element:ident;)*) => {$(kernel! {
        /// All-reduce over several nodes in the phases that `phases` has: reduce, put, broadcast.
        ///
        /// # Shape and layout
        /// As [`crate::nvrar::fused`], one pass: units `first_unit..first_unit + pass_units` of each shard.
        ///
        /// # Thread mapping
        /// Any grid in x, one rank; whole warps: workers, `COURIERS` lanes that post, `CLERKS` that keep the books.
        /// Each block has a run of consecutive units of each shard.
        ///
        /// # Memory order
        /// See [`crate::nvrar::nvshmem`]. The block's barrier orders what workers stage before the couriers' puts.
        ///
        /// # Safety
        /// All blocks are resident at once; rows, regions, staging areas and tensors exist as [`Collective`] says,
        /// regions and staging in NVSHMEM's symmetric memory; the module was initialised for NVSHMEM; all ranks make
        /// the same calls in the same order.
        #[launch_bounds(416, 1)]
        pub fn $name(p: Collective) {
            all_reduce::<$element>(&p);
        }
    })*};
}

over_puts! {
    allreduce_bf16_put: Bf16;
    allreduce_f16_put: F16;
    allreduce_f32_put: F32;
}
