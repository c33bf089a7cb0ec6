//! Sensitivity, budgets, grouping, evaluation: files that fit, files that do not, and what is printed.

use std::fs;

use fewsync::model::Config;
use fewsync::model::encoding::Encoding;
use fewsync::model::testing::SmallLlama;
use serde_json::{Value, json as value};

use crate::common::small::{small, write_folder};
use crate::common::{fails_with, json, misuse, text};

/// A random model of four blocks on two ranks; texts are drawn from it.
struct Stage {
    dir: tempfile::TempDir,
}

const MODEL: &str = "random:tiny,layers=4,seed=2";
const SMALL: [&str; 4] = ["--chunks", "3", "--chunk-len", "24"];

impl Stage {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn at(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().into()
    }

    fn args<'a>(&self, command: &'a str, tp: &'a str, rest: &[&'a str]) -> Vec<&'a str> {
        [&["spd", command, "--model", MODEL, "--tp", tp], rest].concat()
    }

    fn json(&self, command: &str, rest: &[&str]) -> Value {
        json(&[&self.args(command, "2", rest)[..], &["--json"]].concat())
    }

    fn measure(&self, out: &str, rest: &[&str]) -> Value {
        self.json("sensitivity", &[&SMALL[..], &["--out", out], rest].concat())["sensitivity"].take()
    }

    fn read(&self, path: &str) -> Value {
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }
}

#[test]
fn a_sensitivity_file_grows_to_the_same_measurement() {
    let stage = Stage::new();
    let (whole, pieces, plot) = (stage.at("whole.json"), stage.at("pieces.json"), stage.at("s.svg"));
    let expected = stage.measure(&whole, &[]);
    assert_eq!(expected, stage.read(&whole));
    assert_eq!(expected["blocks"].as_array().unwrap().len(), 4);
    stage.measure(&pieces, &["--ranking", "single"]);
    assert!(stage.read(&pieces)["blocks"][0].get("cumulative").is_none());
    assert_eq!(stage.measure(&pieces, &["--plot", &plot]), expected);
    assert_eq!(stage.read(&pieces), expected);
    assert!(fs::read_to_string(&plot).unwrap().contains("this block drops"));
    let table = text(&stage.args("sensitivity", "2", &[&SMALL[..], &["--out", &whole]].concat()));
    assert_eq!(table.lines().count(), 6, "{table}");
    assert!(table.starts_with("synchronised perplexity "), "{table}");
}

