//! `fewsync generate`.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, anyhow, bail, ensure};
use serde_json::json;

use super::agreement::Item;
use super::layout::{ModelArgs, SyncArgs};
use super::output;
use super::session::{Prepared, Session};
use super::world::World;
use crate::generate::{Generation, Request, Sampling, StopReason, generate};
use crate::model::Model;
use crate::spd::SpdSpec;

/// Tokens generated where --max-tokens does not say.
const DEFAULT_MAX_TOKENS: usize = 128;

#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("text").required(true))]
#[command(after_help = "Examples:
  fewsync generate --chat --prompt 'What is the capital of France?' --tp 3
  fewsync generate --chat --prompt 'Explain gravity.' --tp 3 --spd last:15
  fewsync generate --model random:llama3.2-1b --prompt hi --topology 2x4 --json

Ctrl-C ends the text with what was produced (exit status 0, \"stop\": \"interrupted\"); in several processes
rank 0's counts.")]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Text to continue; special tokens written in it count as such
    #[arg(long, value_name = "TEXT", group = "text", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// File with the text to continue (UTF-8)
    #[arg(long, value_name = "FILE", group = "text")]
    prompt_file: Option<PathBuf>,
    /// Put the prompt into the model's chat template, as the user's message
    #[arg(long)]
    chat: bool,
    /// Tokens to generate at most [default: 128, or what the context leaves]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), allow_negative_numbers = true)]
    max_tokens: Option<u32>,
    /// 0 is greedy; higher is more random
    #[arg(long, default_value_t = 0.0, value_parser = parse_temperature, allow_negative_numbers = true)]
    temperature: f32,
    /// Choose among the K likeliest tokens; 0: all
    #[arg(long, value_name = "K", default_value_t = 0, allow_negative_numbers = true)]
    top_k: usize,
    /// Choose among the likeliest tokens that together have this probability
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = parse_top_p, allow_negative_numbers = true)]
    top_p: f32,
    /// Seed of the random choice: same seed, same text
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    seed: u64,
    /// Blocks that skip the all-reduce behind attention: none, all, last:K or PLAN.json
    #[arg(long, default_value = "none")]
    spd: SpdSpec,
}

fn parse_temperature(s: &str) -> Result<f32, String> {
    match s.parse::<f32>() {
        Ok(t) if t >= 0.0 && t.is_finite() => Ok(t),
        _ => Err("expected a number of at least 0".into()),
    }
}

fn parse_top_p(s: &str) -> Result<f32, String> {
    match s.parse::<f32>() {
        Ok(p) if p > 0.0 && p <= 1.0 => Ok(p),
        _ => Err("expected a number above 0 and up to 1".into()),
    }
}

impl Args {
    pub(super) fn sync(&self) -> &SyncArgs {
        &self.model.layout.sync
    }
}

pub(super) fn run(args: &Args, json: bool, world: &World) -> anyhow::Result<()> {
    let text = prompt_text(args)?;
    let prepared = Prepared::open(&args.model, &args.spd, world)?;
    let &Args { chat, temperature, top_k, top_p, seed, .. } = args;
    let sampling = Sampling { temperature, top_k, top_p, seed };
    let request = request(&prepared.model, &text, chat, args.max_tokens, sampling)?;
    let mut session = prepared.load(Some(Item::tokens("prompt", [&*request.prompt])))?;
    let cancel = cancel_on_ctrl_c()?;
    let generation = stream(&mut session, &request, &cancel, !json)?;
    if json {
        return output::json(&report(&session, &request, &generation)?);
    }
    output::write("\n")?;
    output::note(&summary(&session, &generation));
    Ok(())
}

fn prompt_text(args: &Args) -> anyhow::Result<String> {
    let text = match (&args.prompt, &args.prompt_file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) => read_text(path)?,
        (None, None) => bail!("give --prompt or --prompt-file"),
    };
    Ok(text)
}

/// Longest text that is read: far more than any use of it takes.
const MAX_TEXT_BYTES: u64 = 1 << 30;

/// Reads a UTF-8 file, or says where it stops being one.
pub(super) fn read_text(path: &PathBuf) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_TEXT_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|e| anyhow!("{}: cannot read the file ({e}); give a file of UTF-8 text", path.display()))?;
    ensure!(bytes.len() as u64 <= MAX_TEXT_BYTES, "{}: longer than 1 GiB; give a part of it", path.display());
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        anyhow!("{}: not UTF-8 text from byte {at} on; convert the file first", path.display())
    })
}

