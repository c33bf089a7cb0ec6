//! What the integration tests share.
#![allow(dead_code, unreachable_pub)]

pub mod oracle;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

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
    eprintln!("skipped: {} is absent", path.display());
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

/// Runs the binary with `args`.
pub fn fewsync(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fewsync"));
    command.args(args).stdin(std::process::Stdio::null());
    command
}

/// The one JSON object that a successful run prints.
pub fn json(args: &[&str]) -> serde_json::Value {
    let output = fewsync(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{args:?}: {e}"))
}

/// Asserts a failure with exactly one line on stderr that contains all of `needles`, and nothing on stdout.
#[track_caller]
pub fn fails_with(args: &[&str], needles: &[&str]) {
    refuses(&fewsync(args), args, needles);
}

#[track_caller]
pub fn refuses(output: &Output, args: &[&str], needles: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{args:?} succeeded");
    assert!(output.stdout.is_empty(), "{args:?} printed {}", String::from_utf8_lossy(&output.stdout));
    let errors: Vec<&str> = stderr.lines().filter(|l| l.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{args:?}: {stderr}");
    for needle in needles {
        assert!(stderr.contains(needle), "{args:?}: no '{needle}' in: {stderr}");
    }
}