#[test]
fn a_sensitivity_file_for_something_else_is_refused() {
    let stage = Stage::new();
    let file = stage.at("s.json");
    stage.measure(&file, &["--ranking", "single"]);
    let before = fs::read(&file).unwrap();
    let sensitivity = |tp: &str, rest: &[&str], needles: &[&str]| {
        fails_with(&stage.args("sensitivity", tp, &[rest, &["--out", &file]].concat()), needles);
    };
    sensitivity("3", &SMALL, &["on 2 ranks, not 3", "measure anew"]);
    sensitivity("2", &["--chunks", "3", "--chunk-len", "25"], &["another text", "3 x 24"]);
    sensitivity("2", &[&SMALL[..], &["--text-seed", "1"]].concat(), &["another text", "generated, seed 0"]);
    let other = ["spd", "sensitivity", "--model", "random:tiny", "--tp", "2", "--out", &file];
    fails_with(&other, &["another model"]);
    let plan = |tp: &str, rest: &[&str], needles: &[&str]| {
        let out = stage.at("p.json");
        fails_with(
            &stage.args("plan", tp, &[&["--sensitivity", &file, "--out", &out], rest].concat()),
            needles,
        );
    };
    plan("3", &["--count", "1"], &["on 2 ranks, not 3"]);
    plan("2", &["--count", "1", "--ranking", "cumulative"], &["lacks the cumulative ranking of block 0"]);
    plan("2", &["--count", "5"], &["more blocks than the model's 4"]);
    plan("2", &[], &["a budget is missing"]);
    plan("2", &["--max-kl", "0.1", "--by", "perplexity"], &["leave out --by perplexity"]);
    plan("2", &["--min-saving-us", "3"], &["needs the time of an all-reduce"]);
    let cost = ["--alpha-us", "5", "--beta-gbs", "10"];
    plan(
        "2",
        &[&["--min-saving-us", "21"], &cost[..]].concat(),
        &["all 4 blocks save 20.1", "less than the 21"],
    );
    fs::write(stage.at("t.csv"), "size,us_median\n1,2\n").unwrap();
    plan("2", &["--count", "1", "--allreduce-us", &stage.at("t.csv")], &["no column 'bytes'"]);
    assert_eq!(fs::read(&file).unwrap(), before);
    assert!(!fs::exists(stage.at("p.json")).unwrap());
    misuse(&stage.args("plan", "2", &["--out", "p.json", "--count", "1"]), &["--sensitivity"]);
    misuse(&stage.args("plan", "2", &["--out", "p.json", "--blocks", "1", "--greedy"]), &["--greedy"]);
    misuse(
        &stage.args("plan", "2", &["--sensitivity", "s.json", "--count", "1", "--max-kl", "1"]),
        &["--max-kl"],
    );
    fails_with(&["spd", "plan", "--blocks", "1", "--out", "p.json"], &["give --tp"]);
    let alone = "with one rank there is nothing to drop";
    fails_with(
        &["spd", "plan", "--model", "random:tiny", "--tp", "1", "--blocks", "1", "--out", "p.json"],
        &[alone],
    );
    fails_with(&["spd", "sensitivity", "--model", "random:tiny"], &[alone]);
}

#[test]
fn plans_keep_their_budgets() {
    let stage = Stage::new();
    let (file, out) = (stage.at("s.json"), stage.at("p.json"));
    let measured = stage.measure(&file, &[]);
    let plan = |rest: &[&str]| stage.json("plan", &[&["--sensitivity", &file, "--out", &out], rest].concat());

    let counted = plan(&["--count", "2"]);
    assert_eq!(counted["spd_blocks"], 2);
    let single =
        |block: &Value| measured["blocks"][block.as_u64().unwrap() as usize]["single"]["perplexity"].as_f64();
    let dropped = counted["dropped"].as_array().unwrap();
    let kept = (0..4).map(|block| value!(block)).filter(|block| !dropped.contains(block));
    let worst = dropped.iter().map(|block| single(block).unwrap()).fold(0.0, f64::max);
    assert!(kept.into_iter().all(|block| single(&block).unwrap() >= worst), "{counted}");
    let written = stage.read(&out);
    for block in 0..4 {
        let drops = dropped.contains(&value!(block));
        assert_eq!(written["blocks"][block]["sync_attention"], !drops);
        assert_eq!(counted["blocks"][block]["drops"], drops);
    }

    // A prediction is the sum of what was measured; a measurement holds its limit.
    let predicted = plan(&["--max-kl", "0.1"]);
    assert!(predicted["predicted"]["value"].as_f64().unwrap() <= 0.1, "{predicted}");
    for greedy in [&["--greedy"][..], &["--greedy", "--candidates", "1"]] {
        let found = plan(&[&["--max-kl", "0.2"], greedy, &SMALL].concat());
        assert!(found["measured"]["kl"].as_f64().unwrap() <= 0.2, "{found}");
        assert!(found["spd_blocks"].as_u64().unwrap() < 4, "{found}");
    }

    // 128 bf16 values a token: below the table's least size.
    fs::write(stage.at("t.csv"), "contender,tp,bytes,us_median\n# machine\nfewsync,2,512,7\nfewsync,2,512,6\nnccl,2,512,1\nfewsync,4,512,2\nfewsync,2,1024,\n").unwrap();
    let table = stage.at("t.csv");
    let saved = plan(&["--min-saving-us", "13", "--allreduce-us", &table]);
    assert_eq!((&saved["spd_blocks"], &saved["saving_us"]), (&value!(3), &value!(18.0)));

    // Classes follow the thresholds.
    let classes = plan(&["--count", "0", "--tau1", "0%", "--tau2", "100000%"]);
    for block in classes["blocks"].as_array().unwrap() {
        let class = if block["rise"].as_f64().unwrap() <= 0.0 { "ISB" } else { "SB" };
        assert_eq!((&block["class"], &block["action"]), (&value!(class), &value!("synchronise")));
    }
}

