//! `fewsync bench allreduce`.

mod args;
#[cfg(feature = "nvshmem")]
mod processes;

pub(super) use args::Args;
use args::NcclChoice;

use super::output;
use super::session::{cuda_devices, progress_bar};
use super::world::World;
use crate::bench::allreduce::child::{self, Variant};
use crate::bench::allreduce::contest::{Sweep, run_nccl, run_ours};
use crate::bench::allreduce::figure::figure;
use crate::bench::allreduce::record::{OURS, compare};
use crate::bench::allreduce::sizes::readable;
use crate::bench::allreduce::{Call, Measurement, join, race};
use crate::bench::machine::Machine;
use crate::bench::report::Report;
use crate::comm::gpu::{GroupOptions, PeerMemory};
use crate::driver::Device;

pub(super) fn run(args: &Args, json: bool, world: &World) -> anyhow::Result<()> {
    #[cfg(feature = "nvshmem")]
    if let World::Processes(mesh) = world {
        return processes::run(args, json, mesh);
    }
    anyhow::ensure!(world.processes().is_none(), "ranks that are processes need the feature nvshmem");
    args.files.check::<Measurement>("allreduce")?;
    let (mut peers, mut notes) = (Vec::new(), vec![method()]);
    for path in &args.join {
        let (lines, comments) = join::read(path)?;
        peers.extend(lines);
        notes.extend(comments);
    }
    let shape = args.shape()?;
    let sweep = args.sweep(shape);
    let devices = cuda_devices(shape.world())?;
    let machine = Machine::of(&devices);
    if let Some(variant) = &args.nccl_child {
        return run_child(&devices, &sweep, variant, machine);
    }
    measure_nccl(args, &sweep, &mut peers, &mut notes);
    if !json {
        output::write(&format!("{}\n{HEADING}", machine.line()))?;
    }
    let options = GroupOptions { tuning: args.forced.tuning(), ..args.sync.group(&devices, shape)? };
    let mut lost_reader = None;
    let mut so_far = Vec::new();
    let done = |line: &Measurement| {
        so_far.push(line.clone());
        if !json && lost_reader.is_none() {
            let mut compared = [&so_far[..], &peers].concat();
            compare(&mut compared);
            lost_reader = output::write(&line_of(&compared[so_far.len() - 1])).err();
        }
    };
    let variant = args.variant(&options);
    let mut lines = run_ours(&devices, &sweep, &options, &variant, done)?;
    lost_reader.map_or(Ok(()), Err)?;
    lines.extend(peers);
    compare(&mut lines);
    if !json {
        output::write(&lines.iter().filter(|line| line.contender != OURS).map(line_of).collect::<String>())?;
    }
    notes.extend(bandwidth(&lines, options.memory));
    let report = Report::new("allreduce", machine, notes, lines);
    args.files.write(&report, || figure(&report))?;
    if json {
        return output::json(&report);
    }
    output::write(&format!("{}\n", report.notes.join("\n")))
}

/// Every variant of NCCL that is asked for; why one is missing is noted.
fn measure_nccl(args: &Args, sweep: &Sweep, peers: &mut Vec<Measurement>, notes: &mut Vec<String>) {
    let variants = variants(args.nccl);
    let bar = progress_bar(variants.len() as u64, "NCCL", "{pos}/{len} variants");
    for variant in variants {
        bar.tick();
        match nccl(args, sweep, variant) {
            Ok((lines, note)) => {
                peers.extend(lines);
                notes.extend(note.filter(|note| !notes.contains(note)));
            }
            Err(reason) => {
                let note = format!("NCCL {}: not measured, since {reason}", variant.name());
                output::note(&note);
                notes.push(note);
                // Where its own choice cannot be had, nothing can be forced either.
                if variant == Variant::AUTOMATIC {
                    break;
                }
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
}

fn method() -> String {
    format!(
        "us of one call: {} samples of {} calls, of each the slowest rank; ratios are over medians of the same tensor",
        race::Effort::FULL.samples,
        race::Effort::FULL.calls
    )
}

fn variants(choice: NcclChoice) -> Vec<Variant> {
    match choice {
        NcclChoice::All => Variant::all(),
        NcclChoice::Auto => vec![Variant::AUTOMATIC],
        NcclChoice::Off => Vec::new(),
    }
}

/// What the way between the ranks carried with our largest plain sum.
fn bandwidth(lines: &[Measurement], memory: PeerMemory) -> Option<String> {
    let sums = lines.iter().filter(|line| line.contender == OURS && line.call == Call::Plain);
    let largest = sums.max_by_key(|line| line.bytes)?;
    let (size, speed) = (readable(largest.bytes), largest.gb_per_s);
    Some(format!(
        "peer memory {}: {speed:.2} GB/s (the tensor's bytes over the time of a sum of {size})",
        memory.name()
    ))
}

/// A variant of NCCL, measured by another process, and what it says of itself.
fn nccl(args: &Args, sweep: &Sweep, variant: Variant) -> Result<(Vec<Measurement>, Option<String>), String> {
    let printed = child::run(variant, &args.child_arguments(sweep, variant))?;
    let lines = join::parse("NCCL's process", &printed).map_err(|error| error.to_string())?;
    let note =
        printed.lines().find_map(|line| line.strip_prefix("# NCCL ")).map(|note| format!("NCCL {note}"));
    Ok((lines, note))
}

fn run_child(devices: &[Device], sweep: &Sweep, variant: &str, machine: Machine) -> anyhow::Result<()> {
    let (lines, version) = run_nccl(devices, sweep, variant)?;
    let note = format!("NCCL {version}, one process, out of place, without NVLink multicast");
    let report = Report::new("allreduce", machine, vec![note], lines);
    output::write(&(Report::<Measurement>::csv_heading() + &report.csv_body()))
}

const HEADING: &str = "contender variant        call      launch dtype topology       size hidden   median us      p10      \
                       p90     GB/s bus GB/s  x nccl  x best  x torch  over plain\n";

fn line_of(line: &Measurement) -> String {
    let Measurement { contender, variant, call, launch, dtype, topology, bytes, hidden, us, .. } = line;
    let ratio = |ratio: Option<f64>| ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}"));
    let [nccl, best, torch] = [line.ratio_nccl, line.ratio_nccl_best, line.ratio_torch_best].map(ratio);
    let over = line.us_over_plain.map_or_else(|| "-".into(), |us| format!("{us:+.2}"));
    let bus = line.bus_gb_per_s.map_or_else(|| "-".into(), |bus| format!("{bus:.2}"));
    let (call, launch, dtype) = (call.name(), launch.name(), dtype.to_string());
    format!(
        "{contender:<9} {variant:<14} {call:<9} {launch:<6} {dtype:<5} {topology:<8} {:>10} {hidden:>6} {:>11.2} {:>8.2} \
         {:>8.2} {:>8.2} {bus:>8} {nccl:>7} {best:>7} {torch:>8} {over:>11}\n",
        readable(*bytes),
        us.median,
        us.p10,
        us.p90,
        line.gb_per_s
    )
}
