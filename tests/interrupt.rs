//! What the system does to a run: Ctrl-C ends it with what was produced, and nothing is left damaged; a stop is
//! survived; a thread refused is an error.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{command, fails, finish, json, parse_json, smollm2};
use fewsync::comm::{AllReduce, Communicator, DType, Epilogue, Shape, memory};

const SIGINT: i32 = 2;

fn interrupt(child: &Child) {
    signal(child, "-INT");
}

fn signal(child: &Child, signal: &str) {
    let status = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

/// Waits until the process handles SIGINT itself: from here on it generates.
fn wait_for_handler(child: &Child) {
    let path = format!("/proc/{}/status", child.id());
    wait_until(|| {
        let status = fs::read_to_string(&path).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t")).unwrap();
        u64::from_str_radix(caught, 16).unwrap() >> (SIGINT - 1) & 1 == 1
    });
}

#[track_caller]
fn wait_until(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "waited in vain");
        std::thread::sleep(Duration::from_millis(2));
    }
}

const LONG: [&str; 5] = ["generate", "--prompt", "Once upon a time", "--max-tokens", "4000"];

#[test]
fn streamed_text_ends_with_what_was_produced() {
    let mut child = command(&LONG).spawn().unwrap();
    let mut start = [0; 20];
    child.stdout.as_mut().unwrap().read_exact(&mut start).unwrap();
    interrupt(&child);
    let output = finish(child);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.lines().count() == 1 && stderr.contains("(interrupted)"), "{stderr}");
    assert!(String::from_utf8(output.stdout).unwrap().ends_with('\n'));
}

#[test]
fn the_json_object_says_so() {
    let args = [&LONG[..], &["--json"]].concat();
    let child = command(&args).spawn().unwrap();
    wait_for_handler(&child);
    std::thread::sleep(Duration::from_millis(700));
    interrupt(&child);
    let run = parse_json(&finish(child), &args);
    assert_eq!(run["stop"], "interrupted");
    let tokens: Vec<u32> = serde_json::from_value(run["tokens"].clone()).unwrap();
    assert!((1..4000).contains(&tokens.len()), "{} tokens", tokens.len());
    assert_eq!(run["text"].as_str().unwrap(), smollm2().tokenizer.decode_continuation(&tokens));
}

#[test]
fn a_long_prompt_is_left_half_read() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("prompt");
    fs::write(&file, "word ".repeat(8000)).unwrap();
    let args = ["generate", "--prompt-file", file.to_str().unwrap(), "--max-tokens", "50", "--json"];
    let child = command(&args).spawn().unwrap();
    wait_for_handler(&child);
    let start = Instant::now();
    interrupt(&child);
    let run = parse_json(&finish(child), &args);
    assert_eq!(run["stop"], "interrupted");
    assert_eq!((&run["text"], &run["tokens"]), (&"".into(), &serde_json::json!([])));
    assert_eq!((&run["tokens_per_s"], &run["time_to_first_token_ms"]), (&0.0.into(), &0.0.into()));
    assert!(start.elapsed() < Duration::from_secs(30), "one part of the prompt, not all of it");
}