#[test]
fn grouping_writes_an_order_and_evaluation_compares() {
    let stage = Stage::new();
    let (file, plain, grouped) = (stage.at("s.json"), stage.at("plain.json"), stage.at("grouped.json"));
    stage.measure(&file, &["--ranking", "single"]);
    stage.json("plan", &["--blocks", "1,3", "--out", &plain]);
    let group = stage.json("group", &[&["--plan", &plain, "--out", &grouped], &SMALL[..]].concat());
    let plan = stage.read(&grouped);
    for (entry, block) in group["blocks"].as_array().unwrap().iter().zip([1, 3]) {
        assert_eq!(entry["block"], block);
        assert_eq!(entry["heads"], plan["blocks"][block]["heads"]);
        assert!(entry["distance"][1].as_f64() >= entry["distance"][0].as_f64());
    }
    assert!(plan["blocks"][0].get("heads").is_none());

    let (csv, plot) = (stage.at("e.csv"), stage.at("e.svg"));
    let files = ["--csv", &csv, "--plot", &plot];
    let quick = ["--prompt", "8", "--decode", "2", "--rounds", "1", "--batch", "1,2"];
    let levels = ["--sensitivity", &file, "--levels", "0,50,100", "--plan", &grouped];
    let report = stage.json("evaluate", &[&levels[..], &SMALL, &quick, &files].concat());
    let lines = report["measurements"].as_array().unwrap();
    // Two series, three levels, two batch sizes.
    assert_eq!(lines.len(), 12);
    for line in lines.iter().filter(|line| line["dropped"] == 0) {
        assert_eq!(
            (&line["quality"]["kl"]["value"], &line["quality"]["rise"]["value"]),
            (&value!(0.0), &value!(0.0))
        );
        assert_eq!(line["quality"]["top1_agreement"]["interval"], value!([1.0, 1.0]));
    }
    for line in lines {
        let perplexity = &line["quality"]["perplexity"];
        let [low, high] = [0, 1].map(|i| perplexity["interval"][i].as_f64().unwrap());
        assert!((low..=high).contains(&perplexity["value"].as_f64().unwrap()), "{line}");
        assert!(line["timed"]["times"]["step"]["ms"]["median"].as_f64().unwrap() > 0.0);
    }
    let csv = fs::read_to_string(&csv).unwrap();
    assert!(csv.starts_with("bench,model,tp,series,dropped,") && csv.lines().count() == 4 + 12, "{csv}");
    assert!(fs::read_to_string(&plot).unwrap().contains("time per token, batch 2"));

    // The times of another run, of the same number of blocks.
    let times = ["--times", &stage.at("e.csv"), "--plan", &plain];
    let again = stage.json("evaluate", &[&times[..], &SMALL].concat());
    let again = again["measurements"].as_array().unwrap();
    assert_eq!(again.len(), 4);
    let of = |dropped: u64| lines.iter().find(|line| line["dropped"] == dropped).unwrap();
    for (again, dropped) in [(&again[0], 0), (&again[2], 2)] {
        let ms = |line: &Value| line["timed"]["times"]["step"]["ms"]["median"].as_f64().unwrap();
        assert!((ms(again) - ms(of(dropped))).abs() < 1e-4 && again["dropped"] == dropped, "{again}");
    }

    // The synchronised model alone.
    let alone = stage.json("evaluate", &[&["--only", "latency", "--levels", "0"][..], &quick].concat());
    let alone = alone["measurements"].as_array().unwrap();
    assert!(alone.len() == 2 && alone.iter().all(|line| line["dropped"] == 0), "{alone:?}");

    // Without levels every plan is a line, beside the synchronised model.
    let plans = ["--plan", &plain, "--plan", &grouped, "--only", "quality"];
    let report = stage.json("evaluate", &[&plans[..], &SMALL].concat());
    let series: Vec<&Value> =
        report["measurements"].as_array().unwrap().iter().map(|line| &line["series"]).collect();
    assert_eq!(series, ["synchronised", "plain", "grouped"]);
}

