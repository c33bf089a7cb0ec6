//! `fewsync tune allreduce` and its file, on emulated devices.
#![cfg(feature = "emulate")]

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::common::{command, fails_with, fewsync, finish, parse_json, refuses};

const MODEL: &str = "random:smollm2,layers=1";

fn tune(out: &str) -> Value {
    let rows = ["--hidden", "576", "--tokens", "1,2", "--sizes", "1KiB,4KiB"];
    let args = [&["tune", "allreduce", "--device", "emulate", "--out", out, "--json"], &rows[..]].concat();
    parse_json(&fewsync(&args), &args)
}

fn generate<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let always = ["generate", "--model", MODEL, "--device", "emulate", "--prompt", "hi", "--max-tokens", "2"];
    [&always, more].concat()
}

/// The file, something in it replaced.
fn edited(file: &Value, at: &str, value: Value, path: &Path) -> String {
    let mut file = file.clone();
    *file.pointer_mut(at).unwrap() = value;
    fs::write(path, file.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn choices_are_measured_written_and_used_where_they_belong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tuning.json");
    let out = path.to_str().unwrap();
    let file = tune(out);
    assert_eq!(file, serde_json::from_slice::<Value>(&fs::read(&path).unwrap()).unwrap());
    let setup = &file["setup"];
    assert_eq!((&setup["topology"], &setup["peer_memory"]), (&json!("1x2"), &json!("direct")));
    assert_eq!(setup["hosts"], json!([2]));
    let entries = file["entries"].as_array().unwrap();
    let keys: Vec<_> =
        entries.iter().map(|entry| (entry["bytes"].as_u64().unwrap(), entry["hidden"].as_u64())).collect();
    // Fused tensors have their plain sums beside them.
    let expected =
        [(1024, None), (1152, None), (2304, None), (4096, None), (1152, Some(576)), (2304, Some(576))];
    assert_eq!(keys, expected);
    for entry in entries {
        assert!(entry["us"].as_f64() <= entry["built_in_us"].as_f64(), "{entry}");
    }

    // A choice that is far from the built-in one gives the same text.
    let far = edited(&file, "/entries/4/workers", json!(32), &folder.path().join("far.json"));
    let text = |args: &[&str]| parse_json(&fewsync(args), args)["text"].clone();
    let plain = text(&generate(&["--tp", "2", "--json"]));
    assert_eq!(text(&generate(&["--tp", "2", "--json", "--tuning", &far])), plain);

    // In the environment it counts as well, and a group of one has no use for it.
    let other = generate(&["--topology", "2x1"]);
    let output = finish(command(&other).env("FEWSYNC_TUNING", out).spawn().unwrap());
    refuses(&output, &other, &[out, "topology 1x2", "topology 2x1", "measure again"]);
    let alone = generate(&[]);
    assert!(finish(command(&alone).env("FEWSYNC_TUNING", out).spawn().unwrap()).status.success());

    let wrong = folder.path().join("wrong.json");
    for (at, value, needles) in [
        ("/format_version", json!(1), ["no tuning file", "format_version is 1"]),
        ("/setup/fewsync", json!("0.0.1"), ["measured with fewsync 0.0.1", "measure again"]),
        ("/setup/hosts", json!([1, 1]), ["1 + 1 ranks on 2 hosts", "2 ranks on 1 host"]),
        ("/setup/gpus/1", json!("NVIDIA A100"), ["NVIDIA A100", "measure again"]),
        ("/setup/peer_memory", json!("host-staged"), ["peer memory host-staged", "peer memory direct"]),
        ("/entries/0/algorithm", json!("ring"), ["entry 0", "'ring' is no algorithm"]),
        ("/entries/3/blocks", json!(0), ["entry 3", "blocks is 0"]),
        ("/entries", json!(7), ["no tuning file", "invalid type"]),
    ] {
        let path = edited(&file, at, value, &wrong);
        fails_with(&generate(&["--tp", "2", "--tuning", &path]), &[&[&*path], &needles[..]].concat());
    }
    fs::write(&wrong, "{").unwrap();
    fails_with(&generate(&["--tp", "2", "--tuning", wrong.to_str().unwrap()]), &["no tuning file", "EOF"]);
    fails_with(&generate(&["--tp", "2", "--tuning", "/no/where.json"]), &["/no/where.json"]);
}

#[test]
fn one_rank_has_nothing_to_tune() {
    let args = ["tune", "allreduce", "--device", "emulate", "--topology", "1x1", "--out", "x.json"];
    fails_with(&args, &["nothing to tune"]);
}
