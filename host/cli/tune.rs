//! `fewsync tune`.

use std::path::PathBuf;
#[cfg(feature = "nvshmem")]
use std::sync::Arc;

use anyhow::ensure;
use clap::ValueEnum;

#[cfg(feature = "nvshmem")]
use super::layout::shape_of_processes;
use super::layout::{SyncArgs, at_least};
use super::output;
use super::results::{ResultFiles, check_file};
#[cfg(feature = "nvshmem")]
use super::session::local_gpu;
use super::session::{cuda_devices, emulated_devices};
use super::world::World;
#[cfg(feature = "nvshmem")]
use crate::bench::allreduce::contest::Process;
use crate::bench::allreduce::contest::Sweep;
use crate::bench::allreduce::race::Effort;
use crate::bench::allreduce::setup::Setup;
use crate::bench::allreduce::sizes::{Sizes, readable};
use crate::bench::allreduce::tune::{Found, Tuned, tune};
use crate::bench::allreduce::tuning_file::TuningFile;
use crate::bench::allreduce::{AllReduceBenchError, Call, Launching, Measurement, figure::figure};
use crate::bench::machine::Machine;
use crate::bench::report::Report;
#[cfg(feature = "nvshmem")]
use crate::comm::bootstrap::{Bootstrap, Mesh};
use crate::comm::{DType, Shape};
use crate::driver::Device;

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Find the algorithm, format and grid of the all-reduce between these GPUs, by size
    #[command(name = "allreduce")]
    AllReduce(Box<Args>),
}

#[derive(clap::Args)]
#[command(
    after_help = "Every candidate's sum is checked before it is timed, in a CUDA graph, the slowest rank's time \
counting. A choice within 1 % of the fastest stays the built-in one. Give the file to later commands with --tuning, or \
name it in FEWSYNC_TUNING; it holds for the same GPUs, topology, hosts, peer memory and release. Under \
mpirun, srun or torchrun each process is a rank, over NVSHMEM, and the file is for processes that are started alike \
(docs/multi-node.md)."
)]
pub(super) struct Args {
    /// Number of ranks, one GPU each [default: all GPUs, or the number of processes]
    #[arg(long, value_name = "T", value_parser = at_least::<2>)]
    tp: Option<usize>,
    /// Nodes x ranks per node, such as 2x2; implies --tp [default: 1 x T, or hosts x processes]
    #[arg(long, value_name = "NxG", conflicts_with = "tp")]
    topology: Option<Shape>,
    /// Sizes of the tensors: a list or a range that doubles
    #[arg(long, value_name = "SIZES", default_value = "1KiB..4MiB")]
    sizes: Sizes,
    /// Row lengths of the sums that residual and norm follow
    #[arg(long, value_name = "SIZES", value_delimiter = ',', default_values_t = [4096, 8192, 16_384], value_parser = at_least::<1>)]
    hidden: Vec<usize>,
    /// Rows of those
    #[arg(long, value_name = "SIZES", value_delimiter = ',', default_values_t = [1, 2, 4, 8, 16, 64], value_parser = at_least::<1>)]
    tokens: Vec<usize>,
    /// Where to write the choices
    #[arg(long, value_name = "FILE.json")]
    out: PathBuf,
    /// Where to measure: emulated devices show that it works, and nothing about time
    #[arg(long, value_enum, default_value_t = Devices::Cuda)]
    device: Devices,
    #[command(flatten)]
    sync: SyncArgs,
    #[command(flatten)]
    files: ResultFiles,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq)]
enum Devices {
    /// The first T NVIDIA GPUs of those that CUDA_VISIBLE_DEVICES names
    Cuda,
    /// PTX executed on the CPU
    Emulate,
}

impl Args {
    /// How ranks synchronise.
    pub(super) fn sync(&self) -> &SyncArgs {
        &self.sync
    }

    fn shape(&self) -> anyhow::Result<Shape> {
        let shape = match (self.topology, self.tp) {
            (Some(shape), _) => shape,
            (None, Some(tp)) => Shape { nodes: 1, gpus_per_node: tp },
            (None, None) if self.device == Devices::Emulate => Shape { nodes: 1, gpus_per_node: 2 },
            (None, None) => Shape { nodes: 1, gpus_per_node: Device::cuda_count()? as usize },
        };
        checked(shape)
    }

    fn sweep(&self, shape: Shape) -> Sweep {
        Sweep {
            shape,
            dtype: DType::Bf16,
            sizes: self.sizes.0.clone(),
            calls: vec![Call::Plain, Call::Fused],
            launching: vec![Launching::Graph],
            hidden: self.hidden.clone(),
            tokens: self.tokens.clone(),
        }
    }
}

