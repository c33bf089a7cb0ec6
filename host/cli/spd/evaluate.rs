//! `fewsync spd evaluate`.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::ValueEnum;

use super::budget::{MetricArg, RankingArg};
use super::figure::figure;
use super::report::{Line, table};
use super::several_ranks;
use super::text::TextArgs;
use super::timing::TimingArgs;
use crate::bench::machine::Machine;
use crate::bench::report::Report;
use crate::cli::layout::{DeviceChoice, ModelArgs};
use crate::cli::output;
use crate::cli::results::ResultFiles;
use crate::cli::session::{Session, load_reference, progress_bar};
use crate::cli::world::World;
use crate::runner::Runner;
use crate::spd::{Meter, Plan, Quality, Sensitivity, SpdSpec, ascending, at_level, qualities};

#[derive(clap::Args)]
#[command(after_help = "\
With --sensitivity, levels are percentages of the blocks, dropped in ascending order of what they cost: zero-shot, \
and once more for each --plan with the heads and weights that it has for the blocks it drops. Without, every --plan is \
one line. rise is the perplexity against the synchronised model's on the same chunks; intervals are 95 %, by the \
bootstrap over chunks. Times are medians over rounds, and so is what is saved against the synchronised model in the same \
round; it does not depend on the weights, so it is measured zero-shot. On GPUs it stands beside what the dropped sync \
points take by themselves, as `fewsync bench allreduce` times them. With --only latency neither a plan nor a sensitivity \
is needed: levels then drop the last blocks.

Examples:
  fewsync spd evaluate --tp 3 --text some.txt --sensitivity sensitivity.json --plot levels.svg
  fewsync spd evaluate --tp 3 --text some.txt --plan plain.json --plan distilled.json --only quality
  fewsync spd evaluate --tp 2 --model random:llama3-8b --only latency --levels 0,50,70,100 --prompt 128,1024 \
--over direct,host-staged")]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// A plan to evaluate; may be given several times
    #[arg(long, value_name = "PLAN.json", required_unless_present_any = ["sensitivity", "only"])]
    plan: Vec<PathBuf>,
    /// What `fewsync spd sensitivity` wrote: the order in which levels drop blocks
    #[arg(long, value_name = "FILE.json")]
    sensitivity: Option<PathBuf>,
    /// Percentages of the blocks that drop
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = clap::value_parser!(u8).range(0..=100),
        default_value = "0,10,20,30,40,50,60,70,80,90,100")]
    levels: Vec<u8>,
    /// Which measurement orders the blocks
    #[arg(long, value_enum, default_value_t = RankingArg::Single)]
    ranking: RankingArg,
    /// What the order keeps low
    #[arg(long, value_enum, default_value_t = MetricArg::Perplexity)]
    by: MetricArg,
    #[command(flatten)]
    text: TextArgs,
    /// Measure one thing alone
    #[arg(long, value_enum)]
    only: Option<Only>,
    /// Seed of the bootstrap
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    timing: TimingArgs,
    #[command(flatten)]
    files: ResultFiles,
}

/// The name of its results.
const BENCH: &str = "spd-evaluate";

#[derive(ValueEnum, Clone, Copy, PartialEq)]
enum Only {
    /// Perplexity and its like
    Quality,
    /// Times to the first token and per token
    Latency,
}

/// A plan to measure: in which series, at which level.
struct Variant {
    series: String,
    plan: Plan,
}

