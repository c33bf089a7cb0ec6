//! `fewsync selftest`: every GPU kernel against f64 arithmetic on the CPU.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, ensure};
use serde_json::json;

use super::output;
use super::results::check_file;
use crate::driver::Device;
use crate::kernels::{PTX, Ptx};
use crate::selftest::record::{Recording, StoredKernel};
use crate::selftest::{self, Extent, Outcome, Plan};

#[derive(clap::Args)]
#[command(after_help = super::EMULATE_HELP)]
pub(super) struct Args {
    /// auto or cuda (the first GPU), cuda:N, emulate or emulate:N (PTX executed on the CPU, every access checked)
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = choice)]
    device: Choice,
    /// Only this PTX file [default: all that the GPU runs]
    #[arg(long, value_name = "ARCH", value_parser = PTX.map(|ptx| ptx.arch))]
    arch: Option<String>,
    /// Only kernels whose name begins like this
    #[arg(long, value_name = "PREFIX", default_value = "")]
    kernel: String,
    /// Leave large shapes out: for compute-sanitizer
    #[arg(long)]
    quick: bool,
    /// Keep the outputs in this file (small shapes), to compare another device with this one
    #[arg(long, value_name = "FILE", conflicts_with = "quick")]
    record: Option<PathBuf>,
    /// Also compare the outputs with those of this file (small shapes)
    #[arg(long, value_name = "FILE", conflicts_with = "quick")]
    compare: Option<PathBuf>,
}

/// Where kernels run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    Cuda(u32),
    Emulated(u32),
}

/// Which GPU.
#[derive(clap::Args)]
pub(super) struct GpuArgs {
    /// auto or cuda (the first GPU), or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = gpu_ordinal)]
    device: u32,
}

impl GpuArgs {
    pub(super) fn open(&self) -> anyhow::Result<Device> {
        Device::cuda(self.device).context(
            "this command runs on a GPU; bench/stage.sh gathers all that a machine with one needs into a folder",
        )
    }
}

fn gpu_ordinal(device: &str) -> Result<u32, String> {
    match device {
        "auto" | "cuda" => Ok(0),
        _ => device
            .strip_prefix("cuda:")
            .and_then(|ordinal| ordinal.parse().ok())
            .ok_or_else(|| "it is auto, cuda or cuda:N".to_owned()),
    }
}

fn choice(device: &str) -> Result<Choice, String> {
    match device.strip_prefix("emulate") {
        Some("") => Some(Choice::Emulated(0)),
        Some(number) => number.strip_prefix(':').and_then(|n| n.parse().ok()).map(Choice::Emulated),
        None => gpu_ordinal(device).ok().map(Choice::Cuda),
    }
    .ok_or_else(|| "it is auto, cuda, cuda:N, emulate or emulate:N".to_owned())
}

impl Choice {
    fn open(self) -> crate::driver::Result<Device> {
        match self {
            Self::Cuda(ordinal) => Device::cuda(ordinal),
            Self::Emulated(ordinal) => {
                Ok(Device::emulate(ordinal.saturating_add(1))?.swap_remove(ordinal as usize))
            }
        }
    }