/// Every kind of memory, on emulated GPUs, whose code is the GPUs' own; no plan and no sensitivity is needed.
#[test]
fn times_over_every_kind_of_memory() {
    // A width of heads that there are kernels for.
    let dir = tempfile::tempdir().unwrap();
    let config = Config { head_dim: 64, ..small(3).config };
    write_folder(&SmallLlama::with_config(config, 3), dir.path(), Encoding::Bf16, 1);
    let model = dir.path().to_str().unwrap();
    let args = ["spd", "evaluate", "--model", model, "--tp", "2", "--device", "emulate"];
    let quick = ["--only", "latency", "--prompt", "2", "--decode", "1", "--rounds", "1", "--batch", "1"];
    let more = ["--levels", "0,50,100", "--over", "direct,host-staged,host-staged:1", "--json"];
    let report = json(&[&args[..], &quick, &more].concat());
    let lines = report["measurements"].as_array().unwrap();
    let of = |line: &Value| {
        let (dropped, link) = (line["dropped"].as_u64().unwrap(), line["timed"]["link"].as_str().unwrap());
        (dropped, link.to_owned())
    };
    let links = ["direct", "host-staged", "host-staged:1"];
    let expected: Vec<_> = (0..3).flat_map(|dropped| links.map(|link| (dropped, link.to_owned()))).collect();
    assert_eq!(lines.iter().map(of).collect::<Vec<_>>(), expected);
    for line in lines {
        let times = &line["timed"]["times"];
        let none = line["dropped"] == 0;
        for phase in ["first_token", "step"] {
            assert!(times[phase]["ms"]["median"].as_f64().unwrap() > 0.0, "{line}");
            assert_eq!(times[phase]["saved_ms"]["median"] == 0.0, none, "{line}");
        }
    }
}

#[test]
fn what_cannot_be_grouped_or_evaluated() {
    let stage = Stage::new();
    let plan = stage.at("p.json");
    stage.json("plan", &["--blocks", "1", "--out", &plan]);
    let out = stage.at("o.json");
    let group = |tp: &str, rest: &[&str], needles: &[&str]| {
        fails_with(&stage.args("group", tp, &[&["--plan", &plan, "--out", &out], rest].concat()), needles);
    };
    group("3", &[], &["for 2 ranks, not 3"]);
    group("1", &[], &["nothing to group"]);
    group("2", &["--blocks", "4"], &["no block 4"]);
    group("2", &["--chunk-len", "100000"], &["exceeds the model's context"]);
    let evaluate = |tp: &str, rest: &[&str], needles: &[&str]| {
        fails_with(&stage.args("evaluate", tp, rest), needles);
    };
    evaluate("3", &["--plan", &plan], &["for 2 ranks, not 3"]);
    evaluate("1", &["--plan", &plan], &["nothing to drop"]);
    evaluate("2", &["--plan", &plan, "--only", "latency", "--prompt", "5000"], &["model's context"]);
    evaluate("2", &["--only", "quality"], &["give --sensitivity or --plan"]);
    evaluate("2", &["--only", "latency", "--over", "direct", "--device", "cpu"], &["--over is about GPUs"]);
    misuse(&stage.args("evaluate", "2", &[]), &["--plan"]);
    misuse(&stage.args("evaluate", "2", &["--plan", &plan, "--over", "nvlink"]), &["'nvlink' is not a way"]);
    misuse(&stage.args("evaluate", "2", &["--plan", &plan, "--levels", "101"]), &["--levels"]);
}
