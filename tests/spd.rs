//! Sync-Point Drop's analyses: what a block's drop costs, which blocks to choose, which heads share a rank.
#![allow(clippy::unwrap_used)]

mod common;

use common::{load, load_plan, shape, shared, smollm2};
use fewsync::eval::{chunks, evaluate};
use fewsync::model::Model;
use fewsync::runner::{Batch, LogitRows, Runner, Span};
use fewsync::spd::{
    BlockPlan, BlockScores, Calibration, Greedy, Meter, Metric, Plan, Ranking, Score, Sensitivity,
    SensitivityError, SpdSpec, dealt, dropping, greedy, group_heads, longest_within, sweep,
};

const BOTH: [Ranking; 2] = [Ranking::Single, Ranking::Cumulative];

fn random() -> Model {
    Model::open("random:tiny,layers=4,seed=5").unwrap()
}

/// Text of a model that knows none: any tokens do.
fn text() -> Calibration {
    let tokens: Vec<u32> = (0..200u32).map(|i| i.wrapping_mul(2_654_435_761) >> 23).collect();
    Calibration::of_text(&tokens, 3, 40).unwrap()
}

fn unmeasured(model: &Model, tp: usize, text: &Calibration) -> Sensitivity {
    Sensitivity::new(model.source.fingerprint().unwrap(), tp, model.config.n_layers, text.id())
}

#[test]
fn a_sweep_says_what_whole_passes_say() {
    let (model, text) = (random(), text());
    let n_layers = model.config.n_layers;
    let mut runner = load(&model, shape(1, 3), &SpdSpec::None);
    let mut measured = unmeasured(&model, 3, &text);
    let mut blocks = Vec::new();
    let mut meter = Meter::new(&mut runner, text.chunks()).unwrap();
    sweep(&mut meter, &BOTH, &mut measured, |_, block| {
        blocks.push(block);
        Ok(true)
    })
    .unwrap();
    assert_eq!(blocks, [0, 1, 2, 3]);
    let chunks: Vec<&[u32]> = text.chunks().iter().map(Vec::as_slice).collect();
    let mut whole = |dropped: &[usize]| {
        let plan = dropping(3, n_layers, dropped);
        Score::of(&[evaluate(&mut runner, &plan, &chunks, |_, _| {}).unwrap()])
    };
    let close = |seen: Score, expected: Score, what: &str| {
        let pairs = [(seen.perplexity, expected.perplexity), (seen.kl + 1.0, expected.kl + 1.0)];
        for (seen, expected) in pairs {
            assert!((seen / expected - 1.0).abs() < 1e-6, "{what}: {seen}, expected {expected}");
        }
        assert_eq!(
            (seen.top1_agreement, seen.accuracy),
            (expected.top1_agreement, expected.accuracy),
            "{what}"
        );
    };
    close(measured.synchronised().unwrap(), whole(&[]), "synchronised");
    for (layer, scores) in measured.blocks.iter().enumerate() {
        close(scores.single.unwrap(), whole(&[layer]), &format!("block {layer}"));
        close(scores.cumulative.unwrap(), whole(&Vec::from_iter(layer..n_layers)), &format!("from {layer}"));
    }
}

#[test]
fn an_interrupted_sweep_resumes_to_the_same_result() {
    let (model, text) = (random(), text());
    let mut runner = load(&model, shape(1, 2), &SpdSpec::None);
    let mut meter = Meter::new(&mut runner, text.chunks()).unwrap();
    let mut whole = unmeasured(&model, 2, &text);
    sweep(&mut meter, &BOTH, &mut whole, |_, _| Ok(true)).unwrap();
    let mut pieces = unmeasured(&model, 2, &text);
    sweep(&mut meter, &[Ranking::Single], &mut pieces, |_, block| Ok(block < 1)).unwrap();
    assert!(pieces.blocks[1].single.is_some() && pieces.blocks[2] == BlockScores::default());
    assert!(matches!(
        pieces.rises(Ranking::Single, Metric::Kl),
        Err(SensitivityError::Incomplete { block: 2, .. })
    ));
    sweep(&mut meter, &BOTH, &mut pieces, |_, block| Ok(block < 2)).unwrap();
    let mut visited = Vec::new();
    sweep(&mut meter, &BOTH, &mut pieces, |_, block| {
        visited.push(block);
        Ok(true)
    })
    .unwrap();
    assert_eq!(visited, [3]);
    assert_eq!(pieces, whole);
}