#[test]
fn the_second_ends_the_process() {
    // A full pipe that nobody reads: the first cannot end the run, which is stuck in writing.
    const PIPE_BYTES: usize = 1 << 16;
    let (_reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(&[0; PIPE_BYTES]).unwrap();
    let mut child =
        command(&["generate", "--model", "random:tiny", "--prompt", "hi"]).stdout(writer).spawn().unwrap();
    wait_for_handler(&child);
    interrupt(&child);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(child.try_wait().unwrap(), None, "still writing");
    interrupt(&child);
    let output = finish(child);
    assert_eq!(output.status.code(), Some(130));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn loading_leaves_the_cache_as_it_was() {
    let mut child = command(&LONG).spawn().unwrap();
    interrupt(&child);
    let status = child.wait().unwrap();
    assert!(status.signal() == Some(SIGINT) || status.success(), "{status}");
    smollm2();
}

#[test]
fn fetching_leaves_nothing_that_looks_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, python) = (dir.path().join("cache"), dir.path().join("python3"));
    // Half a download, and then nothing more.
    let script = "#!/bin/sh\necho half > \"$TMPDIR\"/part\nexec sleep 30\n";
    fs::write(&python, script).unwrap();
    fs::set_permissions(&python, PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    let child = command(&LONG).env("FEWSYNC_CACHE", &cache).env("PATH", &path).spawn().unwrap();
    let folder = cache.join("smollm2");
    let names = || {
        let entries = fs::read_dir(&folder).into_iter().flatten();
        Vec::from_iter(entries.map(|e| e.unwrap().file_name().into_string().unwrap()))
    };
    wait_until(|| names().iter().any(|name| name.starts_with(".fetching-")));
    interrupt(&child);
    let mut child = child;
    assert_eq!(child.wait().unwrap().signal(), Some(SIGINT));
    assert!(!names().iter().any(|name| name.ends_with(".gguf")), "{:?}", names());

    fs::write(&python, "#!/bin/sh\necho 'ERROR: offline' >&2\nexit 1\n").unwrap();
    let output = finish(command(&LONG).env("FEWSYNC_CACHE", &cache).env("PATH", &path).spawn().unwrap());
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(names(), ["lock"], "the next start clears away what was left");
}

#[test]
fn a_measurement_goes_on_where_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let sensitivity = ["spd", "sensitivity", "--model", "random:smollm2,layers=8", "--tp", "3"];
    let small = ["--chunks", "2", "--chunk-len", "48", "--json", "--out"];
    let (whole, pieces) = (at("whole.json"), at("pieces.json"));
    let args = |out| [&sensitivity[..], &small, &[out]].concat();
    let child = command(&args(&pieces)).spawn().unwrap();
    wait_until(|| fs::exists(&pieces).unwrap());
    interrupt(&child);
    let output = finish(child);
    let stderr = fails(&output, &args(&pieces), 1, &["blocks left", "the same command goes on", &pieces]);
    assert!(stderr.contains("interrupted with "), "{stderr}");
    let left = fs::read_to_string(&pieces).unwrap();
    let expected = json(&args(&whole));
    assert_ne!(left, fs::read_to_string(&whole).unwrap(), "interrupted before the end");
    assert_eq!(json(&args(&pieces)), expected);
    assert!(fs::read(&pieces).unwrap() == fs::read(&whole).unwrap(), "the files differ");
}

/// One rank waits for another that works for half a second: far less than the limit, unless a stop counts.
#[test]
#[ignore = "the process that the next test stops"]
fn ranks_of_which_one_is_late() {
    let options = memory::Options { timeout: Duration::from_secs(3), ..Default::default() };
    let ranks = memory::group(Shape { nodes: 1, gpus_per_node: 2 }, options);
    std::thread::scope(|scope| {
        for comm in ranks {
            scope.spawn(move || {
                let mut buf = comm.register(4).unwrap();
                if comm.topology().rank == 1 {
                    println!("waiting");
                    (0..50).for_each(|_| std::thread::sleep(Duration::from_millis(20)));
                }
                let epilogue = Epilogue::None;
                let op = AllReduce { buf: &mut buf, numel: 1, dtype: DType::F32, addend: None, epilogue };
                comm.enqueue(&(), op).unwrap();
            });
        }
    });
}

#[test]
fn a_stop_longer_than_the_limit_is_survived() {
    let args = ["--exact", "ranks_of_which_one_is_late", "--ignored", "--nocapture"];
    let mut run = Command::new(std::env::current_exe().unwrap());
    let mut child = run.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut seen = String::new();
    let stdout = child.stdout.as_mut().unwrap();
    while !seen.contains("waiting") {
        let mut byte = [0];
        stdout.read_exact(&mut byte).unwrap();
        seen.push(char::from(byte[0]));
    }
    std::thread::sleep(Duration::from_millis(100));
    signal(&child, "-STOP");
    std::thread::sleep(Duration::from_secs(4));
    signal(&child, "-CONT");
    let output = finish(child);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_thread_refused_is_an_error() {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return eprintln!("skipped: only root can become a user without other processes");
    }
    // Nobody's user, so that its limit counts this run alone.
    let user = ["--reuid=65533", "--regid=65533", "--clear-groups", "bash", "-c"];
    let args = ["generate", "--model", "random:tiny", "--tp", "4", "--prompt", "hi", "--max-tokens", "4"];
    let mut refusals = 0;
    for limit in 2..=8 {
        let script = format!("ulimit -u {limit}; exec \"$0\" \"$@\"");
        let mut run = Command::new("setpriv");
        run.args(user).arg(script).arg(env!("CARGO_BIN_EXE_fewsync")).args(args);
        let start = Instant::now();
        let child = run.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let output = finish(child.unwrap());
        assert!(start.elapsed() < Duration::from_secs(20), "limit {limit}");
        if !output.status.success() {
            let stderr = fails(&output, &args, 1, &[]);
            assert_eq!(stderr.lines().count(), 1, "limit {limit}: {stderr}");
            refusals += usize::from(stderr.contains("(ulimit -u)"));
        }
    }
    assert!(refusals > 0, "no limit was felt");
}
