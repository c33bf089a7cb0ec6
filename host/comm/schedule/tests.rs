//! Executes all ranks' schedules on symbols: which contributions an element is the sum of, and in which tree.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

/// A value that an element can have.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Expr {
    /// What a rank contributed.
    Leaf(usize),
    /// A sum of one round, in order.
    Ordered(Vec<usize>),
    /// a + b, which is b + a bit for bit.
    Pair(usize, usize),
}

/// Each expression once, with the set of ranks in it: equal numbers mean equal trees.
#[derive(Default)]
struct Exprs {
    numbers: HashMap<Expr, usize>,
    ranks: Vec<u128>,
}

impl Exprs {
    /// Adding a contribution twice is refused here.
    fn number(&mut self, expr: Expr) -> usize {
        if let Some(&number) = self.numbers.get(&expr) {
            return number;
        }
        let disjoint = |sets: &[u128]| {
            sets.iter().fold(0, |all, &set| {
                assert_eq!(all & set, 0, "a contribution is summed twice");
                all | set
            })
        };
        let set = match &expr {
            Expr::Leaf(rank) => 1 << rank,
            Expr::Ordered(terms) => disjoint(&terms.iter().map(|&t| self.ranks[t]).collect::<Vec<_>>()),
            Expr::Pair(a, b) => disjoint(&[self.ranks[*a], self.ranks[*b]]),
        };
        self.ranks.push(set);
        self.numbers.insert(expr, self.ranks.len() - 1);
        self.ranks.len() - 1
    }
}

/// A message under way, with the sender's range.
type InFlight = HashMap<(usize, usize), (usize, Range<usize>, Vec<usize>)>;

/// Runs every rank as far as it gets, over and over, until all are done; panics where none can go on.
fn run(shape: Shape, schedules: &[Vec<Step>], data: &mut [Vec<usize>], exprs: &mut Exprs) {
    let rounds: Vec<Vec<&[Step]>> = schedules.iter().map(|s| s.chunk_by(same_round).collect()).collect();
    let mut position = vec![(0, false); shape.world()];
    let (mut in_flight, mut used) = (InFlight::new(), HashSet::new());
    loop {
        let mut progress = false;
        for rank in 0..shape.world() {
            while let Some(&round) = rounds[rank].get(position[rank].0) {
                if !position[rank].1 {
                    post(rank, round, data, &mut in_flight, &mut used, shape);
                    (position[rank].1, progress) = (true, true);
                }
                let arrived = |step: &Step| match &step.recv {
                    Some(message) if step.peer != rank => in_flight.contains_key(&(rank, message.slot)),
                    _ => true,
                };
                if !round.iter().all(arrived) {
                    break;
                }
                take(rank, round, data, &mut in_flight, exprs);
                position[rank] = (position[rank].0 + 1, false);
                progress = true;
            }
        }
        if !progress {
            break;
        }
    }
    assert!((0..shape.world()).all(|r| position[r].0 == rounds[r].len()), "deadlock");
    assert!(in_flight.is_empty(), "messages without a reader: {:?}", in_flight.keys());
}

fn post(
    rank: usize,
    round: &[Step],
    data: &[Vec<usize>],
    in_flight: &mut InFlight,
    used: &mut HashSet<(usize, usize)>,
    shape: Shape,
) {
    for step in round.iter().filter(|step| step.peer != rank) {
        let Some(Message { range, slot }) = &step.send else { continue };
        assert!(*slot < slots_per_rank(shape));
        assert!(used.insert((step.peer, *slot)), "slot {slot} of rank {} is written twice", step.peer);
        in_flight.insert((step.peer, *slot), (rank, range.clone(), data[rank][range.clone()].to_vec()));
    }
}

fn take(rank: usize, round: &[Step], data: &mut [Vec<usize>], in_flight: &mut InFlight, exprs: &mut Exprs) {
    let mut sums: Vec<(Range<usize>, Vec<Vec<usize>>)> = Vec::new();
    for step in round {
        let Some(Message { range, slot }) = &step.recv else { continue };
        let values = if step.peer == rank {
            assert_eq!(step.send.as_ref().map(|own| &own.range), Some(range));
            data[rank][range.clone()].to_vec()
        } else {
            let (from, sent, values) = in_flight.remove(&(rank, *slot)).unwrap();
            assert_eq!((from, &sent), (step.peer, range), "the reader expects another message");
            values
        };
        match (step.phase, step.op) {
            (Phase::Reduce, Op::Replace) => sums = vec![(range.clone(), vec![values])],
            (Phase::Reduce, Op::Add) => sums[0].1.push(values),
            (_, Op::Replace) => data[rank][range.clone()].copy_from_slice(&values),
            (_, Op::Add) => {
                for (here, there) in data[rank][range.clone()].iter_mut().zip(values) {
                    *here = exprs.number(Expr::Pair(there.min(*here), there.max(*here)));
                }
            }
        }
    }
    for (range, terms) in sums {
        for (i, element) in range.enumerate() {
            data[rank][element] = exprs.number(Expr::Ordered(terms.iter().map(|t| t[i]).collect()));
        }
    }
}

