//! The reference back end against a second, naive one: dense f64, no cache, no messages, written from the
//! formulas. Small random models, every layout, Sync-Point Drop and its properties.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::oracle::Oracle;
use common::{load, load_plan, shape};
use fewsync::comm::Shape;
use fewsync::model::random::RandomModel;
use fewsync::model::{Checkpoint, Config, Model, RopeScaling, TensorKind, TensorSource};
use fewsync::reference::{Reference, ReferenceOptions};
use fewsync::runner::{Batch, LogitRows, Runner, Segment, Span};
use fewsync::spd::{BlockPlan, Plan, SpdSpec};

const TOKENS: [u32; 11] = [3, 141, 59, 26, 5, 35, 89, 79, 323, 84, 62];

/// Nine query heads on three KV heads, as in smollm2, and sizes that no granule divides, so that most
/// degrees split unevenly.
fn model(seed: u64) -> Model {
    let config = Config {
        hidden: 96,
        ffn: 460,
        n_layers: 3,
        n_heads: 9,
        n_kv_heads: 3,
        head_dim: 16,
        vocab: 1000,
        context: 64,
        rms_eps: 1e-5,
        rope_base: 10_000.0,
        rope_scaling: RopeScaling::None,
        tied: false,
        bos: None,
        eos: Vec::new(),
    };
    let source: Arc<dyn TensorSource> = Arc::new(RandomModel::new(config.clone(), seed));
    Model::from_checkpoint("small", Checkpoint { config, source, gguf: None, folder: None }).unwrap()
}

fn tiny() -> Model {
    Model::open("random:tiny").unwrap()
}

fn all_logits(runner: &mut dyn Runner, tokens: &[u32]) -> Vec<f32> {
    runner.truncate(0, 0).unwrap();
    let spans = vec![Span { sequence: 0, tokens: tokens.to_vec() }];
    runner.forward(&Batch { spans, logits: LogitRows::All, hidden_states: false }).unwrap().logits
}

