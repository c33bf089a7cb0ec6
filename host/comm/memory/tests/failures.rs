//! Every misfortune has a name, and nobody waits for ever.

use std::{thread::sleep, time::Instant};

use super::*;
use crate::comm::Epilogue;

type Outcome = Result<(), CommError>;

/// As `on_ranks`, but `victim` panics where `body` says so; the others must be done long before the limit.
fn with_victim(text: &str, victim: usize, body: impl Fn(&MemoryComm) -> Outcome + Sync) -> Vec<Outcome> {
    let start = Instant::now();
    let outcomes = thread::scope(|scope| {
        let ranks: Vec<_> = group(text.parse().unwrap(), Options::default())
            .into_iter()
            .map(|comm| scope.spawn(|| body(&{ comm })))
            .collect();
        ranks
            .into_iter()
            .enumerate()
            .filter_map(|(rank, handle)| {
                let outcome = handle.join();
                assert_eq!(outcome.is_err(), rank == victim);
                outcome.ok()
            })
            .collect()
    });
    assert!(start.elapsed() < Duration::from_secs(30));
    outcomes
}

fn assert_peer_failed(outcome: &Outcome, culprit: usize, why: &str) {
    match outcome {
        Err(CommError::PeerFailed { peer, cause, .. }) if *peer == culprit && cause.contains(why) => {}
        other => panic!("expected rank {culprit} to have failed with '{why}', got {other:?}"),
    }
}

#[test]
fn a_rank_that_panics_is_named_at_once() {
    for text in ["1x5", "3x1", "2x2", "3x3"] {
        let outcomes = with_victim(text, 1, |comm| {
            let mut buf = comm.register(400)?;
            for call in 0.. {
                assert!(comm.topology().rank != 1 || call < 20, "victim");
                all_reduce(comm, &mut buf, 100, DType::F32)?;
            }
            Ok(())
        });
        outcomes.iter().for_each(|outcome| assert_peer_failed(outcome, 1, "panicked"));
    }
}

#[test]
fn a_rank_that_panics_before_a_meeting_is_named_at_once() {
    let outcomes = with_victim("1x3", 2, |comm| {
        assert!(comm.topology().rank != 2, "victim");
        comm.register(4).map(drop)
    });
    outcomes.iter().for_each(|outcome| assert_peer_failed(outcome, 2, "panicked"));
}

#[test]
fn a_failure_in_one_group_reaches_the_others() {
    let outcomes = with_victim("2x2", 3, |world| {
        let pair = world.split(world.topology().node(), 0)?;
        let mut buf = pair.register(4)?;
        assert!(world.topology().rank != 3, "victim");
        all_reduce(&pair, &mut buf, 1, DType::F32)?;
        world.register(4).map(drop)
    });
    outcomes.iter().for_each(|outcome| assert_peer_failed(outcome, 3, "panicked"));
}

#[test]
fn a_rank_that_leaves_early_is_named_at_once() {
    let outcomes = on_ranks("1x3", Options::default(), |comm| {
        let mut buf = comm.register(4)?;
        all_reduce(&comm, &mut buf, 1, DType::F32)?;
        if comm.topology().rank == 0 {
            return Ok(());
        }
        all_reduce(&comm, &mut buf, 1, DType::F32)
    });
    assert_eq!(outcomes[0], Ok(()));
    // One of the two notices; the other may hear of it from that one.
    assert!(outcomes[1..].iter().any(|outcome| matches!(
        outcome, Err(CommError::PeerFailed { peer: 0, cause, .. }) if cause.contains("left"))));
    assert!(outcomes[1..].iter().all(|outcome| matches!(outcome, Err(CommError::PeerFailed { .. }))));
}

#[test]
fn ranks_may_leave_one_after_the_other_when_all_is_done() {
    for _ in 0..200 {
        let sums = on_ranks("2x2", Options::default(), |comm| {
            let mut buf = comm.register(4).unwrap();
            fill::<f32>(&mut buf, &[1.0]);
            all_reduce(&comm, &mut buf, 1, DType::F32).unwrap();
            read::<f32>(&buf, 1)[0]
        });
        assert_eq!(sums, [4.0; 4]);
    }
}

