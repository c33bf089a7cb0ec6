//! `fewsync demo`: the idea on one screen.

use std::path::Path;

use serde_json::json;

use super::agreement::Item;
use super::generate::{cancel_on_ctrl_c, report, request, stream};
use super::layout::{DeviceChoice, LayoutArgs, ModelArgs, SyncArgs, at_least};
use super::output;
use super::session::Prepared;
use super::world::World;
use crate::generate::{Generation, Sampling, StopReason};
use crate::spd::{Plan, SpdSpec};

/// Half of smollm2's blocks: those whose single drop raises the perplexity of WikiText-2 least at [`PLAN_TP`] ranks.
const PLAN: &str = include_str!("demo_plan.json");
/// Smollm2 has three KV heads.
const PLAN_TP: usize = 3;

#[derive(clap::Args)]
pub(super) struct Args {
    /// The question put to the model
    #[arg(long, default_value = "What is the capital of France?", allow_hyphen_values = true)]
    prompt: String,
    /// Tokens to generate at most
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Number of ranks, 2 to 9 [default: 3, or the number of processes]
    #[arg(long, value_name = "T", value_parser = at_least::<2>, allow_negative_numbers = true)]
    tp: Option<usize>,
    /// Where to run
    #[arg(long, value_enum, default_value_t = DeviceChoice::Cpu)]
    device: DeviceChoice,
    #[command(flatten)]
    sync: SyncArgs,
}

impl Args {
    pub(super) fn sync(&self) -> &SyncArgs {
        &self.sync
    }
}

pub(super) fn run(args: &Args, json: bool, world: &World) -> anyhow::Result<()> {
    let tp = args.tp.or_else(|| world.processes()).unwrap_or(PLAN_TP);
    let layout = LayoutArgs { tp: Some(tp), sync: args.sync.clone(), ..LayoutArgs::on(args.device) };
    let args_of_model = ModelArgs { model: "smollm2".into(), layout };
    let prepared = Prepared::open(&args_of_model, &SpdSpec::None, world)?;
    let model = &prepared.model;
    let plan = Plan::parse(PLAN, Path::new("demo_plan.json"), &model.config, &*model.source, PLAN_TP)?;
    // The same blocks, whatever the number of ranks.
    let plan = Plan::new(tp, plan.blocks().to_vec());
    let request = request(model, &args.prompt, true, Some(args.max_tokens), Sampling::GREEDY)?;
    let mut session = prepared.load(Some(Item::tokens("prompt", [&*request.prompt])))?;
    let cancel = cancel_on_ctrl_c()?;

    let n_layers = session.model.config.n_layers;
    let half = plan.n_dropped();
    if !json {
        let device = session.runner.device();
        output::write(&format!(
            "SmolLM2-135M, {n_layers} blocks, tensor-parallel over {tp} ranks on {device}\nPrompt: {}\n",
            args.prompt
        ))?;
    }
    let headings = [
        "Every block synchronises twice, behind attention and behind the MLP:".to_string(),
        format!("Sync-Point Drop: {half} of {n_layers} blocks skip the first:"),
    ];
    let mut runs = Vec::new();
    for (heading, plan) in headings.iter().zip([Plan::synchronised(tp, n_layers), plan]) {
        session.runner.set_plan(&plan)?;
        session.plan = plan;
        if !json {
            output::write(&format!("\n{heading}\n\n"))?;
        }
        let generation = stream(&mut session, &request, &cancel, !json)?;
        if json {
            runs.push(report(&session, &request, &generation)?);
        } else {
            output::write(&format!("\n\n  -> {}\n", figures(&generation)))?;
        }
        if generation.stop == StopReason::Interrupted {
            break;
        }
    }
    if json {
        return output::json(
            &json!({ "prompt": args.prompt, "synchronised": runs.first(), "spd": runs.get(1) }),
        );
    }
    output::write(
        "\nIn one machine's memory a sync point costs microseconds; between GPUs and nodes it is what decode waits for.\n\
         Next: fewsync generate --help, fewsync eval --help, fewsync doctor\n",
    )
}

fn figures(g: &Generation) -> String {
    format!(
        "{:.1} tokens/s, {:.0} sync points per token ({:.0} all-reduces in the blocks)",
        g.tokens_per_s(),
        g.sync_points_per_token,
        g.block_all_reduces_per_token
    )
}
