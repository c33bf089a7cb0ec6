//! The composed block against the reference, its gradients against differences, and whole runs on a random model.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use candle_core::{Device, Tensor as Matrix};

use super::block::Geometry;
use super::weights::Layout;
use super::*;
use crate::comm::Shape;
use crate::model::random::RandomModel;
use crate::model::shapes;
use crate::model::sharding::Sharding;
use crate::reference::{Reference, ReferenceOptions};
use crate::runner::{Batch, LogitRows, Runner, Span};
use crate::spd::BlockPlan;

const CONTEXT: usize = 24;

/// Six query heads on three KV heads, five ranks, of which the last two have no MLP columns.
fn uneven() -> Config {
    let tiny = shapes::named("tiny").unwrap();
    Config { hidden: 96, ffn: 160, n_heads: 6, n_kv_heads: 3, head_dim: 16, ..tiny }
}

fn tokens(n: usize, vocab: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 7) % vocab as u32).collect()
}

/// The hidden states of one chunk under a plan.
fn hidden_states(config: &Config, plan: &Plan, tokens: &[u32]) -> Vec<Vec<f32>> {
    let source: std::sync::Arc<dyn TensorSource> = std::sync::Arc::new(RandomModel::new(config.clone(), 3));
    let options = ReferenceOptions::new(Shape { nodes: 1, gpus_per_node: plan.tp() });
    let mut runner = Reference::load(config, &source, plan, &options, &Default::default()).unwrap();
    let spans = vec![Span { sequence: 0, tokens: tokens.to_vec() }];
    let batch = Batch { spans, logits: LogitRows::Last, hidden_states: true };
    runner.forward(&batch).unwrap().hidden_states
}

/// The largest difference, relative to the largest value.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    a.iter().zip(b).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / largest
}

#[test]
fn the_composed_block_is_the_references() {
    let config = uneven();
    let model = RandomModel::new(config.clone(), 3);
    let tokens = tokens(CONTEXT, config.vocab);
    let geometry = Geometry::new(&config, CONTEXT).unwrap();
    for tp in [2, 3, 5] {
        for order in [None, Some(vec![4, 0, 3, 1, 5, 2])] {
            for sync_attention in [true, false] {
                let block = BlockPlan { sync_attention, heads: order.clone(), replacement: None };
                let states = hidden_states(&config, &Plan::new(tp, vec![block; 2]), &tokens);
                let sharding = Sharding::new(&config, tp).unwrap();
                for layer in 0..2 {
                    let layout = Layout::new(&config, &model, &sharding, layer, order.as_deref());
                    let weights = layout.load().unwrap();
                    let shape = (CONTEXT, config.hidden);
                    let x = Matrix::from_slice(&states[layer], shape, &Device::Cpu).unwrap();
                    let kv_of = Matrix::new(layout.kv_of(), &Device::Cpu).unwrap();
                    let attended = geometry.attend(&x, &weights, &kv_of).unwrap();
                    let block = if sync_attention { Geometry::synchronised } else { Geometry::dropped };
                    let out = block(&geometry, &x, &attended, &weights).unwrap();
                    let out = out.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                    let off = distance(&out, &states[layer + 1]);
                    assert!(off < 3e-6, "tp {tp}, {order:?}, sync {sync_attention}, block {layer}: {off:e}");
                    assert!(layout.changed(&weights).unwrap().is_empty(), "the teacher differs from itself");
                }
            }
        }
    }
}

