//! Flags, prompts and texts that cannot be: refused before or right behind the loading of the model.

use std::fs;

use crate::common::{fails_with, misuse};

const GENERATE: [&str; 5] = ["generate", "--model", "random:tiny", "--prompt", "hi"];

#[track_caller]
fn refused(more: &[&str], needles: &[&str]) {
    fails_with(&[&GENERATE, more].concat(), needles);
}

#[track_caller]
fn misused(more: &[&str], needles: &[&str]) {
    misuse(&[&GENERATE, more].concat(), needles);
}

#[test]
fn models_that_are_not_there() {
    for model in ["nothere", "./nothere", "/no/where", "", "two words"] {
        fails_with(
            &["generate", "--prompt", "hi", "--model", model],
            &[&format!("no model '{model}'"), "smollm2"],
        );
    }
    for model in ["models/nothere.gguf", "models/x.safetensors", "/no/where.GGUF"] {
        fails_with(&["generate", "--prompt", "hi", "--model", model], &[model, "there is no such file"]);
    }
    fails_with(
        &["generate", "--prompt", "hi", "--model", "a\nb"],
        &["no model 'a b'"], // One line even where the name has two.
    );
    for (model, needle) in [
        ("random:nope", "the known shapes are tiny"),
        ("random:tiny,layers=0", "number of layers 0"),
        ("random:tiny,layers=x", "'layers=x' is not a whole number"),
        ("random:tiny,heads=2", "'heads=2' is not an option"),
    ] {
        fails_with(&["generate", "--prompt", "hi", "--model", model], &[model, needle]);
    }
}

#[test]
fn layouts_that_do_not_fit() {
    refused(&["--tp", "0"], &["--tp 0", "1 up to"]);
    refused(&["--tp", "5"], &["4 query heads", "choose 1 to 4"]);
    refused(&["--tp", "18446744073709551615"], &["choose 1 to 4"]);
    refused(&["--topology", "3x3"], &["choose 1 to 4"]);
    refused(&["--topology", "2x2", "--tp", "3"], &["--tp 3 contradicts --topology 2x2"]);
    for tp in ["-1", "x", "1.5", "18446744073709551616"] {
        misused(&["--tp", tp], &[&format!("'{tp}'"), "--tp", "whole number"]);
    }
    for topology in ["2x", "x", "2", "axb", "-1x2"] {
        misused(&["--topology", topology], &["write NODESxGPUS", "such as 2x4"]);
    }
    misused(&["--topology", "0x3"], &["0x3 has no ranks"]);
    misused(&["--topology", "9999999999x9999999999"], &["more ranks than can be counted"]);
    misused(&["--device", "tpu"], &["auto, cpu, cuda"]);
}

#[test]
fn synchronisation_that_cannot_be() {
    for limit in ["0", "-1", "nan", "inf", "soon", "1e30"] {
        misused(&["--sync-limit", limit], &[limit, "a number of seconds above 0"]);
    }
    misused(&["--peer-memory", "far"], &["direct, host-staged"]);
    let bench = ["bench", "allreduce"];
    misuse(&[&bench[..], &["--sizes", "1KB"]].concat(), &["'1KB' is not a size", "such as 8KiB,1MiB"]);
    misuse(&[&bench[..], &["--sizes", "2MiB..1KiB"]].concat(), &["ends before it begins"]);
    misuse(&[&bench[..], &["--calls", "sum"]].concat(), &["plain, fused, norm, phases"]);
    misuse(&[&bench[..], &["--launch", "twice"]].concat(), &["graph, eager"]);
    misuse(&[&bench[..], &["--blocks", "0"]].concat(), &["--blocks"]);
    fails_with(&[&bench[..], &["--tp", "1"]].concat(), &["one rank has nobody", "--tp 2 or more"]);
    fails_with(&[&bench[..], &["--tp", "3", "--topology", "2x1"]].concat(), &["--tp 3 contradicts"]);
    let nowhere = ["--tp", "2", "--join", "/nowhere/torch.csv"];
    fails_with(&[&bench[..], &nowhere].concat(), &["/nowhere/torch.csv: cannot read the file"]);
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join("other.csv").to_str().unwrap().to_string();
    fs::write(&other, "a,b\n1,2\n").unwrap();
    fails_with(&[&bench[..], &["--tp", "2", "--join", &other]].concat(), &[&other, "no column contender"]);
    misuse(&["demo", "--tp", "1"], &["at least 2"]);
    misuse(&["doctor", "--tp", "0"], &["at least 1"]);
}

