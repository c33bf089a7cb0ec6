//! Ranks as processes of one host, started as torchrun starts them: the results of one process, and every misfortune
//! named once. `tests/mpi.sh` starts them with Open MPI.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[path = "../common/mod.rs"]
mod common;
mod starts;

use std::io::Read;
use std::net::TcpListener;
use std::process::{Child, Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{command, fails, finish, json, parse_json, shape};
use fewsync::comm::bootstrap::{Bootstrap, Listener, Mesh, MeshOptions};
use fewsync::model::Model;
use fewsync::reference::{Reference, ReferenceOptions};
use fewsync::runner::{Batch, Runner};
use fewsync::spd::SpdSpec;

const TINY: [&str; 8] =
    ["generate", "--model", "random:tiny", "--prompt", "hello", "--max-tokens", "12", "--json"];
/// Runs for minutes unless it is ended.
const LONG: [&str; 7] =
    ["generate", "--model", "random:smollm2,layers=4", "--prompt", "hello", "--max-tokens", "8000"];

/// A port that nobody listens on.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn rank(rank: usize, world: usize, port: u16, args: &[&str]) -> Child {
    let mut run = command(args);
    run.env("RANK", rank.to_string()).env("WORLD_SIZE", world.to_string());
    run.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
    run.spawn().unwrap()
}

fn start(world: usize, args: &[&str]) -> Vec<Child> {
    let port = free_port();
    (0..world).map(|r| rank(r, world, port, args)).collect()
}

/// Waits for all ranks, which succeed; only rank 0 prints.
#[track_caller]
fn run(world: usize, args: &[&str]) -> serde_json::Value {
    let outputs: Vec<Output> = start(world, args).into_iter().map(finish).collect();
    for output in &outputs[1..] {
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && output.stdout.is_empty() && stderr.is_empty(),
            "{args:?}: {stderr}"
        );
    }
    parse_json(&outputs[0], args)
}

/// What all of them have on stderr, where each fails without a result.
#[track_caller]
fn all_fail<'a>(outputs: impl IntoIterator<Item = &'a Output>) -> String {
    let mut text = String::new();
    for output in outputs {
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        text += &stderr;
    }
    text
}

fn signal(child: &Child, signal: &str) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
}

/// Waits until rank 0 has printed something: from here on all ranks generate.
fn wait_for_text(ranks: &mut [Child]) {
    let mut start = [0; 64];
    ranks[0].stdout.as_mut().unwrap().read_exact(&mut start).unwrap();
}

#[test]
fn processes_say_what_one_process_says() {
    for more in [
        &["--topology", "1x4"][..],
        &["--topology", "2x2", "--spd", "last:1"],
        &["--topology", "4x1", "--temperature", "1.5", "--seed", "3"],
    ] {
        let args = [&TINY[..], more].concat();
        let (several, one) = (run(4, &args), json(&args));
        for field in ["tokens", "text", "tp", "topology", "sync_points_per_token", "spd_blocks"] {
            assert_eq!(several[field], one[field], "{more:?}: {field}");
        }
    }
    // Where nothing is said, a host is a node, and every process a rank. Also by the host's name.
    let port = free_port();
    let by_name = |r: usize| {
        let mut run = command(&TINY);
        run.env("RANK", r.to_string()).env("WORLD_SIZE", "3");
        run.env("MASTER_ADDR", "localhost").env("MASTER_PORT", port.to_string());
        run.spawn().unwrap()
    };
    let ranks: Vec<Child> = (0..3).map(by_name).collect();
    let outputs: Vec<Output> = ranks.into_iter().map(finish).collect();
    let plain = parse_json(&outputs[0], &TINY);
    assert_eq!((&plain["topology"], &plain["tp"]), (&"1x3".into(), &3.into()));
}

#[test]
fn the_trained_model_speaks_in_processes() {
    let args = ["generate", "--prompt", "The capital of France is", "--max-tokens", "8", "--json"];
    let several = run(3, &args);
    assert_eq!(several["text"], " Paris.\n\nThe answer is:");
    assert_eq!(several["block_all_reduces_per_token"], 60.0);
}

#[test]
fn evaluation_and_measurement_run_in_processes() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (text, csv) = (at("text"), at("decode.csv"));
    std::fs::write(&text, "Some words, and then some more of them. ".repeat(40)).unwrap();
    let eval =
        ["eval", "--model", "random:tiny", "--text", &text, "--chunks", "2", "--context", "64", "--json"];
    let eval = [&eval[..], &["--spd", "all", "--topology", "1x3"]].concat();
    let (several, one) = (run(3, &eval), json(&eval));
    for field in ["perplexity", "kl", "top1_agreement"] {
        assert_eq!(several[field], one[field], "{field}");
    }
    let bench = [
        "bench",
        "decode",
        "--model",
        "random:tiny",
        "--decode",
        "8",
        "--runs",
        "1",
        "--csv",
        &csv,
        "--json",
    ];
    run(2, &bench);
    let lines =
        std::fs::read_to_string(&csv).unwrap().lines().filter(|line| line.starts_with("decode,")).count();
    assert_eq!(lines, 1, "rank 0 alone writes files");
}

