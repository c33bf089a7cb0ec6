//! Perplexity of the trained model, synchronised and under Sync-Point Drop, against an independent NumPy
//! forward pass on the same text and chunks.
#![allow(clippy::unwrap_used)]

mod common;

use common::{load, shape, shared, smollm2};
use fewsync::eval::{chunks, evaluate};
use fewsync::model::Model;
use fewsync::runner::Runner;
use fewsync::spd::{Plan, SpdSpec};

const N_CHUNKS: usize = 6;
const CONTEXT: usize = 512;

/// Perplexity of the synchronised model.
const SYNCHRONISED: f64 = 26.880;

/// (K, perplexity with the last K blocks dropped at three ranks).
const LAST_K: [(usize, f64); 5] = [(1, 31.961), (10, 34.491), (15, 44.725), (29, 102.291), (30, 396.923)];

fn corpus(model: &Model) -> Option<Vec<u32>> {
    let text = std::fs::read_to_string(shared("data/wikitext2-valid.txt")?).unwrap();
    let tokens = model.tokenizer.encode_plain(&text).unwrap();
    assert_eq!(tokens.len(), 262_958);
    Some(tokens)
}

fn close(seen: f64, expected: f64, relative: f64, what: &str) {
    assert!((seen / expected - 1.0).abs() < relative, "{what}: perplexity {seen}, expected {expected}");
}

#[test]
fn synchronised_at_one_and_three_ranks() {
    let model = smollm2();
    let Some(tokens) = corpus(&model) else { return };
    let chunks = chunks(&tokens, N_CHUNKS, CONTEXT).unwrap();
    for tp in [1, 3] {
        let mut runner = load(&model, shape(1, tp), &SpdSpec::None);
        let plan = Plan::synchronised(tp, model.config.n_layers);
        let tally = evaluate(&mut runner, &plan, &chunks, |_, _| {}).unwrap();
        assert_eq!(tally.n_predicted, N_CHUNKS * (CONTEXT - 1));
        assert_eq!((tally.kl, tally.top1_agreement()), (0.0, 1.0));
        close(tally.perplexity(), SYNCHRONISED, 0.002, &format!("tp {tp}"));
    }
}

#[test]
fn dropped_at_three_ranks() {
    let model = smollm2();
    let Some(tokens) = corpus(&model) else { return };
    let chunks = chunks(&tokens, N_CHUNKS, CONTEXT).unwrap();
    let mut runner = load(&model, shape(1, 3), &SpdSpec::None);
    let mut last_kl = 0.0;
    for (k, expected) in LAST_K {
        let plan = SpdSpec::Last(k).resolve(&model.config, &*model.source, runner.tp()).unwrap();
        let tally = evaluate(&mut runner, &plan, &chunks, |_, _| {}).unwrap();
        close(tally.perplexity(), expected, 0.01, &format!("last:{k}"));
        assert!(tally.mean_kl() > last_kl && tally.top1_agreement() < 1.0, "last:{k}: {tally:?}");
        last_kl = tally.mean_kl();
    }
}
