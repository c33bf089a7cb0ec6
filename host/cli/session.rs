//! From `--model --tp --topology --spd --device` to a loaded runner.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{bail, ensure};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

use super::agreement::Item;
use super::world::World;
use super::{memory, output};
use crate::bench::allreduce::tuning_file::TuningFile;
use crate::comm::bootstrap::{Bootstrap, Mesh, shape_of_hosts};
use crate::comm::gpu::{GroupOptions, PeerMemory, Tuning};
use crate::comm::process::Lead;
use crate::comm::{CommError, Shape};
use crate::driver::Device;
use crate::engine::{Engine, EngineError, EngineOptions};
use crate::model::Model;
use crate::model::sharding::Sharding;
use crate::reference::{Reference, ReferenceOptions};
use crate::runner::{RunError, Runner};
use crate::spd::{Plan, SpdSpec};

const DEFAULT_PAGE_SIZE: usize = 64;

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

impl ModelArgs {
    /// The same, `--device auto` taken for the CPU: for what reads hidden states, which only the reference gives.
    pub(super) fn on_reference(&self) -> Self {
        let mut args = self.clone();
        if args.layout.device == DeviceChoice::Auto {
            args.layout.device = DeviceChoice::Cpu;
        }
        args
    }
}

/// How a model is laid out over ranks, and where it runs.
#[derive(Args, Clone)]
pub(super) struct LayoutArgs {
    /// Tensor-parallel degree: the number of ranks, 1 to the number of query heads [default: 1, or the number of
    /// processes]
    #[arg(long, value_name = "T", value_parser = at_least::<0>, allow_negative_numbers = true)]
    pub(super) tp: Option<usize>,
    /// Nodes x ranks per node, such as 2x3; implies --tp [default: 1 x T, or hosts x processes]
    #[arg(long, value_name = "NxG", allow_hyphen_values = true)]
    pub(super) topology: Option<Shape>,
    /// Where to run
    #[arg(long, value_enum, default_value_t = DeviceChoice::Auto)]
    pub(super) device: DeviceChoice,
    #[command(flatten)]
    pub(super) sync: SyncArgs,
    /// Tokens that a GPU's KV cache holds, of all sequences [default: 16 contexts, or what fits]
    #[arg(long, value_name = "N", value_parser = at_least::<1>)]
    pub(super) kv_tokens: Option<usize>,
    /// Tokens of a page of a GPU's KV cache: a power of two
    #[arg(long, value_name = "N", value_parser = at_least::<1>, default_value_t = DEFAULT_PAGE_SIZE)]
    pub(super) page_size: usize,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq)]
pub(super) enum DeviceChoice {
    /// GPUs, where there is one for each rank and they can run the model; else the CPU
    Auto,
    /// The reference in f32, one thread or process a rank
    Cpu,
    /// The first T NVIDIA GPUs of those that CUDA_VISIBLE_DEVICES names, one a rank
    Cuda,
    /// The GPU's code executed on the CPU, slowly, every access checked (FEWSYNC_EMULATE=race,weak,… for more)
    Emulate,
}

/// How ranks synchronise.
#[derive(Args, Clone, Default)]
pub(super) struct SyncArgs {
    /// How GPUs reach each other's memory [default: direct]
    #[arg(long, value_enum, value_name = "WAY")]
    pub(super) peer_memory: Option<PeerMemoryChoice>,
    /// With NVSHMEM: put every message between nodes, also where it could be stored
    #[arg(long)]
    pub(super) no_direct: bool,
    /// Longest wait of a rank for another, in seconds, before it gives up [default: 10 on GPUs, 120 on the CPU]
    #[arg(long, value_name = "SECONDS", value_parser = positive_seconds, allow_negative_numbers = true)]
    pub(super) sync_limit: Option<Duration>,
    /// How GPUs sum what, from fewsync tune allreduce [default: the file that FEWSYNC_TUNING names; else built in]
    #[arg(long, value_name = "FILE")]
    pub(super) tuning: Option<PathBuf>,
    /// Longest wait for all processes to start, in seconds, where ranks are processes [default: 120]
    #[arg(long, value_name = "SECONDS", value_parser = positive_seconds, allow_negative_numbers = true)]
    pub(super) start_limit: Option<Duration>,
    /// What to use instead of the measured choices.
    #[arg(skip)]
    pub(super) forced: Option<Tuning>,
}

/// Names a tuning file where no option does.
const TUNING_VARIABLE: &str = "FEWSYNC_TUNING";

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PeerMemoryChoice {
    /// Stores into the other GPU's memory, over NVLink or PCIe
    Direct,
    /// Through page-locked host memory, for GPUs without peer access; slow
    HostStaged,
    /// In NVSHMEM's symmetric heap, for ranks that are processes, where it is the default
    Nvshmem,
}

