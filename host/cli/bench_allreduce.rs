//! `fewsync bench allreduce`.

use std::path::PathBuf;

use anyhow::ensure;
use clap::ValueEnum;

use super::output;
use super::results::ResultFiles;
use super::session::{SyncArgs, at_least, cuda_devices, progress_bar};
use crate::bench::allreduce::child::{self, Variant};
use crate::bench::allreduce::contest::{Sweep, run_nccl, run_ours};
use crate::bench::allreduce::figure::figure;
use crate::bench::allreduce::record::{AUTOMATIC, OURS, compare};
use crate::bench::allreduce::sizes::{Sizes, readable};
use crate::bench::allreduce::{Call, Launching, Measurement, join, race};
use crate::bench::machine::Machine;
use crate::bench::report::Report;
use crate::comm::gpu::{Algorithm, Format, GroupOptions, PeerMemory, Tuning};
use crate::comm::{DType, Shape};
use crate::driver::Device;

#[derive(clap::Args)]
#[command(
    after_help = "A sample is 20 calls between two events on each GPU, behind one that aligns the ranks; its time \
is the slowest rank's, per call. Sums are checked, element by element, before they are timed. Needs at least two GPUs."
)]
pub(super) struct Args {
    /// Number of ranks, one GPU each [default: all GPUs]
    #[arg(long, value_name = "T", value_parser = at_least::<1>, allow_negative_numbers = true)]
    tp: Option<usize>,
    /// Nodes x ranks per node, such as 2x1; implies --tp [default: 1 x T]
    #[arg(long, value_name = "NxG", allow_hyphen_values = true)]
    topology: Option<Shape>,
    /// Sizes of the tensors: a list or a range that doubles
    #[arg(long, value_name = "SIZES", default_value = "1KiB..64MiB")]
    sizes: Sizes,
    /// Type of the elements; fused calls are in bf16
    #[arg(long, value_enum, default_value_t = DTypeChoice::Bf16)]
    dtype: DTypeChoice,
    /// What to time
    #[arg(long, value_enum, value_name = "CALLS", value_delimiter = ',', default_values_t = CallChoice::ALL)]
    calls: Vec<CallChoice>,
    /// How to launch it
    #[arg(long, value_enum, value_name = "HOW", value_delimiter = ',', default_values_t = [LaunchChoice::Graph, LaunchChoice::Eager])]
    launch: Vec<LaunchChoice>,
    /// Row lengths of the fused calls
    #[arg(long, value_name = "SIZES", value_delimiter = ',', default_values_t = [4096, 8192, 16_384], value_parser = at_least::<1>)]
    hidden: Vec<usize>,
    /// Rows of the fused calls
    #[arg(long, value_name = "SIZES", value_delimiter = ',', default_values_t = [1, 2, 4, 8, 16], value_parser = at_least::<1>)]
    tokens: Vec<usize>,
    /// NCCL beside it, each variant in a process of its own
    #[arg(long, value_enum, default_value_t = NcclChoice::All)]
    nccl: NcclChoice,
    /// Also take these results of others into the comparison (CSV with the same columns, such as those of
    /// bench/peers/torch_symmetric_memory.py)
    #[arg(long, value_name = "FILE")]
    join: Vec<PathBuf>,
    #[command(flatten)]
    sync: SyncArgs,
    #[command(flatten)]
    forced: ForcedArgs,
    #[command(flatten)]
    files: ResultFiles,
    /// Measure this variant of NCCL in this process and print CSV
    #[arg(long, hide = true, value_name = "VARIANT")]
    nccl_child: Option<String>,
}

/// What to force in place of the measured choices.
#[derive(clap::Args)]
struct ForcedArgs {
    /// Force how the ranks of a node share the work
    #[arg(long, value_enum)]
    algorithm: Option<AlgorithmChoice>,
    /// Force how messages travel
    #[arg(long, value_enum)]
    format: Option<FormatChoice>,
    /// Force the number of blocks
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    blocks: Option<u32>,
    /// Force the threads of a block that move data
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(32..=1024))]
    workers: Option<u32>,
    /// Force the number of blocks that share a row of a fused call
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    row_blocks: Option<u32>,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq)]
enum DTypeChoice {
    Bf16,
    F16,
    F32,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq)]
