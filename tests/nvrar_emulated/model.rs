//! What collectives leave, by the book: the public schedule executed step by step on vectors.

use fewsync::comm::schedule::{Op, Step, gather_schedule, schedule};
use fewsync::comm::{Element, Phase, Shape, Topology};
use fewsync::kernels::params::{GRANULE_UNITS, UNIT_BYTES};

/// Elements that the kernels never split between ranks.
pub(crate) fn granule<T>() -> usize {
    GRANULE_UNITS as usize * UNIT_BYTES as usize / size_of::<T>()
}

fn topologies(shape: Shape) -> impl Iterator<Item = Topology> {
    let Shape { nodes, gpus_per_node } = shape;
    (0..shape.world()).map(move |rank| Topology { nodes, gpus_per_node, rank })
}

/// A whole sum over equally long tensors, or one phase of it.
pub(crate) fn all_reduce<T: Element>(shape: Shape, of_rank: &mut [Vec<T>], only: Option<Phase>) {
    let numel = of_rank[0].len();
    let plans: Vec<_> =
        topologies(shape).map(|topology| schedule(&topology, numel, granule::<T>())).collect();
    execute(&plans, of_rank, only);
}

/// Every rank gets every rank's piece.
pub(crate) fn all_gather<T: Element>(shape: Shape, of_rank: &mut [Vec<T>], offsets: &[usize]) {
    let plans: Vec<_> = topologies(shape).map(|topology| gather_schedule(&topology, offsets)).collect();
    execute(&plans, of_rank, None);
}

/// All ranks' steps, round by round. What travels in a round is what its sender had when the round began.
fn execute<T: Element>(plans: &[Vec<Step>], of_rank: &mut [Vec<T>], only: Option<Phase>) {
    for phase in [Phase::Reduce, Phase::Put, Phase::Broadcast] {
        if only.is_some_and(|only| only != phase) {
            continue;
        }
        let last = plans.iter().flatten().filter(|step| step.phase == phase).map(|step| step.round).max();
        for round in last.map_or(0..0, |last| 0..last + 1) {
            let before = of_rank.to_vec();
            for (own, plan) in of_rank.iter_mut().zip(plans) {
                let steps = plan.iter().filter(|step| (step.phase, step.round) == (phase, round));
                take(own, &before, steps, phase);
            }
        }
    }
}

/// What one rank receives in a round. A reduce round is one fp32 sum in list order, rounded once; elsewhere every
/// addition is rounded.
fn take<'a, T: Element>(
    own: &mut [T],
    before: &[Vec<T>],
    steps: impl Iterator<Item = &'a Step> + Clone,
    phase: Phase,
) {
    let received = steps.filter_map(|step| Some((step, step.recv.as_ref()?.range.clone())));
    if phase != Phase::Reduce {
        for (step, range) in received {
            for i in range {
                let theirs = before[step.peer][i];
                own[i] = match step.op {
                    Op::Replace => theirs,
                    Op::Add => T::from_f32(own[i].to_f32() + theirs.to_f32()),
                };
            }
        }
        return;
    }
    let Some(range) = received.clone().map(|(_, range)| range).next() else { return };
    for i in range {
        let of_peers = received.clone().map(|(step, _)| before[step.peer][i].to_f32());
        own[i] = T::from_f32(of_peers.reduce(|sum, x| sum + x).expect("the round has a step"));
    }
}

mod tests {
    use fewsync::comm::memory::{self, Options};
    use fewsync::comm::{AllGather, AllReduce, Communicator, Epilogue, Stage};
    use half::bf16;

    use super::*;
    use crate::seeds::Random;

    /// Ranks in process memory run the same steps with messages and threads: the same bits, whole and by phases.
    #[test]
    fn the_model_is_what_ranks_of_process_memory_do() {
        let mut random = Random(1);
        for _ in 0..40 {
            let shape = Shape { nodes: 1 + random.below(5), gpus_per_node: 1 + random.below(4) };
            let numel = random.below(700);
            let mut element = || bf16::from_f32(random.below(1 << 16) as f32 / 8192.0 - 4.0);
            let of_rank: Vec<Vec<bf16>> =
                (0..shape.world()).map(|_| (0..numel).map(|_| element()).collect()).collect();
            let cuts: Vec<usize> = (0..=shape.world()).map(|rank| numel * rank / shape.world()).collect();
            for only in [None, Some(Phase::Reduce), Some(Phase::Put), Some(Phase::Broadcast)] {
                let (mut sums, mut pieces) = (of_rank.clone(), of_rank.clone());
                all_reduce(shape, &mut sums, only);
                all_gather(shape, &mut pieces, &cuts);
                let found = by_threads(shape, &of_rank, only, &cuts);
                assert_eq!(found, (sums, pieces), "{shape}, {numel} elements, {only:?}");
            }
        }
    }

    type OfRanks = Vec<Vec<bf16>>;

    fn by_threads(
        shape: Shape,
        of_rank: &[Vec<bf16>],
        only: Option<Phase>,
        offsets: &[usize],
    ) -> (OfRanks, OfRanks) {
        let options = Options { granule: granule::<bf16>(), ..Options::default() };
        let comms = memory::group(shape, options);
        std::thread::scope(|scope| {
            let threads: Vec<_> = comms
                .into_iter()
                .zip(of_rank)
                .map(|(comm, own)| {
                    scope.spawn(move || {
                        let (numel, dtype) = (own.len(), bf16::DTYPE);
                        let mut buf = comm.register(numel * 2).expect("all register");
                        buf.as_mut_slice::<bf16>()[..numel].copy_from_slice(own);
                        match only {
                            None => {
                                let epilogue = Epilogue::None;
                                let op = AllReduce { buf: &mut buf, numel, dtype, addend: None, epilogue };
                                comm.enqueue(&(), op).expect("a sum");
                            }
                            Some(phase) => {
                                let op = Stage { phase, buf: &mut buf, numel, dtype };
                                comm.enqueue_stage(&(), op).expect("a phase");
                            }
                        }
                        let sums = buf.as_slice::<bf16>()[..numel].to_vec();
                        buf.as_mut_slice::<bf16>()[..numel].copy_from_slice(own);
                        comm.enqueue_gather(&(), AllGather { buf: &mut buf, offsets, dtype })
                            .expect("a gather");
                        (sums, buf.as_slice::<bf16>()[..numel].to_vec())
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).unzip()
        })
    }
}
