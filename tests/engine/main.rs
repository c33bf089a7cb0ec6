//! The engine on GPUs, judged by the reference: logits teacher-forced, and paths of the engine against each
//! other. Tests without their GPUs say so and pass.
//!
//! Run alone on a machine without cargo: `engine --nocapture`. `FEWSYNC_REQUIRE_GPU=1` turns a missing GPU into a
//! failure.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[path = "../common/mod.rs"]
mod common;
#[path = "../gpu/mod.rs"]
mod gpu;
mod ranks;
mod sampling;

use std::sync::Arc;

use common::golden::{Case, golden};
use common::judge::{Agreement, MARGIN, TOLERANCE};
use common::{load_plan, shape};
use fewsync::comm::gpu::GroupOptions;
use fewsync::driver::Device;
use fewsync::engine::{Engine, EngineOptions};
use fewsync::generate::{Sampler, Sampling, argmax};
use fewsync::model::Model;
use fewsync::runner::{Batch, LogitRows, Output, RunError, Runner, Span};
use fewsync::spd::{BlockPlan, Plan};
use gpu::gpu;

/// A KV cache that is small enough to be filled by a test.
fn options() -> EngineOptions {
    EngineOptions { kv_tokens: Some(4096), ..EngineOptions::default() }
}

fn engine_with(model: &Model, plan: &Plan, device: &Device, options: &EngineOptions) -> Engine {
    let devices = std::slice::from_ref(device);
    Engine::load(&model.config, &model.source, plan, devices, options, &Arc::default()).unwrap()
}

fn engine(model: &Model, device: &Device, options: &EngineOptions) -> Engine {
    engine_with(model, &synchronised(model), device, options)
}

fn synchronised(model: &Model) -> Plan {
    Plan::synchronised(1, model.config.n_layers)
}

fn dropped(model: &Model) -> Plan {
    Plan::new(1, vec![BlockPlan { sync_attention: false, ..BlockPlan::default() }; model.config.n_layers])
}

