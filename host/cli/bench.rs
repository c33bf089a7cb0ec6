//! `fewsync bench`.

use anyhow::ensure;
use serde_json::json;

use super::session::{ModelArgs, Session, at_least, progress_bar};
use super::{bench_allreduce, bench_kernels, output};
use crate::bench::decode::{Workload, decode};
use crate::bench::kernels::Kind;
use crate::spd::SpdSpec;

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Time the decode of a whole model: first token, time per token, tokens per second
    Decode(DecodeArgs),
    /// Time the all-reduce between GPUs, beside NCCL and others
    #[command(name = "allreduce")]
    AllReduce(Box<bench_allreduce::Args>),
    /// Time the matrix products of a decode step on a GPU
    DecodeGemm(bench_kernels::Args),
    /// Time the matrix products of a prefill on a GPU
    PrefillGemm(bench_kernels::Args),
    /// Time the attention of a decode step on a GPU
    DecodeAttention(bench_kernels::Args),
    /// Time the attention of a prompt on a GPU
    PrefillAttention(bench_kernels::Args),
    /// Time embedding, norms, RoPE, argmax and sampling on a GPU
    Pointwise(bench_kernels::Args),
}

#[derive(clap::Args)]
pub(super) struct DecodeArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Blocks that skip the all-reduce behind attention: none, all, last:K or PLAN.json
    #[arg(long, default_value = "none")]
    spd: SpdSpec,
    /// Sequences decoded together
    #[arg(long, value_name = "B", default_value_t = 1, value_parser = at_least::<1>, allow_negative_numbers = true)]
    batch: usize,
    /// Prompt tokens of each sequence
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = at_least::<1>, allow_negative_numbers = true)]
    prompt: usize,
    /// Tokens decoded after the first
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = at_least::<1>, allow_negative_numbers = true)]
    decode: usize,
}

pub(super) fn run(command: &Command, json: bool) -> anyhow::Result<()> {
    match command {
        Command::Decode(args) => run_decode(args, json),
        Command::AllReduce(args) => bench_allreduce::run(args, json),
        Command::DecodeGemm(args) => bench_kernels::run("decode-gemm", Kind::DecodeGemm, args, json),
        Command::PrefillGemm(args) => bench_kernels::run("prefill-gemm", Kind::PrefillGemm, args, json),
        Command::DecodeAttention(args) => {
            bench_kernels::run("decode-attention", Kind::DecodeAttention, args, json)
        }
        Command::PrefillAttention(args) => {
            bench_kernels::run("prefill-attention", Kind::PrefillAttention, args, json)
        }
        Command::Pointwise(args) => bench_kernels::run("pointwise", Kind::Pointwise, args, json),
    }
}

fn run_decode(args: &DecodeArgs, json: bool) -> anyhow::Result<()> {
    let mut session = Session::open(&args.model, &args.spd)?;
    let workload = Workload { batch: args.batch, prompt: args.prompt, decode: args.decode };
    let (needed, context) = (args.prompt.saturating_add(args.decode), session.model.config.context);
    ensure!(
        needed <= context,
        "--prompt and --decode add up to {needed} tokens, but the model's context is {context}"
    );
    // A short run first: page faults and the thread pool's start belong to no measurement.
    decode(&mut *session.runner, Workload { decode: args.decode.min(8), ..workload }, || {})?;
    let bar = progress_bar(args.decode as u64, "decoding", "{pos}/{len} tokens");
    let times = decode(&mut *session.runner, workload, || bar.inc(1))?;
    bar.finish_and_clear();
    if json {
        return output::json(&json!({
            "model": session.model.name,
            "tp": session.shape.world(),
            "topology": session.shape.to_string(),
            "spd_blocks": session.n_dropped(),
            "device": session.device(),
            "device_detail": session.runner.device(),
            "workload": workload,
            "times": times,
            "tokens_per_s": times.tokens_per_s,
        }));
    }
    output::write(&format!(
        "{} at --tp {} ({}) on {}, {} of {} blocks without attention sync\n\
         batch {}, {} prompt tokens, {} decoded\n\
         tokens per second    {:.1}\n\
         time per step        {:.2} ms   (p10 {:.2}, p90 {:.2})\n\
         time to first token  {:.1} ms\n\
         end to end           {:.1} ms\n\
         sync points / token  {:.0}, of them all-reduces in the blocks {:.0}\n",
        session.model.name,
        session.shape.world(),
        session.shape,
        session.runner.device(),
        session.n_dropped(),
        session.model.config.n_layers,
        workload.batch,
        workload.prompt,
        workload.decode,
        times.tokens_per_s,
        times.step_ms.median,
        times.step_ms.p10,
        times.step_ms.p90,
        times.time_to_first_token_ms,
        times.end_to_end_ms,
        times.sync_points_per_token,
        times.block_all_reduces_per_token,
    ))
}
