//! Ranks joined by sockets, in threads of one process: the same bits as ranks joined by memory, and every misfortune
//! named. `tests/processes/` has real processes.

use std::{
    thread,
    time::{Duration, Instant},
};

use half::{bf16, f16};
use proptest::prelude::*;

use super::*;
use crate::comm::{
    AllGather, AllReduce, Communicator, DType, Epilogue, Phase, Stage,
    bootstrap::{Listener, MeshOptions},
    memory,
};

/// Runs `body` as every rank of a fresh world and returns what each gave, in rank order.
fn on_meshes<R: Send>(world: usize, body: impl Fn(Arc<Mesh>) -> R + Sync) -> Vec<R> {
    let listener = Listener::bind("127.0.0.1:0").unwrap();
    let address = format!("127.0.0.1:{}", listener.port().unwrap());
    let options = MeshOptions { silence_limit: Duration::from_secs(60), ..MeshOptions::default() };
    let (body, address, options) = (&body, &address, &options);
    thread::scope(|scope| {
        let host = scope.spawn(move || body(Arc::new(Mesh::host(listener, world, options.clone()).unwrap())));
        let join = |rank| move || body(Arc::new(Mesh::join(address, rank, world, options.clone()).unwrap()));
        let others: Vec<_> = (1..world).map(|rank| scope.spawn(join(rank))).collect();
        std::iter::once(host).chain(others).map(|rank| rank.join().unwrap()).collect()
    })
}

fn on_ranks<R: Send>(shape: Shape, options: &Options, body: impl Fn(ProcessComm) -> R + Sync) -> Vec<R> {
    on_meshes(shape.world(), |mesh| body(world(mesh, shape, options.clone()).unwrap()))
}

