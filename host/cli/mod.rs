//! The `fewsync` command: arguments, progress, output. Results go to stdout, everything else to stderr.

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
mod memory;
mod output;
mod results;
mod selftest;
mod session;
mod spd;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// How an emulated machine is described, for the help of commands that take `--device emulate`.
const EMULATE_HELP: &str = "--device emulate executes the GPU's PTX on this CPU and checks every access. FEWSYNC_EMULATE \
describes the machine: seed=N, schedule=round-robin|random|adversarial, race (report data races), weak (weak memory), \
devices=N, sms=N, memory=GIB, separated by commas.";

/// Tensor-parallel Llama decode with few and fast synchronisations.
///
/// Ranks are threads of this process, on the CPU or with a GPU each; --tp 3 works on a laptop. A tensor-parallel
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
    /// Check every GPU kernel against f64 arithmetic on the CPU, on a GPU or an emulated one
    Selftest(selftest::Args),
    /// Complete the kernels for NVSHMEM with its device code, once for each release
    #[cfg(feature = "nvshmem")]
    BuildKernels(build_kernels::Args),
    /// Say what this machine has, what works with it, and what to install for more
    Doctor(doctor::Args),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Demo(args) => demo::run(&args, cli.json),
        Command::Generate(args) => generate::run(&args, cli.json),
        Command::Eval(args) => eval::run(&args, cli.json),
        Command::Spd(command) => spd::run(&command, cli.json),
        Command::Bench(command) => bench::run(&command, cli.json),
        Command::Selftest(args) => selftest::run(&args, cli.json),
        #[cfg(feature = "nvshmem")]
        Command::BuildKernels(args) => build_kernels::run(&args, cli.json),
        Command::Doctor(args) => doctor::run(&args, cli.json),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of our output left (`fewsync … | head`): nothing is wrong, and nobody listens.
        Err(e) if output::is_broken_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            output::note(&format!("error: {}", sentence(&e)));
            ExitCode::FAILURE
        }
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
    use clap::CommandFactory;

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
