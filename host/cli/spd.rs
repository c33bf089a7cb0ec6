//! `fewsync spd`.

mod plan;
mod sensitivity;
mod text;

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Measure what each block's drop costs, on a text
    Sensitivity(sensitivity::Args),
    /// Write a plan file that names the blocks to drop
    Plan(plan::Args),
}

pub(super) fn run(command: &Command, json: bool) -> anyhow::Result<()> {
    match command {
        Command::Sensitivity(args) => sensitivity::run(args, json),
        Command::Plan(args) => plan::run(args, json),
    }
}