#[test]
fn a_late_rank_is_a_timeout_for_good() {
    let limit = Duration::from_millis(50);
    let outcomes = on_ranks("1x2", Options { timeout: limit, ..Options::default() }, |comm| {
        let mut buf = comm.register(4)?;
        for _ in 0..3 {
            all_reduce(&comm, &mut buf, 1, DType::F32)?;
        }
        if comm.topology().rank == 1 {
            sleep(10 * limit);
        }
        let outcome = all_reduce(&comm, &mut buf, 1, DType::F32);
        assert_eq!(comm.check(), outcome, "the error word");
        assert_eq!(all_reduce(&comm, &mut buf, 1, DType::F32), outcome);
        assert_eq!(comm.register(4).err(), outcome.clone().err());
        outcome
    });
    let expected = sequence::FIRST + 3;
    let timeout = CommError::Timeout {
        rank: 0,
        peer: 1,
        phase: Phase::Reduce,
        step: 0,
        expected,
        seen: expected - 2,
        waited: limit,
    };
    assert_eq!(outcomes[0], Err(timeout.clone()));
    assert_peer_failed(&outcomes[1], 0, &timeout.to_string());
}

#[test]
fn a_rank_that_stays_away_from_a_meeting_is_named() {
    let limit = Duration::from_millis(50);
    let options = Options { meeting_timeout: Some(limit), ..Options::default() };
    let outcomes = on_ranks("1x3", options, |comm| {
        if comm.topology().rank == 1 {
            sleep(10 * limit);
        }
        comm.register(64).map(drop)
    });
    let absent = outcomes.iter().find_map(|o| match o {
        Err(CommError::Absent { call, missing, .. }) => Some((call.clone(), missing.clone())),
        _ => None,
    });
    assert_eq!(absent, Some(("register(64 bytes)".to_owned(), vec![1])));
    assert!(outcomes.iter().all(Result::is_err));
}

#[test]
fn ranks_may_meet_without_a_limit() {
    let limit = Duration::from_millis(50);
    let options = Options { timeout: limit, meeting_timeout: None, ..Options::default() };
    let outcomes = on_ranks("1x3", options, |comm| {
        if comm.topology().rank == 1 {
            sleep(10 * limit);
        }
        comm.register(64).map(drop)
    });
    assert_eq!(outcomes, [Ok(()), Ok(()), Ok(())]);
}

/// One rank makes another call than the rest: everybody fails, and at least one can say what differs.
fn assert_mismatch(
    different: impl Fn(&MemoryComm, &mut MemoryBuffer, bool) -> Outcome + Sync,
    parts: [&str; 2],
) {
    for text in ["1x3", "3x1", "2x2"] {
        let outcomes = on_ranks(text, Options::default(), |comm| {
            let mut buf = comm.register(400)?;
            different(&comm, &mut buf, comm.topology().rank == 1)
        });
        assert!(outcomes.iter().all(Result::is_err), "{text}: {outcomes:?}");
        let named = outcomes.iter().filter_map(|o| o.as_ref().err()).any(|error| {
            matches!(error, CommError::Mismatch { .. }) && parts.iter().all(|p| error.to_string().contains(p))
        });
        assert!(named, "{text}: {outcomes:?}");
    }
}

#[test]
fn different_calls_are_errors_and_not_wrong_sums() {
    assert_mismatch(
        |comm, buf, odd| all_reduce(comm, buf, if odd { 99 } else { 100 }, DType::F32),
        ["over 99 f32", "over 100 f32"],
    );
    assert_mismatch(
        |comm, buf, odd| all_reduce(comm, buf, 100, if odd { DType::Bf16 } else { DType::F16 }),
        ["100 bf16", "100 f16"],
    );
    assert_mismatch(
        |comm, buf, odd| {
            let world = comm.topology().world();
            let mut offsets: Vec<usize> = (0..=world).map(|r| 10 * r).collect();
            offsets[1] -= usize::from(odd);
            comm.enqueue_gather(&(), AllGather { buf, offsets: &offsets, dtype: DType::F32 })?;
            all_reduce(comm, buf, if odd { 1 } else { 2 }, DType::F32)
        },
        ["elements", "expects"],
    );
}

