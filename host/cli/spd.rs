//! `fewsync spd`.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use serde_json::json;

use super::output;
use crate::model::Model;
use crate::model::sharding::Sharding;
use crate::spd::{BlockPlan, Plan};

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Write a plan file that names the blocks to drop
    Plan(PlanArgs),
}

#[derive(clap::Args)]
#[command(after_help = "Example:
  fewsync spd plan --tp 3 --blocks 4-10,12,20-22 --out plan.json
  fewsync generate --tp 3 --spd plan.json --prompt 'Once upon a time'")]
pub(super) struct PlanArgs {
    /// The model, as for generate
    #[arg(long, default_value = "smollm2")]
    model: String,
    /// Tensor-parallel degree that the plan is for
    #[arg(long, value_name = "T")]
    tp: usize,
    /// Blocks that skip the all-reduce behind attention, counted from 0: numbers and ranges, such as 3,7-9
    #[arg(long, value_name = "LIST")]
    blocks: BlockList,
    /// The file to write
    #[arg(long, value_name = "PLAN.json")]
    out: PathBuf,
}

/// Block numbers, as written on the command line.
#[derive(Clone, Debug, PartialEq)]
struct BlockList(Vec<usize>);

impl std::str::FromStr for BlockList {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let number = |n: &str| n.parse::<usize>().map_err(|_| format!("'{n}' is not a block number"));
        let mut blocks = Vec::new();
        for part in s.split(',') {
            match part.split_once('-') {
                Some((first, last)) => blocks.extend(number(first)?..=number(last)?),
                None => blocks.push(number(part)?),
            }
        }
        Ok(Self(blocks))
    }
}

pub(super) fn run(command: &Command, json: bool) -> anyhow::Result<()> {
    let Command::Plan(args) = command;
    ensure!(
        args.out.extension().is_some_and(|e| e == "json"),
        "{}: a plan's name ends in .json, so that --spd knows it for one",
        args.out.display()
    );
    let model = Model::open(&args.model)?;
    Sharding::new(&model.config, args.tp)?;
    let mut blocks = vec![BlockPlan::default(); model.config.n_layers];
    for &number in &args.blocks.0 {
        let last = blocks.len() - 1;
        let block = blocks.get_mut(number);
        block
            .with_context(|| format!("there is no block {number}: this model has blocks 0 to {last}"))?
            .sync_attention = false;
    }
    let plan = Plan::new(args.tp, blocks);
    plan.write(&args.out, &model.source.fingerprint()?)?;
    if json {
        return output::json(&json!({ "plan": args.out, "tp": args.tp, "spd_blocks": plan.n_dropped() }));
    }
    let (dropped, n_layers) = (plan.n_dropped(), model.config.n_layers);
    output::write(&format!(
        "{}: {dropped} of {n_layers} blocks drop, for --tp {}\n",
        args.out.display(),
        args.tp
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_lists() {
        assert_eq!("3,7-9".parse(), Ok(BlockList(vec![3, 7, 8, 9])));
        for bad in ["", "a", "1-", "1,,2"] {
            assert!(bad.parse::<BlockList>().is_err(), "{bad}");
        }
    }
}
