//! `fewsync bench`.

use super::world::World;
use super::{bench_allreduce, bench_decode, bench_kernels};
use crate::bench::kernels::Kind;

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Time the decode of a whole model: first token, time per token, tokens per second
    Decode(bench_decode::Args),
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

pub(super) fn run(command: &Command, json: bool, world: &World) -> anyhow::Result<()> {
    match command {
        Command::Decode(args) => bench_decode::run(args, json, world),
        Command::AllReduce(args) => bench_allreduce::run(args, json, world),
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
