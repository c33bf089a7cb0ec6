//! `fewsync doctor`: what this machine has, what works with it, what to install for more.

use std::fmt::Write;
use std::process::{Command, Stdio};

use device_builder::Toolchain;
use serde::Serialize;

use super::layout::at_least;
use super::session::cuda_devices;
use super::{output, world};
use crate::bench::allreduce;
use crate::comm::bootstrap::launch::{Address, Launch};
use crate::comm::bootstrap::mpi;
use crate::driver::Device;
use crate::model::{cache, fetch};

/// One thing that a machine may have.
#[derive(Serialize)]
struct Finding {
    what: &'static str,
    /// What was found; none where it is absent or unusable.
    found: Option<String>,
    /// With it: what works. Without it: why not, and what to install.
    note: String,
}

impl Finding {
    fn new(what: &'static str, found: Result<String, String>, works: &str) -> Self {
        match found {
            Ok(found) => Self { what, found: Some(found), note: works.into() },
            Err(missing) => Self { what, found: None, note: missing },
        }
    }
}

#[derive(clap::Args)]
pub(super) struct Args {
    /// Also say whether this machine has the GPUs for so many ranks
    #[arg(long, value_name = "T", value_parser = at_least::<1>, allow_negative_numbers = true)]
    tp: Option<usize>,
}

pub(super) fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    let mut findings = vec![
        Finding::new("cpu", Ok(cpu()), "generate, eval, bench decode and demo run here, any --tp"),
        Finding::new(
            "python",
            program("python3", &["-m", "pip", "--version"], PYTHON_HELP),
            "models are fetched with pip",
        ),
        Finding::new("models", models(), "used as --model smollm2, without a download"),
        Finding::new(
            "gpu",
            gpus(),
            "generate, eval, bench decode and demo run here with --device cuda, --tp up to the number of GPUs",
        ),
        Finding::new(
            "emulator",
            emulator(),
            "--device emulate runs GPU code here, in generate, eval and selftest",
        ),
        Finding::new(
            "nvshmem",
            nvshmem(),
            "mpirun -n 2 fewsync … --device cuda gives each process a GPU; on several hosts, after build-kernels",
        ),
        Finding::new("mpi", program("mpirun", &["--version"], MPI_HELP), MPI_WORKS),
        Finding::new(
            "launcher",
            launched(),
            "this process is one of several: generate, eval, demo and bench decode run with a rank in each, on CPUs or a GPU each",
        ),
        Finding::new(
            "device toolchain",
            toolchain(),
            "device-builder compiles GPU kernels written in Rust to PTX",
        ),
    ];
    // Behind the GPUs.
    let after_gpus = 4;
    findings.insert(
        after_gpus,
        Finding::new("nccl", allreduce::nccl_version(), "bench allreduce compares with it"),
    );
    if Device::cuda_count().is_ok_and(|count| count > 1) {
        findings.insert(
            after_gpus,
            Finding::new("peer access", peers(), "ranks on several GPUs synchronise by direct peer stores"),
        );
    }
    if let Some(tp) = args.tp {
        let works = "each rank has a GPU of its own";
        findings.insert(after_gpus, Finding::new("ranks on gpus", ranks(tp), works));
    }
    if json {
        return output::json(
            &serde_json::json!({ "version": env!("CARGO_PKG_VERSION"), "findings": findings }),
        );
    }
    let mut text = format!("fewsync {}\n", env!("CARGO_PKG_VERSION"));
    for Finding { what, found, note } in &findings {
        match found {
            Some(found) => write!(text, "\n+ {what:<17} {found}\n{:20}{note}\n", "")?,
            None => write!(text, "\n- {what:<17} {}\n", note.replace('\n', &format!("\n{:20}", "")))?,
        }
    }
    output::write(&text)
}

const PYTHON_HELP: &str = "not found: install Python 3 with pip (Debian: apt-get install python3-pip) to fetch smollm2, \
                           or give --model a file";
const MPI_HELP: &str = "not found: ranks are threads, or processes started by srun, torchrun or by hand";
const MPI_WORKS: &str = if mpi::AVAILABLE {
    "mpirun -n 4 fewsync … runs a rank in each process, on one host or several"
} else {
    "mpirun -n 4 fewsync … runs a rank in each process; on several hosts set MASTER_ADDR and MASTER_PORT, or build with --features mpi"
};

