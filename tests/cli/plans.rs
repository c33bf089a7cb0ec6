//! Plan files: written whole or not at all, and refused where they do not fit.

use std::fs;
use std::path::Path;

use fewsync::model::encoding::Encoding;
use fewsync::model::{Tensor, TensorKind};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use crate::common::small::{small, write_folder};
use crate::common::{fails_with, fewsync, json, misuse};

/// A model folder with a plan for two ranks beside it.
struct Stage {
    dir: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        let stage = Self { dir: tempfile::tempdir().unwrap() };
        write_folder(&small(1), Path::new(&stage.at("model")), Encoding::Bf16, 1);
        json(&[
            "spd",
            "plan",
            "--model",
            &stage.at("model"),
            "--tp",
            "2",
            "--blocks",
            "1",
            "--out",
            &stage.plan(),
            "--json",
        ]);
        stage
    }

    fn at(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().into()
    }

    fn plan(&self) -> String {
        self.at("plan.json")
    }

    /// Rewrites the plan.
    fn change(&self, change: impl FnOnce(&mut Value)) {
        let mut plan = serde_json::from_slice(&fs::read(self.plan()).unwrap()).unwrap();
        change(&mut plan);
        fs::write(self.plan(), plan.to_string()).unwrap();
    }

    fn generate(&self, tp: &str) -> Vec<String> {
        let (model, plan) = (self.at("model"), self.plan());
        let args = ["generate", "--model", &model, "--spd", &plan, "--tp", tp, "--prompt", "abc"];
        args.into_iter().chain(["--max-tokens", "4", "--json"]).map(String::from).collect()
    }

    #[track_caller]
    fn refused(&self, needles: &[&str]) {
        let args = self.generate("2");
        fails_with(&args.iter().map(String::as_str).collect::<Vec<_>>(), needles);
    }

    /// Writes a replacement of zeros for block 1 and names it in the plan.
    fn replace(&self, name: &str, dtype: Dtype, shape: &[usize]) {
        let zeros = vec![0; shape.iter().product::<usize>() * dtype.bitsize() / 8];
        let view = TensorView::new(dtype, shape.to_vec(), &zeros).unwrap();
        let file = self.dir.path().join("r.safetensors");
        safetensors::serialize_to_file([(name, view)], None, &file).unwrap();
        self.change(|plan| plan["blocks"][1]["replacement"] = json!("r.safetensors"));
    }
}

