//! `fewsync build-kernels`: completes the kernels that put between nodes with NVSHMEM's device code.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use device_builder::{Arch, Llvm};
use serde_json::json;

use super::output;
use crate::comm::gpu::nvshmem::kernels::{VARIABLES, cache_folder, join, write};
use crate::kernels::{NVSHMEM_FUNCTIONS, NVSHMEM_PTX, Ptx};

/// Ten times the PTX version that NVSHMEM's code needs at least: from 3.8 on it asks for `.mmio`. Any driver of CUDA 12.2
/// takes it, and NVSHMEM for CUDA 13 needs a newer one.
const PTX_VERSION: u32 = 82;

#[derive(clap::Args)]
pub(super) struct Args {
    /// NVSHMEM's folder, with lib/libnvshmem_device*.bc: an installation, or nvidia/nvshmem of the Python package
    /// nvidia-nvshmem-cu13
    #[arg(long, value_name = "DIR")]
    nvshmem: PathBuf,
    /// Architectures [default: all that there are kernels for]
    #[arg(long, value_name = "ARCH", value_delimiter = ',')]
    arch: Vec<String>,
    /// Where to write, instead of the cache; FEWSYNC_KERNELS then names it where fewsync runs
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(super) fn run(args: &Args, as_json: bool) -> anyhow::Result<()> {
    let archs: Vec<&str> = NVSHMEM_PTX.iter().map(|ptx| ptx.arch).collect();
    if let Some(other) = args.arch.iter().find(|arch| !archs.contains(&arch.as_str())) {
        bail!("there are no kernels for {other}: give some of {}", archs.join(", "));
    }
    let folder = match &args.out {
        Some(folder) => folder.clone(),
        None => cache_folder().context("this user has no cache folder: give --out, or set FEWSYNC_CACHE")?,
    };
    let llvm = Llvm::find().context("LLVM's opt and llc are needed")?;
    let is_wanted = |ptx: &&Ptx| args.arch.is_empty() || args.arch.iter().any(|arch| arch == ptx.arch);
    for ptx in NVSHMEM_PTX.iter().filter(is_wanted) {
        let arch: Arch = ptx.arch.parse()?;
        let bitcode = bitcode(&args.nvshmem, arch)?;
        output::note(&format!("{}: {}", ptx.arch, bitcode.display()));
        let theirs =
            llvm.lower(&bitcode, &[&NVSHMEM_FUNCTIONS[..], &VARIABLES].concat(), arch, PTX_VERSION)?;
        let (text, release) = join(ptx, &theirs).with_context(|| bitcode.display().to_string())?;
        let path = write(&folder, ptx, release, &text).with_context(|| folder.display().to_string())?;
        if as_json {
            output::json(&json!({"arch": ptx.arch, "release": release.to_string(), "path": path}))?;
        } else {
            output::write(&format!("{}\n", path.display()))?;
        }
    }
    Ok(())
}

/// The device bitcode: one file for all architectures until 3.4, one for each from then on.
fn bitcode(nvshmem: &Path, arch: Arch) -> anyhow::Result<PathBuf> {
    let of_arch = format!("libnvshmem_device_sm_{}.bc", arch.compute());
    let names = [of_arch.as_str(), "libnvshmem_device.bc"];
    let folders = [nvshmem.join("lib"), nvshmem.join("nvidia/nvshmem/lib"), nvshmem.to_owned()];
    let mut files = folders.iter().flat_map(|folder| names.map(|name| folder.join(name)));
    let found = files.find(|file| file.is_file());
    ensure!(
        found.is_some(),
        "{}: no lib/{} or lib/{} there: name NVSHMEM's folder",
        nvshmem.display(),
        names[0],
        names[1]
    );
    Ok(found.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bitcode_is_found_in_both_layouts_and_its_absence_is_a_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let error = bitcode(folder.path(), Arch::Sm90a).unwrap_err().to_string();
        assert!(
            error.contains("libnvshmem_device_sm_90.bc") && error.contains("name NVSHMEM's folder"),
            "{error}"
        );
        let lib = folder.path().join("nvidia/nvshmem/lib");
        std::fs::create_dir_all(&lib).unwrap();
        std::fs::write(lib.join("libnvshmem_device.bc"), "").unwrap();
        assert!(bitcode(folder.path(), Arch::Sm90a).unwrap().ends_with("lib/libnvshmem_device.bc"));
        std::fs::write(lib.join("libnvshmem_device_sm_80.bc"), "").unwrap();
        assert!(bitcode(folder.path(), Arch::Sm80).unwrap().ends_with("libnvshmem_device_sm_80.bc"));
    }
}
