//! nvcc: the one that `NVCC` names, or NVIDIA's wheels in the target folder.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ptx_emulator::Module;

/// One compiler and the headers that belong to it.
const WHEELS: [&str; 5] = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
];

/// How a sample is compiled.
pub(crate) struct Variant {
    pub(crate) name: &'static str,
    /// Compute capability, ten times.
    pub(crate) sm: u32,
    pub(crate) debug: bool,
    flags: [&'static str; 2],
}

pub(crate) const VARIANTS: [Variant; 3] = [
    Variant { name: "sm_80", sm: 80, debug: false, flags: ["-arch=sm_80", "-O3"] },
    Variant { name: "sm_90a", sm: 90, debug: false, flags: ["-arch=sm_90a", "-O3"] },
    Variant { name: "sm_80 for a debugger", sm: 80, debug: true, flags: ["-arch=sm_80", "-G"] },
];

/// The compiler, or why there is none.
pub(crate) fn nvcc() -> Result<&'static Path, &'static str> {
    static NVCC: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    NVCC.get_or_init(find).as_deref().map_err(String::as_str)
}

fn find() -> Result<PathBuf, String> {
    run(Command::new("g++").arg("--version")).map_err(|error| format!("it needs g++: {error}"))?;
    if let Some(path) = std::env::var_os("NVCC") {
        return Ok(path.into());
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda-13.0.88");
    let nvcc = folder.join("nvidia/cu13/bin/nvcc");
    if nvcc.exists() {
        return Ok(nvcc);
    }
    // Moved into place when complete, for whoever else looks at the same time.
    let partial = folder.with_extension(format!("{}.partial", std::process::id()));
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"]).arg(&partial).args(WHEELS);
    run(pip.env("PIP_ROOT_USER_ACTION", "ignore"))?;
    if std::fs::rename(&partial, &folder).is_err() {
        let _ = std::fs::remove_dir_all(&partial);
    }
    if nvcc.exists() { Ok(nvcc) } else { Err(format!("the wheels brought no {}", nvcc.display())) }
}

/// A sample of this folder, compiled once for all tests.
pub(crate) fn module(nvcc: &Path, source: &'static str, variant: &'static Variant) -> Arc<Module> {
    type Modules = HashMap<(&'static str, &'static str), Arc<OnceLock<Arc<Module>>>>;
    static MODULES: Mutex<Option<Modules>> = Mutex::new(None);
    let cell = {
        let mut modules = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(modules.get_or_insert_default().entry((source, variant.name)).or_default())
    };
    let module = cell.get_or_init(|| {
        let name = format!("{source} ({})", variant.name);
        let module = Module::new(&name, &compile(nvcc, source, variant));
        Arc::new(module.unwrap_or_else(|error| panic!("{error}")))
    });
    Arc::clone(module)
}

fn compile(nvcc: &Path, source: &str, variant: &Variant) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda").join(source);
    let name = format!("{source}.{}.{}.ptx", variant.flags.concat(), std::process::id());
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let mut command = Command::new(nvcc);
    command.args(["--ptx", "-std=c++17"]).args(variant.flags).arg(path).arg("-o").arg(&out);
    run(&mut command).unwrap_or_else(|error| panic!("{source}, {}: {error}", variant.name));
    let text = std::fs::read_to_string(&out).expect("nvcc wrote it");
    std::fs::remove_file(&out).expect("nobody else knows the file");
    text
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{command:?} failed: {}", text.trim())) }
}