#[track_caller]
fn close(seen: &[f32], expected: &[f64], what: &str) {
    assert_eq!(seen.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    for (i, (s, e)) in seen.iter().zip(expected).enumerate() {
        assert!(
            (f64::from(*s) - e).abs() < 2e-5 * scale,
            "{what}, value {i}: {s}, expected {e} (scale {scale})"
        );
    }
}

fn layouts() -> Vec<Shape> {
    [(1, 1), (1, 2), (1, 3), (1, 5), (2, 2), (3, 1), (5, 1), (2, 3), (3, 2), (3, 3), (1, 9), (9, 1)]
        .map(|(nodes, gpus_per_node)| shape(nodes, gpus_per_node))
        .to_vec()
}

#[test]
fn synchronised_and_dropped_on_every_layout() {
    let model = model(1);
    let n_layers = model.config.n_layers;
    for shape in layouts() {
        let tp = shape.world();
        for dropped in [0, 1, n_layers] {
            let sync: Vec<bool> = (0..n_layers).map(|l| l < n_layers - dropped).collect();
            let oracle = Oracle::new(&model, tp, &sync);
            let mut runner = load(&model, shape, &SpdSpec::Last(dropped));
            let what = format!("{shape}, last:{dropped}");
            close(&all_logits(&mut runner, &TOKENS), &oracle.logits(&TOKENS), &what);
        }
    }
}

#[test]
fn dropping_is_no_synonym_of_synchronising() {
    // If it were, every other test here would pass with the flag ignored.
    let model = model(1);
    let (sync, dropped) = (Oracle::new(&model, 3, &[true; 3]), Oracle::new(&model, 3, &[false; 3]));
    let (sync, dropped) = (sync.logits(&TOKENS), dropped.logits(&TOKENS));
    let gap = sync.iter().zip(&dropped).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
    let scale = sync.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    assert!(gap > 1e-2 * scale, "gap {gap}, scale {scale}");
}

#[test]
fn prefill_in_pieces_decode_and_batches_see_the_same_logits() {
    let model = model(2);
    let expected = Oracle::new(&model, 3, &[true, false, true]).logits(&TOKENS);
    let vocab = model.config.vocab;
    let blocks =
        [true, false, true].map(|sync_attention| BlockPlan { sync_attention, ..BlockPlan::default() });
    let mut runner = load_plan(&model, shape(1, 3), &Plan::new(3, blocks.to_vec()));
    let row = |at: usize| &expected[at * vocab..(at + 1) * vocab];

    // A prompt in two pieces, then token by token.
    runner.forward(&Batch::prefill(0, &TOKENS[..2])).unwrap();
    close(&runner.forward(&Batch::prefill(0, &TOKENS[2..5])).unwrap().logits, row(4), "second piece");
    for (at, token) in TOKENS.iter().enumerate().skip(5) {
        close(&runner.forward(&Batch::decode(&[*token])).unwrap().logits, row(at), "decode");
    }
    // Rewound, and beside other sequences of other lengths.
    runner.truncate(0, 3).unwrap();
    runner.forward(&Batch::prefill(1, &TOKENS[..7])).unwrap();
    let spans = vec![
        Span { sequence: 1, tokens: TOKENS[7..9].to_vec() },
        Span { sequence: 0, tokens: vec![TOKENS[3]] },
        Span { sequence: 2, tokens: TOKENS[..4].to_vec() },
    ];
    let output = runner.forward(&Batch { spans, logits: LogitRows::Last, hidden_states: false }).unwrap();
    for (logits, at) in output.logits.chunks_exact(vocab).zip([8, 3, 3]) {
        close(logits, row(at), &format!("batch, position {at}"));
    }
}

#[test]
fn a_prompt_longer_than_one_pass_equals_shorter_pieces() {
    let model = tiny();
    let tokens: Vec<u32> = (0..1000).map(|i| (i * 37 + i / 7) % 500).collect();
    let mut runner = load(&model, shape(1, 2), &SpdSpec::Last(1));
    let whole = all_logits(&mut runner, &tokens);
    assert_eq!(whole.len(), tokens.len() * model.config.vocab);
    runner.truncate(0, 0).unwrap();
    let mut pieces = Vec::new();
    for piece in tokens.chunks(300) {
        let spans = vec![Span { sequence: 0, tokens: piece.to_vec() }];
        pieces.extend(
            runner.forward(&Batch { spans, logits: LogitRows::All, hidden_states: false }).unwrap().logits,
        );
    }
    close(&whole, &pieces.iter().map(|&v| f64::from(v)).collect::<Vec<_>>(), "pieces");
}

#[test]
fn one_rank_drops_nothing() {
    let model = model(3);
    let sync = all_logits(&mut load(&model, shape(1, 1), &SpdSpec::None), &TOKENS);
    assert_eq!(all_logits(&mut load(&model, shape(1, 1), &SpdSpec::All), &TOKENS), sync);
}

/// A model with some of its tensors zero.
struct Zeroed {
    base: Arc<dyn TensorSource>,
    kind: TensorKind,
}

impl TensorSource for Zeroed {
    fn storage(&self, tensor: fewsync::model::Tensor) -> fewsync::model::Storage {
        self.base.storage(tensor)
    }

    fn read_f32(
        &self,
        tensor: fewsync::model::Tensor,
        rows: std::ops::Range<usize>,
        cols: std::ops::Range<usize>,
        out: &mut [f32],
    ) {
        self.base.read_f32(tensor, rows, cols, out);
        if tensor.kind == self.kind {
            out.fill(0.0);
        }
    }

    fn read_bf16(
        &self,
        tensor: fewsync::model::Tensor,
        rows: std::ops::Range<usize>,
        cols: std::ops::Range<usize>,
        out: &mut [half::bf16],
    ) {
        self.base.read_bf16(tensor, rows, cols, out);
        if tensor.kind == self.kind {
            out.fill(half::bf16::ZERO);
        }
    }

    fn fingerprint(&self) -> Result<String, fewsync::model::ModelError> {
        self.base.fingerprint()
    }
}

#[test]
fn without_an_mlp_dropping_changes_no_bit() {
    let mut model = model(4);
    model.source = Arc::new(Zeroed { base: model.source.clone(), kind: TensorKind::Down });
    for shape in layouts() {
        let sync = all_logits(&mut load(&model, shape, &SpdSpec::None), &TOKENS);
        assert_eq!(all_logits(&mut load(&model, shape, &SpdSpec::All), &TOKENS), sync, "{shape}");
    }
}

#[test]
fn dealing_heads_in_another_order_changes_nothing_while_synchronised() {
    let model = model(5);
    let expected = Oracle::new(&model, 4, &[true; 3]).logits(&TOKENS);
    let heads = Some(vec![8, 0, 3, 1, 6, 4, 2, 7, 5]);
    let block = BlockPlan { heads, ..BlockPlan::default() };
    let plan = Plan::new(4, vec![block.clone(), BlockPlan::default(), block]);
    close(&all_logits(&mut load_plan(&model, shape(2, 2), &plan), &TOKENS), &expected, "permuted");
}

#[test]
fn where_attention_is_not_synchronised_the_order_of_heads_counts() {
    let model = model(8);
    let heads = Some(vec![8, 0, 3, 1, 6, 4, 2, 7, 5]);
    let dropped = BlockPlan { sync_attention: false, ..BlockPlan::default() };
    let permuted = BlockPlan { heads, ..dropped.clone() };
    for shape in [shape(1, 2), shape(2, 2), shape(3, 3)] {
        let tp = shape.world();
        let plans = [vec![permuted.clone(), dropped.clone(), permuted.clone()], vec![dropped.clone(); 3]];
        let oracles = plans.clone().map(|blocks| Oracle::with_blocks(&model, tp, &blocks).logits(&TOKENS));
        let gap = oracles[0].iter().zip(&oracles[1]).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
        assert!(gap > 1e-2, "{shape}: the orders must differ for this test to tell, gap {gap}");
        // Loaded with either plan, and switched from one to the other and back.
        let [first, second] = plans.map(|blocks| Plan::new(tp, blocks));
        let mut runner = load_plan(&model, shape, &first);
        for (plan, expected) in [(&first, 0), (&second, 1), (&first, 0)] {
            runner.set_plan(plan).unwrap();
            close(
                &all_logits(&mut runner, &TOKENS),
                &oracles[expected],
                &format!("{shape}, plan {expected}"),
            );
        }
        close(&all_logits(&mut load_plan(&model, shape, &second), &TOKENS), &oracles[1], "loaded");
    }
}

#[test]
fn a_plan_that_does_not_fit_is_refused_by_load_and_by_switching() {
    let model = model(9);
    let mut runner = load(&model, shape(1, 2), &SpdSpec::None);
    for plan in [Plan::synchronised(2, 2), Plan::synchronised(3, 3)] {
        let options = ReferenceOptions::new(shape(1, 2));
        assert!(Reference::load(&model.config, &model.source, &plan, &options, &Arc::default()).is_err());
        assert!(runner.set_plan(&plan).is_err());
    }
    // A refused plan leaves the runner as it was.
    all_logits(&mut runner, &TOKENS);
}

#[test]
fn hidden_states_are_the_oracles_and_the_same_bits_on_all_ranks() {
    let model = model(6);
    for shape in layouts() {
        let mut runner = load(&model, shape, &SpdSpec::Last(2));
        let spans = vec![Span { sequence: 0, tokens: TOKENS.to_vec() }];
        // A rank that differs in one bit makes this an error.
        let output = runner.forward(&Batch { spans, logits: LogitRows::Last, hidden_states: true }).unwrap();
        let expected = Oracle::new(&model, shape.world(), &[true, false, false]).hidden_states(&TOKENS);
        assert_eq!(output.hidden_states.len(), expected.len());
        for (layer, (seen, expected)) in output.hidden_states.iter().zip(&expected).enumerate() {
            close(seen, expected, &format!("{shape}, hidden state {layer}"));
        }
    }
}

#[test]
fn each_rank_holds_its_shard_and_no_more() {
    let model = model(7);
    let c = &model.config;
    let d = c.head_dim;
    // Seven ranks: heads 0 1 | 2 3 | 4 | 5 | 6 | 7 | 8, and KV head = head / 3.
    let (heads, kv_heads) = ([2, 2, 1, 1, 1, 1, 1], [1, 2, 1, 1, 1, 1, 1]);
    // 460 columns are eight granules of 64, the last of 12; 1000 rows are sixteen, the last of 40.
    let columns = [128, 64, 64, 64, 64, 64, 12];
    let vocab_rows = [192, 192, 128, 128, 128, 128, 104];
    let mut runner = load(&model, shape(1, 7), &SpdSpec::None);
    for rank in 0..7 {
        let attention = (2 * heads[rank] + 2 * kv_heads[rank]) * d * c.hidden;
        let mlp = 3 * columns[rank] * c.hidden;
        // Weights are bf16, norm gains f32; the embedding is read row by row and not held.
        let head = vocab_rows[rank] * c.hidden;
        let bytes = 2 * (c.n_layers * (attention + mlp) + head) + 4 * (2 * c.n_layers + 1) * c.hidden;
        assert_eq!(runner.weight_bytes()[rank], bytes, "rank {rank}");
    }
    // Two all-reduces a block and the gathering of the logits.
    runner.forward(&Batch::decode(&[1])).unwrap();
    let counts = runner.sync_counts();
    assert_eq!((counts.passes, counts.block_all_reduces, counts.sync_points), (1, 6, 7));
    let mut dropped = load(&model, shape(1, 7), &SpdSpec::Last(2));
    dropped.forward(&Batch::decode(&[1])).unwrap();
    assert_eq!(dropped.sync_counts().block_all_reduces, 4);
    let mut alone = load(&model, shape(1, 1), &SpdSpec::None);
    alone.forward(&Batch::decode(&[1])).unwrap();
    assert_eq!(alone.sync_counts().sync_points, 0);
}

#[test]
fn segments_are_pieces_of_a_pass() {
    let model = model(8);
    let n_layers = model.config.n_layers;
    for (shape, spd) in
        [(shape(1, 1), SpdSpec::None), (shape(1, 3), SpdSpec::Last(2)), (shape(2, 2), SpdSpec::All)]
    {
        let mut runner = load(&model, shape, &spd);
        // A sequence that is under way notices nothing.
        runner.forward(&Batch::prefill(0, &TOKENS[..2])).unwrap();
        let spans = vec![Span { sequence: 1, tokens: TOKENS.to_vec() }];
        let whole = runner.forward(&Batch { spans, logits: LogitRows::All, hidden_states: true }).unwrap();
        for first in 0..n_layers {
            for end in first..=n_layers {
                let segment = Segment::blocks(first..end, &whole.hidden_states[first]);
                assert_eq!(runner.run_segment(segment).unwrap(), whole.hidden_states[end], "{first}..{end}");
            }
            let input = whole.hidden_states[first].clone();
            let to_the_end = Segment { blocks: first..n_layers, input, head: true };
            assert_eq!(runner.run_segment(to_the_end).unwrap(), whole.logits, "{first}..");
        }
        let head = Segment::head(n_layers, &whole.hidden_states[n_layers]);
        assert_eq!(runner.run_segment(head).unwrap(), whole.logits);
        let next = runner.forward(&Batch::prefill(0, &TOKENS[2..])).unwrap().logits;
        let mut fresh = load(&model, shape, &spd);
        fresh.forward(&Batch::prefill(0, &TOKENS[..2])).unwrap();
        assert_eq!(next, fresh.forward(&Batch::prefill(0, &TOKENS[2..])).unwrap().logits);
    }
}

#[test]
fn a_segment_longer_than_one_pass_equals_the_pass() {
    let model = tiny();
    let tokens: Vec<u32> = (0..700).map(|i| i % 500).collect();
    let mut runner = load(&model, shape(1, 2), &SpdSpec::Last(1));
    let spans = vec![Span { sequence: 0, tokens }];
    let whole = runner.forward(&Batch { spans, logits: LogitRows::Last, hidden_states: true }).unwrap();
    let segment = Segment::blocks(0..2, &whole.hidden_states[0]);
    assert_eq!(runner.run_segment(segment).unwrap(), whole.hidden_states[2]);
}

#[test]
fn segments_that_make_no_sense_are_refused() {
    let model = model(9);
    let mut runner = load(&model, shape(1, 2), &SpdSpec::None);
    let row = vec![0.0; model.config.hidden];
    let too_long = row.repeat(model.config.context + 1);
    #[allow(clippy::reversed_empty_ranges)]
    for (blocks, input, head, reason) in [
        (0..4, &row, false, "blocks are of the model"),
        (2..1, &row, false, "blocks are of the model"),
        (0..2, &row, true, "before the head the last"),
        (0..1, &vec![], false, "at least one row"),
        (0..1, &row[1..].to_vec(), false, "whole rows"),
        (0..1, &too_long, false, "context is 64"),
    ] {
        let error = runner.run_segment(Segment { blocks, input: input.clone(), head }).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
    // A refusal leaves the runner as it was.
    runner.run_segment(Segment::blocks(0..3, &row)).unwrap();
}

/// What a probe sees is what the arithmetic says: probabilities, and norms that follow the heads.
#[test]
fn a_probe_sees_every_head_once() {
    let model = model(10);
    let mut runner = load(&model, shape(1, 4), &SpdSpec::All);
    let spans = vec![Span { sequence: 0, tokens: TOKENS.to_vec() }];
    let states = runner.forward(&Batch { spans, logits: LogitRows::Last, hidden_states: true }).unwrap();
    let probes = runner.probe(1, &states.hidden_states[1]).unwrap();
    let mut heads: Vec<usize> = probes.iter().flat_map(|probe| probe.heads.clone()).collect();
    heads.sort_unstable();
    assert_eq!(heads, Vec::from_iter(0..9));
    let n = TOKENS.len();
    for scores in probes.iter().flat_map(|probe| &probe.scores) {
        assert_eq!(scores.len(), n * n);
        for (row, scores) in scores.chunks_exact(n).enumerate() {
            assert!((scores.iter().sum::<f32>() - 1.0).abs() < 1e-5);
            assert!(scores[row + 1..].iter().all(|&score| score == 0.0), "causal");
        }
    }
    // At one rank the MLP is whole: its output is what the block adds behind attention.
    let mut alone = load(&model, shape(1, 1), &SpdSpec::None);
    let whole = alone.probe(1, &states.hidden_states[1]).unwrap();
    assert_eq!((whole.len(), whole[0].heads.len()), (1, 9));
    for (head, scores) in probes.iter().flat_map(|probe| probe.heads.iter().zip(&probe.scores)) {
        let same = whole[0].scores[*head].iter().zip(scores).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(same, "head {head}");
    }
    assert!(whole[0].mlp_norm > 0.0 && probes.iter().all(|probe| probe.mlp_norm > 0.0));
    assert!(runner.probe(3, &states.hidden_states[1]).is_err());
}
