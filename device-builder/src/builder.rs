//! `CudaBuilder`: one kernel crate in, one PTX file out.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::error::{Error, Result, run};
use crate::link::{self, LinkInput};
use crate::{Arch, Header, Ptx, Toolchain, source_hash};

const TARGET: &str = "nvptx64-nvidia-cuda";
/// Code generation flags that do not depend on the machine.
const RUSTFLAGS: [&str; 4] = [
    "-Zunstable-options",
    "-Cpanic=immediate-abort",
    "-Zlocation-detail=none",
    "-Cllvm-args=-unroll-threshold=20000 -unroll-runtime=false",
];

/// Builds a kernel crate into PTX.
///
/// The crate is a plain `#![no_std]` library with a `#[panic_handler]`, whose entry points are
/// `#[unsafe(no_mangle)] pub unsafe extern "ptx-kernel" fn`. It sees `--cfg cuda_arch="sm_90a"` and
/// one `--cfg cuda_arch_min="NN"` per architecture up to its own. The same toolchain gives the same
/// bytes whatever the checkout path.
#[derive(Debug, Clone)]
pub struct CudaBuilder {
    crate_dir: PathBuf,
    arch: Arch,
    toolchain: Option<Toolchain>,
    copy_to: Option<PathBuf>,
    target_dir: Option<PathBuf>,
    extra_bitcode: Vec<PathBuf>,
    keep: Vec<String>,
    features: Vec<String>,
    without: Vec<String>,
}

impl CudaBuilder {
    /// A builder for the kernel crate in `crate_dir`, by default for `sm_80`.
    pub fn new(crate_dir: impl Into<PathBuf>) -> Self {
        Self {
            crate_dir: crate_dir.into(),
            arch: Arch::Sm80,
            toolchain: None,
            copy_to: None,
            target_dir: None,
            extra_bitcode: Vec::new(),
            keep: Vec::new(),
            features: Vec::new(),
            without: Vec::new(),
        }
    }

    /// The architecture to generate code for.
    pub fn arch(mut self, arch: Arch) -> Self {
        self.arch = arch;
        self
    }

    /// Uses this toolchain instead of [`Toolchain::find`]'s.
    pub fn toolchain(mut self, toolchain: Toolchain) -> Self {
        self.toolchain = Some(toolchain);
        self
    }

    /// Writes the PTX to this file as well.
    pub fn copy_to(mut self, path: impl Into<PathBuf>) -> Self {
        self.copy_to = Some(path.into());
        self
    }