#[test]
fn sampling_out_of_range() {
    for temperature in ["-1", "nan", "inf", "hot"] {
        misused(&["--temperature", temperature], &[temperature, "a number of at least 0"]);
    }
    for top_p in ["0", "-0.5", "1.01", "nan"] {
        misused(&["--top-p", top_p], &[top_p, "above 0 and up to 1"]);
    }
    misused(&["--max-tokens", "0"], &["0 is not in 1.."]);
    misused(&["--max-tokens", "-3"], &["-3 is not in 1.."]);
    misused(&["--top-k", "-1"], &["--top-k", "-1"]);
    misused(&["--seed", "x"], &["--seed"]);
    misused(&["--frobnicate"], &["--frobnicate"]);
    misuse(&["frobnicate"], &["frobnicate"]);
}

#[test]
fn prompts_that_cannot_be() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let tiny = |more: &[&str], needles: &[&str]| {
        fails_with(&[&["generate", "--model", "random:tiny"], more].concat(), needles)
    };
    tiny(&["--prompt", ""], &["the prompt is empty"]);
    fs::write(at("empty"), "").unwrap();
    tiny(&["--prompt-file", &at("empty")], &["the prompt is empty"]);
    tiny(&["--prompt-file", &at("nothere")], &[&at("nothere"), "cannot read", "UTF-8"]);
    tiny(&["--prompt-file", &at("")], &["cannot read", "Is a directory"]);
    fs::write(at("binary"), b"abc\xff\xfe").unwrap();
    tiny(&["--prompt-file", &at("binary")], &[&at("binary"), "not UTF-8 text from byte 3"]);
    // The byte vocabulary of random weights: one token a letter, in a context of 1024.
    let (full, over) = ("a".repeat(1024), "a".repeat(1023));
    tiny(&["--prompt", &full], &["1024 tokens", "context is 1024", "shorten"]);
    tiny(&["--prompt", &over, "--max-tokens", "2"], &["1023 tokens", "--max-tokens 2", "at most 1"]);
    tiny(&["--prompt", "hi", "--max-tokens", "4294967295"], &["ask for at most 1022"]);
    tiny(&["--prompt", "hi", "--chat"], &["chat template", "leave --chat out"]);
    misuse(&["generate", "--model", "random:tiny"], &["--prompt <TEXT>"]);
    misuse(&["generate", "--prompt", "a", "--prompt-file", "b"], &["cannot be used with"]);
}

#[test]
fn texts_that_cannot_be_evaluated() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    fs::write(at("short"), "seventeen letters").unwrap();
    fs::write(at("empty"), "").unwrap();
    fs::write(at("binary"), b"\xff").unwrap();
    let eval = |text: &str, more: &[&str], needles: &[&str]| {
        fails_with(&[&["eval", "--model", "random:tiny", "--text", text], more].concat(), needles)
    };
    eval(&at("nothere"), &[], &["cannot read the file"]);
    eval(&at(""), &[], &["cannot read the file"]);
    eval(&at("binary"), &[], &["not UTF-8 text from byte 0"]);
    eval(&at("short"), &[], &["17 tokens", "one chunk of 512", "--context"]);
    eval(&at("empty"), &["--context", "2"], &["0 tokens"]);
    eval(&at("short"), &["--context", "1025"], &["--context 1025", "at most 1024"]);
    eval(&at("short"), &["--context", "8", "--chunks", "18"], &["17 tokens do not give 18 different chunks"]);
    for (flag, value) in [("--chunks", "0"), ("--chunks", "-1"), ("--context", "0"), ("--context", "1")] {
        misuse(&["eval", "--text", &at("short"), flag, value], &[flag, value, "at least"]);
    }
}

#[test]
fn workloads_beyond_the_context() {
    let bench = ["bench", "decode", "--model", "random:tiny"];
    let needles = ["--prompt and --decode", "1024"];
    fails_with(&[&bench[..], &["--prompt", "1000", "--decode", "25"]].concat(), &needles);
    fails_with(&[&bench[..], &["--prompt", "18446744073709551615"]].concat(), &needles);
    misuse(&[&bench[..], &["--batch", "0"]].concat(), &["at least 1"]);
}

/// A launcher of several processes gathers what they write, piece by piece.
#[cfg(unix)]
#[test]
fn a_complaint_is_written_in_one_piece() {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixDatagram;

    use crate::common::command;

    let (ours, theirs) = UnixDatagram::pair().unwrap();
    let mut run = command(&["generate", "--model", "nothere", "--prompt", "hi"]);
    assert_eq!(run.stderr(OwnedFd::from(theirs)).status().unwrap().code(), Some(1));
    drop(run);
    let mut pieces = Vec::new();
    let mut piece = [0; 4096];
    ours.set_nonblocking(true).unwrap();
    while let Ok(length) = ours.recv(&mut piece) {
        pieces.push(String::from_utf8_lossy(&piece[..length]).into_owned());
    }
    let complaints: Vec<_> = pieces.iter().filter(|piece| piece.contains("nothere")).collect();
    assert!(
        matches!(complaints[..], [one] if one.starts_with("error: no model") && one.ends_with('\n')),
        "{pieces:?}"
    );
}