#[test]
fn greedy_takes_the_best_of_all_when_it_measures_all() {
    let (model, text) = (random(), text());
    let mut runner = load(&model, shape(1, 4), &SpdSpec::None);
    let mut meter = Meter::new(&mut runner, text.chunks()).unwrap();
    // Known rises of −∞ keep every candidate in question.
    let rises = [f64::NEG_INFINITY; 4];
    let search = Greedy { metric: Metric::Kl, candidates: 4, count: 3, limit: f64::INFINITY };
    let mut measurements = 0;
    let choices = greedy(&mut meter, search, &rises, |_, _| measurements += 1).unwrap();
    assert_eq!(choices.len(), 3);
    let mut chosen = Vec::new();
    for choice in choices {
        let mut best: Option<(f64, usize)> = None;
        for block in (0..4).filter(|block| !chosen.contains(block)) {
            let blocks: Vec<usize> = chosen.iter().copied().chain([block]).collect();
            let kl = meter.score(&dropping(4, 4, &blocks)).unwrap().kl;
            if best.is_none_or(|(least, _)| kl < least) {
                best = Some((kl, block));
            }
        }
        assert_eq!(best, Some((choice.score.kl, choice.block)));
        chosen.push(choice.block);
    }
    assert!(measurements <= 4 + 3 + 2);
    // A limit ends the search before it is exceeded.
    let first = meter.score(&dropping(4, 4, &chosen[..1])).unwrap().kl;
    let search = Greedy { limit: first, ..search };
    assert_eq!(greedy(&mut meter, search, &rises, |_, _| {}).unwrap().len(), 1);
    let search = Greedy { limit: 0.0, ..search };
    assert_eq!(greedy(&mut meter, search, &rises, |_, _| {}).unwrap(), []);
}

#[test]
fn the_longest_start_within_a_limit() {
    let (model, text) = (random(), text());
    let mut runner = load(&model, shape(1, 2), &SpdSpec::None);
    let mut meter = Meter::new(&mut runner, text.chunks()).unwrap();
    let order = [3, 2, 1, 0];
    let kl: Vec<f64> =
        (0..=4).map(|count| meter.score(&dropping(2, 4, &order[..count])).unwrap().kl).collect();
    assert!(kl.is_sorted() && kl[0] == 0.0, "{kl:?}");
    for (count, &limit) in kl.iter().enumerate() {
        let found = longest_within(&mut meter, &order, Metric::Kl, limit, |_, _| {}).unwrap();
        assert_eq!((found.0, found.1.kl), (count, limit));
    }
}

#[test]
fn the_model_writes_the_same_text_from_the_same_seed() {
    let model = random();
    let mut runner = load(&model, shape(1, 2), &SpdSpec::None);
    let mut written =
        |seed| Calibration::generated(&mut runner, 3, 24, seed, || {}).unwrap().chunks().to_vec();
    let text = written(1);
    assert!(text.len() == 3 && text.iter().all(|chunk| chunk.len() == 24));
    assert!(text[0] != text[1] && text[1] != text[2]);
    assert_eq!(text, written(1));
    assert_ne!(text, written(2));
}

