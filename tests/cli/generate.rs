//! `fewsync generate` on the trained model.

use std::fs;
use std::io::Read;

use crate::common::{command, finish, json, smollm2, text};

const PROMPT: &str = "The capital of France is";

fn tokens(run: &serde_json::Value) -> Vec<u32> {
    serde_json::from_value(run["tokens"].clone()).unwrap()
}

#[test]
fn the_json_object_has_what_is_documented() {
    let run = json(&["generate", "--prompt", PROMPT, "--max-tokens", "8", "--tp", "3", "--json"]);
    assert_eq!(run["text"], " Paris.\n\nThe answer is:");
    assert_eq!(tokens(&run), [7042, 30, 198, 198, 504, 2988, 314, 42]);
    assert_eq!(run["n_prompt_tokens"], 5);
    assert_eq!((&run["tp"], &run["topology"]), (&3.into(), &"1x3".into()));
    assert_eq!(run["stop"], "length");
    assert_eq!(run["spd_blocks"], 0);
    // Two all-reduces in each of 30 blocks, and the gathering of the logits.
    assert_eq!(run["block_all_reduces_per_token"], 60.0);
    assert_eq!(run["sync_points_per_token"], 61.0);
    for rate in ["tokens_per_s", "time_to_first_token_ms"] {
        assert!(run[rate].as_f64().unwrap() > 0.0, "{rate}: {}", run[rate]);
    }
    assert!(run["device"].as_str().unwrap().starts_with("cpu"));
}

#[test]
fn dropped_blocks_synchronise_once() {
    let args = ["generate", "--prompt", PROMPT, "--max-tokens", "4", "--tp", "3", "--spd"];
    for (spd, all_reduces) in [("all", 30.0), ("last:15", 45.0), ("last:0", 60.0)] {
        let run = json(&[&args[..], &[spd, "--json"]].concat());
        assert_eq!(run["block_all_reduces_per_token"], all_reduces, "{spd}");
        assert_eq!(run["sync_points_per_token"], all_reduces + 1.0, "{spd}");
        assert_eq!(run["spd_blocks"], 60 - all_reduces as u64, "{spd}");
    }
    let alone = ["generate", "--prompt", PROMPT, "--max-tokens", "4", "--json", "--spd"];
    let (dropped, plain) = (json(&[&alone[..], &["all"]].concat()), json(&[&alone[..], &["none"]].concat()));
    assert_eq!(dropped["tokens"], plain["tokens"], "one rank has nothing to drop");
    assert_eq!(dropped["sync_points_per_token"], 0.0);
}

#[test]
fn every_topology_agrees_with_its_degree_alone() {
    let args = ["generate", "--prompt", "Once upon a time", "--max-tokens", "12", "--json"];
    for (topology, tp) in [("2x2", "4"), ("3x1", "3"), ("1x5", "5"), ("2x3", "6"), ("3x3", "9")] {
        let laid_out = json(&[&args[..], &["--topology", topology]].concat());
        let alone = json(&[&args[..], &["--tp", tp]].concat());
        assert_eq!(laid_out["tokens"], alone["tokens"], "{topology}");
        assert_eq!(laid_out["topology"], topology);
        assert_eq!(laid_out["tp"].to_string(), tp);
    }
}

#[test]
fn streamed_text_is_the_text_of_the_tokens() {
    let model = smollm2();
    // Emoji come in several tokens each, none of which is a character by itself.
    let prompt = "Repeat: 🙂🙃 naïve — 🙂🙃 naïve — 🙂";
    let args = ["generate", "--prompt", prompt, "--max-tokens", "24"];
    let run = json(&[&args[..], &["--json"]].concat());
    assert_eq!(run["text"].as_str().unwrap(), model.tokenizer.decode_continuation(&tokens(&run)));
    assert_eq!(text(&args), format!("{}\n", run["text"].as_str().unwrap()));
}

