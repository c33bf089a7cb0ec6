//! `fewsync spd`.

mod block_list;
mod budget;
mod cost;
mod evaluate;
mod group;
mod plan;
mod report;
mod sensitivity;
mod text;

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Measure what each block's drop costs, on a text
    Sensitivity(sensitivity::Args),
    /// Write a plan file that names the blocks to drop
    Plan(plan::Args),
    /// Deal heads to ranks so that each rank's differ, in the blocks that drop
    Group(group::Args),
    /// Measure what plans, or levels of dropping, cost in quality and save in time
    Evaluate(evaluate::Args),
}

pub(super) fn run(command: &Command, json: bool) -> anyhow::Result<()> {
    match command {
        Command::Sensitivity(args) => sensitivity::run(args, json),
        Command::Plan(args) => plan::run(args, json),
        Command::Group(args) => group::run(args, json),
        Command::Evaluate(args) => evaluate::run(args, json),
    }
}
