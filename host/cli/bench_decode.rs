//! `fewsync bench decode`.

use std::fmt::Write;

use anyhow::ensure;

use super::layout::{DeviceChoice, ModelArgs, SyncArgs, at_least};
use super::results::ResultFiles;
use super::session::{Session, progress_bar};
use super::world::World;
use super::{memory, output};
use crate::bench::breakdown::{Breakdown, breakdown};
use crate::bench::decode::figure::figure;
use crate::bench::decode::{Measurement, Workload, decode};
use crate::bench::machine::Machine;
use crate::bench::report::Report;
use crate::runner::profile::STEPS_AHEAD;
use crate::spd::SpdSpec;

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Blocks that skip the all-reduce behind attention: none, all, last:K or PLAN.json; several are measured one
    /// after another, without loading the model again
    #[arg(long, value_delimiter = ',', default_value = "none")]
    spd: Vec<SpdSpec>,
    /// Sequences decoded together; several numbers are measured one after another
    #[arg(long, value_name = "SIZES", value_delimiter = ',', default_value = "1", value_parser = at_least::<1>, allow_negative_numbers = true)]
    batch: Vec<usize>,
    /// Prompt tokens of each sequence
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = at_least::<1>, allow_negative_numbers = true)]
    prompt: usize,
    /// Tokens decoded after the first
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = at_least::<1>, allow_negative_numbers = true)]
    decode: usize,
    /// How often prompt and decode are done
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = at_least::<1>, allow_negative_numbers = true)]
    runs: usize,
    /// Also say what a step is spent on: products, attention, pointwise, sync, head, gaps (on a GPU)
    #[arg(long)]
    breakdown: bool,
    #[command(flatten)]
    files: ResultFiles,
}

impl Args {
    pub(super) fn sync(&self) -> &SyncArgs {
        &self.model.layout.sync
    }
}

pub(super) fn run(args: &Args, json: bool, world: &World) -> anyhow::Result<()> {
    let &Args { prompt, decode, .. } = args;
    ensure!(
        !args.breakdown || decode >= STEPS_AHEAD,
        "--breakdown replays a step {STEPS_AHEAD} times: give --decode {STEPS_AHEAD} or more"
    );
    args.files.check::<Measurement>("decode")?;
    let (first, others) = args.spd.split_first().expect("--spd has a default");
    let mut session = Session::open(&args.model, first, world)?;
    let (needed, context) = (prompt.saturating_add(decode), session.model.config.context);
    ensure!(
        needed <= context,
        "--prompt and --decode add up to {needed} tokens, but the model's context is {context}"
    );
    let gpus = session.runner.gpus();
    ensure!(
        !args.breakdown || !gpus.is_empty(),
        "--breakdown takes a GPU's step apart, and this one is the CPU's: give --device cuda"
    );
    if gpus.is_empty() {
        let longest = args.batch.iter().max().expect("--batch has a default");
        memory::check_batch(&session.model, *longest, needed)?;
    }
    if args.model.layout.device == DeviceChoice::Emulate {
        output::note("note: these are times of the emulator on this CPU; they say nothing about a GPU");
    }
    let machine = Machine::of(&gpus);
    let mut measurements = Vec::with_capacity(args.spd.len() * args.batch.len());
    for spd in std::iter::once(None).chain(others.iter().map(Some)) {
        spd.map_or(Ok(()), |spd| session.switch(spd))?;
        for &batch in &args.batch {
            let measurement = measure(&mut session, args, batch)?;
            if !json {
                output::write(&text(&session, &measurement))?;
            }
            measurements.push(measurement);
        }
    }
    let notes = if args.breakdown { vec![NOTE.to_owned()] } else { Vec::new() };
    let report = Report::new("decode", machine, notes, measurements);
    args.files.write(&report, || figure(&report))?;
    if json { output::json(&report) } else { Ok(()) }
}

const NOTE: &str = "breakdown: of each class the mean of its time alone and of what is saved without it, by replays of the \
                    step's graph; gaps: the whole graph less these; host: the step less the graph";

