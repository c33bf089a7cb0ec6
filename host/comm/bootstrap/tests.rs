//! Worlds of meshes in threads of one process.

use std::{io::Write, net::TcpStream, sync::Arc, thread, time::Instant};

use super::*;
use crate::comm::cpu::Stop;
use crate::comm::{Collective, DType, Header};

fn options(limit_ms: u64) -> MeshOptions {
    let limit = Duration::from_millis(limit_ms);
    MeshOptions {
        start_limit: Duration::from_secs(30),
        meeting_limit: Some(limit),
        silence_limit: Duration::from_secs(60),
    }
}

/// Runs `body` as every rank of a fresh world.
fn on_ranks<R: Send>(world: usize, limit_ms: u64, body: impl Fn(Mesh) -> R + Sync) -> Vec<R> {
    let listener = Listener::bind("127.0.0.1:0").unwrap();
    let address = format!("127.0.0.1:{}", listener.port().unwrap());
    let (body, address) = (&body, &address);
    thread::scope(|scope| {
        let host = scope.spawn(move || body(Mesh::host(listener, world, options(limit_ms)).unwrap()));
        let join = |rank| move || body(Mesh::join(address, rank, world, options(limit_ms)).unwrap());
        let others: Vec<_> = (1..world).map(|rank| scope.spawn(join(rank))).collect();
        std::iter::once(host).chain(others).map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn everybody_gets_everything_again_and_again() {
    for world in [1, 2, 3, 5] {
        on_ranks(world, 60_000, |mesh| {
            assert_eq!(mesh.world(), world);
            assert_eq!(shape_of_hosts(mesh.hosts()).unwrap().to_string(), format!("1x{world}"));
            for round in 0..200 {
                let mine = vec![mesh.rank() as u8; round % 7];
                let all = mesh.all_gather("go", &mine).unwrap();
                let expected: Vec<_> = (0..world).map(|rank| vec![rank as u8; round % 7]).collect();
                assert_eq!(all, expected);
            }
        });
    }
}

#[test]
fn groups_meet_beside_each_other() {
    on_ranks(4, 60_000, |mesh| {
        let rank = mesh.rank();
        let pair = if rank < 2 { [1, 0] } else { [2, 3] };
        for round in 0..100u8 {
            // The pairs are not in step: one meets more often than the other.
            for again in 0..=(rank / 2) as u8 {
                let all = mesh.meet(&pair, "pair", &[rank as u8, round, again], None).unwrap();
                assert_eq!(all, pair.map(|peer| vec![peer as u8, round, again]));
            }
        }
        mesh.all_gather("end", &[]).unwrap();
    });
}

#[test]
fn other_requests_are_the_same_error_everywhere() {
    let errors = on_ranks(3, 60_000, |mesh| {
        mesh.all_gather(if mesh.rank() == 1 { "b" } else { "a" }, &[]).unwrap_err()
    });
    let expected = "rank 0 calls a, but rank 1 calls b";
    assert!(errors[0].to_string().starts_with(expected), "{}", errors[0]);
    assert!(errors.iter().all(|error| *error == errors[0]));
}

#[test]
fn who_stays_away_is_named() {
    let outcomes = on_ranks(3, 200, |mesh| {
        if mesh.rank() == 2 {
            while mesh.failure().is_none() {
                thread::sleep(Duration::from_millis(5));
            }
            return mesh.failure().unwrap().1;
        }
        let error = mesh.all_gather("a", &[]).unwrap_err();
        mesh.fail_with(&error);
        error.to_string()
    });
    assert!(outcomes.iter().any(|text| text.contains("in a, but rank 2 did not come")), "{outcomes:?}");
    assert!(outcomes[2].contains("rank 2 did not come"), "{outcomes:?}");
}

#[test]
fn a_failure_reaches_all_at_once() {
    let start = Instant::now();
    let outcomes = on_ranks(4, 60_000, |mesh| {
        if mesh.rank() == 3 {
            mesh.fail("the disk is full", None);
            return None;
        }
        // 1 and 2 meet each other only: the failure of 3 is theirs, too.
        let members = if mesh.rank() == 0 { vec![0, 3] } else { vec![2, 1, 3] };
        Some(mesh.meet(&members, "a", &[], None).unwrap_err())
    });
    for outcome in &outcomes[..3] {
        match outcome {
            Some(CommError::PeerFailed { peer: 3, cause, .. }) => assert_eq!(cause, "the disk is full"),
            other => panic!("{other:?}"),
        }
    }
    assert!(start.elapsed() < Duration::from_secs(20));
}

/// 0 waits for 1, which waits for 2: its time is up a little later, and its answer is the one that counts.
#[test]
fn who_waits_for_the_silent_one_is_not_interrupted_by_who_waits_for_it() {
    const OWN_LIMIT: Duration = Duration::from_millis(500);
    let expected =
        Header { sequence: 1, collective: Collective::AllReduce, numel: 1, dtype: DType::F32, range: 0..1 };
    let speakers = on_ranks(3, 60_000, |mesh| {
        let inbox = mesh.inbox();
        mesh.all_gather("begin", &[]).unwrap();
        match mesh.rank() {
            0 => mesh.fail("waited for rank 1", Some(1)),
            1 => {
                while mesh.reports().of(0).is_none() {
                    thread::sleep(Duration::from_millis(1));
                }
                let late = inbox.take((2, 0), &expected, OWN_LIMIT, |_: &[f32]| ());
                assert_eq!(late, Err(Stop::Late { seen: 0 }));
                mesh.fail("waited for rank 2", Some(2));
                // Of 0 itself nothing more is to be expected.
                let gone = inbox.take((0, 0), &expected, Duration::from_secs(60), |_: &[f32]| ());
                assert_eq!(gone, Err(Stop::Interrupted));
            }
            _ => {}
        }
        while (0..2).any(|rank| mesh.reports().of(rank).is_none()) {
            thread::sleep(Duration::from_millis(1));
        }
        mesh.reports().speaker(0)
    });
    assert_eq!(speakers, [Some(1); 3]);
}

#[test]
fn who_leaves_is_named_only_if_missed() {
    on_ranks(3, 60_000, |mesh| {
        mesh.all_gather("a", &[]).unwrap();
        if mesh.rank() == 2 {
            return;
        }
        mesh.meet(&[0, 1], "b", &[], None).unwrap();
        let error = mesh.all_gather("c", &[]).unwrap_err();
        assert!(matches!(error, CommError::PeerFailed { peer: 2, .. }), "{error}");
        assert!(error.to_string().contains("left the group"), "{error}");
        // The other may not have noticed before this one leaves.
        assert!(mesh.reports().of(2).is_none());
    });
}

#[test]
fn messages_larger_than_any_socket_cross() {
    on_ranks(3, 60_000, |mesh| {
        let mine = vec![mesh.rank() as u8; 40 << 20];
        let all = mesh.all_gather("large", &mine).unwrap();
        assert!(all.iter().enumerate().all(|(rank, item)| item.len() == 40 << 20 && item[77] == rank as u8));
    });
}

#[test]
fn bad_starts_are_named() {
    let start = |world: usize, others: &[(usize, usize)], limit_ms| -> Vec<String> {
        let listener = Listener::bind("127.0.0.1:0").unwrap();
        let address = Arc::new(format!("127.0.0.1:{}", listener.port().unwrap()));
        let options = || MeshOptions { start_limit: Duration::from_millis(limit_ms), ..options(1000) };
        let joins: Vec<_> = others
            .iter()
            .map(|&(rank, world)| {
                let (address, options) = (Arc::clone(&address), options());
                thread::spawn(move || Mesh::join(&address, rank, world, options).err().unwrap().to_string())
            })
            .collect();
        let own = Mesh::host(listener, world, options()).err().unwrap().to_string();
        std::iter::once(own).chain(joins.into_iter().map(|join| join.join().unwrap())).collect()
    };
    let missing = start(4, &[(2, 4)], 300);
    assert!(missing[0].contains("waited 300ms for ranks 1, 3,"), "{missing:?}");
    assert!(
        missing[1].starts_with("rank 2 cannot start") && missing[1].contains("ranks 1, 3,"),
        "{missing:?}"
    );
    let twice = start(3, &[(1, 3), (1, 3)], 20_000);
    assert!(
        twice.iter().all(|text| text.contains("two processes say that they are rank 1 of 3")),
        "{twice:?}"
    );
    let world = start(2, &[(1, 3)], 20_000);
    assert!(world[0].contains("rank 1 expects 3 ranks, but rank 0 expects 2"), "{world:?}");
    let beyond = start(2, &[(2, 2)], 20_000);
    assert!(beyond[0].contains("rank 2, but a world of 2 has ranks 0 to 1"), "{beyond:?}");
}

#[test]
fn an_absent_rank_0_and_a_taken_port_are_named() {
    let listener = Listener::bind("127.0.0.1:0").unwrap();
    let address = format!("127.0.0.1:{}", listener.port().unwrap());
    let taken = Listener::bind(&address).unwrap_err().to_string();
    assert!(taken.contains(&address) && taken.contains("MASTER_PORT"), "{taken}");
    drop(listener);
    let options = MeshOptions { start_limit: Duration::from_millis(200), ..options(1000) };
    let absent = Mesh::join(&address, 1, 2, options).unwrap_err().to_string();
    assert!(
        absent.starts_with(&format!("rank 1 could not reach rank 0 at {address} within 200ms")),
        "{absent}"
    );
}

#[test]
fn a_silent_process_is_given_up() {
    let listener = Listener::bind("127.0.0.1:0").unwrap();
    let address = format!("127.0.0.1:{}", listener.port().unwrap());
    thread::scope(|scope| {
        // Connected, and then as if it were stopped: it reads nothing and gives no sign of life.
        let stopped = scope.spawn(|| rendezvous::join(&address, 1, 2, Duration::from_secs(30)).unwrap());
        let options = MeshOptions { silence_limit: Duration::from_millis(400), ..options(60_000) };
        let mesh = Mesh::host(listener, 2, options).unwrap();
        let connections = stopped.join().unwrap();
        let error = mesh.meet(&[0, 1], "a", &[], None).unwrap_err();
        let CommError::PeerFailed { peer: 1, cause, .. } = error else { panic!("{error}") };
        assert!(cause.starts_with("nothing was heard of it for 400ms"), "{cause}");
        drop(connections);
    });
}

#[test]
fn strangers_at_the_door_do_no_harm() {
    let listener = Listener::bind("127.0.0.1:0").unwrap();
    let address = format!("127.0.0.1:{}", listener.port().unwrap());
    // One says nothing, one something else, one leaves in the middle of a word.
    let strangers = [&b""[..], b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"fews"];
    let strangers = strangers.map(|words| {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.write_all(words).unwrap();
        (words.len() != 4).then_some(stream)
    });
    thread::scope(|scope| {
        scope.spawn(|| Mesh::join(&address, 1, 2, options(60_000)).unwrap().all_gather("a", &[]).unwrap());
        let mesh = Mesh::host(listener, 2, options(60_000)).unwrap();
        assert_eq!(mesh.all_gather("a", &[]).unwrap().len(), 2);
    });
    drop(strangers);
}
