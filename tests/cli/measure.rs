//! `fewsync eval` and `fewsync bench decode`.

use std::fs;

use crate::common::json;

const TINY: &str = "random:tiny";

fn text_file(dir: &tempfile::TempDir) -> String {
    let path = dir.path().join("text.txt");
    let text: String = (0..120).map(|i| format!("Sentence {i} of {}. ", i * i)).collect();
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().into()
}

#[test]
fn eval_reports_what_is_documented() {
    let dir = tempfile::tempdir().unwrap();
    let text = text_file(&dir);
    let args = ["eval", "--model", TINY, "--text", &text, "--chunks", "3", "--context", "64", "--json"];
    let plain = json(&[&args[..], &["--tp", "3"]].concat());
    let n_bytes = fs::metadata(&text).unwrap().len();
    assert_eq!(plain["n_tokens"], n_bytes, "one token a byte");
    assert_eq!(plain["n_predicted"], 3 * 63);
    assert_eq!((&plain["kl"], &plain["top1_agreement"]), (&0.0.into(), &1.0.into()));
    assert_eq!((&plain["tp"], &plain["chunks"], &plain["context"]), (&3.into(), &3.into(), &64.into()));
    let perplexity = plain["perplexity"].as_f64().unwrap();
    assert!(perplexity > 512.0 && perplexity.is_finite(), "worse than guessing: {perplexity}");

    let dropped = json(&[&args[..], &["--tp", "3", "--spd", "all"]].concat());
    assert_eq!(dropped["spd_blocks"], 2);
    assert!(dropped["kl"].as_f64().unwrap() > 1e-4, "{dropped}");
    assert!(dropped["top1_agreement"].as_f64().unwrap() < 1.0, "{dropped}");
    let alone = json(&args);
    let gap = alone["perplexity"].as_f64().unwrap() / perplexity - 1.0;
    assert!(gap.abs() < 1e-4, "the split changes nothing: {gap}");
}

#[test]
fn bench_decode_reports_what_is_documented() {
    let args = ["bench", "decode", "--model", TINY, "--tp", "2", "--spd", "last:1", "--json"];
    let run = json(&[&args[..], &["--batch", "3", "--prompt", "5", "--decode", "7"]].concat());
    assert_eq!(run["workload"], serde_json::json!({"batch": 3, "prompt": 5, "decode": 7}));
    let times = &run["times"];
    assert_eq!(times["block_all_reduces_per_token"], 3.0);
    assert_eq!(times["sync_points_per_token"], 4.0);
    let ms = |value: &serde_json::Value| value.as_f64().filter(|&ms| ms > 0.0).unwrap();
    assert!(ms(&times["end_to_end_ms"]) > ms(&times["time_to_first_token_ms"]));
    let step = &times["step_ms"];
    assert!(ms(&step["p10"]) <= ms(&step["median"]) && ms(&step["median"]) <= ms(&step["p90"]));
    let rate = run["tokens_per_s"].as_f64().unwrap();
    assert!((rate * ms(&step["median"]) / 3e3 - 1.0).abs() < 1e-6, "three tokens a step");
}
