//! `fewsync spd plan`.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::{bail, ensure};
use serde_json::{Value, json};

use super::block_list::BlockList;
use super::budget::{BudgetArgs, Chosen};
use super::text::TextArgs;
use crate::cli::layout::ModelArgs;
use crate::cli::output;
use crate::cli::session::Session;
use crate::cli::world::World;
use crate::model::Model;
use crate::model::sharding::Sharding;
use crate::spd::{SpdSpec, dropping};

#[derive(clap::Args)]
#[command(after_help = "\
Blocks are named (--blocks), or taken from a sensitivity file in ascending order of what they cost, up to a budget: \
--count, --max-ppl-rise, --max-kl or --min-saving-us. Blocks that drop together cost more than the sum of what each \
costs alone, so without --text a budget of perplexity or KL is a prediction; with it sets of blocks are measured. \
--greedy measures before every choice, on --text or on text that the model writes.

Examples:
  fewsync spd plan --tp 3 --blocks 4-10,12,20-22 --out plan.json
  fewsync spd plan --tp 3 --sensitivity sensitivity.json --max-ppl-rise 5% --text some.txt --out plan.json
  fewsync spd plan --tp 3 --sensitivity sensitivity.json --count 15 --greedy --text some.txt --out plan.json
  fewsync generate --tp 3 --spd plan.json --prompt 'Once upon a time'")]
#[command(group = clap::ArgGroup::new("choice").required(true).args(["blocks", "sensitivity"]))]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Blocks that skip the all-reduce behind attention, counted from 0: numbers and ranges, such as 3,7-9
    #[arg(long, value_name = "LIST", allow_hyphen_values = true)]
    blocks: Option<BlockList>,
    #[command(flatten)]
    budget: BudgetArgs,
    #[command(flatten)]
    text: TextArgs,
    /// The file to write
    #[arg(long, value_name = "PLAN.json")]
    out: PathBuf,
}

pub(super) fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    super::check_plan_name(&args.out)?;
    let layout = &args.model.layout;
    if layout.tp.is_none() && layout.topology.is_none() {
        bail!("a plan is for a number of ranks: give --tp or --topology");
    }
    let tp = layout.shape()?.world();
    let model = Model::open(&args.model.model)?;
    Sharding::new(&model.config, tp)?;
    ensure!(tp > 1, "with one rank there is nothing to drop: give a larger --tp");
    let n_layers = model.config.n_layers;
    let fingerprint = model.source.fingerprint()?;
    let chosen = match (&args.blocks, args.budget.sensitivity(&fingerprint, tp, n_layers)?) {
        (Some(list), _) => Chosen::named(list.within(n_layers)?),
        (None, Some(sensitivity)) => {
            let budget = args.budget.resolve(&model.config, &sensitivity)?;
            if args.text.is_given() || args.budget.greedy {
                let mut session = Session::open(&args.model.on_reference(), &SpdSpec::None, &World::Threads)?;
                let text = args.text.calibration(&session.model, &mut *session.runner)?;
                budget.measured(&mut *session.runner, &text)?
            } else {
                budget.predicted()
            }
        }
        (None, None) => bail!("give --blocks or --sensitivity"),
    };
    let plan = dropping(tp, n_layers, &chosen.blocks);
    // Before the plan is written: a table that cannot be read leaves no plan.
    let saving = args.budget.saving_us(&model.config, tp, chosen.blocks.len())?;
    plan.write(&args.out, &fingerprint)?;
    if json {
        let mut report = json!({ "plan": args.out, "tp": tp, "spd_blocks": plan.n_dropped() });
        let map = report.as_object_mut().expect("an object");
        map.extend(chosen.json());
        map.extend(saving.map(|us| ("saving_us".to_owned(), Value::from(us))));
        return output::json(&report);
    }
    let mut text = chosen.table();
    if let Some(us) = saving {
        writeln!(text, "the all-reduces that fall away take {us:.1} µs of every decode step")?;
    }
    let (path, dropped) = (args.out.display(), plan.n_dropped());
    writeln!(text, "{path}: {dropped} of {n_layers} blocks drop, for --tp {tp}")?;
    output::write(&text)
}
