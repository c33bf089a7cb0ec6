//! Who sends what to whom, and in which order: pure functions of topology and size.
//!
//! The all-reduce is NVRAR (arXiv 2511.09557) for any number of nodes and ranks per node. Each local rank
//! owns one shard of the tensor:
//! 1. **Reduce**, in the node: every rank pushes to each neighbour the shard that the neighbour owns; the owner
//!    sums in rank order.
//! 2. **Put**, between ranks of equal local number: recursive doubling of the shard over the largest power of
//!    two of nodes; each node beyond it adds its shard to a partner before and takes the result after.
//! 3. **Broadcast**, in the node: every rank pushes its shard to its neighbours.
//!
//! What two ranks exchange is always mutual within a phase, empty shards included: a writer hears from its
//! reader in every call, and that is what makes two slots by parity enough.

use std::{fmt, ops::Range};

use super::topology::{Shape, Topology};

/// The three phases of NVRAR, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Reduce-scatter in the node.
    Reduce,
    /// Exchange between nodes.
    Put,
    /// All-gather in the node.
    Broadcast,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reduce => "reduce",
            Self::Put => "put",
            Self::Broadcast => "broadcast",
        })
    }
}

/// What becomes of received elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// They are added to what is there, in fp32.
    Add,
    /// They take its place.
    Replace,
}

/// One direction of an exchange. An empty range is a message too: it carries only its flag.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Message {
    /// Elements of the tensor.
    pub range: Range<usize>,
    /// Where it lands: the index of the receiver's slot, below [`slots_per_rank`].
    pub slot: usize,
}

/// One exchange of this rank with one peer.
///
/// Steps of equal phase and round do not depend on each other: all their sends are posted first, then their
/// receives are taken in list order. A round is the unit of rounding: a sum stays in fp32 within a round and is
/// rounded to the tensor's dtype at its end.
///
/// In [`Phase::Reduce`] the list is the order of the sum and holds the rank itself once (`peer` is the own
/// rank): nothing travels there, the own elements take their turn.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Step {
    /// The phase it belongs to.
    pub phase: Phase,
    /// Its round within the phase, from 0; rounds follow each other in order.
    pub round: usize,
    /// The rank exchanged with.
    pub peer: usize,
    /// What goes to the peer, if anything.
    pub send: Option<Message>,
    /// What comes from the peer, if anything.
    pub recv: Option<Message>,
    /// What to do with what comes; without meaning where nothing does.
    pub op: Op,
}

/// The elements of `numel` that part `index` of `parts` owns: whole granules, shares differing by at most one,
/// the larger ones first; the last granule may be short.
pub fn shard(numel: usize, granule: usize, parts: usize, index: usize) -> Range<usize> {
    let granule = granule.max(1);
    let (each, more) = (numel.div_ceil(granule) / parts, numel.div_ceil(granule) % parts);
    let edge = |i: usize| ((i * each + i.min(more)) * granule).min(numel);
    edge(index)..edge(index + 1)
}

/// One rank's part of an all-reduce of `numel` elements, sharded in units of `granule` elements (0 counts as 1).
pub fn schedule(topology: &Topology, numel: usize, granule: usize) -> Vec<Step> {
    let shards: Vec<_> =
        (0..topology.gpus_per_node).map(|i| shard(numel, granule, topology.gpus_per_node, i)).collect();
    let mut steps = reduce(topology, &shards);
    steps.extend(put(topology, &shards[topology.local()]));
    steps.extend(broadcast(topology, &shards));
    steps
}

/// One rank's part of an all-gather in place: rank r contributes elements `offsets[r]..offsets[r + 1]`.
///
/// Ranks of equal local number exchange their pieces between nodes (put), then each passes on in its node what
/// it holds (broadcast), so that every piece enters a node once.
///
/// # Panics
/// If there are not `world + 1` offsets.
pub fn gather_schedule(topology: &Topology, offsets: &[usize]) -> Vec<Step> {
    assert_eq!(offsets.len(), topology.world() + 1, "an all-gather has one offset per rank and the end");
    let slots = &SlotMap::new(topology.shape());
    let (node, local) = (topology.node(), topology.local());
    let piece = |rank: usize| offsets[rank]..offsets[rank + 1];
    let between = (0..topology.nodes).filter(|&n| n != node).map(|n| {
        let peer = topology.rank_of(n, local);
        Step {
            phase: Phase::Put,
            round: 0,
            peer,
            send: Some(Message { range: piece(topology.rank), slot: slots.gather_put(node) }),
            recv: Some(Message { range: piece(peer), slot: slots.gather_put(n) }),
            op: Op::Replace,
        }
    });
    let within = (0..topology.gpus_per_node).filter(|&l| l != local).flat_map(|l| {
        (0..topology.nodes).map(move |n| {
            let (mine, theirs) = (topology.rank_of(n, local), topology.rank_of(n, l));
            Step {
                phase: Phase::Broadcast,
                round: 0,
                peer: topology.rank_of(node, l),
                send: Some(Message { range: piece(mine), slot: slots.gather_broadcast(mine) }),
                recv: Some(Message { range: piece(theirs), slot: slots.gather_broadcast(theirs) }),
                op: Op::Replace,
            }
        })
    });
    between.chain(within).collect()
}

