//! `fewsync bench decode-gemm` and the others that time single kernels.

use anyhow::ensure;

use super::layout::at_least;
use super::output;
use super::results::ResultFiles;
use super::selftest::GpuArgs;
use crate::bench::kernels::figure::figure;
use crate::bench::kernels::{self, CublasLtError, Kind, Measurement, Results, Sweep};
use crate::bench::machine::Machine;
use crate::bench::report::{Report, cell};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    gpu: GpuArgs,
    /// Models whose shapes to take: smollm2, llama2-7b, llama3-8b, llama3-70b, llama3-405b, llama3.2-1b, …
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "llama3-8b")]
    shapes: Vec<String>,
    /// Tensor-parallel degrees; the shapes are those of rank 0
    #[arg(long, value_name = "DEGREES", value_delimiter = ',', default_value = "1", value_parser = at_least::<1>)]
    tp: Vec<usize>,
    /// Tokens; for decode-attention sequences [default: 1 to 64 in decode-gemm, 512 and 2048 in prefill-gemm, 1 and 8
    /// in decode-attention, 1, 8 and 64 in pointwise]
    #[arg(long, value_name = "SIZES", value_delimiter = ',', value_parser = at_least::<1>)]
    m: Vec<usize>,
    /// Cached tokens of decode-attention [default: 1024 and 8192], prompt tokens of prefill-attention [default: 512
    /// and 2048]
    #[arg(long, value_name = "SIZES", value_delimiter = ',', value_parser = at_least::<1>)]
    context: Vec<usize>,
    #[command(flatten)]
    files: ResultFiles,
}

pub(super) fn run(bench: &'static str, kind: Kind, args: &Args, json: bool) -> anyhow::Result<()> {
    let attends = matches!(kind, Kind::DecodeAttention | Kind::PrefillAttention);
    ensure!(attends || args.context.is_empty(), "--context is about attention: leave it out of {bench}");
    ensure!(
        kind != Kind::PrefillAttention || args.m.is_empty(),
        "{bench} takes one prompt at a time, of --context tokens: leave --m out"
    );
    let (m, contexts) = defaults(kind);
    let or = |given: &[usize], default: &[usize]| if given.is_empty() { default } else { given }.to_vec();
    let (models, tp) = (args.shapes.clone(), args.tp.clone());
    let sweep = Sweep { kind, models, tp, m: or(&args.m, m), contexts: or(&args.context, contexts) };
    sweep.check()?;
    args.files.check::<Measurement>(bench)?;
    let device = args.gpu.open()?;
    let machine = Machine::of(std::slice::from_ref(&device));
    let mut lost_reader = None;
    let done = |measurement: &Measurement| {
        if !json && lost_reader.is_none() {
            lost_reader = output::write(&line(measurement)).err();
        }
    };
    if !json {
        output::write(&format!("{}\n{HEADING}", machine.line()))?;
    }
    let Results { ceiling, cublaslt, measurements } = kernels::run(&device, &sweep, done)?;
    lost_reader.map_or(Ok(()), Err)?;
    let report = Report::new(bench, machine, vec![ceiling.line(), cublaslt_line(&cublaslt)], measurements);
    args.files.write(&report, || figure(&report))?;
    if json {
        let mut object = serde_json::to_value(&report)?;
        object["ceiling"] = serde_json::to_value(ceiling)?;
        return output::json(&object);
    }
    output::write(&format!("{}\n", report.notes.join("\n")))
}

fn defaults(kind: Kind) -> (&'static [usize], &'static [usize]) {
    match kind {
        Kind::DecodeGemm => (&[1, 2, 4, 8, 16, 32, 64], &[0]),
        Kind::PrefillGemm => (&[512, 2048], &[0]),
        Kind::DecodeAttention => (&[1, 8], &[1024, 8192]),
        Kind::PrefillAttention => (&[1], &[512, 2048]),
        Kind::Pointwise => (&[1, 8, 64], &[0]),
    }
}

const HEADING: &str = "model          tp op                 kernel                        m      n      k context  \
                       median us      p10      p90     GB/s  TFLOP/s  % of ceiling  cuBLASLt us  ratio\n";

fn line(measurement: &Measurement) -> String {
    let Measurement { model, tp, op, kernel, m, n, k, context, us, .. } = measurement;
    let Measurement { gb_per_s, tflop_per_s, percent_of_ceiling, bound, .. } = measurement;
    let (theirs, ratio) = (cell(measurement.cublaslt_us.map(|us| us.median), 2), cell(measurement.ratio, 2));
    format!(
        "{model:<14} {tp:>2} {op:<18} {kernel:<24} {m:>6} {n:>6} {k:>6} {context:>7} {:>10.2} {:>8.2} {:>8.2} \
         {gb_per_s:>8.0} {tflop_per_s:>8.1} {percent_of_ceiling:>5.1} {:<7} {theirs:>12} {ratio:>6}\n",
        us.median,
        us.p10,
        us.p90,
        bound.name(),
    )
}

fn cublaslt_line(cublaslt: &Result<String, CublasLtError>) -> String {
    match cublaslt {
        Ok(version) => format!(
            "cuBLASLt {version}: the first kernel of its heuristic with 32 MiB of workspace; beside SwiGLU it stores \
             the bare product; a ratio above 1 says that ours is faster"
        ),
        Err(reason) => format!("no times of cuBLASLt: {reason}"),
    }
}