enum CallChoice {
    /// The sum alone
    Plain,
    /// The sum, the residual added and the RMSNorm in one call
    Fused,
    /// Each phase alone
    Phases,
}

impl CallChoice {
    const ALL: [Self; 3] = [Self::Plain, Self::Fused, Self::Phases];
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq)]
enum LaunchChoice {
    /// A CUDA graph of 20 calls
    Graph,
    /// Call by call
    Eager,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq)]
enum NcclChoice {
    /// Its own choice, and Ring and Tree with LL, LL128 and Simple
    All,
    /// Its own choice
    Auto,
    /// Without
    Off,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq)]
enum AlgorithmChoice {
    /// Every rank sums everything
    OneShot,
    /// Every rank sums its share
    TwoShot,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq)]
enum FormatChoice {
    /// 4 bytes of data and 4 of flag
    Cells,
    /// 4-byte words that say by themselves that they have arrived
    Words,
}

impl ForcedArgs {
    fn tuning(&self) -> Option<Tuning> {
        let &Self { algorithm, format, blocks, workers, row_blocks } = self;
        let algorithm = algorithm.map(|algorithm| match algorithm {
            AlgorithmChoice::OneShot => Algorithm::OneShot,
            AlgorithmChoice::TwoShot => Algorithm::TwoShot,
        });
        let format = format.map(|format| match format {
            FormatChoice::Cells => Format::Cells,
            FormatChoice::Words => Format::Words,
        });
        let tuning = Tuning { algorithm, format, blocks, workers, row_blocks };
        (tuning != Tuning::default()).then_some(tuning)
    }
}

impl Args {
    fn dtype(&self) -> DType {
        match self.dtype {
            DTypeChoice::Bf16 => DType::Bf16,
            DTypeChoice::F16 => DType::F16,
            DTypeChoice::F32 => DType::F32,
        }
    }

    /// The layout; without one, all GPUs in one node.
    fn shape(&self) -> anyhow::Result<Shape> {
        let shape = match (self.topology, self.tp) {
            (Some(shape), Some(tp)) if shape.world() != tp => anyhow::bail!(
                "--tp {tp} contradicts --topology {shape}, which has {} ranks: give one of the two",
                shape.world()
            ),
            (Some(shape), _) => shape,
            (None, Some(tp)) => Shape { nodes: 1, gpus_per_node: tp },
            (None, None) => Shape { nodes: 1, gpus_per_node: Device::cuda_count()? as usize },
        };
        ensure!(
            shape.world() >= 2,
            "one rank has nobody to exchange anything with: give --tp 2 or more, on as many GPUs"
        );
        Ok(shape)
    }

    fn sweep(&self, shape: Shape) -> Sweep {
        let calls = self.calls.iter().flat_map(|call| match call {
            CallChoice::Plain => vec![Call::Plain],
            CallChoice::Fused => vec![Call::Fused],
            CallChoice::Phases => vec![Call::Reduce, Call::Put, Call::Broadcast],
        });
        let launching = self.launch.iter().map(|launch| match launch {
            LaunchChoice::Graph => Launching::Graph,
            LaunchChoice::Eager => Launching::Eager,
        });
        Sweep {
            shape,
            dtype: self.dtype(),
            sizes: self.sizes.0.clone(),
            calls: calls.collect(),
            launching: launching.collect(),
            hidden: self.hidden.clone(),
            tokens: self.tokens.clone(),
        }
    }

    /// What our results are called: what was chosen or forced, and which memory.
    fn variant(&self, options: &GroupOptions) -> String {
        let mut parts = Vec::new();
        if let Some(Tuning { algorithm, format, blocks, workers, row_blocks }) = options.tuning {
            parts.extend(
                algorithm.map(|a| if a == Algorithm::OneShot { "one-shot" } else { "two-shot" }.into()),
            );
            parts.extend(format.map(|f| if f == Format::Cells { "cells" } else { "words" }.into()));
            parts.extend(blocks.map(|n| format!("{n} blocks")));
            parts.extend(workers.map(|n| format!("{n} workers")));
            parts.extend(row_blocks.map(|n| format!("{n} row blocks")));
        }
        if parts.is_empty() {
            parts.push(AUTOMATIC.to_owned());
        }
        if options.memory == PeerMemory::HostStaged {
            parts.push("host-staged".into());
        }
        parts.join(" ")
    }

