//! `spd distill`: from a plan and a text to a plan with tensors that `--spd` takes.

use std::fs;
use std::path::Path;

use crate::common::{fails_with, json, text};

const MODEL: &str = "random:tiny,seed=5";

/// A folder with a calibration text, another text and a plan whose blocks all drop.
struct Stage {
    dir: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        let stage = Self { dir: tempfile::tempdir().unwrap() };
        // Of words, so that tokens repeat in other surroundings.
        let words = |seed: u32, n: u32| -> String {
            let word = |i: u32| format!("{:x} ", (i + seed).wrapping_mul(2_654_435_761) >> 22);
            (0..n).map(word).collect()
        };
        fs::write(stage.at("calibration.txt"), words(0, 6000)).unwrap();
        fs::write(stage.at("other.txt"), words(100_000, 400)).unwrap();
        let plan = stage.at("plan.json");
        text(&["spd", "plan", "--model", MODEL, "--tp", "3", "--blocks", "0,1", "--out", &plan]);
        stage
    }

    fn at(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().into()
    }

    /// The arguments that distil `plan` into `out`.
    fn distill(&self, model: &str, out: &str, more: &[&str]) -> Vec<String> {
        let (plan, calibration, out) = (self.at("plan.json"), self.at("calibration.txt"), self.at(out));
        let args =
            ["spd", "distill", "--model", model, "--plan", &plan, "--text", &calibration, "--out", &out];
        args.iter().chain(&["--context", "64"]).chain(more).map(|&arg| arg.into()).collect()
    }

    fn kl(&self, plan: &str) -> f64 {
        let (plan, text) = (self.at(plan), self.at("other.txt"));
        let args =
            ["eval", "--model", MODEL, "--device", "cpu", "--tp", "3", "--spd", &plan, "--text", &text];
        let args: Vec<&str> = args.into_iter().chain(["--context", "64", "--json"]).collect();
        json(&args)["kl"].as_f64().unwrap()
    }
}

fn strs(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

#[test]
fn a_distilled_plan_is_nearer_to_the_synchronised_model() {
    let stage = Stage::new();
    let report = json(&strs(&stage.distill(MODEL, "new.json", &["--tp", "3", "--json"])));
    let blocks = report["blocks"].as_array().unwrap();
    assert_eq!(blocks.iter().map(|b| b["block"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1]);
    for block in blocks {
        let error = |key: &str| block[key].as_f64().unwrap();
        assert!(error("distilled") < 0.9 * error("zero_shot"), "{block}");
    }
    let (before, after) = (stage.kl("plan.json"), stage.kl("new.json"));
    assert!(after < 0.9 * before, "KL {before} before, {after} after");
    // The plan names its tensors relative to itself: they move together.
    let plan = fs::read_to_string(stage.at("new.json")).unwrap();
    assert!(plan.contains("\"new.blocks/block0.safetensors\""), "{plan}");
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_written() {
    let stage = Stage::new();
    let refused_of = |model: &str, out: &str, more: &[&str], needles: &[&str]| {
        fails_with(&strs(&stage.distill(model, out, more)), needles);
        assert!(!Path::new(&stage.at(out)).exists());
        assert!(!Path::new(&stage.at("new.blocks")).exists(), "{needles:?}");
    };
    refused_of("random:tiny,seed=6", "new.json", &["--tp", "3"], &["for another model"]);
    let refused = |out: &str, more: &[&str], needles: &[&str]| refused_of(MODEL, out, more, needles);
    refused("new.json", &["--tp", "2"], &["for 3 ranks, not 2"]);
    refused("new.json", &["--tp", "3", "--blocks", "2"], &["no block 2", "0 to 1"]);
    refused("new.plan", &["--tp", "3"], &["ends in .json"]);
    refused("new.json", &["--tp", "3", "--lr", "0"], &["learning rate of 0"]);
    refused("new.json", &["--tp", "3", "--weight-decay", "nan"], &["weight decay of NaN"]);
    refused("new.json", &["--tp", "3", "--train", "none", "--no-closed-form"], &["nothing would be fitted"]);
    refused("no/new.json", &["--tp", "3"], &["cannot write there"]);
    fs::write(stage.at("calibration.txt"), "short").unwrap();
    refused("new.json", &["--tp", "3"], &["5 tokens", "less than two chunks of 64"]);
}

/// Steps that only make a block worse leave it the model's weights, and the plan names no tensors for it.
#[test]
fn a_block_that_gains_nothing_keeps_its_weights() {
    let stage = Stage::new();
    let worse = ["--tp", "3", "--no-closed-form", "--lr", "10", "--blocks", "1"];
    text(&strs(&stage.distill(MODEL, "new.json", &worse)));
    let plan = fs::read_to_string(stage.at("new.json")).unwrap();
    assert!(!plan.contains("replacement"), "{plan}");
    assert_eq!(stage.kl("new.json"), stage.kl("plan.json"));
}

/// Tensors belong to a model, a number of ranks and an order of heads: a plan that was edited otherwise is refused.
#[test]
fn tensors_of_another_order_of_heads_are_refused() {
    let stage = Stage::new();
    text(&strs(&stage.distill(MODEL, "new.json", &["--tp", "3", "--train", "none"])));
    let change = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut plan: serde_json::Value =
            serde_json::from_slice(&fs::read(stage.at("new.json")).unwrap()).unwrap();
        change(&mut plan);
        fs::write(stage.at("changed.json"), plan.to_string()).unwrap();
    };
    let (plan, other) = (stage.at("changed.json"), stage.at("other.txt"));
    let eval = |tp: &'static str| {
        let args =
            ["eval", "--model", MODEL, "--device", "cpu", "--tp", tp, "--spd", &plan, "--text", &other];
        args.map(str::to_owned).to_vec()
    };
    // The order that it has anyway.
    change(&|plan| plan["blocks"][1]["heads"] = serde_json::json!([0, 1, 2, 3]));
    json(&[&strs(&eval("3"))[..], &["--context", "64", "--json"]].concat());
    change(&|plan| plan["blocks"][1]["heads"] = serde_json::json!([1, 0, 2, 3]));
    fails_with(
        &strs(&eval("3")),
        &["block 1: new.blocks/block1.safetensors", "dealt as they are", "[1, 0, 2, 3]"],
    );
    change(&|plan| plan["blocks"][1]["sync_attention"] = true.into());
    fails_with(&strs(&eval("3")), &["block 1:", "distilled for a dropped sync point, and the plan keeps it"]);
    change(&|plan| plan["tp"] = 2.into());
    fails_with(&strs(&eval("2")), &["block 0:", "distilled for 3 ranks, not 2"]);
}