pub(super) fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    let n_ranks = several_ranks(&args.model.layout)?;
    ensure!(
        args.sensitivity.is_some() || !args.plan.is_empty() || args.only == Some(Only::Latency),
        "there is nothing to judge: give --sensitivity or --plan"
    );
    args.files.check::<Line>(BENCH)?;
    args.timing.check_device(args.model.layout.device == DeviceChoice::Cpu)?;
    let mut session = Session::open(&args.timing.first(&args.model), &SpdSpec::None, &World::Threads)?;
    args.timing.check_device(session.device() == "cpu")?;
    args.timing.check(session.model.config.context)?;
    let variants = variants(args, &session)?;
    ensure!(!variants.is_empty(), "no level is left to evaluate: give --levels");
    let plans: Vec<Plan> = variants.iter().map(|variant| variant.plan.clone()).collect();
    let quality = match args.only {
        Some(Only::Latency) => None,
        _ => Some(measure_quality(args, &mut session, &plans)?),
    };
    let (name, n_layers) = (session.model.name.clone(), session.model.config.n_layers);
    let mut notes = vec![format!("on {}", session.runner.device())];
    let machine = Machine::of(&session.runner.gpus());
    let timed = match args.only {
        Some(Only::Quality) => None,
        _ => Some(args.timing.measure(&args.model, session, &plans, &mut notes)?),
    };
    let line = |(i, variant): (usize, &Variant)| {
        let line = Line {
            model: name.clone(),
            tp: n_ranks,
            series: variant.series.clone(),
            dropped: variant.plan.n_dropped(),
            level_percent: 100.0 * variant.plan.n_dropped() as f64 / n_layers as f64,
            quality: quality.as_ref().map(|all| all[i]),
            timed: None,
        };
        match timed.as_ref().map(|all| &all[i]) {
            Some(all) => all.iter().map(|t| Line { timed: Some(t.clone()), ..line.clone() }).collect(),
            None => vec![line],
        }
    };
    let lines: Vec<Line> = variants.iter().enumerate().flat_map(line).collect();
    let report = Report::new(BENCH, machine, notes, lines);
    args.files.write(&report, || figure(&report))?;
    if json {
        return output::json(&report);
    }
    output::write(&format!("{}{}\n", table(&report.measurements), report.notes.join("\n")))
}

/// What is to be measured, series by series.
fn variants(args: &Args, session: &Session) -> anyhow::Result<Vec<Variant>> {
    let (config, source) = (&session.model.config, &*session.model.source);
    let (tp, n_layers) = (session.shape.world(), config.n_layers);
    let mut series = Vec::new();
    for path in &args.plan {
        let name = path.file_stem().context("a plan's name ends in .json")?.to_string_lossy().into_owned();
        series.push((name, Plan::read(path, config, source, tp)?));
    }
    let order = match &args.sensitivity {
        Some(path) => {
            let sensitivity = Sensitivity::read(path, &source.fingerprint()?, tp, n_layers)?;
            Some(ascending(&sensitivity.rises(args.ranking.into(), args.by.into())?))
        }
        // Which blocks drop makes no difference to the time.
        None => series.is_empty().then(|| (0..n_layers).rev().collect()),
    };
    let Some(order) = order else {
        let synchronised = ("synchronised".to_owned(), Plan::synchronised(tp, n_layers));
        let all = std::iter::once(synchronised).chain(series);
        return Ok(all.map(|(series, plan)| Variant { series, plan }).collect());
    };
    let mut counts: Vec<usize> =
        args.levels.iter().map(|&percent| (usize::from(percent) * n_layers + 50) / 100).collect();
    counts.sort_unstable();
    counts.dedup();
    series.insert(0, ("zero-shot".to_owned(), Plan::synchronised(tp, n_layers)));
    let at = |(series, from): &(String, Plan)| {
        let (series, order) = (series.clone(), &order);
        counts
            .iter()
            .map(move |&count| Variant { series: series.clone(), plan: at_level(from, order, count) })
            .collect::<Vec<_>>()
    };
    Ok(series.iter().flat_map(at).collect())
}

/// On the session's device where that is the CPU, else on the reference beside it.
fn measure_quality(args: &Args, session: &mut Session, plans: &[Plan]) -> anyhow::Result<Vec<Quality>> {
    let mut judge;
    let runner: &mut dyn Runner = if session.device() == "cpu" {
        &mut *session.runner
    } else {
        output::note("quality is measured on the CPU");
        let synchronised = Plan::synchronised(session.shape.world(), session.model.config.n_layers);
        judge = load_reference(
            &session.model,
            &synchronised,
            session.shape,
            &args.model.layout,
            &World::Threads,
        )?;
        &mut judge
    };
    let text = args.text.calibration(&session.model, runner)?;
    let bar = progress_bar(plans.len() as u64, "evaluating", "{pos}/{len} plans, perplexity {prefix},");
    let mut meter = Meter::new(runner, text.chunks())?;
    let measured = qualities(&mut meter, plans, args.seed, |quality| {
        bar.set_prefix(format!("{:.3}", quality.perplexity.value));
        bar.inc(1);
    })?;
    bar.finish_and_clear();
    Ok(measured)
}
