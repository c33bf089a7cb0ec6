//! Assembling PTX without a GPU, and reading what each kernel costs.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Arch;
use crate::error::{Error, Result, run};

/// NVIDIA's assembler.
#[derive(Debug, Clone)]
pub struct Ptxas {
    program: PathBuf,
    version: String,
}

/// What one kernel costs on one architecture, as `ptxas -v` reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resources {
    /// Entry point.
    pub kernel: String,
    /// 32-bit registers per thread.
    pub registers: u32,
    /// Static shared memory per block.
    pub shared_bytes: u32,
    /// Local memory per thread; an array that is not in registers.
    pub stack_bytes: u32,
    /// Spill stores plus spill loads, per thread.
    pub spill_bytes: u32,
}

impl Ptxas {
    /// `PTXAS`, else `ptxas` on `PATH`, else `$CUDA_HOME/bin`, else `/usr/local/cuda/bin`.
    pub fn find() -> Result<Self> {
        let on_path = env::var_os("PATH")
            .into_iter()
            .flat_map(|path| env::split_paths(&path).map(|dir| dir.join("ptxas")).collect::<Vec<_>>());
        let cuda_home = env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin/ptxas"));
        let program = env::var_os("PTXAS")
            .map(PathBuf::from)
            .into_iter()
            .chain(on_path)
            .chain(cuda_home)
            .chain([PathBuf::from("/usr/local/cuda/bin/ptxas")])
            .find(|candidate| candidate.is_file())
            .ok_or(Error::NoPtxas)?;
        let report = run(Command::new(&program).arg("--version"), "print its version")?;
        let version = report.rsplit_once(", V").map_or(report.as_str(), |(_, rest)| rest);
        Ok(Self { version: version.split_whitespace().next().unwrap_or_default().to_owned(), program })
    }

    /// Release, such as `13.0.88`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Assembles `ptx` for `arch` and returns the resources of its kernels in name order.
    ///
    /// `relocatable` allows undefined external symbols (`ptxas -c`).
    pub fn assemble(&self, ptx: &str, arch: Arch, relocatable: bool) -> Result<Vec<Resources>> {
        let scratch = tempfile::tempdir().map_err(Error::io(env::temp_dir()))?;
        let (input, output) = (scratch.path().join("in.ptx"), scratch.path().join("out.cubin"));
        fs::write(&input, ptx).map_err(Error::io(&input))?;
        let mut command = Command::new(&self.program);
        command.arg("-v").arg(format!("-arch={arch}"));
        if relocatable {
            command.arg("-c");
        }
        // The report comes on standard error, also when all is well.
        let done = command.arg(&input).arg("-o").arg(&output).output();
        let done = done.map_err(|source| Error::Spawn { program: self.program.clone(), source })?;
        let stderr = String::from_utf8_lossy(&done.stderr).into_owned();
        if !done.status.success() {
            return Err(Error::Tool { program: self.program.clone(), task: "assemble PTX", stderr });
        }
        let mut resources = parse_report(&stderr)?;
        resources.sort_by(|a, b| a.kernel.cmp(&b.kernel));
        Ok(resources)
    }
}

fn parse_report(report: &str) -> Result<Vec<Resources>> {
    let mut resources: Vec<Resources> = Vec::new();
    for line in report.lines() {
        // The assembler found an accumulator touched between products, and waits behind each of them.
        if line.contains("wgmma.mma_async instructions are serialized") {
            return Err(Error::Serialized { line: line.trim().to_owned() });
        }
        if line.contains("'setmaxnreg' ignored") {
            return Err(Error::RegistersStay { line: line.trim().to_owned() });
        }
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let kernel = rest.split('\'').next().unwrap_or_default().to_owned();
            resources.push(Resources {
                kernel,
                registers: 0,
                shared_bytes: 0,
                stack_bytes: 0,
                spill_bytes: 0,
            });
            continue;
        }
        let Some(current) = resources.last_mut() else { continue };
        let number = |unit: &str| number_before(line, unit);
        let unreadable = || Error::PtxasReport { line: line.to_owned() };
        if line.contains("bytes stack frame") {
            current.stack_bytes = number(" bytes stack frame").ok_or_else(unreadable)?;
            let stores = number(" bytes spill stores").ok_or_else(unreadable)?;
            current.spill_bytes = stores + number(" bytes spill loads").ok_or_else(unreadable)?;
        } else if line.contains(": Used ") {
            current.registers = number(" registers").ok_or_else(unreadable)?;
            current.shared_bytes = number(" bytes smem").unwrap_or(0);
        }
    }
    Ok(resources)
}

/// The integer that stands right before `unit`.
fn number_before(line: &str, unit: &str) -> Option<u32> {
    let (before, _) = line.split_once(unit)?;
    before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serialised_products_are_refused() {
        let report = "ptxas info    : (C7515) Potential Performance Loss: wgmma.mma_async instructions are serialized \
                      due to non wgmma instructions defining accumulator registers in the function 'gemm'";
        let error = parse_report(report).unwrap_err().to_string();
        assert!(error.contains("in the function 'gemm'"), "{error}");
    }

    #[test]
    fn registers_that_stay_are_refused() {
        let report = "ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored; unable to determine \
                      register count at entry.";
        let error = parse_report(report).unwrap_err().to_string();
        assert!(error.contains("bound the launch") && error.contains("at entry"), "{error}");
    }

    #[test]
    fn reads_a_report_of_two_kernels() {
        let report = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'gemm' for 'sm_90a'
ptxas info    : Function properties for gemm
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 16 bytes cumulative stack size, 1024 bytes smem
ptxas info    : Compiling entry function 'add' for 'sm_90a'
ptxas info    : Function properties for add
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 0 barriers
";
        let resources = parse_report(report).unwrap();
        let [gemm, add] = resources.as_slice() else { panic!("{resources:?}") };
        assert_eq!(
            (gemm.registers, gemm.shared_bytes, gemm.stack_bytes, gemm.spill_bytes),
            (168, 1024, 16, 12)
        );
        assert_eq!((add.kernel.as_str(), add.registers, add.spill_bytes), ("add", 10, 0));
    }

    #[test]
    fn an_unreadable_report_is_an_error() {
        let report = "Compiling entry function 'a' for 'sm_80'\n  ? bytes stack frame, none\n";
        assert!(parse_report(report).is_err());
    }
}
