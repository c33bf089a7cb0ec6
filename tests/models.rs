//! Small random Llamas end to end: every format, encoding and rotary scaling gives the same model, a hub
//! delivers it, and replacement tensors reach the ranks they are meant for.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod common;

use std::fs;
use std::path::Path;

use common::hub::{REPO, serve_repo};
use common::oracle::Oracle;
use common::small::{make_exact, small, write_folder, write_gguf};
use common::{command, finish, json, load, load_plan, parse_json, shape};
use fewsync::comm::Shape;
use fewsync::model::encoding::Encoding;
use fewsync::model::testing::SmallLlama;
use fewsync::model::{Config, Model, RopeScaling, Tensor, TensorKind};
use fewsync::runner::{Batch, LogitRows, Runner, Span};
use fewsync::spd::{Plan, SpdSpec};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

const PROMPT: &str = "the 7 quick foxes";

/// Greedy tokens by the command line.
#[track_caller]
fn greedy(model: &Path, more: &[&str]) -> serde_json::Value {
    let model = model.to_str().unwrap();
    let args = ["generate", "--model", model, "--prompt", PROMPT, "--max-tokens", "12", "--json"];
    let run = json(&[&args[..], more].concat());
    assert_eq!(run["n_prompt_tokens"], PROMPT.len(), "one token a character");
    run["tokens"].clone()
}

/// Logits behind every token of the prompt.
fn logits(path: &Path, shape: Shape) -> Vec<f32> {
    let model = Model::open(path.to_str().unwrap()).unwrap();
    all_logits(&mut load(&model, shape, &SpdSpec::None), &model)
}

fn all_logits(runner: &mut dyn Runner, model: &Model) -> Vec<f32> {
    let spans = vec![Span { sequence: 0, tokens: model.tokenizer.encode(PROMPT).unwrap() }];
    runner.forward(&Batch { spans, logits: LogitRows::All, hidden_states: false }).unwrap().logits
}

/// max |a − b| / max |b|.
fn gap(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let scale = b.iter().fold(0f32, |m, v| m.max(v.abs()));
    a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / scale
}

/// What f32 sums in another order may differ by.
const ROUNDING: f32 = 1e-5;

#[test]
fn every_exact_format_is_the_same_model() {
    let dir = tempfile::tempdir().unwrap();
    for tied in [false, true] {
        let mut model = SmallLlama::with_config(Config { tied, ..small(3).config }, 3);
        make_exact(&mut model);
        let at = |name: &str| dir.path().join(format!("{tied}-{name}"));
        let exact = [Encoding::Bf16, Encoding::F16, Encoding::F32];
        let mut paths = Vec::new();
        for (encoding, n_shards) in exact.into_iter().flat_map(|e| [(e, 1), (e, 3)]) {
            paths.push(at(&format!("{encoding:?}-{n_shards}")));
            write_folder(&model, paths.last().unwrap(), encoding, n_shards);
        }
        for encoding in exact {
            paths.push(at(&format!("{encoding:?}.gguf")));
            write_gguf(&model, paths.last().unwrap(), encoding);
        }
        let opened = Model::open(paths[0].to_str().unwrap()).unwrap();
        let prompt = opened.tokenizer.encode(PROMPT).unwrap();
        let expected = Oracle::new(&opened, 1, &[true; 2]).logits(&prompt);
        let expected: Vec<f32> = expected.into_iter().map(|v| v as f32).collect();
        let tokens = greedy(&paths[0], &[]);
        for path in &paths {
            assert!(gap(&logits(path, shape(1, 3)), &expected) < ROUNDING, "{}", path.display());
            assert_eq!(greedy(path, &["--tp", "3"]), tokens, "{}", path.display());
        }
    }
}

#[test]
fn quantised_files_are_close_to_their_model() {
    let dir = tempfile::tempdir().unwrap();
    let model = small(4);
    let exact = dir.path().join("exact.gguf");
    write_gguf(&model, &exact, Encoding::F32);
    let expected = logits(&exact, shape(1, 1));
    let mut last = ROUNDING;
    for (encoding, limit) in [(Encoding::Q8_0, 0.03), (Encoding::Q4_1, 0.3), (Encoding::Q4_0, 0.4)] {
        let path = dir.path().join(format!("{encoding:?}.gguf"));
        write_gguf(&model, &path, encoding);
        let seen = logits(&path, shape(1, 1));
        let error = gap(&seen, &expected);
        assert!(last < error && error < limit, "{encoding:?}: {error}, after {last}");
        assert!(
            gap(&logits(&path, shape(2, 2)), &seen) < ROUNDING,
            "{encoding:?}: the split changes nothing"
        );
        assert_eq!(greedy(&path, &["--topology", "2x2"]), greedy(&path, &[]), "{encoding:?}");
        last = if encoding == Encoding::Q8_0 { error } else { ROUNDING };
    }
}