#[test]
fn a_process_holds_its_shard_and_gets_all_logits() {
    let model = Model::open("random:tiny").unwrap();
    let shape = shape(1, 3);
    let plan = SpdSpec::None.resolve(&model.config, &*model.source, 3).unwrap();
    let (options, prompt) = (ReferenceOptions::new(shape), [1, 2, 3, 4, 5]);
    let batch = Batch { hidden_states: true, ..Batch::prefill(0, &prompt) };
    let (config, source) = (&model.config, &model.source);
    let mut threads = Reference::load(config, source, &plan, &options, &Arc::default()).unwrap();
    let expected = threads.forward(&batch).unwrap();
    let (bytes, syncs) = (threads.weight_bytes().to_vec(), threads.sync_counts());

    let listener = Listener::bind("127.0.0.1:0").unwrap();
    let address = format!("127.0.0.1:{}", listener.port().unwrap());
    let body = |mesh: Mesh| {
        let mesh = Arc::new(mesh);
        let loaded = Reference::load_in_processes(config, source, &plan, &mesh, &options, &Arc::default());
        let mut one = loaded.unwrap();
        assert_eq!(one.weight_bytes(), [bytes[mesh.rank()]]);
        assert_eq!(one.tp(), 3);
        let output = one.forward(&batch).unwrap();
        assert_eq!((&output.logits, &output.hidden_states), (&expected.logits, &expected.hidden_states));
        assert_eq!(one.sync_counts(), syncs);
    };
    std::thread::scope(|scope| {
        let (body, address, options) = (&body, &address, MeshOptions::default);
        scope.spawn(move || body(Mesh::host(listener, 3, options()).unwrap()));
        for rank in 1..3 {
            scope.spawn(move || body(Mesh::join(address, rank, 3, options()).unwrap()));
        }
    });
}

#[test]
fn a_killed_rank_ends_the_others_at_once() {
    for victim in [0, 2] {
        let mut ranks = start(4, &LONG);
        wait_for_text(&mut ranks);
        let killed = ranks.remove(victim);
        let at = Instant::now();
        signal(&killed, "-KILL");
        let outputs: Vec<Output> = ranks.into_iter().map(finish).collect();
        assert!(at.elapsed() < Duration::from_secs(20));
        finish(killed);
        let text = all_fail(&outputs);
        assert_eq!(text, format!("error: rank {victim} failed: its process ended\n"));
    }
}

