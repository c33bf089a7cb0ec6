//! Options that say which model, over which ranks, on which devices, and how these synchronise.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{bail, ensure};
use clap::{Args, ValueEnum};

use super::agreement::{self, Item};
use super::world::World;
use crate::bench::allreduce::setup::Setup;
use crate::bench::allreduce::tuning_file::TuningFile;
use crate::comm::Shape;
use crate::comm::bootstrap::{Bootstrap, Mesh, shape_of_hosts};
use crate::comm::gpu::{GroupOptions, PeerMemory, Tuning};
use crate::driver::Device;

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
    /// On GPUs: launch a kernel when the one before it has ended, without programmatic dependent launch
    #[arg(long)]
    pub(super) no_dependent_launch: bool,
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
        let Some(path) = self.tuning_file(shape) else { return Ok(options) };
        let setup = Setup::of_threads(devices, shape, options.memory);
        let table = TuningFile::read(&path)?.table(&path, &setup)?;
        Ok(GroupOptions { table: Some(Arc::new(table)), ..options })
    }

    /// The one that an option or the environment names; a group of one has no use for it.
    fn tuning_file(&self, shape: Shape) -> Option<PathBuf> {
        let variable =
            || std::env::var_os(TUNING_VARIABLE).filter(|name| !name.is_empty()).map(PathBuf::from);
        self.tuning.clone().or_else(variable).filter(|_| shape.world() > 1)
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
        let dependent_launch = !self.no_dependent_launch;
        GroupOptions { memory, time_limit, dependent_launch, tuning: self.forced, ..defaults }
    }
}

impl SyncArgs {
    /// As GPUs of several processes take it, of which this one has `device`. Collective: all have to have the same tuning
    /// file, or none. One that was measured with others is an error.
    pub(super) fn group_of_processes(
        &self,
        mesh: &dyn Bootstrap,
        device: &Device,
        shape: Shape,
    ) -> anyhow::Result<GroupOptions> {
        let options = self.untuned_of_processes()?;
        let path = self.tuning_file(shape);
        let file = path.as_ref().map(|path| TuningFile::read(path)).transpose()?;
        agreement::compare(mesh, &[Item::new("tuning file", file.as_ref().map(TuningFile::text))])?;
        let (Some(path), Some(file)) = (path, file) else { return Ok(options) };
        let setup = Setup::of_processes(mesh, device, shape, options.memory)?;
        let table = file.table(&path, &setup)?;
        Ok(GroupOptions { table: Some(Arc::new(table)), ..options })
    }

    /// As GPUs of several processes take it, which meet in NVSHMEM's heap alone; without a tuning file.
    pub(super) fn untuned_of_processes(&self) -> anyhow::Result<GroupOptions> {
        ensure!(
            matches!(self.peer_memory, None | Some(PeerMemoryChoice::Nvshmem)),
            "GPUs of several processes reach each other through NVSHMEM alone: give --peer-memory nvshmem, or start one \
             process for all GPUs"
        );
        Ok(GroupOptions { memory: PeerMemory::Nvshmem { direct: !self.no_direct }, ..self.untuned() })
    }
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
        self.shape()?;
        shape_of_processes(mesh, self.tp, self.topology)
    }
}

/// The layout of processes: by their hosts, unless a topology says how.
pub(super) fn shape_of_processes(
    mesh: &Mesh,
    tp: Option<usize>,
    topology: Option<Shape>,
) -> anyhow::Result<Shape> {
    let processes = mesh.world();
    let given = [("topology", topology.map(|shape| shape.world())), ("tp", tp)];
    let other =
        given.into_iter().find_map(|(option, ranks)| Some((option, ranks.filter(|&n| n != processes)?)));
    if let Some((option, ranks)) = other {
        bail!(
            "{processes} processes were started, but --{option} asks for {ranks} ranks: each process is one, so start as \
             many or leave the option out"
        );
    }
    Ok(topology.map_or_else(|| shape_of_hosts(mesh.hosts()), Ok)?)
}

/// A number of at least `MIN`, for clap.
pub(super) fn at_least<const MIN: usize>(s: &str) -> Result<usize, String> {
    s.parse().ok().filter(|&n| n >= MIN).ok_or_else(|| format!("expected a whole number of at least {MIN}"))
}