impl SyncArgs {
    /// As the communicator of these GPUs takes it. A tuning file that was measured with others is an error.
    pub(super) fn group(&self, devices: &[Device], shape: Shape) -> anyhow::Result<GroupOptions> {
        let options = self.untuned();
        let variable =
            || std::env::var_os(TUNING_VARIABLE).filter(|name| !name.is_empty()).map(PathBuf::from);
        let Some(path) = self.tuning.clone().or_else(variable).filter(|_| shape.world() > 1) else {
            return Ok(options);
        };
        let table = TuningFile::read(&path)?.table(&path, devices, shape, &options)?;
        Ok(GroupOptions { table: Some(Arc::new(table)), ..options })
    }

    /// Without a tuning file.
    pub(super) fn untuned(&self) -> GroupOptions {
        let defaults = GroupOptions::default();
        let memory = match self.peer_memory {
            Some(PeerMemoryChoice::HostStaged) => PeerMemory::HostStaged,
            Some(PeerMemoryChoice::Nvshmem) => PeerMemory::Nvshmem { direct: !self.no_direct },
            Some(PeerMemoryChoice::Direct) | None => PeerMemory::Direct,
        };
        let time_limit = self.sync_limit.unwrap_or(defaults.time_limit);
        GroupOptions { memory, time_limit, tuning: self.forced, ..defaults }
    }
}

impl SyncArgs {
    /// As GPUs of several processes take it, which meet in NVSHMEM's heap alone.
    pub(super) fn group_of_processes(&self) -> anyhow::Result<GroupOptions> {
        ensure!(
            matches!(self.peer_memory, None | Some(PeerMemoryChoice::Nvshmem)),
            "GPUs of several processes reach each other through NVSHMEM alone: give --peer-memory nvshmem, or start one \
             process for all GPUs"
        );
        ensure!(
            self.tuning.is_none(),
            "--tuning is for GPUs of one process, and a file for several over NVSHMEM cannot be made yet: leave it out"
        );
        if std::env::var_os(TUNING_VARIABLE).is_some_and(|name| !name.is_empty()) {
            output::note(&format!(
                "note: {TUNING_VARIABLE} is for GPUs of one process, so it changes nothing in several"
            ));
        }
        Ok(GroupOptions { memory: PeerMemory::Nvshmem { direct: !self.no_direct }, ..self.untuned() })
    }
}

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

fn positive_seconds(s: &str) -> Result<Duration, String> {
    let seconds = s.parse().ok().filter(|&s: &f64| s > 0.0);
    let duration = seconds.and_then(|s| Duration::try_from_secs_f64(s).ok()).filter(|d| !d.is_zero());
    duration.ok_or_else(|| "expected a number of seconds above 0".into())
}

impl LayoutArgs {
    /// One rank on this device, all else by default.
    pub(super) fn on(device: DeviceChoice) -> Self {
        let sync = SyncArgs::default();
        Self { tp: None, topology: None, device, sync, kv_tokens: None, page_size: DEFAULT_PAGE_SIZE }
    }

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

    /// The layout over `world`: processes are laid out by their hosts, unless --topology says how.
    pub(super) fn shape_in(&self, world: &World) -> anyhow::Result<Shape> {
        let World::Processes(mesh) = world else { return self.shape() };
        let processes = mesh.world();
        let given = (self.tp.is_some() || self.topology.is_some()).then(|| self.shape()).transpose()?;
        if let Some(shape) = given.filter(|shape| shape.world() != processes) {
            bail!(
                "{processes} processes were started, but --{} asks for {} ranks: each process is one, so start as many \
                 or leave the option out",
                if self.topology.is_some() { "topology" } else { "tp" },
                shape.world()
            );
        }
        match self.topology {
            Some(shape) => Ok(shape),
            None => Ok(shape_of_hosts(mesh.hosts())?),
        }
    }
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
        if world.processes().is_some() {
            let items = [Item::new("model", [model.source.fingerprint()?]), plan_item(&plan)];
            world.agree(&items.into_iter().chain(task).collect::<Vec<_>>())?;
        }
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
        self.world.agree(&[plan_item(&plan)])?;
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
        comm: layout.sync.group_of_processes()?,
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

/// A number of at least `MIN`, for clap.
pub(super) fn at_least<const MIN: usize>(s: &str) -> Result<usize, String> {
    s.parse().ok().filter(|&n| n >= MIN).ok_or_else(|| format!("expected a whole number of at least {MIN}"))
}

/// A bar on stderr; invisible where stderr is no terminal.
pub(super) fn progress_bar(len: u64, what: &'static str, counts: &str) -> ProgressBar {
    let template = format!("{{msg}} {{bar:30}} {counts} {{eta}} left");
    let style = ProgressStyle::with_template(&template).expect("a fixed template");
    let bar = if output::is_silent() { ProgressBar::hidden() } else { ProgressBar::new(len) };
    bar.with_style(style).with_message(what)
}
