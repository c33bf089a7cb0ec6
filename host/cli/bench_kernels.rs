//! `fewsync bench decode-gemm` and the others that time single kernels.

use super::output;
use super::results::ResultFiles;
use super::selftest::GpuArgs;
use super::session::at_least;
use crate::bench::kernels::figure::figure;
use crate::bench::kernels::{self, Ceiling, Kind, Measurement, Sweep};
use crate::bench::machine::Machine;
use crate::bench::report::Report;

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    gpu: GpuArgs,
    /// Models whose shapes to take
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "llama3-8b")]
    shapes: Vec<String>,
    /// Tensor-parallel degrees; the shapes are those of rank 0
    #[arg(long, value_name = "DEGREES", value_delimiter = ',', default_value = "1", value_parser = at_least::<1>)]
    tp: Vec<usize>,
    /// Tokens; for decode-attention sequences [default: by kernel]
    #[arg(long, value_name = "SIZES", value_delimiter = ',', value_parser = at_least::<1>)]
    m: Vec<usize>,
    /// Cached tokens of decode-attention, prompt tokens of prefill-attention [default: by kernel]
    #[arg(long, value_name = "SIZES", value_delimiter = ',', value_parser = at_least::<1>)]
    context: Vec<usize>,
    #[command(flatten)]
    files: ResultFiles,
}

pub(super) fn run(bench: &'static str, kind: Kind, args: &Args, json: bool) -> anyhow::Result<()> {
    let (m, contexts) = defaults(kind);
    let or = |given: &[usize], default: &[usize]| if given.is_empty() { default } else { given }.to_vec();
    let (models, tp) = (args.shapes.clone(), args.tp.clone());
    let sweep = Sweep { kind, models, tp, m: or(&args.m, m), contexts: or(&args.context, contexts) };
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
    let (ceiling, measurements) = kernels::run(&device, &sweep, done)?;
    lost_reader.map_or(Ok(()), Err)?;
    let report = Report::new(bench, machine, vec![ceiling_line(&ceiling)], measurements);
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
                       median us      p10      p90     GB/s  TFLOP/s  % of ceiling\n";

fn line(measurement: &Measurement) -> String {
    let Measurement { model, tp, op, kernel, m, n, k, context, us, .. } = measurement;
    let Measurement { gb_per_s, tflop_per_s, percent_of_ceiling, .. } = measurement;
    format!(
        "{model:<14} {tp:>2} {op:<18} {kernel:<24} {m:>6} {n:>6} {k:>6} {context:>7} {:>10.2} {:>8.2} {:>8.2} \
         {gb_per_s:>8.0} {tflop_per_s:>8.1} {percent_of_ceiling:>13.1}\n",
        us.median, us.p10, us.p90
    )
}

fn ceiling_line(ceiling: &Ceiling) -> String {
    let Ceiling { read_gb_per_s, copy_gb_per_s, gb_per_s } = ceiling;
    format!(
        "ceiling {gb_per_s:.0} GB/s: the larger of a streaming read of 1 GiB ({read_gb_per_s:.0}) and a copy of \
         1 GiB, read and written ({copy_gb_per_s:.0})"
    )
}