fn in_memory<R: Send>(
    shape: Shape,
    options: &Options,
    body: impl Fn(memory::MemoryComm) -> R + Sync,
) -> Vec<R> {
    thread::scope(|scope| {
        let ranks = memory::group(shape, options.clone()).into_iter();
        let ranks: Vec<_> = ranks.map(|comm| scope.spawn(|| body(comm))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// Numbers of very different sizes, so that the order of a sum shows in its bits.
fn number(seed: u64, rank: usize, call: usize, element: usize) -> f32 {
    let mixed = (seed ^ (rank as u64) << 40 ^ (call as u64) << 20 ^ element as u64)
        .wrapping_add(1)
        .wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mixed = (mixed ^ mixed >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mantissa = (mixed >> 40) as f32 / (1 << 23) as f32 - 1.0;
    mantissa * [1.0, 1e-3, 64.0][(mixed % 3) as usize]
}

/// One thing that ranks do together.
#[derive(Debug, Clone)]
enum Call {
    Sum { numel: usize, dtype: DType, addend: bool },
    Norm { rows: usize, hidden: usize, dtype: DType, addend: bool },
    Stage { phase: Phase, numel: usize, dtype: DType },
    Gather { sizes: Vec<usize>, dtype: DType },
    SplitSum { colours: usize, numel: usize },
}

const MAX_NUMEL: usize = 700;

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let dtype = || prop::sample::select(vec![DType::F32, DType::F16, DType::Bf16]);
    let numel = || prop_oneof![Just(0), Just(1), 2..40usize, 0..MAX_NUMEL];
    let phase = prop::sample::select(vec![Phase::Reduce, Phase::Put, Phase::Broadcast]);
    let sizes = prop::collection::vec(0..70usize, 9);
    let call = prop_oneof![
        (numel(), dtype(), any::<bool>()).prop_map(|(numel, dtype, addend)| Call::Sum {
            numel,
            dtype,
            addend
        }),
        (0..5usize, 1..100usize, dtype(), any::<bool>())
            .prop_map(|(rows, hidden, dtype, addend)| Call::Norm { rows, hidden, dtype, addend }),
        (phase, numel(), dtype()).prop_map(|(phase, numel, dtype)| Call::Stage { phase, numel, dtype }),
        (sizes, dtype()).prop_map(|(sizes, dtype)| Call::Gather { sizes, dtype }),
        (1..4usize, 1..40usize).prop_map(|(colours, numel)| Call::SplitSum { colours, numel }),
    ];
    prop::collection::vec(call, 1..8)
}

fn fill<L: Link>(buf: &mut CpuBuffer<L>, dtype: DType, value: impl Fn(usize) -> f32) {
    fn write<T: Element>(to: &mut [T], value: impl Fn(usize) -> f32) {
        to.iter_mut().enumerate().for_each(|(i, to)| *to = T::from_f32(value(i)));
    }
    match dtype {
        DType::F32 => write::<f32>(buf.as_mut_slice(), value),
        DType::F16 => write::<f16>(buf.as_mut_slice(), value),
        DType::Bf16 => write::<bf16>(buf.as_mut_slice(), value),
    }
}

/// Makes the calls and returns the bits of everything that they leave behind.
fn run<L: Link>(comm: &CpuComm<L>, calls: &[Call], seed: u64) -> Vec<u32> {
    let rank = comm.topology().rank;
    let mut trace = Vec::new();
    let mut buf = comm.register(4 * MAX_NUMEL).unwrap();
    for (at, call) in calls.iter().enumerate() {
        let values =
            |numel: usize, salt| (0..numel).map(|i| number(seed ^ salt, rank, at, i)).collect::<Vec<_>>();
        let same = |numel: usize, salt| (0..numel).map(|i| number(seed ^ salt, 0, at, i)).collect::<Vec<_>>();
        let value = |i| number(seed, rank, at, i);
        match *call {
            Call::Sum { numel, dtype, addend } => {
                fill(&mut buf, dtype, value);
                let own = values(numel, 1);
                let (buf, addend) = (&mut buf, addend.then_some(&own[..]));
                let op = AllReduce { buf, numel, dtype, addend, epilogue: Epilogue::None };
                comm.enqueue(&(), op).unwrap();
            }
            Call::Norm { rows, hidden, dtype, addend } => {
                fill(&mut buf, dtype, value);
                let numel = rows * hidden;
                let (own, gain) = (values(numel, 1), same(hidden, 2));
                let (mut residual, mut out) = (same(numel, 3), vec![0.0; numel]);
                let (residual_, gain, out_) = (&mut residual[..], &gain[..], &mut out[..]);
                let epilogue = Epilogue::ResidualRmsNorm { residual: residual_, gain, eps: 1e-5, out: out_ };
                let (buf, addend) = (&mut buf, addend.then_some(&own[..]));
                comm.enqueue(&(), AllReduce { buf, numel, dtype, addend, epilogue }).unwrap();
                trace.extend(residual.iter().chain(&out).map(|v| v.to_bits()));
            }
            Call::Stage { phase, numel, dtype } => {
                fill(&mut buf, dtype, value);
                comm.enqueue_stage(&(), Stage { phase, buf: &mut buf, numel, dtype }).unwrap();
            }
            Call::Gather { ref sizes, dtype } => {
                fill(&mut buf, dtype, value);
                let pieces = &sizes[..comm.topology().world()];
                let offsets: Vec<usize> = std::iter::once(0)
                    .chain(pieces.iter().scan(0, |end, size| {
                        *end += size;
                        Some(*end)
                    }))
                    .collect();
                comm.enqueue_gather(&(), AllGather { buf: &mut buf, offsets: &offsets, dtype }).unwrap();
            }
            Call::SplitSum { colours, numel } => {
                let group = comm.split(rank % colours, 100 - rank).unwrap();
                let mut small = group.register(4 * numel).unwrap();
                fill(&mut small, DType::F32, value);
                let (buf, dtype, epilogue) = (&mut small, DType::F32, Epilogue::None);
                group.enqueue(&(), AllReduce { buf, numel, dtype, addend: None, epilogue }).unwrap();
                trace.push(group.topology().rank as u32);
                trace.extend(small.as_slice::<f32>().iter().map(|v| v.to_bits()));
            }
        }
        trace.extend(buf.as_slice::<f32>().iter().map(|v| v.to_bits()));
    }
    trace
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_bits_are_those_of_ranks_in_memory(
        (nodes, gpus_per_node) in prop_oneof![
            (1..=5usize, Just(1)), (Just(1), 1..=5usize), (2..=3usize, 2..=3usize),
        ],
        calls in calls(),
        granule in prop_oneof![Just(1), Just(16)],
        seed: u64,
    ) {
        let shape = Shape { nodes, gpus_per_node };
        let options = Options { granule, ..Options::default() };
        let expected = in_memory(shape, &options, |comm| run(&comm, &calls, seed));
        prop_assert_eq!(on_ranks(shape, &options, |comm| run(&comm, &calls, seed)), expected);
    }
}

fn sum<L: Link>(comm: &CpuComm<L>, buf: &mut CpuBuffer<L>, numel: usize) -> Result<(), CommError> {
    comm.enqueue(&(), AllReduce { buf, numel, dtype: DType::F32, addend: None, epilogue: Epilogue::None })
}

fn shape(text: &str) -> Shape {
    text.parse().unwrap()
}

#[test]
fn large_messages_in_both_directions_do_not_block_each_other() {
    // Many times what sockets buffer, from everybody to everybody at once.
    const NUMEL: usize = 5 << 20;
    for result in on_ranks(shape("1x2"), &Options::default(), |comm| {
        let mut buf = comm.register(4 * NUMEL).unwrap();
        buf.as_mut_slice::<f32>().fill(1.0);
        (0..3).for_each(|_| sum(&comm, &mut buf, NUMEL).unwrap());
        buf.as_slice::<f32>().iter().all(|&v| v == 8.0)
    }) {
        assert!(result);
    }
}

#[test]
fn calls_back_to_back_wrap_and_stay_in_order() {
    let options = Options { first_sequence: (1 << 32) - 100, ..Options::default() };
    on_ranks(shape("3x1"), &options, |comm| {
        let mut bufs = [comm.register(4 * 9).unwrap(), comm.register(4 * 9).unwrap()];
        for call in 0..2000 {
            let (numel, buf) = (call % 10, &mut bufs[call % 3 % 2]);
            let rank = comm.topology().rank;
            buf.as_mut_slice::<f32>().fill((rank * 7 + call % 16) as f32);
            sum(&comm, buf, numel).unwrap();
            let expected = (21 + 3 * (call % 16)) as f32;
            assert!(buf.as_slice::<f32>()[..numel].iter().all(|&v| v == expected), "call {call}");
        }
    });
}

#[test]
fn a_late_rank_is_a_timeout_for_good() {
    let limit = Duration::from_millis(200);
    let options = Options { timeout: limit, ..Options::default() };
    let outcomes = on_ranks(shape("1x2"), &options, |comm| {
        let mut buf = comm.register(4)?;
        sum(&comm, &mut buf, 1)?;
        if comm.topology().rank == 1 {
            thread::sleep(5 * limit);
        }
        let outcome = sum(&comm, &mut buf, 1);
        assert_eq!(comm.check(), outcome, "the error word");
        assert_eq!(sum(&comm, &mut buf, 1), outcome);
        assert_eq!(comm.register(4).err(), outcome.clone().err());
        outcome
    });
    let expected = CommError::Timeout {
        rank: 0,
        peer: 1,
        phase: Phase::Reduce,
        step: 0,
        expected: crate::comm::sequence::FIRST + 1,
        seen: crate::comm::sequence::FIRST,
        waited: limit,
    };
    assert_eq!(outcomes[0], Err(expected.clone()));
    let told = CommError::PeerFailed { rank: 1, peer: 0, cause: expected.to_string() };
    assert_eq!(outcomes[1], Err(told));
}

#[test]
fn different_calls_are_errors_and_not_wrong_sums() {
    for text in ["1x3", "3x1", "2x2"] {
        let outcomes = on_ranks(shape(text), &Options::default(), |comm| {
            let mut buf = comm.register(400)?;
            sum(&comm, &mut buf, if comm.topology().rank == 1 { 99 } else { 100 })
        });
        assert!(outcomes.iter().all(Result::is_err), "{text}: {outcomes:?}");
        let texts: Vec<_> = outcomes.iter().flat_map(|o| o.as_ref().err()).map(ToString::to_string).collect();
        let named = |t: &&String| {
            t.contains("expects elements") && t.contains("over 99 f32") && t.contains("100 f32")
        };
        assert!(texts.iter().any(|t| named(&t)), "{text}: {texts:?}");
    }
}

#[test]
fn disagreements_and_wrong_worlds_are_named() {
    let outcomes = on_meshes(2, |mesh| {
        let text = if mesh.rank() == 0 { "1x2" } else { "2x1" };
        world(mesh, shape(text), Options::default()).map(drop).unwrap_err().to_string()
    });
    assert!(outcomes.iter().all(|text| text.contains("rank 0 calls world(1x2,")), "{outcomes:?}");
    let outcomes = on_meshes(2, |mesh| world(mesh, shape("1x3"), Options::default()).map(drop));
    assert!(outcomes.iter().all(|o| *o == Err(CommError::WrongWorld { shape: shape("1x3"), processes: 2 })));
    let outcomes = on_ranks(shape("1x3"), &Options::default(), |comm| {
        comm.register(if comm.topology().rank == 2 { 8 } else { 4 }).map(drop)
    });
    // Who has not seen all requests when another one fails hears it from that one.
    for outcome in &outcomes {
        let text = outcome.as_ref().unwrap_err().to_string();
        assert!(
            text.contains("rank 0 calls register(4 bytes), but rank 2 calls register(8 bytes)"),
            "{text}"
        );
    }
}

#[test]
fn a_rank_that_ends_is_named_at_once_in_all_groups() {
    let start = Instant::now();
    let outcomes = on_ranks(shape("2x2"), &Options::default(), |world| {
        let pair = world.split(world.topology().node(), 0)?;
        let mut buf = pair.register(4)?;
        world.register(0)?;
        if world.topology().rank == 3 {
            return Err(CommError::Unsupported { what: "going on" });
        }
        sum(&pair, &mut buf, 1)?;
        world.register(4).map(drop)
    });
    for (rank, outcome) in outcomes[..3].iter().enumerate() {
        // Whoever needs it first says so; the others hear of it from that one.
        let Err(CommError::PeerFailed { cause, .. }) = outcome else { panic!("rank {rank}: {outcome:?}") };
        assert!(cause.contains("left the group"), "{cause}");
    }
    assert!(start.elapsed() < Duration::from_secs(30));
}

#[test]
fn a_buffer_of_another_group_is_refused() {
    on_ranks(shape("1x2"), &Options::default(), |comm| {
        let mut foreign = comm.split(0, 0).unwrap().register(16).unwrap();
        assert_eq!(sum(&comm, &mut foreign, 1), Err(CommError::ForeignBuffer));
        let mut own = comm.register(16).unwrap();
        sum(&comm, &mut own, 4).unwrap();
    });
}

#[test]
fn all_follow_the_lead_at_the_same_step() {
    for stop_at in [0, 1, 7] {
        let steps = on_meshes(3, |mesh| {
            let mut lead = Lead::new(&mesh, Duration::from_secs(60)).unwrap();
            // Only rank 0's word counts.
            let word = |step| step >= if mesh.rank() == 0 { stop_at } else { 0 };
            (0..).find(|&step| lead.follow(word(step)).unwrap()).unwrap()
        });
        assert_eq!(steps, [stop_at + 1; 3]);
    }
}
