//! `fewsync spd`.

mod block_list;
mod budget;
mod cost;
#[cfg(feature = "distill")]
mod distill;
mod evaluate;
mod figure;
mod group;
mod plan;
mod recorded;
mod report;
mod sensitivity;
mod text;
mod timing;

use std::path::Path;

use anyhow::ensure;

use super::layout::LayoutArgs;

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Measure what each block's drop costs, on a text
    Sensitivity(sensitivity::Args),
    /// Write a plan file that names the blocks to drop
    Plan(plan::Args),
    /// Deal heads to ranks so that each rank's differ, in the blocks that drop
    Group(group::Args),
    #[cfg(feature = "distill")]
    Distill(distill::Args),
    /// Measure what plans, or levels of dropping, cost in quality and save in time
    Evaluate(evaluate::Args),
}

pub(super) fn run(command: &Command, json: bool) -> anyhow::Result<()> {
    match command {
        Command::Sensitivity(args) => sensitivity::run(args, json),
        Command::Plan(args) => plan::run(args, json),
        Command::Group(args) => group::run(args, json),
        #[cfg(feature = "distill")]
        Command::Distill(args) => distill::run(args, json),
        Command::Evaluate(args) => evaluate::run(args, json),
    }
}

/// The number of ranks, of which there have to be several for anything to be dropped.
fn several_ranks(layout: &LayoutArgs) -> anyhow::Result<usize> {
    let n_ranks = layout.shape()?.world();
    ensure!(n_ranks > 1, "with one rank there is nothing to drop: give --tp");
    Ok(n_ranks)
}

/// Refuses a name under which `--spd` would not know a plan.
fn check_plan_name(path: &Path) -> anyhow::Result<()> {
    let json = path.extension().is_some_and(|e| e == "json");
    ensure!(json, "{}: a plan's name ends in .json, so that --spd knows it for one", path.display());
    Ok(())
}