fn topologies(shape: Shape) -> impl Iterator<Item = Topology> {
    let Shape { nodes, gpus_per_node } = shape;
    (0..shape.world()).map(move |rank| Topology { nodes, gpus_per_node, rank })
}

fn check_all_reduce(nodes: usize, gpus_per_node: usize, numel: usize, granule: usize) {
    let shape = Shape { nodes, gpus_per_node };
    let schedules: Vec<_> = topologies(shape).map(|t| schedule(&t, numel, granule)).collect();
    let mut exprs = Exprs::default();
    let mut data: Vec<Vec<usize>> =
        (0..shape.world()).map(|rank| vec![exprs.number(Expr::Leaf(rank)); numel]).collect();
    run(shape, &schedules, &mut data, &mut exprs);
    let everyone = u128::MAX >> (128 - shape.world());
    for rank in &data {
        // One tree for all elements and ranks: it depends on the shape alone.
        assert!(rank.iter().all(|&e| e == data[0][0] && exprs.ranks[e] == everyone), "{shape} {numel}");
    }
    check_mutual(shape, &schedules);
}

/// Within each phase, who writes to a peer also hears from it: the premise of slots by parity.
fn check_mutual(shape: Shape, schedules: &[Vec<Step>]) {
    let mut written = HashSet::new();
    for (rank, steps) in schedules.iter().enumerate() {
        for step in steps.iter().filter(|step| step.send.is_some()) {
            written.insert((step.phase, rank, step.peer));
        }
    }
    for &(phase, from, to) in &written {
        assert!(written.contains(&(phase, to, from)), "{shape}: {to} never answers {from} in {phase}");
    }
}

#[test]
fn every_topology_reduces_every_element_exactly_once() {
    for nodes in 1..=9 {
        for gpus in 1..=9 {
            for numel in [0, 1, 2, 7, 13] {
                check_all_reduce(nodes, gpus, numel, 1);
            }
            check_all_reduce(nodes, gpus, 31, 4);
        }
    }
}

#[test]
fn shards_are_whole_granules_of_even_shares() {
    for (numel, granule, parts) in
        [(0, 1, 3), (1, 1, 3), (10, 4, 3), (576, 16, 5), (7, 16, 2), (97, 8, 9), (5, 0, 2)]
    {
        let shards: Vec<_> = (0..parts).map(|i| shard(numel, granule, parts, i)).collect();
        let unit = granule.max(1);
        assert_eq!(shards[0].start, 0);
        assert_eq!(shards[parts - 1].end, numel);
        assert!(shards.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert!(shards.iter().all(|s| s.start % unit == 0 || s.start == numel));
        let granules: Vec<_> = shards.iter().map(|s| s.len().div_ceil(unit)).collect();
        assert!(granules.iter().max().unwrap() - granules.iter().min().unwrap() <= 1, "{granules:?}");
    }
}

#[test]
fn empty_shards_still_exchange() {
    let steps = schedule(&Topology::new(2, 3, 5).unwrap(), 1, 1);
    let sends = steps.iter().filter(|step| step.peer != 5 && step.send.is_some()).count();
    assert_eq!(sends, 2 + 1 + 2, "two neighbours to reduce, one node to put, two neighbours to broadcast");
}

#[test]
fn doubling_takes_the_logarithm_of_the_nodes() {
    for (nodes, node, rounds) in [(2, 0, 1), (4, 3, 2), (8, 5, 3), (9, 8, 2), (9, 0, 5), (9, 1, 3), (3, 2, 2)]
    {
        let steps = schedule(&Topology::new(nodes, 1, node).unwrap(), 4, 1);
        assert_eq!(steps.len(), rounds, "node {node} of {nodes}");
        assert!(steps.iter().all(|step| step.phase == Phase::Put));
    }
}

proptest! {
    #[test]
    fn any_size_reduces_exactly_once(
        nodes in 1usize..=9, gpus in 1usize..=9, numel in 0usize..120, granule in 0usize..20,
    ) {
        check_all_reduce(nodes, gpus, numel, granule);
    }

    #[test]
    fn a_gather_completes_everywhere(
        nodes in 1usize..=9, gpus in 1usize..=9, sizes in prop::collection::vec(0usize..4, 81),
    ) {
        let shape = Shape { nodes, gpus_per_node: gpus };
        let mut offsets = vec![0];
        for size in &sizes[..shape.world()] {
            offsets.push(offsets[offsets.len() - 1] + size);
        }
        let schedules: Vec<_> = topologies(shape).map(|t| gather_schedule(&t, &offsets)).collect();
        let absent = usize::MAX;
        let mut data: Vec<Vec<usize>> = vec![vec![absent; offsets[shape.world()]]; shape.world()];
        for rank in 0..shape.world() {
            data[rank][offsets[rank]..offsets[rank + 1]].fill(rank);
        }
        run(shape, &schedules, &mut data, &mut Exprs::default());
        for complete in &data {
            for rank in 0..shape.world() {
                prop_assert!(complete[offsets[rank]..offsets[rank + 1]].iter().all(|&from| from == rank));
            }
        }
        check_mutual(shape, &schedules);
    }
}
