//! `fewsync tune`.

use std::path::PathBuf;

use anyhow::ensure;
use clap::ValueEnum;

use super::layout::{SyncArgs, at_least};
use super::output;
use super::results::{ResultFiles, check_file};
use super::session::{cuda_devices, emulated_devices};
use crate::bench::allreduce::contest::Sweep;
use crate::bench::allreduce::race::Effort;
use crate::bench::allreduce::sizes::{Sizes, readable};
use crate::bench::allreduce::tune::{Tuned, tune};
use crate::bench::allreduce::tuning_file::TuningFile;
use crate::bench::allreduce::{Call, Launching, Measurement, figure::figure};
use crate::bench::machine::Machine;
use crate::bench::report::Report;
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
name it in FEWSYNC_TUNING; it holds for the same GPUs, topology, peer memory and release. Ranks are threads of this \
process here: a file for ranks that are processes, over NVSHMEM, cannot be made yet; they take the built-in choices."
)]
pub(super) struct Args {
    /// Number of ranks, one GPU each [default: all GPUs]
    #[arg(long, value_name = "T", value_parser = at_least::<2>)]
    tp: Option<usize>,
    /// Nodes x ranks per node, such as 2x2; implies --tp [default: 1 x T]
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
    fn shape(&self) -> anyhow::Result<Shape> {
        let shape = match (self.topology, self.tp) {
            (Some(shape), _) => shape,
            (None, Some(tp)) => Shape { nodes: 1, gpus_per_node: tp },
            (None, None) if self.device == Devices::Emulate => Shape { nodes: 1, gpus_per_node: 2 },
            (None, None) => Shape { nodes: 1, gpus_per_node: Device::cuda_count()? as usize },
        };
        ensure!(shape.world() >= 2, "one rank has nothing to tune: give --tp 2 or more, on as many GPUs");
        Ok(shape)
    }
}

pub(super) fn run(Command::AllReduce(args): &Command, json: bool) -> anyhow::Result<()> {
    let shape = args.shape()?;
    args.files.check::<Measurement>("tune allreduce")?;
    check_file(&args.out)?;
    let (devices, effort) = match args.device {
        Devices::Cuda => (cuda_devices(shape.world())?, Effort::BRIEF),
        Devices::Emulate => (emulated_devices(shape.world())?, Effort::LEAST),
    };
    let options = args.sync.untuned();
    let sweep = Sweep {
        shape,
        dtype: DType::Bf16,
        sizes: args.sizes.0.clone(),
        calls: vec![Call::Plain, Call::Fused],
        launching: vec![Launching::Graph],
        hidden: args.hidden.clone(),
        tokens: args.tokens.clone(),
    };
    let machine = Machine::of(&devices);
    if !json {
        output::write(&format!("{}\n{HEADING}", machine.line()))?;
    }
    let mut lost_reader = None;
    let done = |tuned: &Tuned| {
        if !json && lost_reader.is_none() {
            lost_reader = output::write(&line_of(tuned)).err();
        }
    };
    let (found, lines) = tune(&devices, &sweep, &options, effort, done)?;
    lost_reader.map_or(Ok(()), Err)?;
    let file = TuningFile::new(&devices, shape, options.memory, &found);
    file.write(&args.out)?;
    let report = Report::new("tune allreduce", machine, vec![], lines);
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
