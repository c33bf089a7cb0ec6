//! The schedule that GPU ranks compute is the one that CPU ranks execute.

use proptest::prelude::*;

use crate::comm::schedule::{Step, schedule};
use crate::comm::{Phase, Shape, Topology};
use crate::kernels::params::GRANULE_UNITS;

#[allow(unreachable_pub, reason = "another crate's file")]
#[path = "../../../device/src/nvrar/schedule.rs"]
mod device;

/// (phase, round, peer, range sent, slot, range received, slot) in units, as a kernel executes them.
type Exchange = (Phase, usize, usize, Option<(u32, u32, u32)>, Option<(u32, u32, u32)>);

fn on_gpu(topology: &Topology, units: u32) -> Vec<Exchange> {
    let (nodes, gpus) = (topology.nodes as u32, topology.gpus_per_node as u32);
    let place = device::Place::new(nodes, gpus, topology.rank as u32);
    let shard = |local| {
        let (first, units) = place.shard(units, GRANULE_UNITS, local);
        (first, first + units)
    };
    let message = |local, slot| {
        let (start, end) = shard(local);
        Some((start, end, slot))
    };
    let mut found = Vec::new();
    for local in (0..gpus).filter(|&local| local != place.local) {
        let peer = place.neighbour(local) as usize;
        let (send, recv) =
            (message(local, place.reduce_slot(place.local)), message(place.local, place.reduce_slot(local)));
        found.push((Phase::Reduce, 0, peer, send, recv));
    }
    for round in 0..=place.last_round() {
        if let Some((peer, sends, receives)) = place.exchange(round).filter(|_| nodes > 1) {
            let shard = message(place.local, place.put_slot(round));
            found.push((
                Phase::Put,
                round as usize,
                peer as usize,
                shard.filter(|_| sends),
                shard.filter(|_| receives),
            ));
        }
    }
    for local in (0..gpus).filter(|&local| local != place.local) {
        let peer = place.neighbour(local) as usize;
        let (send, recv) = (
            message(place.local, place.broadcast_slot(place.local)),
            message(local, place.broadcast_slot(local)),
        );
        found.push((Phase::Broadcast, 0, peer, send, recv));
    }
    found
}

fn on_cpu(topology: &Topology, units: u32) -> Vec<Exchange> {
    let message = |message: Option<crate::comm::schedule::Message>| {
        message.map(|m| (m.range.start as u32, m.range.end as u32, m.slot as u32))
    };
    schedule(topology, units as usize, GRANULE_UNITS as usize)
        .into_iter()
        .filter(|step| step.peer != topology.rank)
        .map(|Step { phase, round, peer, send, recv, .. }| (phase, round, peer, message(send), message(recv)))
        .collect()
}

#[test]
fn neighbours_come_round_the_node() {
    let place = device::Place::in_one_node(4, 2);
    let same = device::Place::new(1, 4, 2);
    assert_eq!(
        (place.nodes, place.gpus, place.node, place.local),
        (same.nodes, same.gpus, same.node, same.local)
    );
    assert_eq!([0, 1, 2, 3].map(|n| place.after(n)), [2, 3, 0, 1]);
}

proptest! {
    #[test]
    fn gpu_ranks_exchange_what_the_schedule_says(
        nodes in 1usize..12,
        gpus_per_node in 1usize..9,
        units in prop_oneof![0u32..300, 0u32..1_000_000],
    ) {
        let shape = Shape { nodes, gpus_per_node };
        for rank in 0..shape.world() {
            let topology = Topology { nodes, gpus_per_node, rank };
            prop_assert_eq!(on_gpu(&topology, units), on_cpu(&topology, units));
        }
    }
}
