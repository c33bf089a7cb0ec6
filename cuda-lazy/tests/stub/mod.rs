//! Builds the stub driver with the system's C compiler, and runs one test of a test binary in a process of its
//! own with that driver (the library and its answers are fixed for a process's life).

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

const CHILD: &str = "STUB_CHILD";

/// Whether this process was started by [`answer_of`]: false when somebody runs the ignored tests by hand.
pub(crate) fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// The stub driver, built. It is deleted with this value.
pub(crate) struct StubDriver {
    folder: TempDir,
}

impl StubDriver {
    /// Compiles `libcuda.c`; `None`, with a note, on a machine without a C compiler.
    pub(crate) fn build() -> Option<Self> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let source = folder.path().join("libcuda.c");
        std::fs::write(&source, include_str!("libcuda.c")).expect("the temporary folder is writable");
        let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        let built = Command::new(compiler)
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(folder.path().join("libcuda-stub.so"))
            .arg(source)
            .status();
        match built {
            Ok(status) => assert!(status.success(), "the stub driver does not compile"),
            Err(error) => {
                println!("skipped: no C compiler ({error})");
                return None;
            }
        }
        Some(Self { folder })
    }

    /// Where the library is.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("libcuda-stub.so")
    }
}

/// Runs the ignored test `name` of this binary with the driver `library` and these variables; returns what it
/// printed after `answer: `.
pub(crate) fn answer_of(name: &str, library: &Path, variables: &[(&str, &str)]) -> String {
    let output = Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", name, "--ignored", "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .env("FEWSYNC_LIBCUDA", library)
        .envs(variables.iter().copied())
        .output()
        .expect("this binary runs");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} {variables:?} failed:\n{printed}\n{errors}");
    let (_, answer) =
        printed.split_once("answer: ").unwrap_or_else(|| panic!("{name} gave no answer:\n{printed}"));
    answer.lines().next().unwrap_or_default().to_owned()
}