/// Degrees with even and uneven shares, with and without KV heads that only some ranks hold.
#[test]
fn grouped_heads_are_exact_where_blocks_synchronise() {
    let model = Model::open("random:smollm2,layers=2,seed=3").unwrap();
    let text = text();
    let tokens = &text.chunks()[0];
    let spans = || vec![Span { sequence: 0, tokens: tokens.clone() }];
    for (tp, replicate) in [(2, false), (2, true), (3, false), (3, true), (4, false)] {
        let mut reference = load(&model, shape(1, tp), &SpdSpec::None);
        let batch = Batch { spans: spans(), logits: LogitRows::All, hidden_states: true };
        let whole = reference.forward(&batch).unwrap();
        let inputs = [whole.hidden_states[1].clone()];
        let found = group_heads(&mut reference, 1, &inputs, replicate).unwrap();
        let what = format!("tp {tp}, replicated {replicate}: {found:?}");
        assert!(found.distance[1] >= found.distance[0], "{what}");
        assert!(found.mlp_norm.iter().all(|norm| *norm > 0.0), "{what}");
        if !replicate {
            let own = load(&model, shape(1, tp), &SpdSpec::None);
            let with = BlockPlan { heads: Some(found.heads.clone()), ..BlockPlan::default() };
            let plan = Plan::new(tp, vec![BlockPlan::default(), with]);
            let grouped = load_plan(&model, shape(1, tp), &plan);
            for (own, grouped) in own.weight_bytes().iter().zip(grouped.weight_bytes()) {
                assert!(grouped <= own, "{what}");
            }
        }
        if replicate {
            assert!(found.distance[1] > found.distance[0], "{what}");
        }
        assert_eq!(dealt(&found.heads, tp).map(<[usize]>::len).sum::<usize>(), 9);
        let blocks = [true, true].map(|sync_attention| BlockPlan {
            sync_attention,
            heads: Some(found.heads.clone()),
            replacement: None,
        });
        reference.set_plan(&Plan::new(tp, blocks.to_vec())).unwrap();
        let grouped = reference.forward(&batch).unwrap().logits;
        let scale = whole.logits.iter().fold(0.0f32, |max, v| max.max(v.abs()));
        let furthest = grouped.iter().zip(&whole.logits).fold(0.0f32, |max, (a, b)| max.max((a - b).abs()));
        assert!(furthest < 2e-5 * scale, "{what}: {furthest} of {scale}");
    }
}

/// The last blocks of the trained model's sweep, against an independent NumPy forward pass.
#[test]
fn the_trained_model_reproduces_the_recorded_sweep() {
    const EXPECTED: [(usize, f64, f64); 2] = [(28, 26.880 + 0.158, 31.757), (29, 31.961, 31.961)];
    let Some(path) = shared("data/wikitext2-valid.txt") else { return };
    let model = smollm2();
    let tokens = model.tokenizer.encode_plain(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(chunks(&tokens, 6, 512).unwrap().len(), 6);
    let text = Calibration::of_text(&tokens, 6, 512).unwrap();
    let mut runner = load(&model, shape(1, 3), &SpdSpec::None);
    let mut measured = unmeasured(&model, 3, &text);
    // Blocks that seem to be measured already are passed through only.
    let any = Some(Score { perplexity: 1.0, kl: 0.0, top1_agreement: 1.0, accuracy: 0.0 });
    measured.blocks[..28].fill(BlockScores { single: any, cumulative: any });
    let mut meter = Meter::new(&mut runner, text.chunks()).unwrap();
    sweep(&mut meter, &BOTH, &mut measured, |_, _| Ok(true)).unwrap();
    let close = |seen: f64, expected: f64| {
        assert!((seen / expected - 1.0).abs() < 0.002, "{seen}, expected {expected}");
    };
    close(measured.synchronised().unwrap().perplexity, 26.880);
    for (block, single, cumulative) in EXPECTED {
        close(measured.blocks[block].single.unwrap().perplexity, single);
        close(measured.blocks[block].cumulative.unwrap().perplexity, cumulative);
    }
}
