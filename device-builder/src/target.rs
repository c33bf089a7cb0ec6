//! Which files a kernel crate gives: one for each architecture, and one more for each feature that adds kernels
//! which call what the crate does not define.

use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use device_builder::Arch;
use serde_json::Value;

/// One PTX file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Target {
    /// The feature whose kernels alone it holds; with none, the crate's kernels without features.
    pub(crate) feature: Option<String>,
    pub(crate) arch: Arch,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.feature {
            Some(feature) => write!(f, "{feature}.{}", self.arch),
            None => self.arch.fmt(f),
        }
    }
}

/// The crate's `[package.metadata.device-builder] open = ["…"]`.
pub(crate) fn open_features(device: &Path) -> Result<Vec<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let done = Command::new(cargo)
        .current_dir(device)
        .args(["metadata", "--no-deps", "--offline", "--format-version=1"])
        .output()
        .context("cargo metadata")?;
    ensure!(done.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&done.stderr));
    let metadata: Value = serde_json::from_slice(&done.stdout)?;
    let open = &metadata["packages"][0]["metadata"]["device-builder"]["open"];
    Ok(open.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect())
}
