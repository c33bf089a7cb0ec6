//! `fewsync spd`.

mod block_list;
mod budget;
mod cost;
mod evaluate;
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
    /// Measure what plans, or levels of dropping, cost in quality and save in time
    Evaluate(evaluate::Args),
}

pub(super) fn run(command: &Command, json: bool) -> anyhow::Result<()> {
    match command {
        Command::Sensitivity(args) => sensitivity::run(args, json),
        Command::Plan(args) => plan::run(args, json),
        Command::Evaluate(args) => evaluate::run(args, json),
    }
}
