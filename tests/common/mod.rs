//! What the integration tests share.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]
#![allow(dead_code, unreachable_pub, reason = "every test binary uses a part of it")]

pub mod golden;
pub mod hub;
pub mod judge;
pub mod oracle;
pub mod small;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fewsync::comm::Shape;
use fewsync::model::Model;
use fewsync::reference::{Reference, ReferenceOptions};
use fewsync::spd::{Plan, SpdSpec};

/// A file of `../shared` beside the checkout. Absent: the caller skips, except in CI, where it fails.
pub fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared").join(name);
    if path.exists() {
        return Some(path);
    }
    assert!(std::env::var_os("CI").is_none(), "{}: absent, but CI must have it", path.display());
    // Past the test runner's capture, so that people see what did not run.
    let _ = writeln!(std::io::stderr(), "skipped: {} is absent", path.display());
    None
}

/// The trained model, fetched once into the user's cache.
pub fn smollm2() -> Model {
    Model::open("smollm2").unwrap()
}

pub fn shape(nodes: usize, gpus_per_node: usize) -> Shape {
    Shape { nodes, gpus_per_node }
}

/// `model` on `shape`, with `spd` resolved against it.
pub fn load(model: &Model, shape: Shape, spd: &SpdSpec) -> Reference {
    let plan = spd.resolve(&model.config, &*model.source, shape.world()).unwrap();
    load_plan(model, shape, &plan)
}

pub fn load_plan(model: &Model, shape: Shape, plan: &Plan) -> Reference {
    let options = ReferenceOptions::new(shape);
    Reference::load(&model.config, &model.source, plan, &options, &Arc::default()).unwrap()
}

/// Longest that a run of the binary may take before it counts as hanging.
const LIMIT: Duration = Duration::from_secs(120);

/// The binary with `args`, without input, its outputs captured.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fewsync"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs the binary with `args`.
pub fn fewsync(args: &[&str]) -> Output {
    finish(command(args).spawn().unwrap())
}

/// Waits for a run to end, and fails if it hangs.
#[track_caller]
pub fn finish(mut child: Child) -> Output {
    let (stdout, stderr) = (collect(child.stdout.take()), collect(child.stderr.take()));
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > LIMIT {
            child.kill().unwrap();
            panic!("still running after {LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Output { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

/// Reads a pipe to its end, so that the writer never blocks.
fn collect(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.into_iter().for_each(|mut pipe| drop(pipe.read_to_end(&mut bytes)));
        bytes
    })
}

/// The one JSON object that a successful run prints.
#[track_caller]
pub fn json(args: &[&str]) -> serde_json::Value {
    parse_json(&fewsync(args), args)
}

#[track_caller]
pub fn parse_json(output: &Output, args: &[&str]) -> serde_json::Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    let value: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{args:?}: {e}"));
    assert!(value.is_object(), "{args:?}: {value}");
    value
}

/// What a successful run prints.
#[track_caller]
pub fn text(args: &[&str]) -> String {
    let output = fewsync(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Asserts a refusal: nothing on stdout, on stderr one line, a sentence with all of `needles`.
#[track_caller]
pub fn fails_with(args: &[&str], needles: &[&str]) {
    refuses(&fewsync(args), args, needles);
}

#[track_caller]
pub fn refuses(output: &Output, args: &[&str], needles: &[&str]) {
    let stderr = fails(output, args, 1, needles);
    // `--device auto` says which it took before anything else can be wrong.
    let lines = stderr.lines().filter(|line| !line.starts_with("device: ")).count();
    assert_eq!(lines, 1, "{args:?}: {stderr}");
    assert!(stderr.ends_with('\n'), "{args:?}: {stderr}");
}

/// Asserts that the arguments themselves are refused: a sentence and the way to the help.
#[track_caller]
pub fn misuse(args: &[&str], needles: &[&str]) {
    let stderr = fails(&fewsync(args), args, 2, needles);
    assert!(stderr.starts_with("error: ") && stderr.contains("--help"), "{args:?}: {stderr}");
}

/// Asserts a failure with one error among whatever else is on stderr; returns all of stderr.
#[track_caller]
pub fn fails(output: &Output, args: &[&str], code: i32, needles: &[&str]) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?} printed {}", String::from_utf8_lossy(&output.stdout));
    let errors = stderr.lines().filter(|line| line.starts_with("error: ")).count();
    assert_eq!(errors, 1, "{args:?}: {stderr}");
    for needle in needles {
        assert!(stderr.contains(needle), "{args:?}: no '{needle}' in: {stderr}");
    }
    stderr
}
