//! What a measurement was made on.

use std::process::{Command, Stdio};

use serde::Serialize;

use crate::driver::Device;

/// The machine header of a result.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// The GPUs in use, `cuda:0 (NVIDIA H200)`; none where the CPU computed.
    pub gpus: Vec<String>,
    /// The newest CUDA of their driver.
    pub driver: Option<String>,
    /// What nvidia-smi says of the first one's driver and clocks; none where it is not there.
    pub clocks: Option<String>,
    /// The processor and its threads.
    pub cpu: String,
    /// The operating system.
    pub system: String,
    /// The commit that the binary was built from; `unknown` unless `bench/stage.sh` built it.
    pub commit: &'static str,
}

impl Machine {
    /// Of this process, with the GPUs that it uses: none for the CPU.
    pub fn of(gpus: &[Device]) -> Self {
        let first = gpus.first().map(Device::properties);
        Self {
            gpus: gpus.iter().map(|gpu| gpu.label().to_owned()).collect(),
            driver: first.map(|gpu| gpu.driver.clone()),
            clocks: first.and_then(|gpu| clocks(gpu.ordinal)),
            cpu: cpu(),
            system: system(),
            commit: option_env!("FEWSYNC_COMMIT").unwrap_or("unknown"),
        }
    }

    /// The header as one line.
    pub fn line(&self) -> String {
        let Self { gpus, driver, clocks, cpu, system, commit } = self;
        match driver {
            Some(driver) => {
                let clocks = clocks.as_deref().unwrap_or("clocks unknown");
                format!("{}, {driver}, {clocks}, commit {commit}", gpus.join(" + "))
            }
            None => format!("{cpu}, {system}, commit {commit}"),
        }
    }
}

fn clocks(ordinal: u32) -> Option<String> {
    let query = "driver_version,clocks.sm,clocks.max.sm,clocks.mem";
    let output = Command::new("nvidia-smi")
        .args([format!("--id={ordinal}"), format!("--query-gpu={query}"), "--format=csv,noheader".into()])
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let [driver, sm, max_sm, memory] = text.trim().split(", ").collect::<Vec<_>>().try_into().ok()?;
    Some(format!("driver {driver}, SM {sm} (at most {max_sm}), memory {memory}"))
}

/// Linux names the processor; elsewhere its architecture has to do.
fn cpu() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let name = name.map_or(std::env::consts::ARCH, |(_, name)| name.trim());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{name} ({threads} threads)")
}

fn system() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{} {}", std::env::consts::OS, release.trim()).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_gpu_the_line_names_the_processor() {
        let line = Machine::of(&[]).line();
        assert!(line.contains(" threads), ") && line.contains(", commit "), "{line}");
        assert!(!line.contains("CUDA") && !line.contains("clocks"), "{line}");
    }

    #[test]
    fn with_gpus_the_line_names_them_all() {
        let machine = Machine {
            gpus: vec!["cuda:0 (A)".into(), "cuda:1 (A)".into()],
            driver: Some("CUDA 13.0".into()),
            clocks: None,
            ..Machine::of(&[])
        };
        assert!(machine.line().starts_with("cuda:0 (A) + cuda:1 (A), CUDA 13.0, clocks unknown, commit "));
    }
}
