//! What can go wrong between a kernel crate and its PTX.

use std::path::PathBuf;

use crate::toolchain::INSTALL_HELP;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What was wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No compiler and LLVM tools that fit together.
    #[error("found no toolchain for nvptx64:\n{tried}{INSTALL_HELP}")]
    NoToolchain {
        /// One line per candidate: what was looked for and why it does not do.
        tried: String,
    },
    /// A name that is no PTX target.
    #[error("`{name}` is no PTX target; one of sm_70, sm_75, sm_80, sm_86, sm_89, sm_90, sm_90a, sm_100")]
    UnknownArch {
        /// The name that was given.
        name: String,
    },
    /// The path given as device crate holds no `Cargo.toml`.
    #[error("{path} has no Cargo.toml; give the folder of the kernel crate")]
    NotACrate {
        /// The path that was given.
        path: PathBuf,
    },
    /// A program could not be started.
    #[error("could not start {program}: {source}; is it installed and executable?")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A program failed.
    #[error("{program} failed while it should {task}:\n{stderr}")]
    Tool {
        /// The program.
        program: PathBuf,
        /// What it was run for.
        task: &'static str,
        /// What it wrote to standard error.
        stderr: String,
    },
    /// The crate compiled but exports nothing to launch.
    #[error(
        "{path} exports no kernel; mark entry points `#[unsafe(no_mangle)] pub unsafe extern \"ptx-kernel\" fn`"
    )]
    NoKernels {
        /// The device crate.
        path: PathBuf,
    },
    /// Launch bounds that cannot be read, or that belong to no kernel.
    #[error(
        "symbol `{symbol}` is no launch bound of an exported kernel; export `launch_bounds$KERNEL$MAX_THREADS$MIN_BLOCKS`, and `$ALIGN` where its parameters are to be aligned"
    )]
    LaunchBounds {
        /// The symbol.
        symbol: String,
    },
    /// A PTX file without the header that this crate writes.
    #[error(
        "{path} has no device-builder header (missing `{field}`); generate it again with `device-builder refresh`"
    )]
    NoHeader {
        /// The file.
        path: PathBuf,
        /// The header line that is missing.
        field: &'static str,
    },
    /// `ptxas` is nowhere to be found.
    #[error(
        "found no ptxas; set PTXAS to its path, or put it on PATH (`pip install nvidia-cuda-nvcc` brings one), \
         or set CUDA_HOME"
    )]
    NoPtxas,
    /// `ptxas -v` reported something that cannot be parsed.
    #[error("could not read ptxas's resource report at `{line}`; this version of ptxas is not supported")]
    PtxasReport {
        /// The line.
        line: String,
    },
    /// ptxas made warpgroup products wait for each other.
    #[error(
        "products by wgmma would not overlap; leave their accumulators alone until they are waited for: {line}"
    )]
    Serialized {
        /// What ptxas says.
        line: String,
    },
    /// `setmaxnreg` has no effect.
    #[error(
        "registers would stay where they are; bound the launch, and give each warpgroup's role one side of a branch: {line}"
    )]
    RegistersStay {
        /// What ptxas says.
        line: String,
    },
    /// Reading or writing a file.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

/// Runs `command` to its end and returns its standard output.
pub(crate) fn run(command: &mut std::process::Command, task: &'static str) -> Result<String> {
    let program = PathBuf::from(command.get_program());
    let output = command.output().map_err(|source| Error::Spawn { program: program.clone(), source })?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(Error::Tool { program, task, stderr });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
