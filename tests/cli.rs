//! The command line as its users meet it: results in the promised form, mistakes answered in one sentence.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use common::{command, fails_with, fewsync, json, refuses, shared};

const TINY: &str = "random:tiny";

#[test]
fn generate_prints_what_the_issue_of_a_run_is() {
    let args =
        ["generate", "--prompt", "The capital of France is", "--max-tokens", "8", "--tp", "3", "--json"];
    let run = json(&args);
    assert_eq!(run["text"], " Paris.\n\nThe answer is:");
    assert_eq!(run["tokens"], serde_json::json!([7042, 30, 198, 198, 504, 2988, 314, 42]));
    assert_eq!(run["n_prompt_tokens"], 5);
    assert_eq!(run["tp"], 3);
    assert_eq!(run["stop"], "length");
    // Two all-reduces in each of 30 blocks, and the gathering of the logits.
    assert_eq!(run["block_all_reduces_per_token"], 60.0);
    assert_eq!(run["sync_points_per_token"], 61.0);
    assert!(run["tokens_per_s"].as_f64().unwrap() > 0.0);
    assert!(run["time_to_first_token_ms"].as_f64().unwrap() > 0.0);
    assert!(run["device"].as_str().unwrap().starts_with("cpu"));
}