fn measure(session: &mut Session, args: &Args, batch: usize) -> anyhow::Result<Measurement> {
    let workload = Workload { batch, prompt: args.prompt, decode: args.decode, runs: args.runs };
    // A short run first: page faults, graph captures and the thread pool's start belong to no measurement.
    decode(&mut *session.runner, Workload { decode: args.decode.min(8), runs: 1, ..workload }, || {})?;
    let bar = progress_bar((args.decode * args.runs) as u64, "decoding", "{pos}/{len} tokens");
    let times = decode(&mut *session.runner, workload, || bar.inc(1))?;
    bar.finish_and_clear();
    let breakdown = match args.breakdown {
        true => breakdown(&mut *session.runner, workload, 1e3 * times.step_ms.median)?,
        false => None,
    };
    Ok(Measurement {
        model: session.model.name.clone(),
        tp: session.shape.world(),
        topology: session.shape.to_string(),
        spd_blocks: session.n_dropped(),
        device: session.device(),
        workload,
        times,
        breakdown,
    })
}

fn text(session: &Session, measurement: &Measurement) -> String {
    let Measurement { model, tp, topology, spd_blocks, workload, times, .. } = measurement;
    let Workload { batch, prompt, decode, runs } = workload;
    let (step, first, end) = (times.step_ms, times.time_to_first_token_ms, times.end_to_end_ms);
    let mut text = format!(
        "{model} at --tp {tp} ({topology}) on {}, {spd_blocks} of {} blocks without attention sync\n\
         batch {batch}, {prompt} prompt tokens, {decode} decoded, {runs} times\n\
         tokens per second    {:.1}\n\
         time per step        {:.2} ms   (p10 {:.2}, p90 {:.2})\n\
         time to first token  {:.1} ms   (p10 {:.1}, p90 {:.1})\n\
         end to end           {:.1} ms   (p10 {:.1}, p90 {:.1})\n\
         sync points / token  {:.0}, of them all-reduces in the blocks {:.0}\n",
        session.runner.device(),
        session.model.config.n_layers,
        times.tokens_per_s,
        step.median,
        step.p10,
        step.p90,
        first.median,
        first.p10,
        first.p90,
        end.median,
        end.p10,
        end.p90,
        times.sync_points_per_token,
        times.block_all_reduces_per_token,
    );
    if let Some(breakdown) = &measurement.breakdown {
        text += &breakdown_text(breakdown);
    }
    text
}

fn breakdown_text(breakdown: &Breakdown) -> String {
    let mut text = format!(
        "a step of {:.1} µs     kernels         µs  share, %  alone, µs  saved without, µs\n",
        breakdown.step_us
    );
    for (i, (name, us)) in breakdown.parts().enumerate() {
        let share = 100.0 * us / breakdown.step_us;
        let (kernels, alone, saved) = match breakdown.classes.get(i) {
            Some(class) => {
                let us = [class.alone_us.median, class.saved_us].map(|us| format!("{us:.1}"));
                (class.kernels.to_string(), us[0].clone(), us[1].clone())
            }
            None => Default::default(),
        };
        let _ = writeln!(text, "  {name:<20} {kernels:>6} {us:>10.1} {share:>9.1} {alone:>10} {saved:>18}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::profile::{ClassProfile, KernelClass, StepProfile};

    #[test]
    fn every_part_has_a_line() {
        let class =
            |class| ClassProfile { class, kernels: 3, alone_us: vec![100.0], without_us: vec![820.0] };
        let profile = StepProfile { whole_us: vec![900.0], classes: KernelClass::ALL.map(class).into() };
        let text = breakdown_text(&Breakdown::of(&profile, 1000.0));
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines.len(), 1 + 7);
        assert_eq!(lines[1], ["gemm", "3", "90.0", "9.0", "100.0", "80.0"]);
        assert_eq!(lines[6], ["gaps", "450.0", "45.0"]);
        assert_eq!(lines[7], ["host", "100.0", "10.0"]);
    }
}
