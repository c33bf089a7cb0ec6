//! What `fewsync bench allreduce` is asked, and what follows from it.

use std::path::PathBuf;

use anyhow::ensure;
use clap::ValueEnum;

use crate::bench::allreduce::child::Variant;
use crate::bench::allreduce::contest::Sweep;
use crate::bench::allreduce::record::AUTOMATIC;
use crate::bench::allreduce::sizes::Sizes;
use crate::bench::allreduce::{Call, Launching};
use crate::cli::layout::{SyncArgs, at_least};
use crate::cli::results::ResultFiles;
#[cfg(feature = "nvshmem")]
use crate::comm::TopologyError;
use crate::comm::gpu::{Algorithm, Format, GroupOptions, PeerMemory, Tuning};
use crate::comm::{DType, Shape};
use crate::driver::Device;

#[derive(clap::Args)]
#[command(
    after_help = "A sample is 20 calls between two events on each GPU, behind one that aligns the ranks; its time \
is the slowest rank's, per call. Sums are checked, element by element, before they are timed. Needs at least two GPUs."
)]
pub(in crate::cli) struct Args {
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
    #[arg(long, value_enum, value_name = "CALLS", value_delimiter = ',', default_values_t = CallChoice::USUAL)]
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
    pub(super) nccl: NcclChoice,
    /// Also take these results of others into the comparison (CSV with the same columns, such as those of
    /// bench/peers/torch_symmetric_memory.py)
    #[arg(long, value_name = "FILE")]
    pub(super) join: Vec<PathBuf>,
    #[command(flatten)]
    pub(super) sync: SyncArgs,
    #[command(flatten)]
    pub(super) forced: ForcedArgs,
    #[command(flatten)]
    pub(super) files: ResultFiles,
    /// Measure this variant of NCCL in this process and print CSV
    #[arg(long, hide = true, value_name = "VARIANT")]
    pub(super) nccl_child: Option<String>,
}

/// What to force in place of the measured choices.
#[derive(clap::Args)]
pub(super) struct ForcedArgs {
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
    /// The residual added and the RMSNorm, without the sum
    Norm,
    /// Each phase alone
    Phases,
}

impl CallChoice {
    const USUAL: [Self; 3] = [Self::Plain, Self::Fused, Self::Phases];
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq)]
enum LaunchChoice {
    /// A CUDA graph of 20 calls
    Graph,
    /// Call by call
    Eager,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq)]
pub(super) enum NcclChoice {
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
    pub(super) fn tuning(&self) -> Option<Tuning> {
        let &Self { algorithm, format, blocks, workers, row_blocks } = self;
        let algorithm = algorithm.map(|algorithm| match algorithm {
            AlgorithmChoice::OneShot => Algorithm::OneShot,
            AlgorithmChoice::TwoShot => Algorithm::TwoShot,
        });
        let format = format.map(|format| match format {
            FormatChoice::Cells => Format::Cells,
            FormatChoice::Words => Format::Words,
        });
        let tuning = Tuning { algorithm, format, blocks, workers, row_blocks, pass_units: None };
        (tuning != Tuning::default()).then_some(tuning)
    }
}

impl Args {
    /// How ranks synchronise.
    pub(in crate::cli) fn sync(&self) -> &SyncArgs {
        &self.sync
    }

    fn dtype(&self) -> DType {
        match self.dtype {
            DTypeChoice::Bf16 => DType::Bf16,
            DTypeChoice::F16 => DType::F16,
            DTypeChoice::F32 => DType::F32,
        }
    }

    /// The layout; without one, all GPUs in one node.
    pub(super) fn shape(&self) -> anyhow::Result<Shape> {
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

    /// The layout over processes; without one, that of their hosts.
    #[cfg(feature = "nvshmem")]
    pub(super) fn shape_or(&self, of_hosts: Result<Shape, TopologyError>) -> anyhow::Result<Shape> {
        if self.topology.is_some() || self.tp.is_some() { self.shape() } else { Ok(of_hosts?) }
    }

    pub(super) fn sweep(&self, shape: Shape) -> Sweep {
        let calls = self.calls.iter().flat_map(|call| match call {
            CallChoice::Plain => vec![Call::Plain],
            CallChoice::Fused => vec![Call::Fused],
            CallChoice::Norm => vec![Call::Norm],
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
    pub(super) fn variant(&self, options: &GroupOptions) -> String {
        let tuned = if options.table.is_some() { "tuned" } else { AUTOMATIC };
        let mut parts = vec![options.tuning.map_or_else(|| tuned.to_owned(), |tuning| tuning.to_string())];
        if options.memory == PeerMemory::HostStaged {
            parts.push("host-staged".into());
        }
        parts.join(" ")
    }

    /// Arguments of a process that measures NCCL.
    pub(super) fn child_arguments(&self, sweep: &Sweep, variant: Variant) -> Vec<String> {
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
            args.variant(&GroupOptions { tuning: args.forced.tuning(), ..args.sync.untuned() })
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