#[test]
fn the_scaling_of_llama_3_1_is_the_same_in_both_formats() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (factor, low_freq_factor, high_freq_factor, original_context) = (8.0, 1.0, 4.0, 32);
    let scaling = RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context };
    let mut model = small(5);
    write_folder(&model, &at("plain"), Encoding::F32, 1);
    model.config.rope_scaling = scaling;
    write_folder(&model, &at("scaled"), Encoding::F32, 1);

    // The divisors as llama.cpp's converter computes them from the published formula.
    let divisor = |i: usize| {
        let inverse = f64::from(model.config.rope_base).powf(-(i as f64) / 16.0);
        let wavelength = 2.0 * std::f64::consts::PI / inverse;
        let smooth = (original_context as f64 / wavelength - 1.0) / (4.0 - 1.0);
        match smooth {
            s if s >= 1.0 => 1.0,
            s if s <= 0.0 => factor,
            s => (1.0 / ((1.0 - s) / f64::from(factor) + s)) as f32,
        }
    };
    model.config.rope_scaling = RopeScaling::Divisors((0..16).map(divisor).collect());
    write_gguf(&model, &at("scaled.gguf"), Encoding::F32);

    let [plain, scaled, divided] =
        ["plain", "scaled", "scaled.gguf"].map(|name| logits(&at(name), shape(1, 2)));
    assert!(gap(&divided, &scaled) < ROUNDING, "{}", gap(&divided, &scaled));
    assert!(gap(&plain, &scaled) > 100.0 * ROUNDING, "the scaling is applied: {}", gap(&plain, &scaled));
    assert_eq!(greedy(&at("scaled"), &[]), greedy(&at("scaled.gguf"), &["--tp", "4"]));
}

#[test]
fn a_model_of_the_hub() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("model");
    write_folder(&small(6), &folder, Encoding::Bf16, 2);
    let files: Vec<(String, Vec<u8>)> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().into(), fs::read(path).unwrap()))
        .collect();
    let borrowed: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (&name[..], &bytes[..])).collect();
    let (address, state) = serve_repo(&borrowed);
    let args = ["generate", "--model", REPO, "--prompt", PROMPT, "--max-tokens", "12", "--json", "--tp", "2"];
    let run = |home: &str| {
        let mut command = command(&args);
        command.env("HF_ENDPOINT", format!("http://{address}")).env("HF_HOME", dir.path().join(home));
        finish(command.env_remove("HF_TOKEN").spawn().unwrap())
    };
    // The connection breaks more often than one start tries again; the next start goes on.
    state.lock().unwrap().cuts = 3;
    let stderr = common::fails(&run("home"), &args, 1, &["broke off", "start again to continue"]);
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    let fetched = parse_json(&run("home"), &args);
    assert_eq!(fetched["model"], REPO);
    assert_eq!(fetched["tokens"], greedy(&folder, &[]));

    state.lock().unwrap().files.remove("tokenizer.json");
    assert_eq!(parse_json(&run("home"), &args)["tokens"], fetched["tokens"], "fetched once");
    common::refuses(&run("other"), &args, &["it has no tokenizer.json", "--model FILE"]);
    fs::write(dir.path().join("file"), "").unwrap();
    common::refuses(&run("file"), &args, &["is a file, where a folder must be", "HF_HOME"]);
}

/// A model folder, and a plan for it that names `replacement` in block 0.
struct Replacing {
    dir: tempfile::TempDir,
    model: SmallLlama,
}

impl Replacing {
    fn new() -> Self {
        let (dir, model) = (tempfile::tempdir().unwrap(), small(7));
        write_folder(&model, &dir.path().join("model"), Encoding::Bf16, 1);
        Self { dir, model }
    }

    /// Other values for a tensor of block 0.
    fn other(&self, kind: TensorKind) -> (Tensor, Vec<f32>) {
        let tensor = Tensor::block(kind, 0);
        (tensor, small(8).weights[&tensor].clone())
    }

