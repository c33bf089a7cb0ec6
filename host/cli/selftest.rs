//! `fewsync selftest`: every GPU kernel against f64 arithmetic on the CPU.

use std::time::Instant;

use anyhow::{Context, ensure};
use serde_json::json;

use super::output;
use crate::driver::Device;
use crate::kernels::{PTX, Ptx};
use crate::selftest::{self, Outcome};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    gpu: GpuArgs,
    /// Only this PTX file [default: all that the GPU runs]
    #[arg(long, value_name = "ARCH", value_parser = PTX.map(|ptx| ptx.arch))]
    arch: Option<String>,
    /// Only kernels whose name begins like this
    #[arg(long, value_name = "PREFIX", default_value = "")]
    kernel: String,
    /// Leave large shapes out: for compute-sanitizer
    #[arg(long)]
    quick: bool,
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
        Device::cuda(self.device).context("this command runs on a GPU")
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

pub(super) fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    let device = args.gpu.open()?;
    let files = files(args.arch.as_deref(), &device);
    let known = files.iter().flat_map(|ptx| ptx.entries).any(|entry| entry.name.starts_with(&args.kernel));
    ensure!(known, "--kernel {}: no kernel's name begins like this", args.kernel);
    let started = Instant::now();
    let mut outcomes = Vec::new();
    if !json {
        output::write(&format!(
            "{:<26} {:<7} {:>6} {:>11} {:>9}  {}\n",
            "kernel",
            "ptx",
            "shapes",
            "worst error",
            "bound",
            device.label()
        ))?;
    }
    for ptx in files {
        let mut lost_reader = None;
        let done = |outcome: &Outcome| {
            if !json && lost_reader.is_none() {
                lost_reader = output::write(&line(outcome, &device)).err();
            }
        };
        outcomes.extend(selftest::run(&device, ptx, &args.kernel, args.quick, done)?);
        lost_reader.map_or(Ok(()), Err)?;
    }
    let n_failed = outcomes.iter().filter(|outcome| !outcome.failures.is_empty()).count();
    let seconds = started.elapsed().as_secs_f64();
    if json {
        output::json(&json!({
            "device": device.label(),
            "driver": device.properties().driver,
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

/// The file asked for, whether or not the GPU takes it; else all that it runs.
fn files(arch: Option<&str>, device: &Device) -> Vec<&'static Ptx> {
    let capability = device.properties().capability;
    let wanted = |ptx: &&Ptx| match arch {
        Some(arch) => ptx.arch == arch,
        None => ptx.runs_on(capability.major, capability.minor),
    };
    PTX.iter().filter(wanted).collect()
}

fn line(outcome: &Outcome, device: &Device) -> String {
    let Outcome { kernel, arch, shapes, worst_error, bound, failures } = outcome;
    let verdict = if failures.is_empty() { "ok" } else { "FAILED" };
    let ordinal = device.properties().ordinal;
    let mut text = format!(
        "{kernel:<26} {arch:<7} {shapes:>6} {worst_error:>11.2e} {bound:>9.2e}  cuda:{ordinal} {verdict}\n"
    );
    for failure in failures {
        text += &format!("    {failure}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_like_anywhere_else() {
        assert_eq!(["auto", "cuda", "cuda:3"].map(gpu_ordinal), [Ok(0), Ok(0), Ok(3)]);
        for wrong in ["cpu", "cuda:", "cuda:-1", "3"] {
            gpu_ordinal(wrong).unwrap_err();
        }
    }
}
