//! Several ranks, a GPU each, judged by the reference with as many: heads split five to four, a vocabulary of uneven
//! shares, dropped sync points, batches whose logits have to be brought into order.

use std::sync::Arc;

use fewsync::comm::gpu::{GroupOptions, PeerMemory};
use fewsync::driver::Device;
use fewsync::engine::{Engine, EngineOptions};
use fewsync::generate::{Sampler, Sampling, argmax};
use fewsync::model::random::RandomModel;
use fewsync::model::{Config, Model, TensorSource, shapes};
use fewsync::runner::{Batch, LogitRows, Runner, Span};
use fewsync::spd::{BlockPlan, Plan};

use crate::common::golden::golden;
use crate::common::judge::Agreement;
use crate::common::{load_plan, shape};
use crate::gpu::gpus;
use crate::{follow, follow_golden, judge_hidden_states, options, prefill, tokens};

fn engine(model: &Model, plan: &Plan, devices: &[Device], options: &EngineOptions) -> Engine {
    Engine::load(&model.config, &model.source, plan, devices, options, &Arc::default()).unwrap()
}

/// Two ranks; the last `n_dropped` blocks drop their first sync point.
fn plan(config: &Config, n_dropped: usize) -> Plan {
    plan_for(2, config, n_dropped)
}

fn plan_for(tp: usize, config: &Config, n_dropped: usize) -> Plan {
    let n_synchronised = config.n_layers - n_dropped;
    let block = |layer| BlockPlan { sync_attention: layer < n_synchronised, ..BlockPlan::default() };
    Plan::new(tp, (0..config.n_layers).map(block).collect())
}

#[test]
fn two_ranks_match_the_reference() {
    let Some((_guard, devices)) = gpus("two ranks", 2) else { return };
    let mut agreements = Vec::new();
    for (spec, n_prompt) in [
        ("random:smollm2,layers=2", 40),
        ("random:llama3.2-1b,layers=2", 150),
        ("random:llama3-8b,layers=2", 40),
    ] {
        let model = Model::open(spec).unwrap();
        let n_layers = model.config.n_layers;
        let mut engine = engine(&model, &plan(&model.config, 0), &devices, &options());
        for n_dropped in [0, n_layers / 2, n_layers] {
            let plan = plan(&model.config, n_dropped);
            engine.set_plan(&plan).unwrap();
            let mut reference = load_plan(&model, shape(1, 2), &plan);
            let agreement = follow(&mut engine, &mut reference, n_prompt, 12);
            let what = format!("{spec}, {n_dropped} of {n_layers} blocks dropped");
            println!("{what}: {:.2e}", agreement.error);
            agreements.push((what, agreement));
            // A step has as many sync points as the reference's.
            let (seen, expected) = (engine.sync_counts(), reference.sync_counts());
            engine.forward(&Batch::decode(&[1])).unwrap();
            reference.forward(&Batch::decode(&[1])).unwrap();
            let step = |now: fewsync::runner::SyncCounts, then: fewsync::runner::SyncCounts| {
                (now.block_all_reduces - then.block_all_reduces, now.sync_points - then.sync_points)
            };
            let in_step = step(engine.sync_counts(), seen);
            assert_eq!(in_step, step(reference.sync_counts(), expected));
            assert_eq!(in_step.0, (2 * n_layers - n_dropped) as u64);
        }
    }
    // All are seen before one is judged.
    agreements.iter().for_each(|(what, agreement)| agreement.judge(what));
}

#[test]
fn ranks_hold_the_same_bits_behind_every_block() {
    let Some((_guard, devices)) = gpus("two ranks' hidden states", 2) else { return };
    let model = Model::open("random:smollm2,layers=3").unwrap();
    let plan = plan(&model.config, 1);
    let mut engine = engine(&model, &plan, &devices, &options());
    let mut reference = load_plan(&model, shape(1, 2), &plan);
    // More rows than a pass takes, and one alone. `forward` compares the ranks' bits.
    for n in [1200, 1] {
        let spans = vec![Span { sequence: 0, tokens: tokens(n, n, model.config.vocab) }];
        let batch = Batch { spans, logits: LogitRows::Last, hidden_states: true };
        let (seen, expected) = (engine.forward(&batch).unwrap(), reference.forward(&batch).unwrap());
        judge_hidden_states(&seen, &expected, &format!("{n} tokens"));
    }
}

