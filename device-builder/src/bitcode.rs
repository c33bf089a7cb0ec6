//! Foreign device bitcode by itself to PTX, without a Rust compiler.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Arch;
use crate::error::{Error, Result, run};
use crate::toolchain::{LLVM_VARIABLE, Toolchain};

const PASSES: &str = "internalize,globaldce,nvvm-reflect,default<O3>,globaldce";
const TOOLS: [&str; 2] = ["opt", "llc"];

/// A folder of LLVM's tools.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Llvm {
    bin: PathBuf,
}

impl Llvm {
    /// `FEWSYNC_DEVICE_LLVM_BIN`, else those of [`Toolchain::find`], else the newest `/usr/lib/llvm-NN`.
    ///
    /// # Errors
    /// There are none.
    pub fn find() -> Result<Self> {
        let named = env::var_os(LLVM_VARIABLE).map(PathBuf::from);
        let toolchain = || Toolchain::find().ok().map(|toolchain| toolchain.llvm_bin().to_owned());
        let folders =
            named.map_or_else(|| toolchain().into_iter().chain(distribution()).collect(), |n| vec![n]);
        let has_tools = |bin: &PathBuf| TOOLS.iter().all(|tool| bin.join(tool).is_file());
        let tried: String =
            folders.iter().map(|bin| format!("  {}: no opt and llc\n", bin.display())).collect();
        folders.into_iter().find(has_tools).map(|bin| Self { bin }).ok_or(Error::NoToolchain { tried })
    }

    /// PTX of a bitcode file, reduced to some functions and variables and what they need; those stay visible. Names
    /// that the file does not have are passed over. `ptx_version` is ten times the version, such as 82, or the
    /// architecture's own if that is newer.
    ///
    /// # Errors
    /// The tools refuse it: bitcode that is newer than them, or none.
    pub fn lower(&self, bitcode: &Path, keep: &[&str], arch: Arch, ptx_version: u32) -> Result<String> {
        let scratch = tempfile::tempdir().map_err(Error::io(env::temp_dir()))?;
        let (reduced, ptx) = (scratch.path().join("reduced.bc"), scratch.path().join("out.ptx"));
        let mut opt = Command::new(self.bin.join("opt"));
        opt.arg(format!("-passes={PASSES}")).arg(format!("--internalize-public-api-list={}", keep.join(",")));
        run(opt.arg(bitcode).arg("-o").arg(&reduced), "reduce the bitcode")?;
        let mut llc = Command::new(self.bin.join("llc"));
        llc.arg("-O3")
            .arg(format!("-mcpu={arch}"))
            .arg(format!("-mattr=+ptx{}", ptx_version.max(arch.ptx_version())));
        run(llc.arg(&reduced).arg("-o").arg(&ptx), "generate PTX")?;
        fs::read_to_string(&ptx).map_err(Error::io(ptx))
    }
}

/// `/usr/lib/llvm-NN/bin`, newest first.
fn distribution() -> Vec<PathBuf> {
    let entries = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let release = |path: &PathBuf| path.file_name()?.to_str()?.strip_prefix("llvm-")?.parse::<u32>().ok();
    let mut found: Vec<_> =
        entries.map(|entry| entry.path()).filter_map(|path| Some((release(&path)?, path))).collect();
    found.sort_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, path)| path.join("bin")).collect()
}