#[test]
fn a_stage_is_not_an_all_reduce() {
    let outcomes = on_ranks("1x2", Options::default(), |comm| {
        let mut buf = comm.register(4)?;
        if comm.topology().rank == 0 {
            return all_reduce(&comm, &mut buf, 1, DType::F32);
        }
        let op = Stage { phase: Phase::Reduce, buf: &mut buf, numel: 1, dtype: DType::F32 };
        comm.enqueue_stage(&(), op)
    });
    assert!(outcomes.iter().all(Result::is_err));
    let texts: Vec<_> = outcomes.iter().flat_map(|o| o.as_ref().err()).map(ToString::to_string).collect();
    assert!(texts.iter().any(|t| t.contains("all-reduce 2") && t.contains("reduce stage 2")), "{texts:?}");
}

#[test]
fn ranks_that_disagree_on_a_meeting_all_hear_the_same() {
    let outcomes = on_ranks("1x3", Options::default(), |comm| {
        comm.register(if comm.topology().rank == 2 { 8 } else { 4 }).map(drop)
    });
    let text = outcomes[0].as_ref().unwrap_err().to_string();
    assert!(text.starts_with("rank 0 calls register(4 bytes), but rank 2 calls register(8 bytes)"), "{text}");
    assert!(outcomes.iter().all(|outcome| outcome == &outcomes[0]));
    let outcomes = on_ranks("1x2", Options::default(), |comm| match comm.topology().rank {
        0 => comm.register(4).map(drop),
        _ => comm.split(0, 0).map(drop),
    });
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Err(CommError::Disagreement { .. }))));
}

#[test]
fn wrong_arguments_are_refused_before_anything_is_sent() {
    on_ranks("1x2", Options::default(), |comm| {
        let mut buf = comm.register(16).unwrap();
        let refused = |outcome: Outcome, text: &str| {
            let message = outcome.unwrap_err().to_string();
            assert!(message.contains(text), "{message}");
        };
        refused(all_reduce(&comm, &mut buf, 5, DType::F32), "5 f32 elements do not fit the 16 bytes");
        let (mut residual, mut out) = ([0.0; 4], [0.0; 4]);
        let mut sum = |addend: Option<&[f32]>, gain: Option<&[f32]>| {
            let (residual, out) = (&mut residual[..], &mut out[..]);
            let epilogue = gain.map_or(Epilogue::None, |gain| {
                let eps = 0.0;
                Epilogue::ResidualRmsNorm { residual, gain, eps, out }
            });
            let (buf, dtype) = (&mut buf, DType::F32);
            comm.enqueue(&(), AllReduce { buf, numel: 4, dtype, addend, epilogue })
        };
        refused(sum(Some(&[0.0; 3]), None), "the addend has 3 elements, but 4");
        refused(sum(None, Some(&[1.0; 3])), "4 elements are not whole rows of 3");
        refused(sum(None, Some(&[])), "whole rows of 0");
        let mut gather = |offsets: &[usize]| {
            comm.enqueue_gather(&(), AllGather { buf: &mut buf, offsets, dtype: DType::F32 })
        };
        refused(gather(&[0, 4]), "3 ascending numbers are needed");
        refused(gather(&[0, 3, 2]), "[0, 3, 2]");
        refused(gather(&[0, 2, 5]), "do not fit");
        let mut foreign = comm.split(0, 0).unwrap().register(16).unwrap();
        assert_eq!(all_reduce(&comm, &mut foreign, 1, DType::F32), Err(CommError::ForeignBuffer));
        assert_eq!(comm.check(), Ok(()));
        all_reduce(&comm, &mut buf, 4, DType::F32).unwrap();
        assert_eq!(comm.counts().all_reduces, 1);
    });
}