/// Slots each rank needs per buffer, each of them twice (by parity), for both schedules.
pub fn slots_per_rank(shape: Shape) -> usize {
    SlotMap::new(shape).end()
}

/// Whether two steps may be posted together.
pub fn same_round(a: &Step, b: &Step) -> bool {
    (a.phase, a.round) == (b.phase, b.round)
}

fn reduce(topology: &Topology, shards: &[Range<usize>]) -> Vec<Step> {
    if topology.gpus_per_node == 1 {
        return Vec::new();
    }
    let slots = SlotMap::new(topology.shape());
    let local = topology.local();
    (0..topology.gpus_per_node)
        .map(|l| Step {
            phase: Phase::Reduce,
            round: 0,
            peer: topology.rank_of(topology.node(), l),
            send: Some(Message { range: shards[l].clone(), slot: slots.reduce(local) }),
            recv: Some(Message { range: shards[local].clone(), slot: slots.reduce(l) }),
            op: if l == 0 { Op::Replace } else { Op::Add },
        })
        .collect()
}

fn put(topology: &Topology, shard: &Range<usize>) -> Vec<Step> {
    let slots = SlotMap::new(topology.shape());
    let (node, doublings) = (topology.node(), topology.nodes.ilog2() as usize);
    let power = 1 << doublings;
    let (fold_in, fold_out) = (0, doublings + 1);
    let step = |round: usize, peer_node: usize, sends: bool, receives: bool, op| {
        let message = Message { range: shard.clone(), slot: slots.put(round) };
        Step {
            phase: Phase::Put,
            round,
            peer: topology.rank_of(peer_node, topology.local()),
            send: sends.then(|| message.clone()),
            recv: receives.then_some(message),
            op,
        }
    };
    if node >= power {
        let partner = node - power;
        return vec![
            step(fold_in, partner, true, false, Op::Add),
            step(fold_out, partner, false, true, Op::Replace),
        ];
    }
    let folded = Some(node + power).filter(|&n| n < topology.nodes);
    let before = folded.map(|n| step(fold_in, n, false, true, Op::Add));
    let between = (0..doublings).map(|s| step(1 + s, node ^ (1 << s), true, true, Op::Add));
    let after = folded.map(|n| step(fold_out, n, true, false, Op::Replace));
    before.into_iter().chain(between).chain(after).collect()
}

fn broadcast(topology: &Topology, shards: &[Range<usize>]) -> Vec<Step> {
    let slots = SlotMap::new(topology.shape());
    let local = topology.local();
    (0..topology.gpus_per_node)
        .filter(|&l| l != local)
        .map(|l| Step {
            phase: Phase::Broadcast,
            round: 0,
            peer: topology.rank_of(topology.node(), l),
            send: Some(Message { range: shards[local].clone(), slot: slots.broadcast(local) }),
            recv: Some(Message { range: shards[l].clone(), slot: slots.broadcast(l) }),
            op: Op::Replace,
        })
        .collect()
}

/// Slot numbers on a receiver: one for each message of a call, so that a fast peer never waits for a slow one.
struct SlotMap {
    nodes: usize,
    gpus: usize,
    put_rounds: usize,
}

impl SlotMap {
    fn new(Shape { nodes, gpus_per_node: gpus }: Shape) -> Self {
        Self { nodes, gpus, put_rounds: if nodes == 1 { 0 } else { nodes.ilog2() as usize + 2 } }
    }

    fn reduce(&self, from_local: usize) -> usize {
        from_local
    }

    fn put(&self, round: usize) -> usize {
        self.gpus + round
    }

    fn broadcast(&self, from_local: usize) -> usize {
        self.gpus + self.put_rounds + from_local
    }

    fn gather_put(&self, from_node: usize) -> usize {
        2 * self.gpus + self.put_rounds + from_node
    }

    fn gather_broadcast(&self, origin_rank: usize) -> usize {
        2 * self.gpus + self.put_rounds + self.nodes + origin_rank
    }

    fn end(&self) -> usize {
        self.gather_broadcast(self.nodes * self.gpus)
    }
}

#[cfg(test)]
mod tests;
