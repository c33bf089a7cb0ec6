//! From `--model --tp --topology --spd --device` to a loaded runner.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{bail, ensure};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

use super::{memory, output};
use crate::comm::Shape;
use crate::model::Model;
use crate::model::sharding::Sharding;
use crate::reference::{Reference, ReferenceOptions};
use crate::runner::Runner;
use crate::spd::{Plan, SpdSpec};

/// Which model, and how it is laid out.
#[derive(Args, Clone)]
pub(super) struct ModelArgs {
    /// smollm2 (fetched once), a Hugging Face id (org/name), a folder, a .gguf or .safetensors file, or
    /// random:SHAPE[,layers=L][,seed=S] for random weights (their tokens are bytes and numbers) of a
    /// shape such as tiny, smollm2, llama2-7b, llama3-8b, llama3-70b, llama3.2-1b
    #[arg(long, default_value = "smollm2", value_name = "MODEL")]
    pub(super) model: String,
    #[command(flatten)]
    pub(super) layout: LayoutArgs,
}

/// How a model is laid out over ranks, and where it runs.
#[derive(Args, Clone)]
pub(super) struct LayoutArgs {
    /// Tensor-parallel degree: the number of ranks, 1 to the number of query heads [default: 1]
    #[arg(long, value_name = "T", value_parser = at_least::<0>, allow_negative_numbers = true)]
    pub(super) tp: Option<usize>,
    /// Nodes x ranks per node, such as 2x3; implies --tp [default: 1 x T]
    #[arg(long, value_name = "NxG", allow_hyphen_values = true)]
    pub(super) topology: Option<Shape>,
    /// Where to run
    #[arg(long, value_enum, default_value_t = Device::Auto)]
    pub(super) device: Device,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq)]
pub(super) enum Device {
    /// The fastest that is there
    Auto,
    /// The reference in f32, one thread a rank
    Cpu,
    /// NVIDIA GPUs
    Cuda,
}

impl LayoutArgs {
    /// The ranks' layout. A contradiction between --tp and --topology is an error.
    pub(super) fn shape(&self) -> anyhow::Result<Shape> {
        match (self.tp, self.topology) {
            (Some(tp), Some(shape)) if shape.world() != tp => {
                let world = shape.world();
                bail!(
                    "--tp {tp} contradicts --topology {shape}, which has {world} ranks: give one of the two"
                )
            }
            (_, Some(shape)) => Ok(shape),
            (tp, None) => Ok(Shape { nodes: 1, gpus_per_node: tp.unwrap_or(1) }),
        }
    }
}

/// A model on its device, ready to run.
pub(super) struct Session {
    pub(super) model: Model,
    pub(super) plan: Plan,
    pub(super) shape: Shape,
    pub(super) runner: Box<dyn Runner>,
}

impl Session {
    /// Blocks that skip their first all-reduce; with one rank there is none to skip.
    pub(super) fn n_dropped(&self) -> usize {
        if self.shape.world() == 1 { 0 } else { self.plan.n_dropped() }
    }

    /// The device without its details: `cpu`, `cuda:0`.
    pub(super) fn device(&self) -> String {
        self.runner.device().split(' ').next().unwrap_or_default().to_string()
    }

    /// Opens the model, checks the layout and the plan against it, and loads every rank's shard.
    pub(super) fn open(args: &ModelArgs, spd: &SpdSpec) -> anyhow::Result<Self> {
        let shape = args.layout.shape()?;
        ensure!(
            args.layout.device != Device::Cuda,
            "device 'cuda' is not there: this version decodes on the CPU only, so use --device cpu"
        );
        ensure!(
            shape.world() > 0,
            "--tp 0 asks for no ranks: give 1 up to the number of the model's query heads"
        );
        let model = Model::open(&args.model)?;
        Sharding::new(&model.config, shape.world())?;
        let plan = spd.resolve(&model.config, &*model.source, shape.world())?;
        if shape.world() == 1 && plan.n_dropped() > 0 {
            output::note(
                "note: with one rank there is nothing to synchronise, so --spd changes nothing: give --tp",
            );
        }
        memory::check(&model)?;
        let runner = Box::new(load(&model, &plan, shape)?);
        Ok(Self { model, plan, shape, runner })
    }
}

/// Tells the progress bar that loading has ended, however it did.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Loads with a progress bar on stderr, or without where the system has no thread for it.
fn load(model: &Model, plan: &Plan, shape: Shape) -> anyhow::Result<Reference> {
    let loaded = Arc::new(AtomicU64::new(0));
    let done = AtomicBool::new(false);
    let options = ReferenceOptions::new(shape);
    let runner = std::thread::scope(|scope| {
        let _done = Done(&done);
        let show = || {
            let bar = progress_bar(model.weight_bytes(), "loading", "{bytes}/{total_bytes}");
            while !done.load(Ordering::Relaxed) {
                bar.set_position(loaded.load(Ordering::Relaxed));
                std::thread::park_timeout(Duration::from_millis(50));
            }
            bar.finish_and_clear();
        };
        drop(std::thread::Builder::new().spawn_scoped(scope, show));
        Reference::load(&model.config, &model.source, plan, &options, &loaded)
    })?;
    Ok(runner)
}

/// A number of at least `MIN`, for clap.
pub(super) fn at_least<const MIN: usize>(s: &str) -> Result<usize, String> {
    s.parse().ok().filter(|&n| n >= MIN).ok_or_else(|| format!("expected a whole number of at least {MIN}"))
}

/// A bar on stderr; invisible where stderr is no terminal.
pub(super) fn progress_bar(len: u64, what: &'static str, counts: &str) -> ProgressBar {
    let template = format!("{{msg}} {{bar:30}} {counts} {{eta}} left");
    let style = ProgressStyle::with_template(&template).expect("a fixed template");
    ProgressBar::new(len).with_style(style).with_message(what)
}
