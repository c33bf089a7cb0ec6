//! From `--model --tp --topology --spd --device` to a loaded runner.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};

use super::agreement::Item;
use super::layout::{DeviceChoice, LayoutArgs, ModelArgs, SyncArgs};
use super::world::World;
use super::{memory, output};
use crate::comm::bootstrap::{Bootstrap, Mesh};
use crate::comm::process::Lead;
use crate::comm::{CommError, Shape};
use crate::driver::Device;
use crate::engine::{Engine, EngineError, EngineOptions};
use crate::model::Model;
use crate::model::sharding::Sharding;
use crate::reference::{Reference, ReferenceOptions};
use crate::runner::{RunError, Runner};
use crate::spd::{Plan, SpdSpec};

/// This process's GPU: the one of its number among the processes of its host, or the only one that it sees.
pub(super) fn local_gpu(world: &dyn Bootstrap) -> Result<Device, EngineError> {
    let hosts = world.hosts();
    let rank = world.rank();
    let local = hosts[..rank].iter().filter(|host| **host == hosts[rank]).count();
    let found = Device::cuda_count()? as usize;
    let ordinal = if found == 1 { 0 } else { local };
    if ordinal >= found {
        let here = hosts.iter().filter(|host| **host == hosts[rank]).count();
        return Err(EngineError::TooFewGpus { tp: here, found });
    }
    Ok(Device::cuda(ordinal as u32)?)
}

/// A model, its layout and its plan, which fit each other; nothing is loaded.
pub(super) struct Prepared<'a> {
    pub(super) model: Model,
    plan: Plan,
    shape: Shape,
    layout: &'a LayoutArgs,
    world: &'a World,
}

impl<'a> Prepared<'a> {
    /// Opens the model, and checks the layout and the plan against it.
    pub(super) fn open(args: &'a ModelArgs, spd: &SpdSpec, world: &'a World) -> anyhow::Result<Self> {
        let shape = args.layout.shape_in(world)?;
        ensure!(
            shape.world() > 0,
            "--tp 0 asks for no ranks: give 1 up to the number of the model's query heads"
        );
        let model = Model::open(&args.model)?;
        Sharding::new(&model.config, shape.world())?;
        let plan = spd.resolve(&model.config, &*model.source, shape.world())?;
        Ok(Self { model, plan, shape, layout: &args.layout, world })
    }

    /// Loads every rank's shard, once all processes agree on the model, the plan and what is to be done with them.
    pub(super) fn load(self, task: Option<Item>) -> anyhow::Result<Session> {
        let Self { model, plan, shape, layout, world } = self;
        world.agree(|| {
            let items = [Item::new("model", [model.source.fingerprint()?]), plan_item(&plan)];
            Ok(items.into_iter().chain(task).collect())
        })?;
        if shape.world() == 1 && plan.n_dropped() > 0 {
            output::note(
                "note: with one rank there is nothing to synchronise, so --spd changes nothing: give --tp",
            );
        }
        let runner = load(&model, &plan, shape, layout, world)?;
        let (world, sync) = (world.clone(), layout.sync.clone());
        Ok(Session { model, plan, shape, runner, world, sync })
    }
}

fn plan_item(plan: &Plan) -> Item {
    Item::new("SPD plan", [plan.fingerprint()])
}

/// A model on its device, ready to run.
pub(super) struct Session {
    pub(super) model: Model,
    pub(super) plan: Plan,
    pub(super) shape: Shape,
    pub(super) runner: Box<dyn Runner>,
    world: World,
    sync: SyncArgs,
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

    /// Rank 0's decisions, where ranks are processes.
    pub(super) fn lead(&self) -> Result<Option<Lead>, CommError> {
        self.world.lead(&self.sync)
    }

    /// [`Prepared::open`] and [`Prepared::load`].
    pub(super) fn open(args: &ModelArgs, spd: &SpdSpec, world: &World) -> anyhow::Result<Self> {
        Prepared::open(args, spd, world)?.load(None)
    }

