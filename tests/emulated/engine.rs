//! A small random Llama, decoded on an emulated device: the same tokens as the reference's.

use std::sync::Arc;

use fewsync::comm::Shape;
use fewsync::comm::gpu::GroupOptions;
use fewsync::driver::{Device, EmulatorOptions};
use fewsync::engine::{Engine, EngineOptions};
use fewsync::generate::{Sampler, Sampling, argmax};
use fewsync::model::random::RandomModel;
use fewsync::model::{Config, RopeScaling, TensorSource};
use fewsync::reference::{Reference, ReferenceOptions};
use fewsync::runner::{Batch, Runner};
use fewsync::spd::{Plan, dropping};

use crate::common::judge::Agreement;

/// Two layers, grouped-query attention, a head width that there are kernels for, sizes that no tile divides.
fn config() -> Config {
    Config {
        hidden: 136,
        ffn: 192,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 64,
        vocab: 200,
        context: 64,
        rms_eps: 1e-5,
        rope_base: 10_000.0,
        rope_scaling: RopeScaling::None,
        tied: false,
        bos: Some(1),
        eos: vec![2],
    }
}

/// Greedy tokens on one rank whose logits were compared with the reference's on the way.
fn decode(options: &str, engine_options: EngineOptions, n_tokens: usize) -> Vec<u32> {
    decode_ranks(options, engine_options, &Plan::synchronised(1, config().n_layers), n_tokens)
}

/// The same on as many devices as the plan has ranks.
fn decode_ranks(options: &str, engine_options: EngineOptions, plan: &Plan, n_tokens: usize) -> Vec<u32> {
    let config = config();
    let source: Arc<dyn TensorSource> = Arc::new(RandomModel::new(config.clone(), 5));
    let mut options: EmulatorOptions = options.parse().unwrap();
    options.devices = plan.tp() as u32;
    let devices = Device::emulated(&options);
    let mut engine =
        Engine::load(&config, &source, plan, &devices, &engine_options, &Arc::default()).unwrap();
    let shape = ReferenceOptions::new(Shape { nodes: 1, gpus_per_node: plan.tp() });
    let mut reference = Reference::load(&config, &source, plan, &shape, &Arc::default()).unwrap();

    let prompt: Vec<u32> = (0..19).map(|i| (i * 37 + 11) % config.vocab as u32).collect();
    let logits = engine.forward(&Batch::prefill(0, &prompt)).unwrap().logits;
    let mut expected = reference.forward(&Batch::prefill(0, &prompt)).unwrap().logits;
    judge(&logits, &expected);
    let mut token = argmax(&logits);
    let mut tokens = Vec::new();
    let mut samplers = [Sampler::new(Sampling::GREEDY)];
    for _ in 0..n_tokens {
        assert_eq!(token, argmax(&expected), "token {}", tokens.len());
        tokens.push(token);
        expected = reference.forward(&Batch::decode(&[token])).unwrap().logits;
        token = engine.decode_sampled(&[token], &mut samplers).unwrap()[0];
    }
    tokens
}

fn judge(seen: &[f32], expected: &[f32]) {
    let mut agreement = Agreement::default();
    agreement.add(seen, expected, expected.len());
    agreement.judge("prompt");
}

fn options() -> EngineOptions {
    EngineOptions { kv_tokens: Some(128), page_size: 16, ..EngineOptions::default() }
}

#[test]
fn eight_tokens_are_those_of_the_reference() {
    let graphs = decode("", options(), 8);
    let independent = GroupOptions { dependent_launch: false, ..GroupOptions::default() };
    for (machine, engine) in [
        ("schedule=random,seed=1", EngineOptions { graphs: false, ..options() }),
        ("schedule=adversarial,seed=2", EngineOptions { comm: independent, ..options() }),
    ] {
        assert_eq!(decode(machine, engine, 8), graphs, "{machine}");
    }
}

#[test]
fn ranks_on_devices_of_their_own_give_the_reference_s_tokens() {
    for tp in [2, 4] {
        let n_layers = config().n_layers;
        decode_ranks("", options(), &Plan::synchronised(tp, n_layers), 8);
        decode_ranks("schedule=random,seed=3", options(), &dropping(tp, n_layers, &[1]), 3);
    }
}

#[test]
fn the_engine_has_no_race() {
    decode("race", options(), 8);
}

#[test]
fn ranks_that_drop_a_sync_point_have_no_race_in_weak_memory() {
    decode_ranks("race,weak,schedule=random,seed=6", options(), &dropping(2, config().n_layers, &[1]), 2);
}

#[test]
fn weak_memory_changes_nothing() {
    decode("weak,seed=4", options(), 2);
}