    /// Arguments of a process that measures NCCL.
    fn child_arguments(&self, sweep: &Sweep, variant: Variant) -> Vec<String> {
        let tasks = sweep.plain_tasks();
        let mut bytes: Vec<usize> = tasks.iter().map(|(task, _)| task.bytes()).collect();
        bytes.sort_unstable();
        bytes.dedup();
        let list = |items: &mut dyn Iterator<Item = String>| items.collect::<Vec<_>>().join(",");
        let sizes = list(&mut bytes.iter().map(usize::to_string));
        let launch = list(&mut sweep.launching.iter().map(|launching| launching.name().to_owned()));
        let (tp, dtype) = (sweep.shape.world().to_string(), sweep.dtype.to_string());
        let arguments = ["bench", "allreduce", "--nccl-child", &variant.name(), "--calls", "plain"];
        let more = ["--tp", &tp, "--dtype", &dtype, "--sizes", &sizes, "--launch", &launch];
        arguments.into_iter().chain(more).map(str::to_owned).collect()
    }
}

pub(super) fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    let shape = args.shape()?;
    let sweep = args.sweep(shape);
    let (mut peers, mut notes) = (Vec::new(), vec![method()]);
    for path in &args.join {
        let (lines, comments) = join::read(path)?;
        peers.extend(lines);
        notes.extend(comments);
    }
    args.files.check::<Measurement>("allreduce")?;
    let devices = cuda_devices(shape.world())?;
    let machine = Machine::of(&devices);
    if let Some(variant) = &args.nccl_child {
        return run_child(&devices, &sweep, variant, machine);
    }
    let variants = variants(args.nccl);
    let bar = progress_bar(variants.len() as u64, "NCCL", "{pos}/{len} variants");
    for variant in variants {
        bar.tick();
        match nccl(args, &sweep, variant) {
            Ok((lines, note)) => {
                peers.extend(lines);
                notes.extend(note.filter(|note| !notes.contains(note)));
            }
            Err(reason) => {
                let note = format!("NCCL {}: not measured, since {reason}", variant.name());
                output::note(&note);
                notes.push(note);
                // Where its own choice cannot be had, nothing can be forced either.
                if variant == Variant::AUTOMATIC {
                    break;
                }
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    if !json {
        output::write(&format!("{}\n{HEADING}", machine.line()))?;
    }
    let options = GroupOptions { tuning: args.forced.tuning(), ..args.sync.group() };
    let mut lost_reader = None;
    let mut so_far = Vec::new();
    let done = |line: &Measurement| {
        so_far.push(line.clone());
        if !json && lost_reader.is_none() {
            let mut compared = [&so_far[..], &peers].concat();
            compare(&mut compared);
            lost_reader = output::write(&line_of(&compared[so_far.len() - 1])).err();
        }
    };
    let variant = args.variant(&options);
    let mut lines = run_ours(&devices, &sweep, &options, &variant, done)?;
    lost_reader.map_or(Ok(()), Err)?;
    lines.extend(peers);
    compare(&mut lines);
    if !json {
        output::write(&lines.iter().filter(|line| line.contender != OURS).map(line_of).collect::<String>())?;
    }
    let report = Report::new("allreduce", machine, notes, lines);
    args.files.write(&report, || figure(&report))?;
    if json {
        return output::json(&report);
    }
    output::write(&format!("{}\n", report.notes.join("\n")))
}

fn method() -> String {
    format!(
        "us of one call: {} samples of {} calls, of each the slowest rank; ratios are over medians of the same tensor",
        race::SAMPLES,
        race::CALLS
    )
}

fn variants(choice: NcclChoice) -> Vec<Variant> {
    match choice {
        NcclChoice::All => Variant::all(),
        NcclChoice::Auto => vec![Variant::AUTOMATIC],
        NcclChoice::Off => Vec::new(),
    }
}

/// A variant of NCCL, measured by another process, and what it says of itself.
fn nccl(args: &Args, sweep: &Sweep, variant: Variant) -> Result<(Vec<Measurement>, Option<String>), String> {
    let printed = child::run(variant, &args.child_arguments(sweep, variant))?;
    let lines = join::parse("NCCL's process", &printed).map_err(|error| error.to_string())?;
    let note =
        printed.lines().find_map(|line| line.strip_prefix("# NCCL ")).map(|note| format!("NCCL {note}"));
    Ok((lines, note))
}

fn run_child(devices: &[Device], sweep: &Sweep, variant: &str, machine: Machine) -> anyhow::Result<()> {
    let (lines, version) = run_nccl(devices, sweep, variant)?;
    let note = format!("NCCL {version}, one process, out of place, without NVLink multicast");
    let report = Report::new("allreduce", machine, vec![note], lines);
    output::write(&(Report::<Measurement>::csv_heading() + &report.csv_body()))
}

const HEADING: &str = "contender variant        call      launch dtype topology       size hidden   median us      p10      \
                       p90     GB/s  x nccl  x best  x torch  over plain\n";

fn line_of(line: &Measurement) -> String {
    let Measurement { contender, variant, call, launch, dtype, topology, bytes, hidden, us, .. } = line;
    let ratio = |ratio: Option<f64>| ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}"));
    let [nccl, best, torch] = [line.ratio_nccl, line.ratio_nccl_best, line.ratio_torch_best].map(ratio);
    let over = line.us_over_plain.map_or_else(|| "-".into(), |us| format!("{us:+.2}"));
    let (call, launch, dtype) = (call.name(), launch.name(), dtype.to_string());
    format!(
        "{contender:<9} {variant:<14} {call:<9} {launch:<6} {dtype:<5} {topology:<8} {:>10} {hidden:>6} {:>11.2} {:>8.2} \
         {:>8.2} {:>8.2} {nccl:>7} {best:>7} {torch:>8} {over:>11}\n",
        readable(*bytes),
        us.median,
        us.p10,
        us.p90,
        line.gb_per_s
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn args(more: &[&str]) -> Args {
        Cli::try_parse_from([&["bench"], more].concat()).map(|cli| cli.args).unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn a_childs_arguments_are_understood_and_ask_for_the_same_tensors() {
        let parent = args(&["--sizes", "1KiB..1MiB", "--tp", "2", "--dtype", "f16", "--launch", "eager"]);
        let sweep = parent.sweep(parent.shape().unwrap());
        let arguments = parent.child_arguments(&sweep, Variant::all()[2]);
        let words: Vec<&str> = arguments.iter().skip(2).map(String::as_str).collect();
        let child = args(&words);
        assert_eq!(child.nccl_child.as_deref(), Some("ring-ll128"));
        let asked = child.sweep(child.shape().unwrap());
        assert_eq!(asked.tasks(), sweep.plain_tasks());
    }

    #[test]
    fn what_is_forced_is_in_the_variants_name() {
        let name = |more: &[&str]| {
            let args = args(more);
            args.variant(&GroupOptions { tuning: args.forced.tuning(), ..args.sync.group() })
        };
        assert_eq!(name(&[]), "auto");
        assert_eq!(name(&["--peer-memory", "host-staged"]), "auto host-staged");
        assert_eq!(name(&["--algorithm", "two-shot", "--blocks", "16"]), "two-shot 16 blocks");
        assert_eq!(name(&["--format", "cells", "--workers", "512"]), "cells 512 workers");
    }

    #[test]
    fn one_rank_is_refused() {
        let refusal = args(&["--tp", "1"]).shape().unwrap_err().to_string();
        assert!(refusal.contains("give --tp 2 or more"), "{refusal}");
        let refusal = args(&["--tp", "3", "--topology", "2x1"]).shape().unwrap_err().to_string();
        assert!(refusal.contains("contradicts --topology 2x1"), "{refusal}");
    }
}