/// Heads 3 + 3 + 3, 3 + 2 + 2 + 2 and 2 + 1 + …: KV heads on one rank, on two, and on three.
#[test]
fn more_ranks_match_the_reference() {
    for tp in [3, 4, 8] {
        let Some((_guard, devices)) = gpus(&format!("{tp} ranks"), tp as u32) else { return };
        for spec in ["random:smollm2,layers=2", "random:llama3.2-1b,layers=2"] {
            let model = Model::open(spec).unwrap();
            let mut engine = engine(&model, &plan_for(tp, &model.config, 0), &devices, &options());
            for n_dropped in 0..=model.config.n_layers {
                let plan = plan_for(tp, &model.config, n_dropped);
                engine.set_plan(&plan).unwrap();
                let mut reference = load_plan(&model, shape(1, tp), &plan);
                let agreement = follow(&mut engine, &mut reference, 40, 12);
                agreement.judge(&format!("{tp} ranks, {spec}, {n_dropped} blocks dropped"));
            }
        }
    }
}

#[test]
fn golden_tokens_on_several_ranks() {
    for tp in [2, 3, 4, 8] {
        let what = format!("golden tokens on {tp} ranks");
        let Some((_guard, devices)) = gpus(&what, tp as u32) else { return };
        let model = match Model::open("smollm2") {
            Ok(model) => model,
            Err(reason) => return println!("{what}: skipped, {reason}"),
        };
        let mut engine = engine(&model, &plan_for(tp, &model.config, 0), &devices, &options());
        for case in golden().cases {
            engine.truncate(0, 0).unwrap();
            let logits = engine.forward(&Batch::prefill(0, &case.prompt_ids)).unwrap().logits;
            follow_golden(&mut engine, &case, logits, &what);
        }
    }
}

/// Tokens chosen on the devices are those that the host would choose from the same logits, whose rows come from two
/// ranks with shares of 385 and 384 granules, the last granule partial.
#[test]
fn batches_over_an_uneven_vocabulary() {
    let Some((_guard, devices)) = gpus("uneven vocabulary", 2) else { return };
    let config = Config { vocab: 49_155, n_layers: 2, ..shapes::named("smollm2").unwrap() };
    let source: Arc<dyn TensorSource> = Arc::new(RandomModel::new(config.clone(), 3));
    let plan = plan(&config, 1);
    let load = || Engine::load(&config, &source, &plan, &devices, &options(), &Arc::default()).unwrap();
    let (mut device, mut host) = (load(), load());
    let n = 5;
    for sequence in 0..n {
        let prompt = tokens(10 + 7 * sequence, sequence, config.vocab);
        let (a, b) = (prefill(&mut device, sequence, &prompt), prefill(&mut host, sequence, &prompt));
        assert!(a == b, "the same work gives the same bits");
    }
    let mut samplers: Vec<Sampler> = (0..n).map(|_| Sampler::new(Sampling::GREEDY)).collect();
    let mut fed: Vec<u32> = (1..=n as u32).collect();
    for step in 0..30 {
        let logits = host.forward(&Batch::decode(&fed)).unwrap().logits;
        let expected: Vec<u32> = logits.chunks(config.vocab).map(argmax).collect();
        fed = device.decode_sampled(&fed, &mut samplers).unwrap();
        assert_eq!(fed, expected, "step {step}");
    }
}

