//! Many calls in a row: the log is the schedule, slots are reused safely, sequences wrap.

use super::*;
use crate::comm::schedule::{self, Message};

/// What the schedule says that `rank` sends and receives in one call, in the order of the steps.
fn foretold(topology: &Topology, steps: &[Step], sequence: u64) -> Vec<Transfer> {
    let transfer = |step: &Step, message: &Message, from: usize, to: usize| Transfer {
        sequence,
        phase: step.phase,
        round: step.round,
        from,
        to,
        range: message.range.clone(),
        slot: message.slot,
    };
    let mut log = Vec::new();
    for round in steps.chunk_by(schedule::same_round) {
        let others = || round.iter().filter(|step| step.peer != topology.rank);
        log.extend(others().filter_map(|s| s.send.as_ref().map(|m| transfer(s, m, topology.rank, s.peer))));
        log.extend(others().filter_map(|s| s.recv.as_ref().map(|m| transfer(s, m, s.peer, topology.rank))));
    }
    log
}

#[test]
fn the_log_of_a_run_is_the_schedule() {
    for text in SHAPES.into_iter().chain(["4x2", "6x2", "7x1", "8x1"]) {
        let options = Options { log: true, granule: 2, ..Options::default() };
        on_ranks(text, options, |comm| {
            let topology = *comm.topology();
            let offsets: Vec<usize> = (0..=topology.world()).map(|r| r * r / 2).collect();
            let mut buf = comm.register(4 * 101).unwrap();
            for numel in [0, 1, 7, 101] {
                let sequence = buf.sequence();
                all_reduce(&comm, &mut buf, numel, DType::F32).unwrap();
                let steps = schedule::schedule(&topology, numel, 2);
                assert_eq!(comm.take_log(), foretold(&topology, &steps, sequence), "{text}, {numel}");

                let sequence = buf.sequence();
                let op = AllGather { buf: &mut buf, offsets: &offsets, dtype: DType::F32 };
                comm.enqueue_gather(&(), op).unwrap();
                let steps = schedule::gather_schedule(&topology, &offsets);
                assert_eq!(comm.take_log(), foretold(&topology, &steps, sequence), "{text}");
            }
        });
    }
}

/// Small integers, so that sums are exact and every wrong or missing message shows.
fn contribution(rank: usize, call: usize, element: usize) -> f32 {
    ((rank * 7 + call * 3 + element) % 16) as f32
}

fn back_to_back(text: &str, calls: usize, options: Options) {
    let sizes = [0, 1, 2, 3, 5, 17, 64, 257];
    on_ranks(text, options, |comm| {
        let Topology { rank, .. } = *comm.topology();
        let world = comm.topology().world();
        let mut bufs = [comm.register(4 * 257).unwrap(), comm.register(4 * 257).unwrap()];
        for call in 0..calls {
            let (numel, buf) = (sizes[call * 5 % sizes.len()], &mut bufs[call % 3 % 2]);
            let dtype = [DType::F32, DType::Bf16, DType::F16][call % 3];
            let own: Vec<f32> = (0..numel).map(|i| contribution(rank, call, i)).collect();
            let sum = (0..numel).map(|i| (0..world).map(|r| contribution(r, call, i)).sum::<f32>());
            match dtype {
                DType::F32 => fill::<f32>(buf, &own),
                DType::F16 => fill::<f16>(buf, &own),
                DType::Bf16 => fill::<bf16>(buf, &own),
            }
            all_reduce(&comm, buf, numel, dtype).unwrap();
            let got = match dtype {
                DType::F32 => read::<f32>(buf, numel),
                DType::F16 => read::<f16>(buf, numel),
                DType::Bf16 => read::<bf16>(buf, numel),
            };
            assert_eq!(got, sum.collect::<Vec<_>>(), "{text}, rank {rank}, call {call}");
        }
        // The premise of the wire contract: two slots by parity, and no writer ever finds one occupied.
        assert_eq!(comm.waits_for_free_slot(), 0, "{text}");
    });
}

#[test]
fn ten_thousand_calls_back_to_back() {
    for text in SHAPES {
        back_to_back(text, 10_000, Options { granule: 1, ..Options::default() });
    }
}

#[test]
fn the_flag_wraps_in_passing() {
    for text in ["1x3", "3x1", "2x2"] {
        back_to_back(text, 600, Options { first_sequence: (1 << 32) - 100, ..Options::default() });
    }
    let after = on_ranks("1x2", Options { first_sequence: (1 << 32) - 100, ..Options::default() }, |comm| {
        let mut buf = comm.register(4).unwrap();
        (0..200).for_each(|_| all_reduce(&comm, &mut buf, 1, DType::F32).unwrap());
        buf.sequence()
    });
    assert_eq!(after, [(1 << 32) + 102; 2], "two numbers are skipped at the wrap");
}

#[test]
fn a_repeated_call_reuses_its_plan() {
    on_ranks("2x2", Options::default(), |comm| {
        let mut buf = comm.register(400).unwrap();
        let steps_at = |buf: &mut MemoryBuffer, numel| {
            all_reduce(&comm, buf, numel, DType::F32).unwrap();
            (buf.plan.steps.as_ptr(), buf.plan.steps.clone())
        };
        let first = steps_at(&mut buf, 100);
        assert_eq!(steps_at(&mut buf, 100), first);
        assert_ne!(steps_at(&mut buf, 60).1, first.1);
    });
}