/// Refuses a group of one.
fn checked(shape: Shape) -> anyhow::Result<Shape> {
    ensure!(shape.world() >= 2, "one rank has nothing to tune: give --tp 2 or more, on as many GPUs");
    Ok(shape)
}

pub(super) fn run(Command::AllReduce(args): &Command, json: bool, world: &World) -> anyhow::Result<()> {
    ensure!(args.sync.tuning.is_none(), "tune allreduce makes the file that --tuning names: leave it out");
    args.files.check::<Measurement>("tune allreduce")?;
    if !output::is_silent() {
        check_file(&args.out)?;
    }
    #[cfg(feature = "nvshmem")]
    if let World::Processes(mesh) = world {
        return in_processes(args, json, mesh);
    }
    ensure!(world.processes().is_none(), "ranks that are processes need the feature nvshmem");
    let shape = args.shape()?;
    let (devices, effort) = match args.device {
        Devices::Cuda => (cuda_devices(shape.world())?, Effort::BRIEF),
        Devices::Emulate => (emulated_devices(shape.world())?, Effort::LEAST),
    };
    let options = args.sync.untuned();
    let setup = Setup::of_threads(&devices, shape, options.memory);
    let measure = |done: &mut dyn FnMut(&Tuned)| tune(&devices, &args.sweep(shape), &options, effort, done);
    report(args, json, setup, Machine::of(&devices), measure)
}

/// A process for each rank, over NVSHMEM. Rank 0 prints and writes.
#[cfg(feature = "nvshmem")]
fn in_processes(args: &Args, json: bool, mesh: &Arc<Mesh>) -> anyhow::Result<()> {
    ensure!(args.device == Devices::Cuda, "emulated devices are for ranks of one process: start one");
    let shape = checked(shape_of_processes(mesh, args.tp, args.topology)?)?;
    let options = args.sync.untuned_of_processes()?;
    // Nobody begins where rank 0 has no place for the file.
    mesh.all_gather("the begin of the measurement", &[])?;
    let device = local_gpu(&**mesh)?;
    let setup = Setup::of_processes(&**mesh, &device, shape, options.memory)?;
    let process = Process::start(&device, &options, Arc::<Mesh>::clone(mesh))?;
    let measure =
        |done: &mut dyn FnMut(&Tuned)| process.tune(&args.sweep(shape), &options, Effort::BRIEF, done);
    report(args, json, setup, Machine::of(std::slice::from_ref(&device)), measure)
}

/// Prints and writes what `measure` finds, which tells of each tensor as soon as it is done.
fn report(
    args: &Args,
    json: bool,
    setup: Setup,
    machine: Machine,
    measure: impl FnOnce(&mut dyn FnMut(&Tuned)) -> Result<Found, AllReduceBenchError>,
) -> anyhow::Result<()> {
    if !json {
        output::write(&format!("{}\n{HEADING}", machine.line()))?;
    }
    let mut lost_reader = None;
    let (found, lines) = measure(&mut |tuned| {
        if !json && lost_reader.is_none() {
            lost_reader = output::write(&line_of(tuned)).err();
        }
    })?;
    lost_reader.map_or(Ok(()), Err)?;
    let report = Report::new("tune allreduce", machine, vec![setup.to_string()], lines);
    let file = TuningFile::new(setup, &found);
    if !output::is_silent() {
        file.write(&args.out)?;
    }
    args.files.write(&report, || figure(&report))?;
    if json {
        return output::json(&file);
    }
    output::write(&format!("{} choices written to {}\n", found.len(), args.out.display()))
}

const HEADING: &str = "call          size hidden  tried  built in, µs  best, µs  gain  best\n";

fn line_of(tuned: &Tuned) -> String {
    let call = if tuned.measured.hidden.is_some() { "fused" } else { "plain" };
    let gain = 100.0 * (1.0 - tuned.us / tuned.built_in_us);
    let best = match tuned.measured.tuning == tuned.built_in {
        true => format!("as built in: {}", tuned.built_in),
        false => format!("{} instead of {}", tuned.measured.tuning, tuned.built_in),
    };
    format!(
        "{call:<8} {:>9} {:>6} {:>6} {:>13.2} {:>9.2} {gain:>4.0}%  {best}\n",
        readable(tuned.measured.bytes),
        tuned.measured.hidden.unwrap_or(0),
        tuned.candidates,
        tuned.built_in_us,
        tuned.us,
    )
}