/// Which rank of which world the environment makes of this process.
fn launched() -> Result<String, String> {
    let launch = world::launch().map_err(|e| e.to_string())?;
    let Launch { launcher, rank, world, address, .. } =
        launch.ok_or("none: ranks are threads of this process")?;
    let at = match address {
        Address::Given(address) | Address::Concluded(address) => address,
        Address::Unknown => "an address that MPI tells".to_owned(),
    };
    Ok(format!("{launcher}: rank {rank} of {world}, with rank 0 at {at}"))
}

fn cpu() -> String {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let line = |file: &str, key: &str| {
        let text = std::fs::read_to_string(file).ok()?;
        let line = text.lines().find(|line| line.starts_with(key))?.to_string();
        Some(line.split_once(':')?.1.trim().to_string())
    };
    let name = line("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.into());
    let kib = line("/proc/meminfo", "MemTotal").and_then(|kb| kb.trim_end_matches(" kB").parse::<u64>().ok());
    let memory = kib.map_or_else(String::new, |kib| format!(", {} GiB of memory", kib / (1 << 20)));
    format!("{name}, {threads} threads, {}{memory}", simd())
}

/// The widest vector instructions that the reference back end will use.
fn simd() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return "AVX-512";
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return "AVX2";
        }
    }
    "baseline vectors"
}

/// First line that a program prints, or `help`.
fn program(name: &str, args: &[&str], help: &str) -> Result<String, String> {
    let output = Command::new(name).args(args).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            Ok(text.lines().next().unwrap_or_default().to_string())
        }
        _ => Err(help.into()),
    }
}

fn models() -> Result<String, String> {
    let folder = cache::cache_dir().map_err(|e| e.to_string())?;
    let held: Vec<String> = fetch::KNOWN_MODELS
        .iter()
        .map(|model| (model.name, fetch::Fetcher::new(model.clone(), folder.clone()).path()))
        .filter(|(_, path)| path.is_file())
        .map(|(name, path)| format!("{name} ({})", path.display()))
        .collect();
    if held.is_empty() {
        return Err(format!("none in {} yet: `fewsync demo` fetches one (89 MiB)", folder.display()));
    }
    Ok(held.join(", "))
}

fn gpus() -> Result<String, String> {
    let count = Device::cuda_count().map_err(|e| e.to_string())?;
    let mut gpus = Vec::new();
    for ordinal in 0..count {
        let device = Device::cuda(ordinal).map_err(|e| e.to_string())?;
        let p = device.properties();
        gpus.push(format!(
            "{}, sm_{}, {} GiB, {}",
            p.label,
            p.capability,
            p.total_memory_bytes >> 30,
            p.driver
        ));
    }
    Ok(gpus.join("; "))
}

/// Whether every GPU can address the memory of every other one.
fn peers() -> Result<String, String> {
    let count = Device::cuda_count().map_err(|e| e.to_string())?;
    for ordinal in 0..count {
        let device = Device::cuda(ordinal).map_err(|e| e.to_string())?;
        for peer in (0..count).filter(|peer| *peer != ordinal) {
            if !device.gpu().can_access_peer(peer).map_err(|e| e.to_string())? {
                return Err(format!(
                    "cuda:{ordinal} cannot address the memory of cuda:{peer}: ranks on both need \
                     --peer-memory host-staged, which is slow"
                ));
            }
        }
    }
    Ok(format!("between all {count} GPUs"))
}

fn ranks(tp: usize) -> Result<String, String> {
    let devices = cuda_devices(tp).map_err(|e| e.to_string())?;
    let labels: Vec<&str> = devices.iter().map(Device::label).collect();
    Ok(format!("--tp {tp} on {}", labels.join(", ")))
}

/// The machine that `--device emulate` gives.
fn emulator() -> Result<String, String> {
    let devices = Device::emulate(1).map_err(|e| e.to_string())?;
    Ok(format!("{}, {}", devices[0].label(), devices[0].properties().driver))
}

/// NVSHMEM's host library.
#[cfg(feature = "nvshmem")]
fn nvshmem() -> Result<String, String> {
    let library = nvshmem_sys::Library::open().map_err(|e| e.to_string())?;
    Ok(format!("{}, {}", library.release(), library.path().display()))
}

#[cfg(not(feature = "nvshmem"))]
fn nvshmem() -> Result<String, String> {
    Err("this build is without the feature nvshmem".to_owned())
}

fn toolchain() -> Result<String, String> {
    let toolchain = Toolchain::find().map_err(|e| e.to_string())?;
    Ok(format!("{} ({})", toolchain.identity(), toolchain.rustc().display()))
}
