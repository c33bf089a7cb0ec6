//! `fewsync spd distill`.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::ValueEnum;
use serde_json::json;

use super::block_list::BlockList;
use crate::cli::layout::at_least;
use crate::cli::output;
use crate::cli::session::progress_bar;
use crate::model::Model;
use crate::spd::distill::{BlockResult, Job, Options, Trainable, block_file, distill};

use crate::spd::{BlockPlan, Plan, ReplacementFile};

/// Distil blocks that drop a sync point from the blocks that have it
#[derive(clap::Args)]
#[command(after_help = "Example:
  fewsync spd plan --tp 3 --blocks 4-10,12,20-22 --out plan.json
  fewsync spd distill --tp 3 --plan plan.json --text calibration.txt --out distilled.json
  fewsync eval --tp 3 --spd distilled.json --text other.txt

An interrupted run is continued by the same command, and ends with the same result.")]
pub(in crate::cli) struct Args {
    /// The model, as for generate
    #[arg(long, default_value = "smollm2")]
    model: String,
    /// Tensor-parallel degree; the plan's own
    #[arg(long, value_name = "T", value_parser = at_least::<0>, allow_negative_numbers = true)]
    tp: usize,
    /// The plan that says which blocks drop
    #[arg(long, value_name = "PLAN.json")]
    plan: PathBuf,
    /// Text to calibrate on (UTF-8)
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// The plan to write; its tensors go to a folder beside it, PLAN.blocks
    #[arg(long, value_name = "PLAN.json")]
    out: PathBuf,
    /// Blocks to distil, such as 3,7-9 [default: all that drop and have no replacement tensors yet]
    #[arg(long, value_name = "LIST", allow_hyphen_values = true)]
    blocks: Option<BlockList>,
    /// Which weights take gradient steps
    #[arg(long, value_enum, default_value_t = Train::Mlp)]
    train: Train,
    /// Begin from the model's weights and not from the closed form
    #[arg(long)]
    no_closed_form: bool,
    /// Passes of gradient steps over the text
    #[arg(long, value_name = "N", default_value_t = Options::default().epochs, value_parser = at_least::<1>)]
    epochs: usize,
    /// Highest learning rate
    #[arg(long, value_name = "RATE", default_value_t = Options::default().learning_rate)]
    lr: f64,
    /// Decoupled weight decay
    #[arg(long, value_name = "RATE", default_value_t = Options::default().weight_decay)]
    weight_decay: f64,
    /// Tokens of a chunk
    #[arg(long, value_name = "C", default_value_t = Options::default().context, value_parser = at_least::<2>)]
    context: usize,
    /// Chunks of a mini-batch
    #[arg(long, value_name = "N", default_value_t = Options::default().batch, value_parser = at_least::<1>)]
    batch: usize,
    /// Share of the chunks that are not trained on, but judged by
    #[arg(long, value_name = "SHARE", default_value_t = Options::default().hold_out)]
    hold_out: f64,
    /// Seed of the order of the mini-batches
    #[arg(long, default_value_t = Options::default().seed)]
    seed: u64,
}

#[derive(ValueEnum, Clone, Copy)]
enum Train {
    /// None: least squares alone
    None,
    /// The gain of each rank's norm before the MLP
    Norms,
    /// The MLP's projections
    Mlp,
    /// All of the block
    All,
}

impl Args {
    fn options(&self) -> Options {
        Options {
            closed_form: !self.no_closed_form,
            train: match self.train {
                Train::None => Trainable::None,
                Train::Norms => Trainable::Norms,
                Train::Mlp => Trainable::Mlp,
                Train::All => Trainable::All,
            },
            epochs: self.epochs,
            learning_rate: self.lr,
            weight_decay: self.weight_decay,
            context: self.context,
            batch: self.batch,
            hold_out: self.hold_out,
            seed: self.seed,
        }
    }

    /// The folder of the blocks' tensors, relative to the plan.
    fn folder(&self) -> PathBuf {
        let mut name = self.out.file_stem().unwrap_or_default().to_os_string();
        name.push(".blocks");
        name.into()
    }
}

pub(super) fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    super::check_plan_name(&args.out)?;
    let text = crate::cli::generate::read_text(&args.text)?;
    let model = Model::open(&args.model)?;
    let plan = Plan::read(&args.plan, &model.config, &*model.source, args.tp)?;
    let blocks = match &args.blocks {
        Some(list) => list.within(model.config.n_layers)?,
        None => droppers(&plan),
    };
    ensure!(
        !blocks.is_empty(),
        "{}: no block drops without replacement tensors, so there is nothing to distil",
        args.plan.display()
    );
    let (here, there) = (folder_of(&args.plan), folder_of(&args.out));
    std::fs::metadata(there).with_context(|| format!("{}: cannot write there", args.out.display()))?;
    let kept = plan.blocks().iter().filter(|block| block.replacement.is_some()).count();
    ensure!(
        kept == 0 || here.canonicalize()? == there.canonicalize()?,
        "{}: {kept} blocks have replacement tensors relative to its folder: write the new plan there too",
        args.plan.display()
    );
    let tokens = model.tokenizer.encode_plain(&text)?;
    let options = args.options();
    let folder = args.folder();
    let job = Job {
        config: &model.config,
        source: &*model.source,
        plan: &plan,
        blocks: &blocks,
        tokens: &tokens,
        options: &options,
        folder: &there.join(&folder),
    };
    let bar = progress_bar(0, "distilling", "block {prefix}, {percent} %,");
    let results = distill(&job, &mut |progress| {
        bar.set_length(progress.total);
        bar.set_prefix(progress.block.to_string());
        bar.set_position(progress.done);
    })?;
    bar.finish_and_clear();
    let mut distilled: Vec<BlockPlan> = plan.blocks().to_vec();
    for &block in &blocks {
        // Where nothing was gained the block keeps the model's weights, and its file has no tensor.
        let file =
            ReplacementFile::open(&there.join(&folder).join(block_file(block)), &model.config, args.tp)?;
        distilled[block].replacement = file.covers(block).then(|| folder.join(block_file(block)));
    }
    Plan::new(args.tp, distilled).write(&args.out, &model.source.fingerprint()?)?;
    report(args, tokens.len(), &results, json)
}

/// The blocks that drop and have no replacement tensors.
fn droppers(plan: &Plan) -> Vec<usize> {
    let open = |(_, block): &(usize, &BlockPlan)| !block.sync_attention && block.replacement.is_none();
    plan.blocks().iter().enumerate().filter(open).map(|(layer, _)| layer).collect()
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn report(args: &Args, tokens: usize, results: &[BlockResult], json: bool) -> anyhow::Result<()> {
    if json {
        let options = args.options();
        return output::json(&json!({
            "plan": args.out,
            "tp": args.tp,
            "n_tokens": tokens,
            "options": options,
            "blocks": results,
        }));
    }
    let mut table = String::from("block  zero-shot  closed form  distilled  recovered  steps  seconds\n");
    for r in results {
        let closed_form = r.closed_form.map_or("-".into(), |e| format!("{e:.3e}"));
        table += &format!(
            "{:>5}  {:>9.3e}  {closed_form:>11}  {:>9.3e}  {:>8.1}%  {:>5}  {:>7.1}\n",
            r.block,
            r.zero_shot,
            r.distilled,
            100.0 * (1.0 - r.distilled / r.zero_shot),
            r.steps,
            r.seconds,
        );
    }
    table += "errors: mean square on held-out chunks, relative to the block's output\n";
    output::write(&format!(
        "{table}{}: {} blocks distilled, for --tp {}\n",
        args.out.display(),
        results.len(),
        args.tp
    ))
}
