//! Phases called alone, in any order, by ranks that drift apart.

use std::{sync::Barrier, thread::sleep};

use super::*;

const NUMEL: usize = 37;

/// Runs `program` and returns each rank's memory; `before` runs ahead of each call.
fn run(text: &str, program: &[Phase], before: impl Fn(usize, usize) + Sync) -> Vec<Vec<f32>> {
    on_ranks(text, Options { granule: 1, ..Options::default() }, |comm| {
        let rank = comm.topology().rank;
        let mut buf = comm.register(4 * NUMEL).unwrap();
        let mut trace = Vec::new();
        for (call, &phase) in program.iter().enumerate() {
            before(rank, call);
            fill::<f32>(&mut buf, &random([rank, call, 4], NUMEL));
            let op = Stage { phase, buf: &mut buf, numel: NUMEL, dtype: DType::F32 };
            comm.enqueue_stage(&(), op).unwrap();
            trace.extend_from_slice(buf.as_slice::<f32>());
        }
        trace
    })
}

/// A call starts only after the previous one ended everywhere: no slot can be reused too early.
fn in_lockstep(text: &str, program: &[Phase]) -> Vec<Vec<f32>> {
    let barrier = Barrier::new(text.parse::<Shape>().unwrap().world());
    run(text, program, |_, _| {
        barrier.wait();
    })
}

/// Sleeps now and then, each rank at other calls.
fn drift(rank: usize, call: usize) {
    let dice = (random([rank, call, 5], 1)[0] * 16.0) as i32;
    if dice == 3 {
        sleep(Duration::from_micros(300));
    } else if dice == -7 {
        sleep(Duration::from_millis(2));
    }
}

#[test]
fn phases_alone_are_safe_back_to_back_and_mixed() {
    use Phase::{Broadcast, Put, Reduce};
    let mixed: Vec<Phase> =
        random([6, 6, 6], 300).iter().map(|x| [Reduce, Put, Broadcast][((x + 1.0) * 1.5) as usize]).collect();
    for text in ["1x5", "2x2", "3x1", "2x3", "3x3", "5x1"] {
        for program in [&[Reduce; 100][..], &[Put; 100], &[Broadcast; 100], &mixed] {
            assert_eq!(run(text, program, drift), in_lockstep(text, program), "{text}");
        }
    }
}

#[test]
fn the_three_phases_make_an_all_reduce() {
    for text in SHAPES {
        let (whole, parts): (Vec<_>, Vec<_>) = on_ranks(text, Options::default(), |comm| {
            let mut bufs = [comm.register(2 * NUMEL).unwrap(), comm.register(2 * NUMEL).unwrap()];
            for buf in &mut bufs {
                fill::<bf16>(buf, &random([comm.topology().rank, 0, 8], NUMEL));
            }
            let [whole, parts] = &mut bufs;
            all_reduce(&comm, whole, NUMEL, DType::Bf16).unwrap();
            for phase in [Phase::Reduce, Phase::Put, Phase::Broadcast] {
                let op = Stage { phase, buf: parts, numel: NUMEL, dtype: DType::Bf16 };
                comm.enqueue_stage(&(), op).unwrap();
            }
            (read::<bf16>(whole, NUMEL), read::<bf16>(parts, NUMEL))
        })
        .into_iter()
        .unzip();
        assert_eq!(whole, parts, "{text}");
    }
}
