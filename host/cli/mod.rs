//! The `fewsync` command: arguments, progress, output. Results go to stdout, everything else to stderr.

mod agreement;
mod bench;
mod bench_allreduce;
mod bench_decode;
mod bench_kernels;
#[cfg(feature = "nvshmem")]
mod build_kernels;
mod demo;
mod doctor;
mod eval;
mod generate;
mod layout;
mod memory;
mod output;
mod results;
mod selftest;
mod session;
mod spd;
mod tune;
mod world;

use std::process::ExitCode;

use anyhow::bail;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use layout::SyncArgs;
use world::World;

use crate::comm::bootstrap::launch::Launch;

/// How an emulated machine is described, for the help of commands that take `--device emulate`.
const EMULATE_HELP: &str = "--device emulate executes the GPU's PTX on this CPU and checks every access. FEWSYNC_EMULATE \
describes the machine: seed=N, schedule=round-robin|random|adversarial, race (report data races), weak (weak memory), \
devices=N, sms=N, memory=GIB, separated by commas.";

/// Tensor-parallel Llama decode with few and fast synchronisations.
///
/// Ranks are threads of this process, on the CPU or with a GPU each; --tp 3 works on a laptop. Under mpirun, srun or
/// torchrun each process is a rank (docs/multi-node.md). A tensor-parallel
/// block synchronises twice: behind attention and behind the MLP. Sync-Point Drop (--spd) skips the first where the
/// model bears it.
#[derive(Parser)]
#[command(name = "fewsync", version, max_term_width = 100)]
struct Cli {
    /// Print one JSON object on stdout instead of text
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the idea on one screen: the same prompt with and without dropped sync points
    Demo(demo::Args),
    /// Continue a prompt
    Generate(generate::Args),
    /// Measure perplexity on a text, and how far --spd moves the model from its synchronised self
    Eval(eval::Args),
    /// Make plans for Sync-Point Drop
    #[command(subcommand)]
    Spd(spd::Command),
    /// Measure speed
    #[command(subcommand)]
    Bench(bench::Command),
    /// Measure what is fastest here, for later commands
    #[command(subcommand)]
    Tune(tune::Command),
    /// Check every GPU kernel against f64 arithmetic on the CPU, on a GPU or an emulated one
    Selftest(selftest::Args),
    /// Complete the kernels for NVSHMEM with its device code, once for each release
    #[cfg(feature = "nvshmem")]
    BuildKernels(build_kernels::Args),
    /// Say what this machine has, what works with it, and what to install for more
    Doctor(doctor::Args),
}

impl Command {
    /// How ranks synchronise, where they may be processes.
    fn sync(&self) -> Option<&SyncArgs> {
        match self {
            Self::Demo(args) => Some(args.sync()),
            Self::Generate(args) => Some(args.sync()),
            Self::Eval(args) => Some(args.sync()),
            Self::Bench(bench::Command::Decode(args)) => Some(args.sync()),
            Self::Bench(bench::Command::AllReduce(args)) => Some(args.sync()),
            Self::Tune(tune::Command::AllReduce(args)) => Some(args.sync()),
            _ => None,
        }
    }

    fn run(&self, json: bool, world: &World) -> anyhow::Result<()> {
        match self {
            Self::Demo(args) => demo::run(args, json, world),
            Self::Generate(args) => generate::run(args, json, world),
            Self::Eval(args) => eval::run(args, json, world),
            Self::Spd(command) => spd::run(command, json),
            Self::Bench(command) => bench::run(command, json, world),
            Self::Tune(command) => tune::run(command, json, world),
            Self::Selftest(args) => selftest::run(args, json),
            #[cfg(feature = "nvshmem")]
            Self::BuildKernels(args) => build_kernels::run(args, json),
            Self::Doctor(args) => doctor::run(args, json),
        }
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let launch = world::launch();
    let rank = launch.as_ref().ok().and_then(Option::as_ref).map_or(0, |launch| launch.rank);
    if rank > 0 {
        output::be_silent();
    }
    let mut command_line = Cli::command();
    let parsed = command_line.try_get_matches_from_mut(std::env::args_os());
    let parsed = parsed.and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, matches)));
    let (cli, matches) = match parsed {
        Ok(parsed) => parsed,
        // Rank 0 says it, if it is the same there.
        Err(error) if rank > 0 => return world::misuse(launch, &error),
        Err(error) => error.exit(),
    };
    // The doctor says itself what is wrong with the environment.
    let launch = if matches!(cli.command, Command::Doctor(_)) { Ok(None) } else { launch };
    let world = match launch.map_err(Into::into).and_then(|launch| join(&cli.command, launch)) {
        Ok(world) => world,
        Err(error) => return world::refuse(rank, &error),
    };
    let agreed = world.agree(|| Ok(agreement::of_command_line(&command_line, &matches)));
    match world.conclude(agreed.and_then(|()| cli.command.run(cli.json, &world))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(told) => {
            told.iter().for_each(|sentence| output::complain(sentence));
            ExitCode::FAILURE
        }
    }
}

/// Joins the processes that were launched with this one, if there are any and the command is for several.
fn join(command: &Command, launch: Option<Launch>) -> anyhow::Result<World> {
    match (launch, command.sync()) {
        (None, _) => Ok(World::Threads),
        (Some(launch), Some(sync)) => World::join(launch, sync),
        (Some(Launch { launcher, world, .. }), None) => bail!(
            "{launcher} started {world} processes, but this command runs in one: start it without a launcher; \
             generate, eval, demo, bench decode, bench allreduce and tune allreduce run in several"
        ),
    }
}

/// The error and its causes on one line, whatever names and messages of others stand in it. The
/// library's errors name their cause themselves; it is not said twice.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string).filter(|cause| !cause.is_empty()) {
        if !text.contains(&cause) {
            text += if text.is_empty() { "" } else { ": " };
            text += &cause;
        }
    }
    text.split(char::is_control).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_error_is_one_line_and_names_its_cause_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("a.txt: cannot read: {source}")]
        struct Named {
            source: std::io::Error,
        }
        let named = Named { source: std::io::Error::other("denied\nby the system") };
        let error = Err::<(), _>(named).context("the plan").unwrap_err();
        assert_eq!(sentence(&error), "the plan: a.txt: cannot read: denied by the system");
    }
}
