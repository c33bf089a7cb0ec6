//! `fewsync spd evaluate`.

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;

use super::budget::{MetricArg, RankingArg};
use super::report::{Line, figure, table};
use super::text::TextArgs;
use crate::bench::decode::Workload;
use crate::bench::machine::Machine;
use crate::bench::report::Report;
use crate::cli::output;
use crate::cli::results::ResultFiles;
use crate::cli::session::{ModelArgs, Session, at_least, load_reference, progress_bar};
use crate::cli::world::World;
use crate::runner::Runner;
use crate::spd::{Meter, Plan, Quality, Sensitivity, SpdSpec, Times, ascending, at_level, qualities, times};

#[derive(clap::Args)]
#[command(after_help = "\
With --sensitivity, levels are percentages of the blocks, dropped in ascending order of what they cost: zero-shot, \
and once more for each --plan with the heads and weights that it has for the blocks it drops. Without, every --plan is \
one line. rise is the perplexity against the synchronised model's on the same chunks; intervals are 95 %, by the \
bootstrap over chunks. Times are medians over rounds, a level's next to the others' of its round; a level's time does \
not depend on its weights, so it is measured zero-shot.

Examples:
  fewsync spd evaluate --tp 3 --text some.txt --sensitivity sensitivity.json --plot levels.svg
  fewsync spd evaluate --tp 3 --text some.txt --plan plain.json --plan distilled.json --only quality")]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// A plan to evaluate; may be given several times
    #[arg(long, value_name = "PLAN.json", required_unless_present = "sensitivity")]
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
    /// Sequences decoded together when timing
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,8", value_parser = at_least::<1>)]
    batch: Vec<usize>,
    /// Prompt tokens of each sequence when timing
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = at_least::<1>)]
    prompt: usize,
    /// Tokens decoded when timing
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = at_least::<1>)]
    decode: usize,
    /// Times that every timing is repeated
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = at_least::<1>)]
    rounds: usize,
    #[command(flatten)]
    files: ResultFiles,
}

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
    let mut session = Session::open(&args.model, &SpdSpec::None, &World::Threads)?;
    let tp = session.shape.world();
    ensure!(tp > 1, "with one rank there is nothing to drop: give --tp");
    let variants = variants(args, &session)?;
    ensure!(!variants.is_empty(), "no level is left to evaluate: give --levels");
    let plans: Vec<Plan> = variants.iter().map(|variant| variant.plan.clone()).collect();
    let (mut quality, mut timed) = (None, None);
    if args.only != Some(Only::Latency) {
        quality = Some(measure_quality(args, &mut session, &plans)?);
    }
    if args.only != Some(Only::Quality) {
        timed = Some(measure_times(args, &mut session, &plans)?);
    }
    let n_layers = session.model.config.n_layers;
    let line = |(i, variant): (usize, &Variant)| {
        let line = Line {
            model: session.model.name.clone(),
            tp,
            series: variant.series.clone(),
            dropped: variant.plan.n_dropped(),
            level_percent: 100.0 * variant.plan.n_dropped() as f64 / n_layers as f64,
            quality: quality.as_ref().map(|all| all[i]),
            times: None,
        };
        match timed.as_ref().map(|all| &all[i]) {
            Some(times) => times.iter().map(|&times| Line { times: Some(times), ..line.clone() }).collect(),
            None => vec![line],
        }
    };
    let lines: Vec<Line> = variants.iter().enumerate().flat_map(line).collect();
    let notes = vec![format!("on {}", session.runner.device())];
    let report = Report::new("spd-evaluate", Machine::of(&[]), notes, lines);
    args.files.write(&report, || figure(&report))?;
    if json {
        return output::json(&report);
    }
    output::write(&table(&report.measurements))
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
    let Some(path) = &args.sensitivity else {
        let synchronised = ("synchronised".to_owned(), Plan::synchronised(tp, n_layers));
        let all = std::iter::once(synchronised).chain(series);
        return Ok(all.map(|(series, plan)| Variant { series, plan }).collect());
    };
    let sensitivity = Sensitivity::read(path, &source.fingerprint()?, tp, n_layers)?;
    let order = ascending(&sensitivity.rises(args.ranking.into(), args.by.into())?);
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

/// One list a plan; plans that drop the same blocks share a measurement.
fn measure_times(args: &Args, session: &mut Session, plans: &[Plan]) -> anyhow::Result<Vec<Vec<Times>>> {
    let context = session.model.config.context;
    let needed = args.prompt.saturating_add(args.decode);
    if needed > context {
        bail!("--prompt and --decode add up to {needed} tokens, but the model's context is {context}");
    }
    let pattern = |plan: &Plan| plan.blocks().iter().map(|block| block.sync_attention).collect::<Vec<_>>();
    let mut distinct: Vec<Vec<bool>> = plans.iter().map(pattern).collect();
    distinct.sort();
    distinct.dedup();
    let zero_shot: Vec<Plan> = distinct
        .iter()
        .map(|syncs| {
            let dropped: Vec<usize> = (0..syncs.len()).filter(|&layer| !syncs[layer]).collect();
            crate::spd::dropping(session.shape.world(), syncs.len(), &dropped)
        })
        .collect();
    let workload = |&batch| Workload { batch, prompt: args.prompt, decode: args.decode, runs: 1 };
    let workloads: Vec<Workload> = args.batch.iter().map(workload).collect();
    let runs = zero_shot.len() * workloads.len() * args.rounds;
    let bar = progress_bar(runs as u64, "timing", "{pos}/{len} runs,");
    let timed = times(&mut *session.runner, &zero_shot, &workloads, args.rounds, || bar.inc(1))?;
    bar.finish_and_clear();
    let of = |plan: &Plan| {
        let pattern = pattern(plan);
        distinct.iter().position(|syncs| *syncs == pattern).map(|i| timed[i].clone()).unwrap_or_default()
    };
    Ok(plans.iter().map(of).collect())
}