    /// Logits and greedy tokens on `tp` ranks with block 0's tensors replaced, each under its name here.
    fn replaced(
        &self,
        tp: usize,
        sync: bool,
        tensors: &[(String, Tensor, Vec<f32>)],
    ) -> (Vec<f32>, serde_json::Value) {
        let c = &self.model.config;
        let bytes: Vec<Vec<u8>> = tensors
            .iter()
            .map(|(_, _, values)| values.iter().flat_map(|v| v.to_le_bytes()).collect())
            .collect();
        let views = tensors.iter().zip(&bytes).map(|((name, tensor, _), bytes)| {
            let (rows, cols) = tensor.shape(c);
            let shape = if tensor.is_norm() { vec![cols] } else { vec![rows, cols] };
            (name.clone(), TensorView::new(Dtype::F32, shape, bytes).unwrap())
        });
        safetensors::serialize_to_file(views, None, &self.dir.path().join("r.safetensors")).unwrap();
        let folder = self.dir.path().join("model");
        let model = Model::open(folder.to_str().unwrap()).unwrap();
        let plan = serde_json::json!({
            "format": "fewsync-spd-plan", "version": 1, "tp": tp,
            "model": model.source.fingerprint().unwrap(),
            "blocks": [{"sync_attention": sync, "replacement": "r.safetensors"}, {"sync_attention": true}],
        });
        let path = self.dir.path().join("plan.json");
        fs::write(&path, plan.to_string()).unwrap();
        let plan = Plan::read(&path, &model.config, &*model.source, tp).unwrap();
        let logits = all_logits(&mut load_plan(&model, shape(1, tp), &plan), &model);
        (logits, greedy(&folder, &["--tp", &tp.to_string(), "--spd", path.to_str().unwrap()]))
    }

    /// The same of a model whose file has `tensors` changed.
    fn changed(&self, tp: usize, tensors: &[(Tensor, Vec<f32>)]) -> (Vec<f32>, serde_json::Value) {
        let mut model = self.model.clone();
        model.weights.extend(tensors.iter().cloned());
        let folder = self.dir.path().join("changed");
        write_folder(&model, &folder, Encoding::F32, 1);
        (logits(&folder, shape(1, tp)), greedy(&folder, &["--tp", &tp.to_string()]))
    }
}

#[track_caller]
fn same(a: (Vec<f32>, serde_json::Value), b: &(Vec<f32>, serde_json::Value)) {
    assert!(gap(&a.0, &b.0) < ROUNDING, "{}", gap(&a.0, &b.0));
    assert_eq!(a.1, b.1);
}

#[test]
fn replacements_for_all_ranks() {
    let stage = Replacing::new();
    for kind in
        [TensorKind::Up, TensorKind::Down, TensorKind::Q, TensorKind::K, TensorKind::O, TensorKind::MlpNorm]
    {
        let (tensor, values) = stage.other(kind);
        let replacement = [(tensor.hf_name(), tensor, values.clone())];
        let changed = stage.changed(3, &[(tensor, values)]);
        assert!(gap(&changed.0, &logits(&stage.dir.path().join("model"), shape(1, 3))) > 1e-3, "{kind:?}");
        same(stage.replaced(3, true, &replacement), &changed);
        // With one rank, the same weights are the same model whether the block drops or not.
        same(stage.replaced(1, false, &replacement), &changed);
    }
}

#[test]
fn replacements_for_one_rank() {
    let stage = Replacing::new();
    // Two ranks deal the 96 MLP columns as 64 and 32: rank 1 has the rows from 64 on.
    let (up, values) = stage.other(TensorKind::Up);
    let own = [&stage.model.weights[&up][..64 * 64], &values[64 * 64..]].concat();
    let for_rank_1 = (format!("rank1.{}", up.hf_name()), up, values.clone());
    same(stage.replaced(2, true, &[for_rank_1]), &stage.changed(2, &[(up, own)]));

    // A rank's own tensor goes before the one for all.
    let (down, others) = stage.other(TensorKind::Down);
    let for_all = (down.hf_name(), down, others.clone());
    let as_it_was = (format!("rank0.{}", down.hf_name()), down, stage.model.weights[&down].clone());
    let mixed: Vec<f32> = stage.model.weights[&down]
        .iter()
        .zip(&others)
        .enumerate()
        .map(|(i, (&old, &new))| if i % 96 < 64 { old } else { new })
        .collect();
    same(stage.replaced(2, true, &[for_all, as_it_was]), &stage.changed(2, &[(down, mixed)]));

    // A norm that ranks hold in common may differ on one of them; no plain model is its like.
    let (norm, gains) = stage.other(TensorKind::MlpNorm);
    let alone = stage.replaced(2, false, &[(format!("rank1.{}", norm.hf_name()), norm, gains.clone())]).0;
    let all = stage.replaced(2, false, &[(norm.hf_name(), norm, gains)]).0;
    let kept = stage.model.weights[&norm].clone();
    let none = stage.replaced(2, false, &[(norm.hf_name(), norm, kept)]).0;
    assert!(
        gap(&alone, &all) > 1e-3 && gap(&alone, &none) > 1e-3,
        "{} {}",
        gap(&alone, &all),
        gap(&alone, &none)
    );
}
