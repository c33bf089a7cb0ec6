//! What a measurement was made on.

use std::process::{Command, Stdio};

use serde::Serialize;

use crate::driver::Device;

/// The machine header of a result.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// The GPU.
    pub gpu: String,
    /// The newest CUDA of its driver.
    pub driver: String,
    /// What nvidia-smi says of driver and clocks; none where it is not there.
    pub clocks: Option<String>,
    /// The commit that the binary was built from; `unknown` unless `bench/stage.sh` built it.
    pub commit: &'static str,
}

impl Machine {
    /// Of this process.
    pub fn of(device: &Device) -> Self {
        let properties = device.properties();
        Self {
            gpu: properties.label.clone(),
            driver: properties.driver.clone(),
            clocks: clocks(properties.ordinal),
            commit: option_env!("FEWSYNC_COMMIT").unwrap_or("unknown"),
        }
    }

    /// The header as one line.
    pub fn line(&self) -> String {
        let clocks = self.clocks.as_deref().unwrap_or("clocks unknown");
        format!("{}, {}, {clocks}, commit {}", self.gpu, self.driver, self.commit)
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