    /// Where cargo builds. Default: `OUT_DIR` in a build script, else `target` in the kernel crate.
    pub fn target_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.target_dir = Some(path.into());
        self
    }

    /// Links the symbols that the crate needs from this bitcode file.
    pub fn extra_bitcode(mut self, path: impl Into<PathBuf>) -> Self {
        self.extra_bitcode.push(path.into());
        self
    }

    /// Turns on a cargo feature of the kernel crate.
    pub fn feature(mut self, name: impl Into<String>) -> Self {
        self.features.push(name.into());
        self
    }

    /// Leaves out these kernels: what a feature adds becomes a file of its own.
    pub fn without_kernels(mut self, names: &[String]) -> Self {
        self.without.extend_from_slice(names);
        self
    }

    /// Keeps this symbol visible in the PTX beside the kernels.
    pub fn keep_symbol(mut self, name: impl Into<String>) -> Self {
        self.keep.push(name.into());
        self
    }

    /// Compiles, links and lowers.
    ///
    /// # Errors
    /// When no toolchain is found, when the crate does not compile or exports no kernel, or when an
    /// LLVM tool fails; the message carries the compiler's own output.
    pub fn build(&self) -> Result<Ptx> {
        let crate_dir = self.crate_dir();
        let crate_dir = crate_dir.canonicalize().map_err(Error::io(&crate_dir))?;
        if !crate_dir.join("Cargo.toml").is_file() {
            return Err(Error::NotACrate { path: crate_dir });
        }
        if env::var_os("OUT_DIR").is_some() {
            for input in ["src", "Cargo.toml", "Cargo.lock"] {
                println!("cargo:rerun-if-changed={}", crate_dir.join(input).display());
            }
            for variable in crate::toolchain::VARIABLES {
                println!("cargo:rerun-if-env-changed={variable}");
            }
        }
        let toolchain = match &self.toolchain {
            Some(toolchain) => toolchain.clone(),
            None => Toolchain::find()?,
        };
        let rlibs = self.compile(&toolchain, &crate_dir)?;
        let scratch = tempfile::tempdir().map_err(Error::io(env::temp_dir()))?;
        let linked = link::link(
            &toolchain,
            &LinkInput {
                crates: &rlibs.crates,
                runtime: &rlibs.runtime,
                extra_bitcode: &self.extra_bitcode,
                keep: &self.keep,
                without: &self.without,
                arch: self.arch,
                scratch: scratch.path(),
            },
        )?
        .ok_or_else(|| Error::NoKernels { path: crate_dir.clone() })?;
        let features = match self.features.as_slice() {
            [] => String::new(),
            features => format!(" --features {}", features.join(",")),
        };
        let header = Header {
            sources: source_hash(&crate_dir)?,
            toolchain: toolchain.identity(),
            flags: format!("rustc {}{features}; {}", RUSTFLAGS.join(" "), link::describe(self.arch)),
        };
        let ptx = Ptx::new(linked, header)?;
        if let Some(path) = &self.copy_to {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(Error::io(parent))?;
            }
            fs::write(path, ptx.text()).map_err(Error::io(path))?;
        }
        Ok(ptx)
    }

    /// A relative path counts from the manifest of the crate whose build script runs.
    fn crate_dir(&self) -> PathBuf {
        match env::var_os("CARGO_MANIFEST_DIR") {
            Some(manifest) if env::var_os("OUT_DIR").is_some() => Path::new(&manifest).join(&self.crate_dir),
            _ => self.crate_dir.clone(),
        }
    }

    fn compile(&self, toolchain: &Toolchain, crate_dir: &Path) -> Result<Rlibs> {
        // Absolute, since cargo runs inside the kernel crate.
        let target_dir = match (&self.target_dir, env::var_os("OUT_DIR")) {
            (Some(path), _) => std::path::absolute(path).map_err(Error::io(path))?,
            (None, Some(out)) => Path::new(&out).join("device"),
            (None, None) => crate_dir.join("target"),
        };
        let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
        let mut command = Command::new(cargo);
        for (name, _) in env::vars_os() {
            // Flags and wrappers meant for the host crate would break or change the device build.
            let name = name.to_string_lossy();
            if name.starts_with("CARGO_PROFILE_")
                || name.starts_with("CARGO_BUILD_")
                || name.contains("RUSTFLAGS")
            {
                command.env_remove(&*name);
            }
        }
        command
            .current_dir(crate_dir)
            .env_remove("RUSTC_WRAPPER")
            .env_remove("RUSTC_WORKSPACE_WRAPPER")
            .env("RUSTC", toolchain.rustc())
            .env("RUSTC_BOOTSTRAP", "1")
            .args([
                "rustc",
                "--release",
                "--lib",
                "--crate-type=rlib",
                "-Zbuild-std=core",
                "--target",
                TARGET,
            ])
            .args(["--message-format=json-render-diagnostics", "--quiet"])
            .args(["--config", "profile.release.panic=\"abort\"", "--config", "profile.release.debug=false"])
            .args(["--config", "profile.release.codegen-units=1", "--config", "profile.release.lto=false"])
            .arg("--config")
            .arg(format!("target.{TARGET}.rustflags={}", self.rustflags(toolchain, crate_dir)))
            .arg("--target-dir")
            .arg(target_dir.join(self.arch.name()));
        if !self.features.is_empty() {
            command.arg("--features").arg(self.features.join(","));
        }
        if crate_dir.join("Cargo.lock").is_file() {
            command.arg("--locked");
        }
        let messages = run(&mut command, "compile the kernel crate")?;
        Ok(Rlibs::from_messages(&messages, toolchain.sysroot()))
    }

    /// `target.….rustflags` as a TOML array.
    fn rustflags(&self, toolchain: &Toolchain, crate_dir: &Path) -> String {
        let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
        let mut flags: Vec<String> = RUSTFLAGS.map(str::to_owned).to_vec();
        flags.push(format!("-Ctarget-cpu={}", self.arch));
        flags.extend(self.arch.cfgs().into_iter().map(|cfg| format!("--cfg={cfg}")));
        flags.push(remap(crate_dir, "/device"));
        flags.push(remap(toolchain.sysroot(), "/sysroot"));
        let quoted: Vec<String> = flags.into_iter().map(|flag| Value::String(flag).to_string()).collect();
        format!("[{}]", quoted.join(","))
    }
}

/// What cargo built, by how it is linked.
struct Rlibs {
    crates: Vec<PathBuf>,
    runtime: Vec<PathBuf>,
}

impl Rlibs {
    /// Reads cargo's JSON messages; what was compiled from the sysroot's sources is the runtime.
    fn from_messages(messages: &str, sysroot: &Path) -> Self {
        let mut rlibs = Self { crates: Vec::new(), runtime: Vec::new() };
        let library = sysroot.join("lib/rustlib/src");
        for message in messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            if message["reason"] != "compiler-artifact" {
                continue;
            }
            let manifest = Path::new(message["manifest_path"].as_str().unwrap_or_default());
            let files = message["filenames"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let list = if manifest.starts_with(&library) { &mut rlibs.runtime } else { &mut rlibs.crates };
            list.extend(files.filter(|file| file.ends_with(".rlib")).map(PathBuf::from));
        }
        // Cargo reports in the order in which builds end, which is not always the same.
        rlibs.crates.sort();
        rlibs.runtime.sort();
        rlibs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn artifacts_are_split_by_where_their_source_lies() {
        let line = |manifest: &str, file: &str| {
            serde_json::json!({"reason": "compiler-artifact", "manifest_path": manifest,
                "filenames": [file, file.replace("rlib", "rmeta")]})
            .to_string()
        };
        let messages = [
            line("/s/lib/rustlib/src/rust/library/core/Cargo.toml", "/t/libcore-1.rlib"),
            line("/home/kernels/Cargo.toml", "/t/libkernels.rlib"),
            r#"{"reason":"build-finished","success":true}"#.to_owned(),
        ];
        let rlibs = Rlibs::from_messages(&messages.join("\n"), Path::new("/s"));
        assert_eq!(rlibs.crates, [Path::new("/t/libkernels.rlib")]);
        assert_eq!(rlibs.runtime, [Path::new("/t/libcore-1.rlib")]);
    }

    #[test]
    fn a_folder_without_a_manifest_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(CudaBuilder::new(dir.path()).build(), Err(Error::NotACrate { .. })));
    }
}
