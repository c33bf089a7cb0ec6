//! Who sends what to whom in a call, as one thread does it: the public schedules as lists of steps.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use fewsync::comm::schedule::{Step, gather_schedule, same_round, schedule};
use fewsync::comm::{Phase, Shape, Topology};

/// What a call does with its tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// Every rank sends all it has to every other one.
    OneShot,
    /// Reduce, put and broadcast.
    Whole,
    Phase(Phase),
    Gather,
    /// Greetings alone.
    Nothing,
}

/// One thread's step within a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    Send { to: u8, slot: u8 },
    Receive { from: u8, slot: u8 },
}

/// By rank.
pub(crate) type Plan = &'static [Vec<Act>];

/// What the threads of each rank do in a pass. Slots are numbered from 0 for every kind, so that kinds share bytes.
pub(crate) fn plan(shape: Shape, kind: Kind) -> Plan {
    static PLANS: OnceLock<Mutex<HashMap<(Shape, Kind), Plan>>> = OnceLock::new();
    let mut plans = PLANS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    plans.entry((shape, kind)).or_insert_with(|| make(shape, kind).leak())
}

fn make(shape: Shape, kind: Kind) -> Vec<Vec<Act>> {
    let Shape { nodes, gpus_per_node } = shape;
    let world = shape.world();
    let topologies = (0..world).map(|rank| Topology { nodes, gpus_per_node, rank });
    let mut acts: Vec<Vec<Act>> = match kind {
        Kind::Nothing => vec![Vec::new(); world],
        Kind::OneShot => (0..world).map(|rank| one_shot(world, rank)).collect(),
        Kind::Gather => {
            let cuts: Vec<usize> = (0..=world).collect();
            topologies.map(|topology| acts(&topology, &gather_schedule(&topology, &cuts), None)).collect()
        }
        Kind::Whole => topologies.map(|it| acts(&it, &schedule(&it, gpus_per_node, 1), None)).collect(),
        Kind::Phase(only) => {
            topologies.map(|it| acts(&it, &schedule(&it, gpus_per_node, 1), Some(only))).collect()
        }
    };
    let slot = |act: &Act| match *act {
        Act::Send { slot, .. } | Act::Receive { slot, .. } => slot,
    };
    let first = acts.iter().flatten().map(slot).min().unwrap_or(0);
    for Act::Send { slot, .. } | Act::Receive { slot, .. } in acts.iter_mut().flatten() {
        *slot -= first;
    }
    acts
}

fn one_shot(world: usize, rank: usize) -> Vec<Act> {
    let peers = (0..world).filter(move |&peer| peer != rank);
    let sends = peers.clone().map(|to| Act::Send { to: to as u8, slot: rank as u8 });
    sends.chain(peers.map(|from| Act::Receive { from: from as u8, slot: from as u8 })).collect()
}

/// Round by round: all sends, then all receives.
fn acts(topology: &Topology, steps: &[Step], only: Option<Phase>) -> Vec<Act> {
    let mut acts = Vec::new();
    for round in steps.chunk_by(same_round).filter(|round| only.is_none_or(|only| round[0].phase == only)) {
        let others = round.iter().filter(|step| step.peer != topology.rank);
        acts.extend(others.clone().filter_map(|step| {
            Some(Act::Send { to: step.peer as u8, slot: step.send.as_ref()?.slot as u8 })
        }));
        acts.extend(others.filter_map(|step| {
            Some(Act::Receive { from: step.peer as u8, slot: step.recv.as_ref()?.slot as u8 })
        }));
    }
    acts
}