/// Tokens without a pattern.
fn tokens(n: usize, seed: usize, vocab: usize) -> Vec<u32> {
    let mixed = |i: usize| (i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33;
    (0..n).map(|i| (mixed(i + 1 + 100_003 * seed) % vocab as u64) as u32).collect()
}

fn prefill(runner: &mut dyn Runner, sequence: usize, tokens: &[u32]) -> Vec<f32> {
    let spans = vec![Span { sequence, tokens: tokens.to_vec() }];
    runner.forward(&Batch { spans, logits: LogitRows::All, hidden_states: false }).unwrap().logits
}

/// Prefill of `prompt` and then `n_steps` steps of given tokens on both, logits compared everywhere.
fn follow(seen: &mut dyn Runner, judge: &mut dyn Runner, n_prompt: usize, n_steps: usize) -> Agreement {
    let vocab = judge.config().vocab;
    let all = tokens(n_prompt + n_steps, 1, vocab);
    let (prompt, steps) = all.split_at(n_prompt);
    let mut agreement = Agreement::default();
    agreement.add(&prefill(seen, 0, prompt), &prefill(judge, 0, prompt), vocab);
    for &token in steps {
        let step = Batch::decode(&[token]);
        agreement.add(&seen.forward(&step).unwrap().logits, &judge.forward(&step).unwrap().logits, vocab);
    }
    agreement
}

#[test]
fn random_models_match_the_reference() {
    let Some((_guard, device)) = gpu("random models") else { return };
    // Head widths 64 and 128, heads in uneven groups, a tied head, Llama 3.1's rotary scaling.
    for (spec, n_prompt) in [
        ("random:smollm2,layers=6", 150),
        ("random:llama3.2-1b,layers=2", 40),
        ("random:llama3-8b,layers=2", 40),
    ] {
        let model = Model::open(spec).unwrap();
        let mut reference = load_plan(&model, shape(1, 1), &synchronised(&model));
        for fuse_norms in [true, false] {
            let mut engine = engine(&model, &device, &EngineOptions { fuse_norms, ..options() });
            reference.truncate(0, 0).unwrap();
            follow(&mut engine, &mut reference, n_prompt, 12)
                .judge(&format!("{spec}, fused norms {fuse_norms}"));
        }
    }
}

#[test]
fn hidden_states_match_the_reference() {
    let Some((_guard, device)) = gpu("hidden states") else { return };
    let model = Model::open("random:smollm2,layers=3").unwrap();
    let mut engine = engine(&model, &device, &options());
    let mut reference = load_plan(&model, shape(1, 1), &synchronised(&model));
    for n in [40, 1] {
        let spans = vec![Span { sequence: 0, tokens: tokens(n, n, model.config.vocab) }];
        let batch = Batch { spans, logits: LogitRows::Last, hidden_states: true };
        let (seen, expected) = (engine.forward(&batch).unwrap(), reference.forward(&batch).unwrap());
        assert_eq!(seen.hidden_states.len(), model.config.n_layers + 1);
        assert_eq!(seen.hidden_states[0], expected.hidden_states[0], "the embedding is exact");
        judge_hidden_states(&seen, &expected, &format!("{n} tokens"));
    }
}

/// Every block's output within the tolerance of the reference's.
fn judge_hidden_states(seen: &Output, expected: &Output, what: &str) {
    for (layer, (seen, expected)) in seen.hidden_states.iter().zip(&expected.hidden_states).enumerate() {
        let scale = expected.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
        let error = seen.iter().zip(expected).fold(0.0_f32, |max, (a, b)| max.max((a - b).abs())) / scale;
        assert!(error <= TOLERANCE, "block {layer}, {what}: {error}");
    }
}

/// Feeds the golden tokens behind a prompt whose logits are these, and compares each where the margin tells them apart.
fn follow_golden(engine: &mut Engine, case: &Case, mut logits: Vec<f32>, what: &str) {
    let mut compared = 0;
    for (step, (&token, &margin)) in case.greedy.iter().zip(&case.margin).enumerate() {
        if margin > MARGIN {
            assert_eq!(argmax(&logits), token, "'{}', step {step}, margin {margin}", case.prompt);
            compared += 1;
        }
        logits = engine.forward(&Batch::decode(&[token])).unwrap().logits;
    }
    println!("{what}: '{}', {compared} of {} tokens compared", case.prompt, case.greedy.len());
    assert!(compared > 0, "'{}': no token could be compared", case.prompt);
}

/// Golden tokens of the trained model, from an independent forward pass in f32.
#[test]
fn golden_tokens_of_the_trained_model() {
    let Some((_guard, device)) = gpu("golden") else { return };
    let model = match Model::open("smollm2") {
        Ok(model) => model,
        Err(reason) => return println!("golden: skipped, {reason}"),
    };
    let mut engine = engine(&model, &device, &options());
    for case in golden().cases {
        engine.truncate(0, 0).unwrap();
        let logits = engine.forward(&Batch::prefill(0, &case.prompt_ids)).unwrap().logits;
        let scale = logits.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
        for &(id, expected) in &case.first_top10_logits {
            let error = (logits[id as usize] - expected).abs() / scale;
            assert!(
                error <= TOLERANCE,
                "'{}': logit of {id} is {}, not {expected}",
                case.prompt,
                logits[id as usize]
            );
        }
        follow_golden(&mut engine, &case, logits, "golden");
    }
}

#[test]
fn a_prompt_in_chunks_is_the_prompt() {
    let Some((_guard, device)) = gpu("chunks") else { return };
    let model = Model::open("random:smollm2,layers=4").unwrap();
    let vocab = model.config.vocab;
    let prompt = tokens(1500, 3, vocab);
    for page_size in [16, 64] {
        let mut engine = engine(&model, &device, &EngineOptions { page_size, ..options() });
        // Longer than a pass, so that the engine itself cuts it too.
        let whole = prefill(&mut engine, 0, &prompt);
        let mut pieces = Vec::new();
        let mut rest = prompt.as_slice();
        for n in [1, 7, 64, 1, 127, 300, 1000] {
            let (piece, behind) = rest.split_at(n);
            pieces.extend(prefill(&mut engine, 1, piece));
            rest = behind;
        }
        assert!(rest.is_empty());
        let mut agreement = Agreement::default();
        agreement.add(&pieces, &whole, vocab);
        agreement.judge(&format!("chunks, pages of {page_size}"));
        assert!(agreement.compared > 100);
    }
}

#[test]
fn a_ragged_batch_is_each_of_its_sequences() {
    let Some((_guard, device)) = gpu("ragged") else { return };
    let model = Model::open("random:llama3.2-1b,layers=2").unwrap();
    let vocab = model.config.vocab;
    let mut engine = engine(&model, &device, &options());
    let lengths = [5, 1, 130, 17, 64, 2, 33, 1, 9];
    let prompts: Vec<Vec<u32>> = lengths.iter().enumerate().map(|(i, &n)| tokens(n, i, vocab)).collect();
    let batch = |spans: Vec<Span>| Batch { spans, logits: LogitRows::Last, hidden_states: false };
    let span = |i: usize, tokens: &[u32]| Span { sequence: i, tokens: tokens.to_vec() };
    let together = batch(prompts.iter().enumerate().map(|(i, p)| span(i, p)).collect());
    let mut logits = engine.forward(&together).unwrap().logits;
    // Mixed: one sequence goes on with a prompt while the others decode, out of order.
    let order = [3, 0, 8, 2, 1, 7, 4, 5, 6];
    let mixed =
        batch(order.iter().map(|&i| span(i, &tokens(if i == 4 { 40 } else { 1 }, 50 + i, vocab))).collect());
    logits.extend(engine.forward(&mixed).unwrap().logits);
    let steps = [vec![8, 0, 4], (0..9).collect::<Vec<usize>>(), vec![4]];
    for (step, sequences) in steps.iter().enumerate() {
        let fed = sequences.iter().map(|&i| span(i, &tokens(1, 70 + 10 * step + i, vocab)));
        logits.extend(engine.forward(&batch(fed.collect())).unwrap().logits);
    }

    let mut alone = vec![Vec::new(); 9];
    for i in 0..9 {
        let mut feed = |tokens: &[u32]| {
            alone[i].push(engine.forward(&batch(vec![span(20 + i, tokens)])).unwrap().logits);
        };
        feed(&prompts[i]);
        feed(&tokens(if i == 4 { 40 } else { 1 }, 50 + i, vocab));
        for (step, sequences) in steps.iter().enumerate() {
            if sequences.contains(&i) {
                feed(&tokens(1, 70 + 10 * step + i, vocab));
            }
        }
    }
    let mut next = alone.iter().map(|rows| rows.iter()).collect::<Vec<_>>();
    let expected = (0..9).chain(order).chain(steps.concat()).flat_map(|i| next[i].next().unwrap().clone());
    let mut agreement = Agreement::default();
    agreement.add(&logits, &expected.collect::<Vec<f32>>(), vocab);
    agreement.judge("ragged");
    assert!(next.iter_mut().all(|rows| rows.next().is_none()));
}

#[test]
fn a_shortened_sequence_goes_on_as_before() {
    let Some((_guard, device)) = gpu("truncate") else { return };
    let model = Model::open("random:smollm2,layers=2").unwrap();
    let vocab = model.config.vocab;
    let mut engine = engine(&model, &device, &EngineOptions { page_size: 16, ..options() });
    prefill(&mut engine, 0, &tokens(100, 1, vocab));
    prefill(&mut engine, 1, &tokens(60, 2, vocab));
    let steps = |engine: &mut Engine| -> Vec<Output> {
        let feed = |token| engine.forward(&Batch::decode(&[token, token + 1])).unwrap();
        (0..40).map(feed).collect()
    };
    let first = steps(&mut engine);
    // Pages come back in another order; the other sequence stays.
    engine.truncate(0, 90).unwrap();
    engine.truncate(1, 60).unwrap();
    prefill(&mut engine, 2, &tokens(50, 3, vocab));
    prefill(&mut engine, 0, &tokens(100, 1, vocab)[90..]);
    let again = steps(&mut engine);
    let mut agreement = Agreement::default();
    for (first, again) in first.iter().zip(&again) {
        agreement.add(&again.logits, &first.logits, vocab);
    }
    agreement.judge("truncate");
    engine.truncate(2, 0).unwrap();
    engine.truncate(7, 0).unwrap();
}

/// Replays are the launches that they recorded: same bits as one by one, and no memory.
#[test]
fn graphs_replay_what_was_captured() {
    let Some((_guard, device)) = gpu("graphs") else { return };
    let model = Model::open("random:smollm2,layers=2").unwrap();
    let vocab = model.config.vocab;
    let run = |options: EngineOptions| {
        let mut engine = engine(&model, &device, &options);
        prefill(&mut engine, 0, &tokens(30, 5, vocab));
        prefill(&mut engine, 1, &tokens(77, 6, vocab));
        (0..70)
            .flat_map(|i| engine.forward(&Batch::decode(&[i, 2 * i])).unwrap().logits)
            .collect::<Vec<f32>>()
    };
    let captured = run(options());
    let whole_kernels = GroupOptions { dependent_launch: false, ..GroupOptions::default() };
    for plain in
        [EngineOptions { graphs: false, ..options() }, EngineOptions { comm: whole_kernels, ..options() }]
    {
        assert!(run(plain.clone()) == captured, "{plain:?} gives other bits");
    }

    let mut engine = engine(&model, &device, &options());
    let mut samplers = [Sampler::new(Sampling::GREEDY)];
    let mut token = vec![1];
    let mut step = |engine: &mut Engine| token = engine.decode_sampled(&token, &mut samplers).unwrap();
    (0..3).for_each(|_| step(&mut engine));
    let before = device.memory_info().unwrap();
    (0..1000).for_each(|_| step(&mut engine));
    assert_eq!(device.memory_info().unwrap(), before);
}

/// A step taken apart leaves tokens, positions and pages as they were.
#[test]
fn a_profile_changes_nothing() {
    let Some((_guard, device)) = gpu("profile") else { return };
    let model = Model::open("random:smollm2,layers=3").unwrap();
    let mut engine = engine(&model, &device, &options());
    let prompts = [tokens(63, 1, model.config.vocab), tokens(20, 2, model.config.vocab)];
    let mut decoded = |profiled: bool| {
        let mut next = Vec::new();
        for (sequence, prompt) in prompts.iter().enumerate() {
            engine.truncate(sequence, 0).unwrap();
            next.push(argmax(
                prefill(&mut engine, sequence, prompt).chunks(model.config.vocab).last().unwrap(),
            ));
        }
        let mut samplers = vec![Sampler::new(Sampling::GREEDY), Sampler::new(Sampling::GREEDY)];
        let mut all = Vec::new();
        for step in 0..6 {
            if profiled && step == 3 {
                let profile = engine.profile_step(&next).unwrap().expect("a GPU has kernels");
                let kernels: Vec<usize> = profile.classes.iter().map(|class| class.kernels).collect();
                // Per block 4 products, an attention, RoPE and 2 norms; embedding and first norm; no sync alone;
                // the head, its choice, the next positions, the copy to the host.
                assert_eq!(kernels, [12, 3, 11, 0, 4]);
                assert!(profile.whole_us.iter().all(|&us| us > 0.0), "{profile:?}");
            }
            next = engine.decode_sampled(&next, &mut samplers).unwrap();
            all.extend_from_slice(&next);
        }
        all
    };
    let plain = decoded(false);
    assert_eq!(decoded(true), plain);
}

#[test]
fn dropped_blocks_compute_what_they_should() {
    let Some((_guard, device)) = gpu("spd") else { return };
    let model = Model::open("random:llama3.2-1b,layers=2").unwrap();
    let plain = options();
    // A rank that is alone has nothing to drop: every plan is the same model, bit for bit.
    let vocab = model.config.vocab;
    let run = |engine: &mut Engine| -> Vec<f32> {
        let mut logits = prefill(engine, 0, &tokens(50, 8, vocab));
        (0..5).for_each(|i| logits.extend(engine.forward(&Batch::decode(&[i])).unwrap().logits));
        logits
    };
    let mut engine = engine(&model, &device, &plain);
    let expected = run(&mut engine);
    engine.set_plan(&dropped(&model)).unwrap();
    assert!(run(&mut engine) == expected, "with one rank a plan changes nothing");

    // On the dropped blocks' own path the sums are the same, in another order.
    let drop_alone = EngineOptions { drop_alone: true, ..plain };
    let mut engine = engine_with(&model, &dropped(&model), &device, &drop_alone);
    let mut agreement = Agreement::default();
    agreement.add(&run(&mut engine), &expected, vocab);
    agreement.judge("dropped blocks");
    engine.truncate(0, 0).unwrap();
    let mut reference = load_plan(&model, shape(1, 1), &dropped(&model));
    follow(&mut engine, &mut reference, 40, 6).judge("dropped blocks against the reference");

    // Heads in another order are the same model.
    let n_heads = model.config.n_heads;
    let heads: Vec<usize> = (0..n_heads).map(|i| (7 * i + 3) % n_heads).collect();
    let order = BlockPlan { heads: Some(heads), ..BlockPlan::default() };
    engine.set_plan(&Plan::new(1, vec![order; model.config.n_layers])).unwrap();
    let mut agreement = Agreement::default();
    agreement.add(&run(&mut engine), &expected, vocab);
    agreement.judge("heads in another order");
}

#[test]
fn what_does_not_fit_is_refused_with_its_reason() {
    let Some((_guard, device)) = gpu("refusals") else { return };
    let model = Model::open("random:smollm2,layers=2").unwrap();
    let load = |plan: &Plan, options: &EngineOptions| {
        let devices = std::slice::from_ref(&device);
        let engine = Engine::load(&model.config, &model.source, plan, devices, options, &Arc::default());
        engine.map(drop).unwrap_err().to_string()
    };
    let huge = EngineOptions { kv_tokens: Some(1 << 40), ..options() };
    let error = load(&synchronised(&model), &huge);
    assert!(error.contains("of weights") && error.contains("KV cache for 1099511627776 tokens"), "{error}");
    let error = load(&Plan::synchronised(2, 2), &options());
    assert!(error.contains("--tp 2 needs 2 GPUs, but this machine has 1"), "{error}");
    let error = load(&synchronised(&model), &EngineOptions { page_size: 48, ..options() });
    assert!(error.contains("page size of 48"), "{error}");

    let mut engine = engine(&model, &device, &EngineOptions { kv_tokens: Some(256), ..options() });
    prefill(&mut engine, 0, &tokens(200, 1, model.config.vocab));
    let error = engine.forward(&Batch::prefill(1, &tokens(100, 1, model.config.vocab))).unwrap_err();
    assert!(matches!(error, RunError::Engine(_)), "{error}");
    assert!(
        error.to_string().contains("sequence 1 needs 2 more pages of 64 tokens, 0 of 4 are free"),
        "{error}"
    );
    engine.truncate(0, 0).unwrap();
    prefill(&mut engine, 1, &tokens(100, 1, model.config.vocab));
}