/// Every variable's gradient against the difference of losses along it.
#[test]
fn gradients_are_the_slopes() {
    let config = uneven();
    let model = RandomModel::new(config.clone(), 3);
    let sharding = Sharding::new(&config, 3).unwrap();
    let layout = Layout::new(&config, &model, &sharding, 1, Some(&[4, 0, 3, 1, 5, 2]));
    let kv_of = Matrix::new(layout.kv_of(), &Device::Cpu).unwrap();
    let geometry = Geometry::new(&config, CONTEXT).unwrap();
    let (weights, vars) = train::trainable(&layout.load().unwrap(), Trainable::All).unwrap();
    let x = Matrix::randn(0f32, 1.0, (2 * CONTEXT, config.hidden), &Device::Cpu).unwrap();
    let target = Matrix::randn(0f32, 1.0, (2 * CONTEXT, config.hidden), &Device::Cpu).unwrap();
    let loss = || {
        let attended = geometry.attend(&x, &weights, &kv_of)?;
        (geometry.dropped(&x, &attended, &weights)? - &target)?.sqr()?.mean_all()
    };
    let value = || f64::from(loss().unwrap().to_scalar::<f32>().unwrap());
    let gradients = loss().unwrap().backward().unwrap();
    // Norm, q, k, v; an output projection a rank; a norm and three projections on each of the three with columns.
    assert_eq!(vars.len(), 4 + 3 + 3 * 4);
    for (number, var) in vars.iter().enumerate() {
        let gradient = gradients.get(var).unwrap();
        let square = f64::from(gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
        // A step that changes the loss by about a hundredth: far above rounding, nearly straight.
        let step = 5e-3 * value() / square;
        let start = var.as_tensor().copy().unwrap();
        let at = |step: f64| {
            var.set(&(&start + (gradient * step).unwrap()).unwrap()).unwrap();
            value()
        };
        let slope = (at(step) - at(-step)) / (2.0 * step);
        var.set(&start).unwrap();
        assert!(
            (slope / square - 1.0).abs() < 1e-2,
            "variable {number}: slope {slope:e}, gradient {square:e}"
        );
    }
}

/// A job over a random model whose second block drops.
struct Stage {
    config: Config,
    model: RandomModel,
    plan: Plan,
    tokens: Vec<u32>,
    options: Options,
}

impl Stage {
    fn new(train: Trainable, closed_form: bool) -> Self {
        let config = Config { n_layers: 3, ..uneven() };
        let dropped = |layer| BlockPlan { sync_attention: layer == 0, ..BlockPlan::default() };
        let options = Options {
            closed_form,
            train,
            context: CONTEXT,
            batch: 2,
            epochs: 2,
            hold_out: 0.1,
            learning_rate: 3e-3,
            ..Options::default()
        };
        Self {
            model: RandomModel::new(config.clone(), 3),
            plan: Plan::new(3, (0..3).map(dropped).collect()),
            tokens: tokens(100 * CONTEXT + 7, config.vocab),
            config,
            options,
        }
    }

    fn run(
        &self,
        folder: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<BlockResult>, DistillError> {
        let job = Job {
            config: &self.config,
            source: &self.model,
            plan: &self.plan,
            blocks: &[1, 2],
            tokens: &self.tokens,
            options: &self.options,
            folder,
        };
        distill(&job, progress)
    }
}

#[test]
fn every_way_of_training_recovers_some_of_the_loss() {
    for (train, closed_form, most) in [
        (Trainable::None, true, 0.95),
        (Trainable::Norms, false, 0.995),
        (Trainable::Mlp, false, 0.95),
        (Trainable::All, false, 0.95),
        (Trainable::Mlp, true, 0.95),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let results = Stage::new(train, closed_form).run(dir.path(), &mut |_| {}).unwrap();
        assert_eq!(results.iter().map(|r| r.block).collect::<Vec<_>>(), [1, 2]);
        for r in results {
            let left = r.distilled / r.zero_shot;
            assert!(left < most, "{train:?}, closed form {closed_form}, block {}: {left}", r.block);
            assert_eq!(r.closed_form.is_some(), closed_form);
            assert!(train == Trainable::None || r.steps > 0 || closed_form);
        }
    }
}

#[test]
fn an_interrupted_run_ends_with_the_same_bits() {
    let stage = Stage::new(Trainable::All, true);
    let (whole, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut total = 0;
    let expected = stage.run(whole.path(), &mut |progress| total = progress.total).unwrap();
    // In the first block's walk, in the second block's training and in the third one's closed form.
    for stop in [5, total / 4, total * 5 / 8] {
        let quit = |progress: Progress| assert!(progress.done < stop, "interrupted");
        let result = catch_unwind(AssertUnwindSafe(|| stage.run(broken.path(), &mut { quit })));
        assert!(result.is_err());
    }
    let (mut first, mut last) = (None, 0);
    let results = stage.run(broken.path(), &mut |progress| {
        first.get_or_insert(progress.done);
        last = progress.done;
    });
    assert!(first.unwrap() > total / 2 && last == total, "{first:?} to {last} of {total}");
    for (a, b) in results.unwrap().iter().zip(&expected) {
        // The numbers of a report may lose their last bit on the way through text.
        assert!((a.distilled / b.distilled - 1.0).abs() < 1e-15 && a.steps == b.steps, "{a:?} {b:?}");
    }
    let names = |dir: &Path| {
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(whole.path()), ["block1.safetensors", "block2.safetensors", "distill.json"]);
    assert_eq!(names(broken.path()), names(whole.path()));
    for layer in [1, 2] {
        let read = |dir: &Path| fs::read(dir.join(block_file(layer))).unwrap();
        assert!(read(whole.path()) == read(broken.path()), "block {layer}");
    }
    // What is done is not done again.
    let again = stage.run(whole.path(), &mut |progress| panic!("{progress:?}")).unwrap();
    assert_eq!(again.len(), expected.len());
}

/// The reference, with the written tensors laid over the model, is as far from the synchronised block as the
/// run says.
#[test]
fn the_reference_confirms_what_was_written() {
    let mut stage = Stage::new(Trainable::All, true);
    stage.plan = Plan::new(
        3,
        vec![
            BlockPlan::default(),
            BlockPlan { sync_attention: false, heads: Some(vec![4, 0, 3, 1, 5, 2]), replacement: None },
            BlockPlan { sync_attention: false, ..BlockPlan::default() },
        ],
    );
    let dir = tempfile::tempdir().unwrap();
    let result = &stage.run(&dir.path().join("new"), &mut |_| {}).unwrap()[0];
    let mut blocks = stage.plan.blocks().to_vec();
    blocks[1].replacement = Some(Path::new("new").join(block_file(1)));
    blocks[2] = BlockPlan::default();
    let path = dir.path().join("plan.json");
    Plan::new(3, blocks).write(&path, &stage.model.fingerprint().unwrap()).unwrap();
    let plan = Plan::read(&path, &stage.config, &stage.model, 3).unwrap();

    let (_, held_out) = samples::split(100, stage.options.hold_out);
    let synchronised = Plan::synchronised(3, 3);
    let mut error = 0.0;
    for &chunk in &held_out {
        let tokens = &stage.tokens[chunk * CONTEXT..][..CONTEXT];
        let target = hidden_states(&stage.config, &synchronised, tokens).swap_remove(2);
        let out = hidden_states(&stage.config, &plan, tokens).swap_remove(2);
        for (target, out) in target.chunks(stage.config.hidden).zip(out.chunks(stage.config.hidden)) {
            let square =
                |values: &mut dyn Iterator<Item = f32>| -> f64 { values.map(|v| f64::from(v * v)).sum() };
            let off = square(&mut target.iter().zip(out).map(|(a, b)| a - b));
            error += off / square(&mut target.iter().copied());
        }
    }
    error /= (held_out.len() * CONTEXT) as f64;
    assert!((error / result.distilled - 1.0).abs() < 1e-3, "{error:e}, the run says {:e}", result.distilled);
}

#[test]
fn what_cannot_be_distilled_is_refused() {
    let refused = |change: fn(&mut Stage), reason: &str| {
        let mut stage = Stage::new(Trainable::Mlp, true);
        change(&mut stage);
        let dir = tempfile::tempdir().unwrap();
        let message = stage.run(dir.path(), &mut |_| {}).unwrap_err().to_string();
        assert!(message.contains(reason), "{message}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{reason}: something was written");
    };
    refused(|s| s.tokens.truncate(2 * CONTEXT - 1), "less than two chunks of 24");
    refused(|s| s.tokens[5] = 512, "token 512");
    refused(|s| s.options.context = 1, "chunks of 1 tokens");
    refused(|s| s.options.context = 4096, "2 to 1024");
    refused(|s| s.options.learning_rate = f64::NAN, "learning rate of NaN");
    refused(|s| s.options.hold_out = 1.0, "held-out share of 1");
    refused(|s| s.options.batch = 0, "choose at least 1");
    refused(|s| s.plan = Plan::synchronised(3, 3), "block 1 synchronises");
    refused(|s| s.plan = Plan::synchronised(3, 2), "has 2 blocks");
    refused(|s| s.plan = Plan::new(1, s.plan.blocks().to_vec()), "for one rank");
}

#[test]
fn another_run_in_the_folder_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut stage = Stage::new(Trainable::None, true);
    stage.run(dir.path(), &mut |_| {}).unwrap();
    let record = fs::read(dir.path().join("distill.json")).unwrap();
    stage.options.seed += 1;
    let message = stage.run(dir.path(), &mut |_| {}).unwrap_err().to_string();
    assert!(message.contains("belongs to another run"), "{message}");
    assert_eq!(fs::read(dir.path().join("distill.json")).unwrap(), record);
}

#[test]
fn two_runs_do_not_share_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::new(Trainable::None, true);
    let mut second = None;
    let first = stage.run(dir.path(), &mut |_| {
        second.get_or_insert_with(|| stage.run(dir.path(), &mut |_| {}).unwrap_err().to_string());
    });
    assert_eq!(first.unwrap().len(), 2);
    assert!(second.as_ref().is_some_and(|m| m.contains("another run is at work")), "{second:?}");
}

#[test]
fn a_loss_that_is_no_number_ends_the_run() {
    let mut stage = Stage::new(Trainable::Mlp, false);
    stage.options.learning_rate = 1e30;
    let dir = tempfile::tempdir().unwrap();
    let error = stage.run(dir.path(), &mut |_| {}).unwrap_err();
    assert!(matches!(error, DistillError::NotFinite { layer: 1, step: 1.. }), "{error}");
    assert!(!dir.path().join(block_file(1)).exists());
}