    /// Threads that run kernels: a GPU takes one at a time, an emulated device is a thread.
    fn workers(self) -> usize {
        match self {
            Self::Cuda(_) => 1,
            Self::Emulated(_) => std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

pub(super) fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    args.record.as_deref().map_or(Ok(()), check_file)?;
    let opened = args.device.open();
    let device = match args.device {
        Choice::Cuda(_) => opened.context("this command runs on a GPU, or with --device emulate")?,
        Choice::Emulated(_) => opened?,
    };
    let files = files(args.arch.as_deref(), &device);
    let mut names = files.iter().flat_map(|ptx| selftest::entries(ptx)).map(|entry| entry.name);
    let known = names.any(|name| name.starts_with(&args.kernel));
    ensure!(known, "--kernel {}: no kernel's name begins like this", args.kernel);
    let recording = args.compare.as_deref().map(read).transpose()?;
    let is_small = matches!(args.device, Choice::Emulated(_)) || args.record.is_some() || recording.is_some();
    let plan = Plan {
        prefix: &args.kernel,
        extent: if is_small {
            Extent::Small
        } else if args.quick {
            Extent::Quick
        } else {
            Extent::Full
        },
        workers: args.device.workers(),
        recording: recording.as_ref(),
    };
    let started = Instant::now();
    let mut outcomes = Vec::new();
    if !json {
        let against = recording.as_ref().map(|it| format!("compared with {} ({})\n", it.device, it.driver));
        output::write(&format!("{}{}", against.unwrap_or_default(), heading(&device, recording.is_some())))?;
    }
    for ptx in files {
        let mut lost_reader = None;
        let done = |outcome: &Outcome| {
            if !json && lost_reader.is_none() {
                lost_reader = output::write(&line(outcome, &device)).err();
            }
        };
        // A GPU is one and the same; an emulated device is a new one for every worker.
        let open = || match args.device {
            Choice::Cuda(_) => Ok(device.clone()),
            Choice::Emulated(_) => args.device.open(),
        };
        outcomes.extend(selftest::run(&open, ptx, plan, done)?);
        lost_reader.map_or(Ok(()), Err)?;
    }
    if let Some(path) = &args.record {
        write(path, &device, &mut outcomes)?;
    }
    let n_failed = outcomes.iter().filter(|outcome| !outcome.failures.is_empty()).count();
    let seconds = started.elapsed().as_secs_f64();
    if json {
        output::json(&json!({
            "device": device.label(),
            "driver": device.properties().driver,
            "compared_with": recording.as_ref().map(|it| &it.device),
            "passed": n_failed == 0,
            "seconds": seconds,
            "kernels": outcomes,
        }))?;
    } else {
        let n_passed = outcomes.len() - n_failed;
        output::write(&format!("{n_passed} of {} passed in {seconds:.1} s\n", outcomes.len()))?;
    }
    ensure!(n_failed == 0, "{n_failed} of {} kernels failed on {}", outcomes.len(), device.label());
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<Recording> {
    let file = File::open(path).with_context(|| format!("{}: cannot open the recording", path.display()))?;
    serde_json::from_reader(BufReader::new(file))
        .with_context(|| format!("{}: not a recording of --record", path.display()))
}

fn write(path: &Path, device: &Device, outcomes: &mut [Outcome]) -> anyhow::Result<()> {
    let stored = |it: &mut Outcome| StoredKernel::new(it.kernel, it.arch, std::mem::take(&mut it.outputs));
    let recording = Recording {
        device: device.label().to_owned(),
        driver: device.properties().driver.clone(),
        kernels: outcomes.iter_mut().map(stored).collect(),
    };
    let text = serde_json::to_vec(&recording)?;
    std::fs::write(path, text).with_context(|| format!("{}: cannot write the recording", path.display()))
}

/// The file asked for, whether or not the GPU takes it; else all that it runs.
fn files(arch: Option<&str>, device: &Device) -> Vec<&'static Ptx> {
    let capability = device.properties().capability;
    let wanted = |ptx: &&Ptx| match arch {
        Some(arch) => ptx.arch == arch,
        None => ptx.runs_on(capability.major, capability.minor),
    };
    PTX.iter().filter(wanted).collect()
}

fn heading(device: &Device, compares: bool) -> String {
    let compared =
        if compares { " outputs identical elements differ  worst/allowed  c of c·ε·Σ|ab|" } else { "" };
    format!(
        "{:<26} {:<7} {:>6} {:>11} {:>9}{compared}  {}\n",
        "kernel",
        "ptx",
        "shapes",
        "worst error",
        "bound",
        device.label()
    )
}

fn line(outcome: &Outcome, device: &Device) -> String {
    let Outcome { kernel, arch, shapes, worst_error, bound, failures, agreement, .. } = outcome;
    let verdict = if failures.is_empty() { "ok" } else { "FAILED" };
    let name = device.label().split(' ').next().unwrap_or_default();
    let compared = agreement.as_ref().map(|it| {
        let (outputs, identical, elements, different) = (it.outputs, it.identical, it.elements, it.different);
        let (worst, c) = (it.worst, it.worst_c);
        format!(" {outputs:>7} {identical:>9} {elements:>8} {different:>6} {worst:>14.3} {c:>17.2}")
    });
    let compared = compared.unwrap_or_default();
    let mut text = format!(
        "{kernel:<26} {arch:<7} {shapes:>6} {worst_error:>11.2e} {bound:>9.2e}{compared}  {name} {verdict}\n"
    );
    for failure in failures {
        text += &format!("    {}\n", failure.replace('\n', "\n    "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_like_anywhere_else() {
        assert_eq!(["auto", "cuda", "cuda:3"].map(gpu_ordinal), [Ok(0), Ok(0), Ok(3)]);
        assert_eq!(choice("cuda:3"), Ok(Choice::Cuda(3)));
        assert_eq!(["emulate", "emulate:2"].map(choice), [0, 2].map(|n| Ok(Choice::Emulated(n))));
        for wrong in ["cpu", "cuda:", "cuda:-1", "3", "emulate:", "emulated"] {
            gpu_ordinal(wrong).unwrap_err();
            choice(wrong).unwrap_err();
        }
    }
}