    /// Goes on with other dropped blocks, and forgets all sequences.
    pub(super) fn switch(&mut self, spd: &SpdSpec) -> anyhow::Result<()> {
        let plan = spd.resolve(&self.model.config, &*self.model.source, self.shape.world())?;
        self.world.agree(|| Ok(vec![plan_item(&plan)]))?;
        self.runner.set_plan(&plan)?;
        self.plan = plan;
        Ok(())
    }
}

/// Tells the progress bar that loading has ended, however it did.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Loads onto the device that was chosen; with `auto` and a GPU, says which it is and why.
fn load(
    model: &Model,
    plan: &Plan,
    shape: Shape,
    layout: &LayoutArgs,
    world: &World,
) -> anyhow::Result<Box<dyn Runner>> {
    if let World::Processes(mesh) = world {
        return load_process(model, plan, shape, layout, world, mesh);
    }
    match layout.device {
        DeviceChoice::Cpu => Ok(Box::new(load_reference(model, plan, shape, layout, world)?)),
        DeviceChoice::Cuda => Ok(Box::new(load_engine(model, plan, shape, layout, cuda_devices)?)),
        DeviceChoice::Emulate => {
            memory::check(model, 1.0)?;
            Ok(Box::new(load_engine(model, plan, shape, layout, emulated_devices)?))
        }
        // Without a GPU nobody expects one to be used; `fewsync doctor` says why there is none.
        DeviceChoice::Auto if Device::cuda_count().is_err() => {
            Ok(Box::new(load_reference(model, plan, shape, layout, world)?))
        }
        DeviceChoice::Auto => match load_engine(model, plan, shape, layout, cuda_devices) {
            Ok(engine) => {
                output::note(&format!("device: {}", engine.device()));
                Ok(Box::new(engine))
            }
            // What is wrong with the model itself, or a file that was named, is wrong on every device.
            Err(reason) => match reason.downcast_ref::<RunError>() {
                Some(RunError::Engine(_) | RunError::Comm(_)) => {
                    output::note(&format!("device: cpu, since {reason}"));
                    Ok(Box::new(load_reference(model, plan, shape, layout, world)?))
                }
                _ => Err(reason),
            },
        },
    }
}

/// Loads this process's rank; with `auto` onto GPUs if every process has one.
fn load_process(
    model: &Model,
    plan: &Plan,
    shape: Shape,
    layout: &LayoutArgs,
    world: &World,
    mesh: &Arc<Mesh>,
) -> anyhow::Result<Box<dyn Runner>> {
    let on_gpus = match layout.device {
        DeviceChoice::Cpu => false,
        DeviceChoice::Cuda => true,
        DeviceChoice::Emulate => bail!("emulated devices are for ranks of one process: start one"),
        DeviceChoice::Auto => {
            let mine = [u8::from(cfg!(feature = "nvshmem") && local_gpu(&**mesh).is_ok())];
            mesh.all_gather("a GPU for each rank", &mine)?.iter().all(|has| **has == [1])
        }
    };
    if !on_gpus {
        return Ok(Box::new(load_reference(model, plan, shape, layout, world)?));
    }
    let devices = [local_gpu(&**mesh).map_err(RunError::from)?];
    let options = EngineOptions {
        page_size: layout.page_size,
        kv_tokens: layout.kv_tokens,
        shape: Some(shape),
        processes: Some(Arc::<Mesh>::clone(mesh)),
        comm: layout.sync.group_of_processes(&**mesh, &devices[0], shape)?,
        ..EngineOptions::default()
    };
    let weight_bytes = Engine::weight_bytes(&model.config, plan)? / shape.world() as u64;
    let load = |loaded: &_| Engine::load(&model.config, &model.source, plan, &devices, &options, loaded);
    let engine = with_progress(weight_bytes, load)?;
    if layout.device == DeviceChoice::Auto {
        output::note(&format!("device: {}", engine.device()));
    }
    Ok(Box::new(engine))
}