#[test]
fn a_written_plan_is_read_back() {
    let stage = Stage::new();
    let args = stage.generate("2");
    let run = json(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(run["spd_blocks"], 1);
    assert_eq!(run["block_all_reduces_per_token"], 3.0);
    stage.change(|plan| plan["blocks"][0]["heads"] = json!([3, 1, 0, 2]));
    let permuted = json(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(run["tokens"], permuted["tokens"], "block 0 synchronises, so the order of heads is no matter");
}

#[test]
fn plans_for_something_else() {
    let stage = Stage::new();
    let args = stage.generate("3");
    fails_with(&args.iter().map(String::as_str).collect::<Vec<_>>(), &["for 2 ranks, not 3", "--tp 2"]);
    stage.change(|plan| plan["version"] = json!(2));
    stage.refused(&["version 2", "reads version 1"]);
    stage.change(|plan| (plan["version"], plan["format"]) = (json!(1), json!("other")));
    stage.refused(&["'other'", "fewsync-spd-plan"]);
    stage.change(|plan| plan["format"] = json!("fewsync-spd-plan"));
    write_folder(&small(2), Path::new(&stage.at("model")), Encoding::Bf16, 1);
    stage.refused(&["for another model", "make a plan for this model"]);
}

#[test]
fn plans_with_mistakes() {
    type Mistake = fn(&mut Value);
    let mistakes: [(Mistake, &str); 9] = [
        (|plan| plan["blocks"][0]["heads"] = json!([0, 1, 1, 3]), "block 0: head 1 is named twice"),
        (|plan| plan["blocks"][0]["heads"] = json!([0, 1, 2]), "block 0: head 3 is missing"),
        (|plan| plan["blocks"][1]["heads"] = json!([0, 1, 2, 4]), "names head 4, but the model has 4"),
        (|plan| plan["blocks"][1]["heads"] = json!([0, 1, 2, -1]), "not a plan: invalid value"),
        (|plan| plan["blocks"][1]["sync"] = json!(true), "unknown field `sync`"),
        (|plan| plan["comment"] = json!("x"), "unknown field `comment`"),
        (|plan| plan["blocks"] = json!([{"sync_attention": true}]), "has 1 blocks, but the model has 2"),
        (|plan| plan["blocks"][0] = json!({}), "missing field `sync_attention`"),
        (|plan| *plan = json!([]), "not a plan"),
    ];
    for (mistake, needle) in mistakes {
        let stage = Stage::new();
        stage.change(mistake);
        stage.refused(&[&stage.plan(), needle]);
    }
}

#[test]
fn files_that_are_no_plans() {
    let stage = Stage::new();
    for contents in [&b""[..], b"{", b"\xff\xfe", b"null", b"GGUF"] {
        fs::write(stage.plan(), contents).unwrap();
        stage.refused(&[&stage.plan()]);
    }
    fs::remove_file(stage.plan()).unwrap();
    stage.refused(&[&stage.plan(), "No such file", "fewsync spd plan"]);
    fs::create_dir(stage.plan()).unwrap();
    stage.refused(&[&stage.plan(), "Is a directory"]);
    misuse(&["generate", "--prompt", "a", "--spd", "first:3"], &["none, all, last:K"]);
    misuse(&["generate", "--prompt", "a", "--spd", "last:-1"], &["write last:K"]);
    let model = stage.at("model");
    fails_with(
        &["generate", "--model", &model, "--prompt", "a", "--spd", "last:3"],
        &["last:3", "choose K from 0 to 2"],
    );
}

#[test]
fn replacements_that_do_not_fit() {
    let stage = Stage::new();
    let up = Tensor::block(TensorKind::Up, 1).hf_name();
    let file = stage.at("r.safetensors");
    stage.replace(&up, Dtype::BF16, &[96, 64]);
    let args = stage.generate("2");
    json(&args.iter().map(String::as_str).collect::<Vec<_>>());
    stage.replace(&up, Dtype::BF16, &[64, 96]);
    stage.refused(&[&file, &up, "[64, 96]", "[96, 64]"]);
    stage.replace(&up, Dtype::I64, &[96, 64]);
    stage.refused(&[&file, &up, "I64", "supported: BF16, F16, F32"]);
    for name in ["model.layers.2.mlp.up_proj.weight", "lm_head.weight", "up", "rankx.up"] {
        stage.replace(name, Dtype::BF16, &[96, 64]);
        stage.refused(&[&file, &format!("'{name}'"), "names no tensor of the model's blocks"]);
    }
    stage.replace(&format!("rank2.{up}"), Dtype::BF16, &[96, 64]);
    stage.refused(&[&file, "rank2", "rank0 to rank1"]);
    stage.replace(&Tensor::block(TensorKind::Up, 0).hf_name(), Dtype::BF16, &[96, 64]);
    stage.refused(&[&stage.plan(), "block 1", "replaces nothing in it"]);
    fs::write(&file, &fs::read(&file).unwrap()[..100]).unwrap();
    stage.refused(&[&file, "truncated"]);
    fs::remove_file(&file).unwrap();
    stage.refused(&[&file, "No such file"]);
}

#[test]
fn nothing_is_left_of_a_plan_that_could_not_be_written() {
    let stage = Stage::new();
    let model = stage.at("model");
    let plan = |out: &str, tp: &str, blocks: &str, needles: &[&str]| {
        let args = ["spd", "plan", "--model", &model, "--tp", tp, "--blocks", blocks, "--out", out];
        fails_with(&args, needles);
    };
    let before = fs::read(stage.plan()).unwrap();
    plan(&stage.at("no/plan.json"), "2", "0", &["cannot write the plan (No such file", "folder"]);
    plan(&stage.at("model/config.json/plan.json"), "2", "0", &["cannot write the plan", "folder"]);
    fs::create_dir(stage.at("taken.json")).unwrap();
    plan(&stage.at("taken.json"), "2", "0", &["cannot write the plan"]);
    plan(&stage.at("plan"), "2", "0", &["ends in .json"]);
    plan(&stage.plan(), "2", "2", &["no block 2", "blocks 0 to 1"]);
    plan(&stage.plan(), "2", "0-18446744073709551615", &["no block 18446744073709551615"]);
    plan(&stage.plan(), "0", "0", &["choose 1 to 4"]);
    plan(&stage.plan(), "5", "0", &["choose 1 to 4"]);
    for blocks in ["", "x", "1-0", "-1", "0,,1"] {
        misuse(&["spd", "plan", "--tp", "2", "--out", "p.json", "--blocks", blocks], &["--blocks"]);
    }
    assert_eq!(fs::read(stage.plan()).unwrap(), before);
    let mut names: Vec<_> = fs::read_dir(stage.dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["model", "plan.json", "taken.json"]);
}

#[cfg(unix)]
#[test]
fn a_plan_is_as_readable_as_any_new_file() {
    use std::os::unix::fs::PermissionsExt;
    let stage = Stage::new();
    fs::write(stage.at("other"), "").unwrap();
    let mode = |path: String| fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(stage.plan()), mode(stage.at("other")));
    let again = ["spd", "plan", "--model", &stage.at("model"), "--tp", "2", "--blocks", "0-1", "--out"];
    let output = fewsync(&[&again[..], &[&stage.plan()]].concat());
    assert!(output.status.success());
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        format!("{}: 2 of 2 blocks drop, for --tp 2\n", stage.plan())
    );
}
