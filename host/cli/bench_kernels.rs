//! `fewsync bench decode-gemm` and the others that time single kernels.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::Context;
use serde_json::json;

use super::output;
use super::selftest::GpuArgs;
use super::session::at_least;
use crate::bench::kernels::{self, Ceiling, Kind, Machine, Measurement, Sweep};

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
    /// Also append the results to this file
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
}

pub(super) fn run(name: &str, kind: Kind, args: &Args, json: bool) -> anyhow::Result<()> {
    let (m, contexts) = defaults(kind);
    let or = |given: &[usize], default: &[usize]| if given.is_empty() { default } else { given }.to_vec();
    let (models, tp) = (args.shapes.clone(), args.tp.clone());
    let sweep = Sweep { kind, models, tp, m: or(&args.m, m), contexts: or(&args.context, contexts) };
    let device = args.gpu.open()?;
    let machine = Machine::of(&device);
    let mut lost_reader = None;
    let done = |measurement: &Measurement| {
        if !json && lost_reader.is_none() {
            lost_reader = output::write(&line(measurement)).err();
        }
    };
    if !json {
        output::write(&format!("{}\n{}", machine.line(), HEADING))?;
    }
    let (ceiling, measurements) = kernels::run(&device, &sweep, done)?;
    lost_reader.map_or(Ok(()), Err)?;
    if let Some(path) = &args.csv {
        append(path, &csv(name, &machine, &ceiling, &measurements))
            .with_context(|| format!("{}: cannot write", path.display()))?;
    }
    if json {
        return output::json(&json!({
            "bench": name,
            "machine": machine,
            "ceiling": ceiling,
            "measurements": measurements,
        }));
    }
    output::write(&format!("{}\n", ceiling_line(&ceiling)))
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

fn csv(name: &str, machine: &Machine, ceiling: &Ceiling, measurements: &[Measurement]) -> String {
    let command: Vec<String> = std::env::args().skip(1).collect();
    let mut text = format!("# {}\n# fewsync {}\n", machine.line(), command.join(" "));
    text += &format!(
        "# {}\nbench,model,tp,op,kernel,m,n,k,context,us_median,us_p10,us_p90,gb_per_s,tflop_per_s,percent_of_ceiling\n",
        ceiling_line(ceiling)
    );
    for measurement in measurements {
        let Measurement { model, tp, op, kernel, m, n, k, context, us, .. } = measurement;
        let Measurement { gb_per_s, tflop_per_s, percent_of_ceiling, .. } = measurement;
        let (median, p10, p90) = (us.median, us.p10, us.p90);
        let _ = writeln!(
            text,
            "{name},{model},{tp},{op},{kernel},{m},{n},{k},{context},{median:.3},{p10:.3},{p90:.3},{gb_per_s:.1},\
             {tflop_per_s:.2},{percent_of_ceiling:.1}"
        );
    }
    text
}

fn append(path: &PathBuf, text: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    std::fs::OpenOptions::new().create(true).append(true).open(path)?.write_all(text.as_bytes())
}