#[test]
fn a_stopped_rank_ends_the_others_within_the_limit() {
    for victim in [0, 3] {
        let mut ranks = start(4, &[&LONG[..], &["--sync-limit", "2"]].concat());
        wait_for_text(&mut ranks);
        let stopped = ranks.remove(victim);
        let at = Instant::now();
        signal(&stopped, "-STOP");
        let outputs: Vec<Output> = ranks.into_iter().map(finish).collect();
        assert!(at.elapsed() < Duration::from_secs(20), "{:?}", at.elapsed());
        signal(&stopped, "-KILL");
        finish(stopped);
        let text = all_fail(&outputs);
        assert!(text.contains(&format!("waited 2s for rank {victim} in ")), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}

#[test]
fn ctrl_c_ends_all_at_the_same_token() {
    // A terminal interrupts every process; a launcher may do so one by one.
    for all in [true, false] {
        let mut ranks = start(3, &LONG);
        wait_for_text(&mut ranks);
        let interrupted = if all { 0..3 } else { 0..1 };
        interrupted.for_each(|rank| signal(&ranks[rank], "-INT"));
        for (rank, child) in ranks.into_iter().enumerate() {
            let output = finish(child);
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "rank {rank}: {stderr}");
            assert_eq!(stderr.contains("(interrupted)"), rank == 0, "{stderr}");
        }
    }
}

#[test]
fn an_error_of_all_is_told_once() {
    for (args, code, needle) in [
        (&["generate", "--model", "/nowhere", "--prompt", "a"][..], 1, "no model '/nowhere'"),
        (&[&TINY[..], &["--tp", "3"]].concat(), 1, "2 processes were started, but --tp asks for 3 ranks"),
        (&[&TINY[..], &["--topology", "3x1"]].concat(), 1, "--topology asks for 3 ranks"),
        (&["selftest"], 1, "this command runs in one"),
        (&["tune", "allreduce", "--tp", "3", "--out", "t.json"], 1, "--tp asks for 3 ranks"),
        (&["tune", "allreduce", "--device", "emulate", "--out", "t.json"], 1, "for ranks of one process"),
        (&["tune", "allreduce", "--peer-memory", "direct", "--out", "t.json"], 1, "through NVSHMEM alone"),
        (&["tune", "allreduce", "--tuning", "s.json", "--out", "t.json"], 1, "leave it out"),
        (&["spd", "sensitivity", "--model", "random:tiny"], 1, "start it without a launcher"),
        (&["generate"], 2, "--prompt"),
    ] {
        let outputs: Vec<Output> = start(2, args).into_iter().map(finish).collect();
        fails(&outputs[0], args, code, &[needle]);
        assert_eq!(outputs[1].status.code(), Some(code));
        assert!(outputs[1].stderr.is_empty(), "{}", String::from_utf8_lossy(&outputs[1].stderr));
    }
    // An error of one rank alone ends the others, which are silent: rank 0 cannot write its results.
    let csv = ["bench", "decode", "--model", "random:tiny", "--decode", "2", "--csv", "/nowhere/a.csv"];
    for args in [&csv[..], &["tune", "allreduce", "--out", "/nowhere/t.json"]] {
        let outputs: Vec<Output> = start(2, args).into_iter().map(finish).collect();
        let text = all_fail(&outputs);
        assert!(text.contains("/nowhere/") && text.lines().count() == 1, "{text}");
    }
}

/// Two ranks with command lines of their own; both fail, and one says what differs.
#[track_caller]
fn disagree(lines: [&[&str]; 2], item: &str) {
    let port = free_port();
    let ranks = [0, 1].map(|r| rank(r, 2, port, lines[r]));
    let outputs = ranks.map(finish);
    assert!(outputs.iter().all(|output| output.stdout.is_empty()), "{lines:?}: something was computed");
    let text = all_fail(&outputs);
    let expected = format!(
        "error: rank 1 has another {item} than rank 0: start all ranks with the same command, and give them the same \
         files\n"
    );
    assert_eq!(text, expected, "{lines:?}");
}

#[test]
fn ranks_that_are_to_do_different_things_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let words = "Some words, and then some more of them. ".repeat(20);
    let texts =
        [file("0/text", &words), file("1/text", &words), file("2/text", &words.replace("more", "less"))];
    let [zero, one, two] = texts.each_ref().map(|text| {
        [
            "eval",
            "--model",
            "random:tiny",
            "--chunks",
            "1",
            "--context",
            "64",
            "--json",
            "--text",
            text.as_str(),
        ]
    });
    let with = |more: &[&'static str]| [&TINY[..], more].concat();
    for (more, item) in [
        (&["--temperature", "1.5", "--seed", "4"][..], "--seed"),
        (&["--temperature", "0.5", "--seed", "3"], "--temperature"),
        (&["--temperature", "1.5", "--seed", "3", "--spd", "last:1"], "SPD plan"),
        (&["--temperature", "1.5", "--seed", "3", "--topology", "2x1"], "--topology"),
        (&["--temperature", "1.5", "--seed", "3", "--device", "cpu"], "--device"),
    ] {
        disagree([&with(&["--temperature", "1.5", "--seed", "3"]), &with(more)], item);
    }
    let generate =
        |model: &'static str, prompt: &'static str| ["generate", "--model", model, "--prompt", prompt];
    disagree([&generate("random:tiny", "hi"), &generate("random:tiny,seed=7", "hi")], "model");
    disagree([&generate("random:tiny", "hi"), &generate("random:tiny,layers=3", "hi")], "model");
    disagree([&generate("random:tiny", "hi"), &generate("random:tiny", "ho")], "--prompt");
    disagree([&TINY, &zero], "command");
    // One that is none at all.
    let port = free_port();
    let outputs = [rank(0, 2, port, &TINY), rank(1, 2, port, &["generate", "--tok"])].map(finish);
    assert_eq!(outputs.each_ref().map(|output| output.status.code()), [Some(1), Some(2)]);
    let text = outputs.map(|output| String::from_utf8(output.stderr).unwrap()).concat();
    let expected = "error: rank 1 does not understand its command line: unexpected argument '--tok' found";
    assert!(text.starts_with(expected) && text.lines().count() == 1, "{text}");
    disagree([&zero, &two], "text");
    let from = |text: &'static str| [&TINY[..3], &["--prompt-file", text]].concat();
    let [zero_file, two_file] = [0, 2].map(|at| &*texts[at].clone().leak());
    disagree([&from(zero_file), &from(two_file)], "prompt");

    let bench =
        |spd: &'static str| ["bench", "decode", "--model", "random:tiny", "--decode", "2", "--spd", spd];
    let port = free_port();
    let lines = [bench("none,last:1"), bench("none,all")];
    let text = all_fail(&[0, 1].map(|r| rank(r, 2, port, &lines[r])).map(finish));
    assert!(text.contains("rank 1 has another SPD plan than rank 0") && text.lines().count() == 1, "{text}");

    // The same text in another place, and another limit, is the same thing to do.
    let port = free_port();
    let other = [&one[..], &["--sync-limit", "77"]].concat();
    let outputs = [rank(0, 2, port, &zero), rank(1, 2, port, &other)].map(finish);
    assert_eq!(
        parse_json(&outputs[0], &zero)["perplexity"],
        json(&[&zero[..], &["--tp", "2"]].concat())["perplexity"]
    );
    assert!(outputs[1].status.success());
}