/// Loads onto the CPU.
pub(super) fn load_reference(
    model: &Model,
    plan: &Plan,
    shape: Shape,
    layout: &LayoutArgs,
    world: &World,
) -> anyhow::Result<Reference> {
    if layout.device == DeviceChoice::Cpu {
        let given = [
            ("--peer-memory", layout.sync.peer_memory.is_some()),
            ("--no-direct", layout.sync.no_direct),
            ("--no-dependent-launch", layout.sync.no_dependent_launch),
            ("--tuning", layout.sync.tuning.is_some()),
            ("--kv-tokens", layout.kv_tokens.is_some()),
        ];
        for (option, _) in given.into_iter().filter(|&(_, is_given)| is_given) {
            output::note(&format!("note: {option} is about GPUs, so it changes nothing with --device cpu"));
        }
    }
    let mut options = ReferenceOptions::new(shape);
    options.comm.timeout = layout.sync.sync_limit.unwrap_or(options.comm.timeout);
    let (config, source) = (&model.config, &model.source);
    let World::Processes(mesh) = world else {
        memory::check(model, 1.0)?;
        return Ok(with_progress(model.weight_bytes(), |loaded| {
            Reference::load(config, source, plan, &options, loaded)
        })?);
    };
    let here = world.processes_here();
    memory::check(model, here as f64 / shape.world() as f64)?;
    options.threads = (options.threads / here).max(1);
    Ok(with_progress(model.weight_bytes() / shape.world() as u64, |loaded| {
        Reference::load_in_processes(config, source, plan, mesh, &options, loaded)
    })?)
}

fn load_engine(
    model: &Model,
    plan: &Plan,
    shape: Shape,
    layout: &LayoutArgs,
    devices: impl FnOnce(usize) -> Result<Vec<Device>, EngineError>,
) -> anyhow::Result<Engine> {
    let devices = devices(plan.tp()).map_err(RunError::from)?;
    let options = EngineOptions {
        page_size: layout.page_size,
        kv_tokens: layout.kv_tokens,
        shape: Some(shape),
        comm: layout.sync.group(&devices, shape)?,
        ..EngineOptions::default()
    };
    let weight_bytes = Engine::weight_bytes(&model.config, plan)?;
    let load = |loaded: &_| Engine::load(&model.config, &model.source, plan, &devices, &options, loaded);
    Ok(with_progress(weight_bytes, load)?)
}

/// `n` devices of an emulated machine.
pub(super) fn emulated_devices(n: usize) -> Result<Vec<Device>, EngineError> {
    let mut devices = Device::emulate(u32::try_from(n).unwrap_or(u32::MAX))?;
    devices.truncate(n);
    Ok(devices)
}

/// The first `n` GPUs.
pub(super) fn cuda_devices(n: usize) -> Result<Vec<Device>, EngineError> {
    let found = Device::cuda_count()? as usize;
    if found < n {
        return Err(EngineError::TooFewGpus { tp: n, found });
    }
    Ok((0..n as u32).map(Device::cuda).collect::<Result<_, _>>()?)
}

/// Shows on stderr how many of `total_bytes` are loaded; no bar where the system has no thread for it.
fn with_progress<T>(total_bytes: u64, load: impl FnOnce(&Arc<AtomicU64>) -> T) -> T {
    let loaded = Arc::new(AtomicU64::new(0));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _done = Done(&done);
        let show = || {
            let bar = progress_bar(total_bytes, "loading", "{bytes}/{total_bytes}");
            while !done.load(Ordering::Relaxed) {
                bar.set_position(loaded.load(Ordering::Relaxed));
                std::thread::park_timeout(Duration::from_millis(50));
            }
            bar.finish_and_clear();
        };
        drop(std::thread::Builder::new().spawn_scoped(scope, show));
        load(&loaded)
    })
}

/// A bar on stderr; invisible where stderr is no terminal.
pub(super) fn progress_bar(len: u64, what: &'static str, counts: &str) -> ProgressBar {
    let template = format!("{{msg}} {{bar:30}} {counts} {{eta}} left");
    let style = ProgressStyle::with_template(&template).expect("a fixed template");
    let bar = if output::is_silent() { ProgressBar::hidden() } else { ProgressBar::new(len) };
    bar.with_style(style).with_message(what)
}
