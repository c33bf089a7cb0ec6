//! Starts that cannot succeed: named once, within their limits.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::common::{command, finish, json, parse_json};
use crate::{TINY, all_fail, free_port, rank};

#[test]
fn environments_that_make_no_sense_are_refused() {
    for (variables, needle) in [
        (&[("RANK", "1")][..], "RANK is set, but WORLD_SIZE is not"),
        (&[("WORLD_SIZE", "2")], "WORLD_SIZE is set, but RANK is not"),
        (&[("RANK", "0"), ("WORLD_SIZE", "2")], "MASTER_ADDR"),
        (&[("RANK", "2"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "1")], "ranks 0 to 1"),
        (&[("RANK", "one"), ("WORLD_SIZE", "2")], "RANK=one"),
    ] {
        let output = finish(command(&TINY).envs(variables.iter().copied()).spawn().unwrap());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && stderr.contains(needle), "{variables:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
    // A world of one is a process as any other.
    let alone = finish(command(&TINY).env("RANK", "0").env("WORLD_SIZE", "1").spawn().unwrap());
    assert_eq!(parse_json(&alone, &TINY)["tokens"], json(&TINY)["tokens"]);
}

#[test]
fn starts_that_cannot_succeed_are_named() {
    let quick = [&TINY[..], &["--start-limit", "1"]].concat();
    // A rank that does not come.
    let port = free_port();
    let outputs = [0, 2].map(|r| rank(r, 3, port, &quick)).map(finish);
    let text = all_fail(&outputs);
    assert!(text.contains("rank 0 waited 1s for rank 1,") && text.lines().count() == 1, "{text}");
    // Nor do very many: their list is short.
    let text = all_fail(&[finish(rank(0, 100_000, free_port(), &quick))]);
    assert!(text.contains("waited 1s for ranks 1-99999, which"), "{text}");
    // Rank 0 does not come.
    let text = all_fail(&[finish(rank(1, 2, free_port(), &quick))]);
    assert!(text.contains("rank 1 could not reach rank 0 at 127.0.0.1:"), "{text}");
    // Its port is another's.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let text = all_fail(&[finish(rank(0, 2, taken.local_addr().unwrap().port(), &quick))]);
    assert!(text.contains("rank 0 cannot listen on 127.0.0.1:") && text.contains("MASTER_PORT"), "{text}");
    // Its address is another host's, or nobody's; it does not wait to say so. (The first is of a network for
    // documentation.)
    for host in ["192.0.2.1", "no-such-host.invalid"] {
        let mut run = command(&TINY);
        run.env("RANK", "0").env("WORLD_SIZE", "2").env("MASTER_ADDR", host).env("MASTER_PORT", "29500");
        let at = Instant::now();
        let text = all_fail(&[finish(run.spawn().unwrap())]);
        assert!(text.contains(&format!("rank 0 cannot listen on {host}:29500 (")), "{text}");
        assert!(text.contains("set MASTER_ADDR to ") && at.elapsed() < Duration::from_secs(60), "{text}");
    }
    // Two are the same rank; two expect different worlds.
    let port = free_port();
    let outputs = [0, 1, 1].map(|r| rank(r, 3, port, &TINY)).map(finish);
    let text = all_fail(&outputs);
    assert!(
        text.contains("two processes say that they are rank 1 of 3") && text.lines().count() == 1,
        "{text}"
    );
    let port = free_port();
    let outputs = [(0, 2), (1, 3)].map(|(r, world)| rank(r, world, port, &TINY)).map(finish);
    let text = all_fail(&outputs);
    assert!(text.contains("rank 1 expects 3 ranks, but rank 0 expects 2"), "{text}");
}

#[test]
fn another_release_is_named() {
    let port = free_port();
    let host = rank(0, 2, port, &TINY);
    let mut stream = loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => break stream,
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    // What every release says first: magic, protocol, rank, world, release.
    let mut hello = b"fewsync\0".to_vec();
    hello.extend(9u32.to_le_bytes());
    hello.extend([1u64, 2, 5].into_iter().flat_map(u64::to_le_bytes));
    hello.extend(b"9.0.1");
    stream.write_all(&hello).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let text = all_fail(&[finish(host)]);
    assert!(text.contains("rank 1 is fewsync 9.0.1 (protocol 9), but rank 0 is fewsync"), "{text}");
    assert!(String::from_utf8_lossy(&answer).contains("start the same release everywhere"));
}

#[test]
fn the_doctor_says_what_it_sees() {
    let doctor = |variables: &[(&str, &str)]| {
        let output = finish(command(&["doctor"]).envs(variables.iter().copied()).spawn().unwrap());
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    let torchrun = [("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "n7"), ("MASTER_PORT", "8")];
    assert!(doctor(&torchrun).contains("rank 0 of 2, with rank 0 at n7:8"));
    assert!(doctor(&torchrun[..1]).contains("RANK is set, but WORLD_SIZE is not"));
    assert!(doctor(&[]).contains("none: ranks are threads of this process"));
}