#[cfg(test)]
#[cfg(feature = "emulate")]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::comm::bootstrap::{Listener, MeshOptions};

    const SHAPE: Shape = Shape { nodes: 2, gpus_per_node: 1 };

    /// What ranks get that are given these options, each a thread with an emulated device.
    fn groups(all: [SyncArgs; 2]) -> [Result<GroupOptions, String>; 2] {
        let devices = Device::emulate(2).unwrap();
        let listener = Listener::bind("127.0.0.1:0").unwrap();
        let address = format!("127.0.0.1:{}", listener.port().unwrap());
        let group = |args: &SyncArgs, mesh: Mesh, device| {
            let found = args.group_of_processes(&mesh, device, SHAPE).map_err(|error| error.to_string());
            // As a process that ends with an error.
            found.inspect_err(|error| mesh.fail(error, None))
        };
        let options = MeshOptions::default;
        std::thread::scope(|scope| {
            let join = || group(&all[1], Mesh::join(&address, 1, 2, options()).unwrap(), &devices[1]);
            let other = scope.spawn(join);
            let first = group(&all[0], Mesh::host(listener, 2, options()).unwrap(), &devices[0]);
            [first, other.join().unwrap()]
        })
    }

    fn given(tuning: Option<&Path>, no_direct: bool) -> SyncArgs {
        SyncArgs { tuning: tuning.map(Path::to_owned), no_direct, ..SyncArgs::default() }
    }

    /// A file with one choice, for two processes of this host with an emulated device each.
    fn write(path: &Path, memory: PeerMemory, blocks: u32) {
        let name = Device::emulate(1).unwrap()[0].properties().name.clone();
        let file = serde_json::json!({
            "format_version": 2,
            "setup": {
                "fewsync": crate::kernels::release(),
                "topology": SHAPE.to_string(),
                "hosts": [2],
                "gpus": [name, name],
                "peer_memory": memory.name(),
            },
            "entries": [{
                "dtype": "bf16", "bytes": 1024, "algorithm": "two-shot", "format": "words", "blocks": blocks,
                "workers": 32, "us": 1.0, "built_in_us": 2.0,
            }],
        });
        std::fs::write(path, file.to_string()).unwrap();
    }

    #[test]
    fn dependent_launch_is_on_unless_it_is_switched_off() {
        for no_dependent_launch in [false, true] {
            let options = SyncArgs { no_dependent_launch, ..SyncArgs::default() }.untuned();
            assert_eq!(options.dependent_launch, !no_dependent_launch);
        }
    }

    #[test]
    fn processes_take_the_same_tuning_file_for_what_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name| folder.path().join(name);
        let [puts, same, other, stores] = ["puts", "same", "other", "stores"].map(at);
        write(&puts, PeerMemory::Nvshmem { direct: false }, 3);
        write(&same, PeerMemory::Nvshmem { direct: false }, 3);
        write(&other, PeerMemory::Nvshmem { direct: false }, 4);
        write(&stores, PeerMemory::Nvshmem { direct: true }, 3);

        for options in groups([given(Some(&puts), true), given(Some(&same), true)]).map(Result::unwrap) {
            assert_eq!(options.memory, PeerMemory::Nvshmem { direct: false });
            let choice = options.table.unwrap().lookup(crate::comm::DType::Bf16, None, 1024).unwrap();
            assert_eq!((choice.blocks, choice.workers), (Some(3), Some(32)));
        }
        let none = groups([given(None, false), given(None, false)]).map(Result::unwrap);
        assert!(none.iter().all(|options| options.table.is_none()));

        // Without the same file on all ranks there is none; each of them notices.
        for unlike in [Some(&*other), None] {
            for refusal in groups([given(Some(&puts), true), given(unlike, true)]).map(Result::unwrap_err) {
                assert!(refusal.starts_with("rank 1 has another tuning file than rank 0"), "{refusal}");
            }
        }
        let refusals = groups([given(Some(&stores), true), given(Some(&stores), true)]);
        for refusal in refusals.map(Result::unwrap_err) {
            assert!(refusal.contains("measured with peer memory nvshmem, and this is"), "{refusal}");
            assert!(refusal.contains("peer memory nvshmem, all put: measure again"), "{refusal}");
        }
        let [here, there] = groups([given(Some(&puts), true), given(Some(&at("missing")), true)]);
        assert!(there.unwrap_err().contains("missing"));
        assert!(here.unwrap_err().contains("rank 1 failed"), "the other one's error");
    }
}
