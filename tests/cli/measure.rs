//! `fewsync eval` and `fewsync bench decode`.

use std::fs;

use crate::common::{fails_with, json, misuse, text};

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
    let report =
        json(&[&args[..], &["--batch", "3,1", "--prompt", "5", "--decode", "7", "--runs", "2"]].concat());
    assert_eq!(report["bench"], "decode");
    assert!(report["command"].as_str().unwrap().ends_with("--batch 3,1 --prompt 5 --decode 7 --runs 2"));
    assert!(report["machine"]["cpu"].is_string() && report["machine"]["gpus"] == serde_json::json!([]));
    let runs = report["measurements"].as_array().unwrap();
    assert_eq!(runs.iter().map(|run| &run["workload"]["batch"]).collect::<Vec<_>>(), [3, 1]);
    let run = &runs[0];
    assert_eq!(run["workload"], serde_json::json!({"batch": 3, "prompt": 5, "decode": 7, "runs": 2}));
    assert_eq!((&run["device"], &run["spd_blocks"]), (&"cpu".into(), &1.into()));
    assert!(run["breakdown"].is_null());
    let times = &run["times"];
    assert_eq!(times["block_all_reduces_per_token"], 3.0);
    assert_eq!(times["sync_points_per_token"], 4.0);
    let ms = |value: &serde_json::Value| value.as_f64().filter(|&ms| ms > 0.0).unwrap();
    assert!(ms(&times["end_to_end_ms"]["median"]) > ms(&times["time_to_first_token_ms"]["median"]));
    for times in [&times["step_ms"], &times["time_to_first_token_ms"], &times["end_to_end_ms"]] {
        assert!(ms(&times["p10"]) <= ms(&times["median"]) && ms(&times["median"]) <= ms(&times["p90"]));
    }
    let rate = times["tokens_per_s"].as_f64().unwrap();
    assert!((rate * ms(&times["step_ms"]["median"]) / 3e3 - 1.0).abs() < 1e-6, "three tokens a step");
}

#[test]
fn bench_decode_keeps_its_results() {
    let dir = tempfile::tempdir().unwrap();
    let [csv, plot] = ["r.csv", "r.svg"].map(|name| dir.path().join(name).to_str().unwrap().to_owned());
    let args = [
        "bench", "decode", "--device", "cpu", "--model", TINY, "--prompt", "4", "--decode", "4", "--csv",
        &csv,
    ];
    text(&[&args[..], &["--batch", "1,2", "--plot", &plot]].concat());
    text(&args);
    let kept = fs::read_to_string(&csv).unwrap();
    let lines: Vec<&str> = kept.lines().collect();
    let columns = lines[0].split(',').count();
    assert!(
        lines[0]
            .starts_with("bench,model,tp,topology,spd_blocks,device,batch,prompt,decode,runs,tokens_per_s,")
    );
    let results: Vec<_> =
        lines.iter().filter(|line| line.starts_with("decode,random:tiny,1,1x1,0,cpu,")).collect();
    assert_eq!(results.len(), 3, "two batches, then one: {kept}");
    assert!(results.iter().all(|line| line.split(',').count() == columns), "{kept}");
    let comments = lines.iter().filter(|line| line.starts_with("# ")).count();
    assert_eq!((comments, lines.len()), (4, 8), "machine and command above each run: {kept}");
    let svg = fs::read_to_string(&plot).unwrap();
    assert!(
        svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>") && svg.contains("time to first token")
    );
}

#[test]
fn benchmarks_refuse_before_they_measure() {
    let decode = ["bench", "decode", "--device", "cpu", "--model", TINY, "--prompt", "4"];
    let refused = |more: &[&str], needles: &[&str]| fails_with(&[&decode[..], more].concat(), needles);
    refused(&["--breakdown"], &["the CPU's", "--device cuda"]);
    refused(&["--breakdown", "--decode", "8"], &["--decode 9 or more"]);
    refused(&["--csv", "/nowhere/r.csv"], &["/nowhere/r.csv", "folder does not exist"]);
    refused(&["--plot", "/nowhere/r.svg"], &["/nowhere/r.svg", "folder does not exist"]);
    let dir = tempfile::tempdir().unwrap();
    refused(&["--csv", dir.path().to_str().unwrap()], &["this is a folder"]);
    let other = dir.path().join("other.csv");
    fs::write(&other, "a,b\n").unwrap();
    refused(&["--csv", other.to_str().unwrap()], &["other.csv", "not those of 'decode'", "new file"]);
    misuse(&[&decode[..], &["--batch", "1,0"]].concat(), &["'0'", "at least 1"]);
    misuse(&[&decode[..], &["--runs", "0"]].concat(), &["'0'", "at least 1"]);

    // Shapes are checked without a GPU.
    fails_with(&["bench", "decode-gemm", "--shapes", "llama3-8b,gpt2"], &["no shape 'gpt2'", "llama3-405b"]);
    fails_with(&["bench", "pointwise", "--shapes", "smollm2", "--tp", "1,10"], &["smollm2", "choose 1 to 9"]);
    misuse(&["bench", "prefill-gemm", "--m", "1,x"], &["'x'", "at least 1"]);
    misuse(&["bench", "decode-gemm", "--tp", "0"], &["'0'", "at least 1"]);
}
