//! `fewsync spd group`.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::{bail, ensure};
use serde_json::json;

use super::block_list::BlockList;
use super::text::TextArgs;
use crate::cli::layout::ModelArgs;
use crate::cli::output;
use crate::cli::session::{load_reference, progress_bar};
use crate::cli::world::World;
use crate::model::Model;
use crate::runner::{Runner, Segment};
use crate::spd::{Grouping, Meter, Plan, group_heads};

#[derive(clap::Args)]
#[command(after_help = "\
Puts heads that attend differently onto the same rank, and each set of heads with the MLP shard that makes most of it; \
the order goes into the plan. With grouped-query attention no rank gets more KV heads than it had, so that its weights \
and KV cache keep their size; --replicate-kv lifts that. Group before distilling: weights are trained for an order. \
Runs on the CPU; memory for attention scores is 4 * heads * chunk-len^2 bytes.

Example:
  fewsync spd group --tp 4 --plan plan.json --text some.txt --out grouped.json")]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The plan whose blocks are grouped
    #[arg(long, value_name = "PLAN.json")]
    plan: PathBuf,
    /// Blocks to group, such as 3,7-9 [default: those that drop]
    #[arg(long, value_name = "LIST", allow_hyphen_values = true)]
    blocks: Option<BlockList>,
    /// Let heads move without their KV group: a rank may then hold more KV heads than before
    #[arg(long)]
    replicate_kv: bool,
    #[command(flatten)]
    text: TextArgs,
    /// The plan to write
    #[arg(long, value_name = "PLAN.json")]
    out: PathBuf,
}

pub(super) fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    super::check_plan_name(&args.out)?;
    let shape = args.model.layout.shape()?;
    let tp = shape.world();
    ensure!(tp > 1, "with one rank there is nothing to group: give --tp");
    let model = Model::open(&args.model.model)?;
    let n_layers = model.config.n_layers;
    let plan = Plan::read(&args.plan, &model.config, &*model.source, tp)?;
    let dropping = || (0..n_layers).filter(|&layer| !plan.blocks()[layer].sync_attention).collect();
    let blocks: Vec<usize> =
        args.blocks.as_ref().map_or_else(|| Ok(dropping()), |list| list.within(n_layers))?;
    for &layer in &blocks {
        if let Some(file) = &plan.blocks()[layer].replacement {
            let file = file.display();
            bail!(
                "block {layer} has weights of its own ({file}), trained for its present heads: group first, then distil"
            );
        }
    }
    let mut reference = load_reference(
        &model,
        &Plan::synchronised(tp, n_layers),
        shape,
        &args.model.layout,
        &World::Threads,
    )?;
    let text = args.text.calibration(&model, &mut reference)?;

    let bar = progress_bar(blocks.len() as u64, "grouping", "{pos}/{len} blocks,");
    let mut states = Meter::new(&mut reference, text.chunks())?.into_embedded();
    let mut grouped: Vec<(usize, Grouping)> = Vec::new();
    for layer in 0..n_layers {
        if blocks.contains(&layer) {
            grouped.push((layer, group_heads(&mut reference, layer, &states, args.replicate_kv)?));
            bar.inc(1);
        }
        if grouped.len() == blocks.len() {
            break;
        }
        reference.set_plan(&Plan::synchronised(tp, n_layers))?;
        for state in &mut states {
            *state = reference.run_segment(Segment::blocks(layer..layer + 1, state))?;
        }
    }
    bar.finish_and_clear();
    let plan = plan.map_blocks(|layer, block| {
        let mut block = block.clone();
        if let Some((_, grouping)) = grouped.iter().find(|(grouped, _)| *grouped == layer) {
            block.heads = Some(grouping.heads.clone());
        }
        block
    });
    plan.write(&args.out, &model.source.fingerprint()?)?;
    if json {
        let block = |(layer, g): &(usize, Grouping)| {
            json!({
                "block": layer, "heads": g.heads, "distance": g.distance, "mlp_norm": g.mlp_norm, "kv_heads": g.kv_heads,
            })
        };
        let blocks: Vec<_> = grouped.iter().map(block).collect();
        return output::json(&json!({ "plan": args.out, "tp": tp, "blocks": blocks }));
    }
    let mut text = String::from("block  distance in ranks      MLP norm              heads, rank by rank\n");
    for (layer, g) in &grouped {
        let ranks: Vec<String> = crate::spd::dealt(&g.heads, tp)
            .map(|heads| heads.iter().map(usize::to_string).collect::<Vec<_>>().join(" "))
            .collect();
        let [[d0, d1], [m0, m1]] = [g.distance, g.mlp_norm];
        writeln!(text, "{layer:5}  {d0:8.2} -> {d1:8.2}  {m0:8.3} -> {m1:8.3}  {}", ranks.join(" | "))?;
    }
    writeln!(text, "{}: heads of {} blocks grouped, for --tp {tp}", args.out.display(), grouped.len())?;
    output::write(&text)
}