#[test]
fn a_batch_on_two_ranks_is_the_batch_on_one() {
    let Some((_guard, devices)) = gpus("batches on two ranks", 2) else { return };
    let model = Model::open("random:llama3.2-1b,layers=2").unwrap();
    let vocab = model.config.vocab;
    let mut two = engine(&model, &plan(&model.config, 0), &devices, &options());
    let mut one = engine(&model, &Plan::synchronised(1, 2), &devices, &options());
    let run = |engine: &mut Engine| -> Vec<f32> {
        let span = |sequence, n, seed| Span { sequence, tokens: tokens(n, seed, vocab) };
        let batch = |spans| Batch { spans, logits: LogitRows::Last, hidden_states: false };
        let mut logits =
            engine.forward(&batch(vec![span(0, 70, 1), span(1, 3, 2), span(2, 1500, 3)])).unwrap().logits;
        // A prompt goes on while others decode; then a shortened sequence goes on otherwise.
        logits.extend(
            engine.forward(&batch(vec![span(2, 1, 4), span(0, 30, 5), span(1, 1, 6)])).unwrap().logits,
        );
        engine.truncate(2, 900).unwrap();
        for step in 0..10 {
            let fed = batch(vec![span(1, 1, 10 + step), span(2, 1, 30 + step)]);
            logits.extend(engine.forward(&fed).unwrap().logits);
        }
        logits
    };
    let mut agreement = Agreement::default();
    agreement.add(&run(&mut two), &run(&mut one), vocab);
    agreement.judge("batches on two ranks");
}

/// Replays are what was captured, on every rank, and take no memory.
#[test]
fn graphs_of_two_ranks_replay_what_was_captured() {
    let Some((_guard, devices)) = gpus("graphs on two ranks", 2) else { return };
    let model = Model::open("random:smollm2,layers=2").unwrap();
    let vocab = model.config.vocab;
    let plan = plan(&model.config, 1);
    let run = |options: EngineOptions| {
        let mut engine = engine(&model, &plan, &devices, &options);
        prefill(&mut engine, 0, &tokens(30, 5, vocab));
        (0..40).flat_map(|i| engine.forward(&Batch::decode(&[i])).unwrap().logits).collect::<Vec<f32>>()
    };
    let captured = run(options());
    let whole_kernels = GroupOptions { dependent_launch: false, ..GroupOptions::default() };
    let staged = GroupOptions { memory: PeerMemory::HostStaged, ..GroupOptions::default() };
    for other in [
        EngineOptions { graphs: false, ..options() },
        EngineOptions { comm: whole_kernels, ..options() },
        EngineOptions { comm: staged, ..options() },
    ] {
        assert!(run(other.clone()) == captured, "{other:?} gives other bits");
    }

    let mut engine = engine(&model, &plan, &devices, &options());
    let mut samplers = [Sampler::new(Sampling::GREEDY)];
    let mut token = vec![1];
    let mut step = |engine: &mut Engine| token = engine.decode_sampled(&token, &mut samplers).unwrap();
    (0..3).for_each(|_| step(&mut engine));
    let free = || devices.iter().map(|device| device.memory_info().unwrap()).collect::<Vec<_>>();
    let before = free();
    (0..200).for_each(|_| step(&mut engine));
    assert_eq!(free(), before);
}

#[test]
fn heads_in_another_order_are_the_same_model() {
    let Some((_guard, devices)) = gpus("another order of heads on two ranks", 2) else { return };
    let model = Model::open("random:smollm2,layers=2").unwrap();
    let vocab = model.config.vocab;
    let run = |engine: &mut Engine| prefill(engine, 0, &tokens(60, 8, vocab));
    let mut engine = engine(&model, &plan(&model.config, 0), &devices, &options());
    let expected = run(&mut engine);
    // Every KV head on both ranks: one more than in the order of the checkpoint.
    let heads = Some(vec![0, 3, 6, 1, 4, 7, 2, 5, 8]);
    let order = BlockPlan { heads, ..BlockPlan::default() };
    engine.set_plan(&Plan::new(2, vec![order; model.config.n_layers])).unwrap();
    let mut agreement = Agreement::default();
    agreement.add(&run(&mut engine), &expected, vocab);
    agreement.judge("heads in another order on two ranks");
}