/// Tokens and limits, checked against the model's context.
pub(super) fn request(
    model: &Model,
    text: &str,
    chat: bool,
    max_tokens: Option<u32>,
    sampling: Sampling,
) -> anyhow::Result<Request> {
    ensure!(!text.is_empty(), "the prompt is empty: give at least one character");
    let prompt = if chat { model.encode_chat(text)? } else { model.tokenizer.encode(text)? };
    ensure!(!prompt.is_empty(), "the prompt has no tokens: give some text");
    let context = model.config.context;
    let n = prompt.len();
    ensure!(
        n < context,
        "the prompt has {n} tokens, but the model's context is {context}, which must hold the answer too: shorten the prompt"
    );
    let max_tokens = match max_tokens.map(|m| m as usize) {
        Some(m) if n + m > context => bail!(
            "the prompt's {n} tokens and --max-tokens {m} exceed the model's context of {context}: ask for at most {}",
            context - n
        ),
        Some(m) => m,
        None => DEFAULT_MAX_TOKENS.min(context - n),
    };
    Ok(Request { prompt, max_tokens, sampling, eos: model.config.eos.clone() })
}

/// A flag that the first Ctrl-C raises; the second ends the process.
pub(super) fn cancel_on_ctrl_c() -> anyhow::Result<Arc<AtomicBool>> {
    let cancel = Arc::new(AtomicBool::new(false));
    let raised = cancel.clone();
    let handler = move || {
        if raised.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    };
    ctrlc::set_handler(handler).context("cannot catch Ctrl-C")?;
    Ok(cancel)
}

/// Generates; with `echo` the text appears on stdout as it comes.
pub(super) fn stream(
    session: &mut Session,
    request: &Request,
    cancel: &AtomicBool,
    echo: bool,
) -> anyhow::Result<Generation> {
    let mut text = session.model.tokenizer.stream_continuation();
    let mut written = Ok(());
    // Processes end at the same token, which rank 0 decides.
    let (mut lead, agreed) = (session.lead()?, AtomicBool::new(false));
    let mut followed = Ok(());
    let stop = if lead.is_some() { &agreed } else { cancel };
    let generation = generate(&mut *session.runner, request, stop, |token| {
        if let (true, Some(piece)) = (echo, text.push(token)) {
            written = output::write(&piece);
            if written.is_err() {
                cancel.store(true, Ordering::Relaxed);
            }
        }
        match lead.as_mut().map(|lead| lead.follow(cancel.load(Ordering::Relaxed))) {
            None | Some(Ok(false)) => {}
            Some(Ok(true)) => agreed.store(true, Ordering::Relaxed),
            Some(Err(error)) => {
                followed = Err(error);
                agreed.store(true, Ordering::Relaxed);
            }
        }
    })?;
    followed?;
    match written {
        // The reader left, and all processes have ended the text together.
        Err(error) if lead.is_some() && output::is_broken_pipe(&error) => output::be_silent(),
        other => other?,
    }
    if echo {
        output::write(&text.finish().unwrap_or_default())?;
    }
    Ok(generation)
}

/// One line about the run, for stderr.
pub(super) fn summary(session: &Session, g: &Generation) -> String {
    let ended = match g.stop {
        StopReason::Eos => "end token",
        StopReason::Length => "length limit",
        StopReason::Interrupted => "interrupted",
    };
    format!(
        "{} tokens ({ended}), {:.1} tokens/s, first token after {:.0} ms; {} {} on {}, {:.0} sync points per token",
        g.tokens.len(),
        g.tokens_per_s(),
        g.time_to_first_token.as_secs_f64() * 1e3,
        session.shape.world(),
        if session.shape.world() == 1 { "rank" } else { "ranks" },
        session.runner.device(),
        g.sync_points_per_token,
    )
}

/// The JSON object of one run.
pub(super) fn report(
    session: &Session,
    request: &Request,
    g: &Generation,
) -> anyhow::Result<serde_json::Value> {
    Ok(json!({
        "model": session.model.name,
        "text": session.model.tokenizer.decode_continuation(&g.tokens),
        "tokens": g.tokens,
        "stop": g.stop,
        "n_prompt_tokens": request.prompt.len(),
        "tokens_per_s": g.tokens_per_s(),
        "time_to_first_token_ms": g.time_to_first_token.as_secs_f64() * 1e3,
        "sync_points_per_token": g.sync_points_per_token,
        "block_all_reduces_per_token": g.block_all_reduces_per_token,
        "tp": session.shape.world(),
        "topology": session.shape.to_string(),
        "spd_blocks": session.n_dropped(),
        "device": session.device(),
        "device_detail": session.runner.device(),
    }))
}