#[test]
fn the_end_token_is_the_last_and_has_no_text() {
    let model = smollm2();
    let run = json(&["generate", "--chat", "--prompt", "Say only: hi", "--max-tokens", "60", "--json"]);
    let tokens = tokens(&run);
    assert_eq!(run["stop"], "eos", "{run}");
    let (end, before) = tokens.split_last().unwrap();
    assert!(model.config.eos.contains(end));
    assert!(!before.iter().any(|token| model.config.eos.contains(token)));
    assert_eq!(run["text"].as_str().unwrap(), model.tokenizer.decode_continuation(before));
}

#[test]
fn a_seed_fixes_the_text() {
    let run = |more: &[&str]| {
        let args = ["generate", "--prompt", PROMPT, "--max-tokens", "16", "--json"];
        tokens(&json(&[&args[..], more].concat()))
    };
    let hot = |seed| run(&["--temperature", "1.5", "--seed", seed]);
    assert_eq!(hot("1"), hot("1"));
    assert_ne!(hot("1"), hot("2"));
    let greedy = run(&[]);
    assert_eq!(greedy, run(&["--temperature", "0", "--seed", "9"]));
    assert_ne!(greedy, hot("1"));
    assert_eq!(greedy, run(&["--temperature", "1.5", "--top-k", "1"]));
    assert_eq!(greedy, run(&["--temperature", "1.5", "--top-p", "0.0001"]));
}

#[test]
fn chat_is_the_template_written_by_hand() {
    let by_hand = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face\
                   <|im_end|>\n<|im_start|>user\nWhat is two plus two?<|im_end|>\n<|im_start|>assistant\n";
    let more = ["--max-tokens", "12", "--json"];
    let chat = json(&[&["generate", "--chat", "--prompt", "What is two plus two?"][..], &more].concat());
    let raw = json(&[&["generate", "--prompt", by_hand][..], &more].concat());
    assert_eq!(chat["n_prompt_tokens"], raw["n_prompt_tokens"]);
    assert_eq!(chat["tokens"], raw["tokens"]);
    // Three pairs of markers, each a single token: read as text they would be six tokens or more each.
    assert_eq!(smollm2().tokenizer.encode(by_hand).unwrap().iter().filter(|&&t| t == 1 || t == 2).count(), 5);
    assert!(raw["n_prompt_tokens"].as_u64().unwrap() < 40);
}

#[test]
fn a_prompt_in_a_file_is_the_same_prompt() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("prompt.txt");
    let prompt = "- one\n- two\n-";
    fs::write(&file, prompt).unwrap();
    let more = ["--max-tokens", "6", "--json"];
    let from_file = json(&[&["generate", "--prompt-file", file.to_str().unwrap()][..], &more].concat());
    let from_flag = json(&[&["generate", "--prompt", prompt][..], &more].concat());
    assert_eq!(from_file["tokens"], from_flag["tokens"]);
    assert_eq!(from_file["n_prompt_tokens"], from_flag["n_prompt_tokens"]);
}

#[test]
fn a_reader_that_leaves_ends_the_run_quietly() {
    let mut child = command(&["generate", "--prompt", PROMPT, "--max-tokens", "4000"]).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0]).unwrap();
    drop(stdout);
    let output = finish(child);
    assert!(output.status.success());
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[cfg(target_os = "linux")]
#[test]
fn outputs_that_cannot_be_written() {
    use crate::common::fails;
    let full = || fs::File::options().write(true).open("/dev/full").unwrap();
    let args = ["generate", "--model", "random:tiny", "--prompt", "hi", "--max-tokens", "3"];
    let output = finish(command(&args).stdout(full()).spawn().unwrap());
    fails(&output, &args, 1, &["cannot write to standard output", "No space left"]);
    let output = finish(command(&args).stderr(full()).spawn().unwrap());
    assert!(output.status.success(), "a summary that nobody can read is no error");
    let refused = ["generate", "--model", "nothere", "--prompt", "hi"];
    let output = finish(command(&refused).stderr(full()).spawn().unwrap());
    assert_eq!(output.status.code(), Some(1));
}
