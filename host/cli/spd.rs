//! `fewsync spd`.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde_json::json;

use super::output;
use super::session::at_least;
use crate::model::Model;
use crate::model::sharding::Sharding;
use crate::spd::{BlockPlan, Plan};

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Write a plan file that names the blocks to drop
    Plan(PlanArgs),
    #[cfg(feature = "distill")]
    Distill(super::spd_distill::Args),
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
    #[arg(long, value_name = "T", value_parser = at_least::<0>, allow_negative_numbers = true)]
    tp: usize,
    /// Blocks that skip the all-reduce behind attention, counted from 0: numbers and ranges, such as 3,7-9
    #[arg(long, value_name = "LIST", allow_hyphen_values = true)]
    blocks: BlockList,
    /// The file to write
    #[arg(long, value_name = "PLAN.json")]
    out: PathBuf,
}

/// Ranges of block numbers, as written on the command line.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct BlockList(Vec<RangeInclusive<usize>>);

impl std::str::FromStr for BlockList {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let number = |n: &str| {
            let wrong = |_| format!("'{n}' is not a block number; write numbers and ranges, such as 3,7-9");
            n.trim().parse::<usize>().map_err(wrong)
        };
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(format!("the range {first}-{last} is empty; write the smaller number first"));
            }
            Ok(first..=last)
        };
        s.split(',').map(range).collect::<Result<_, _>>().map(Self)
    }
}

impl BlockList {
    /// The numbers in it, ascending, each once, of a model's `n_layers` blocks.
    pub(super) fn numbers(&self, n_layers: usize) -> anyhow::Result<Vec<usize>> {
        let mut named = vec![false; n_layers];
        for range in &self.0 {
            let (last, end) = (n_layers - 1, *range.end());
            named
                .get_mut(range.clone())
                .with_context(|| format!("there is no block {end}: this model has blocks 0 to {last}"))?
                .fill(true);
        }
        Ok((0..n_layers).filter(|&block| named[block]).collect())
    }
}

/// Refuses a name under which `--spd` would not know a plan.
pub(super) fn check_plan_name(path: &Path) -> anyhow::Result<()> {
    let json = path.extension().is_some_and(|e| e == "json");
    ensure!(json, "{}: a plan's name ends in .json, so that --spd knows it for one", path.display());
    Ok(())
}

pub(super) fn run(command: &Command, json: bool) -> anyhow::Result<()> {
    match command {
        Command::Plan(args) => plan(args, json),
        #[cfg(feature = "distill")]
        Command::Distill(args) => super::spd_distill::run(args, json),
    }
}

fn plan(args: &PlanArgs, json: bool) -> anyhow::Result<()> {
    check_plan_name(&args.out)?;
    let model = Model::open(&args.model)?;
    Sharding::new(&model.config, args.tp)?;
    let mut blocks = vec![BlockPlan::default(); model.config.n_layers];
    for block in args.blocks.numbers(model.config.n_layers)? {
        blocks[block].sync_attention = false;
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
        assert_eq!("3,7-9".parse(), Ok(BlockList(vec![3..=3, 7..=9])));
        assert_eq!("0-18446744073709551615".parse(), Ok(BlockList(vec![0..=usize::MAX])));
        for bad in ["", "a", "1-", "1,,2", "3-2", "-1", "1-2-3"] {
            assert!(bad.parse::<BlockList>().is_err(), "{bad}");
        }
    }
}
