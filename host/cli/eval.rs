//! `fewsync eval`.

use std::path::PathBuf;

use anyhow::ensure;
use serde_json::json;

use super::agreement::Item;
use super::generate::read_text;
use super::layout::{ModelArgs, SyncArgs, at_least};
use super::output;
use super::session::{Prepared, progress_bar};
use super::world::World;
use crate::eval::{chunks, evaluate};
use crate::spd::SpdSpec;

#[derive(clap::Args)]
#[command(after_help = "Chunk i of n starts at token i * floor((n_tokens - context) / n) and stands alone: \
no token of one chunk sees another, and context - 1 tokens of each are predicted. No beginning-of-sequence \
token is added. kl is the mean of KL(synchronised || with --spd) in nats per token.")]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Text to predict (UTF-8)
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Number of chunks
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = at_least::<1>, allow_negative_numbers = true)]
    chunks: usize,
    /// Tokens per chunk
    #[arg(long, value_name = "C", default_value_t = 512, value_parser = at_least::<2>, allow_negative_numbers = true)]
    context: usize,
    /// Blocks that skip the all-reduce behind attention: none, all, last:K or PLAN.json
    #[arg(long, default_value = "none")]
    spd: SpdSpec,
}

impl Args {
    pub(super) fn sync(&self) -> &SyncArgs {
        &self.model.layout.sync
    }
}

pub(super) fn run(args: &Args, json: bool, world: &World) -> anyhow::Result<()> {
    let text = read_text(&args.text)?;
    let prepared = Prepared::open(&args.model, &args.spd, world)?;
    let (context, limit) = (args.context, prepared.model.config.context);
    ensure!(
        context <= limit,
        "--context {context} exceeds the model's context of {limit}: choose at most {limit}"
    );
    let tokens = prepared.model.tokenizer.encode_plain(&text)?;
    let chunks = chunks(&tokens, args.chunks, context)?;
    if args.chunks * context > tokens.len() {
        output::note(&format!(
            "note: {} chunks of {context} overlap in a text of {} tokens, so some tokens count more than once",
            args.chunks,
            tokens.len()
        ));
    }
    let mut session = prepared.load(Some(Item::tokens("text", chunks.iter().map(|chunk| &**chunk))))?;
    let bar = progress_bar(chunks.len() as u64, "evaluating", "{pos}/{len} chunks, perplexity {prefix},");
    let tally = evaluate(&mut *session.runner, &session.plan, &chunks, |i, so_far| {
        bar.set_prefix(format!("{:.3}", so_far.perplexity()));
        bar.set_position(i as u64 + 1);
    })?;
    bar.finish_and_clear();
    if json {
        return output::json(&json!({
            "model": session.model.name,
            "perplexity": tally.perplexity(),
            "kl": tally.mean_kl(),
            "top1_agreement": tally.top1_agreement(),
            "n_tokens": tokens.len(),
            "n_predicted": tally.n_predicted,
            "chunks": args.chunks,
            "context": context,
            "tp": session.shape.world(),
            "topology": session.shape.to_string(),
            "spd_blocks": session.n_dropped(),
            "device": session.device(),
            "device_detail": session.runner.device(),
        }));
    }
    output::write(&format!(
        "perplexity       {:.4}   ({} of {} tokens predicted, {} blocks of {} without attention sync)\n\
         kl               {:.6}   nats per token against the synchronised model\n\
         top-1 agreement  {:.4}   with the synchronised model\n",
        tally.perplexity(),
        tally.n_predicted,
        tokens.len(),
        session.n_dropped(),
        session.model.config.n_layers,
        tally.mean_kl(),
        tally.top1_agreement(),
    ))
}
