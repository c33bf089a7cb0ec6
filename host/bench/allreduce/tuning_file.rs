//! The file that `fewsync tune allreduce` writes, and every command that synchronises GPUs reads.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::setup::Setup;
use super::tune::Tuned;
use crate::comm::DType;
use crate::comm::gpu::{Algorithm, Format, Measured, Tuning, TuningTable};

/// What this reads and writes.
const FORMAT_VERSION: u32 = 2;
const LARGEST_GRID: u32 = 1 << 16;

/// Choices, and where they were measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TuningFile {
    /// Of this layout.
    format_version: u32,
    setup: Setup,
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    bytes: usize,
    /// Elements of a row where residual and norm follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hidden: Option<usize>,
    algorithm: String,
    format: String,
    blocks: u32,
    workers: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    row_blocks: Option<u32>,
    /// One call, the median; the built-in choice beside it. For people.
    us: f64,
    built_in_us: f64,
}

/// Why a file's choices are not used.
#[derive(Debug, thiserror::Error)]
pub enum TuningFileError {
    /// It cannot be read or written.
    #[error("{path}: {source}; fewsync tune allreduce writes such files")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is something else.
    #[error("{path} is no tuning file ({reason}): write one with fewsync tune allreduce")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// It was measured with something else than what is used now.
    #[error(
        "{path} was measured with {measured}, and this is {here}: measure again with fewsync tune allreduce, started \
         in the same way as this command"
    )]
    Elsewhere {
        /// The file.
        path: PathBuf,
        /// What was measured.
        measured: String,
        /// What is used.
        here: String,
    },
}

impl TuningFile {
    /// From what was found there.
    pub fn new(setup: Setup, found: &[Tuned]) -> Self {
        let entry = |tuned: &Tuned| {
            let Measured { dtype, hidden, bytes, tuning } = tuned.measured;
            Entry {
                dtype: dtype.to_string(),
                bytes,
                hidden,
                algorithm: tuning.algorithm.unwrap_or(Algorithm::OneShot).name().to_owned(),
                format: tuning.format.unwrap_or(Format::Words).name().to_owned(),
                blocks: tuning.blocks.unwrap_or(1),
                workers: tuning.workers.unwrap_or(1),
                row_blocks: tuning.row_blocks,
                us: tuned.us,
                built_in_us: tuned.built_in_us,
            }
        };
        Self { format_version: FORMAT_VERSION, setup, entries: found.iter().map(entry).collect() }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// One sentence: what is wrong with it.
    pub fn read(path: &Path) -> Result<Self, TuningFileError> {
        let malformed = |reason: String| TuningFileError::Malformed { path: path.to_owned(), reason };
        let io = |source| TuningFileError::Io { path: path.to_owned(), source };
        let text = std::fs::read(path).map_err(io)?;
        let value: serde_json::Value = serde_json::from_slice(&text).map_err(|e| malformed(e.to_string()))?;
        match value.get("format_version").and_then(serde_json::Value::as_u64) {
            Some(version) if version == u64::from(FORMAT_VERSION) => {}
            Some(version) => {
                return Err(malformed(format!("its format_version is {version}, not {FORMAT_VERSION}")));
            }
            None => return Err(malformed("it has no format_version".into())),
        }
        let file: Self = serde_json::from_value(value).map_err(|e| malformed(e.to_string()))?;
        for (index, entry) in file.entries.iter().enumerate() {
            entry.measured().map_err(|reason| malformed(format!("entry {index}: {reason}")))?;
        }
        Ok(file)
    }

    /// Writes the file.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(&self, path: &Path) -> Result<(), TuningFileError> {
        let io = |source| TuningFileError::Io { path: path.to_owned(), source };
        std::fs::write(path, self.text() + "\n").map_err(io)
    }

    /// As it is written: of two files that say the same, the same.
    pub fn text(&self) -> String {
        serde_json::to_string_pretty(self).expect("names and numbers")
    }

    /// Its choices, if this is what it was measured on; `path` is for messages.
    ///
    /// # Errors
    /// What differs.
    pub fn table(&self, path: &Path, here: &Setup) -> Result<TuningTable, TuningFileError> {
        if let Some((measured, here)) = self.setup.difference(here) {
            return Err(TuningFileError::Elsewhere { path: path.to_owned(), measured, here });
        }
        Ok(TuningTable::new(self.entries.iter().filter_map(|entry| entry.measured().ok()).collect()))
    }
}

impl Entry {
    /// What it says, if that can be.
    fn measured(&self) -> Result<Measured, String> {
        fn one<T: Copy>(what: &str, all: &[T], name: impl Fn(T) -> String, found: &str) -> Result<T, String> {
            let known = all.iter().copied().find(|&it| name(it) == found);
            known.ok_or_else(|| format!("'{found}' is no {what}"))
        }
        let dtypes = [DType::Bf16, DType::F16, DType::F32];
        let dtype = one("type", &dtypes, |dtype| dtype.to_string(), &self.dtype)?;
        let algorithm = one("algorithm", &Algorithm::ALL, |it| it.name().to_owned(), &self.algorithm)?;
        let format = one("format", &Format::ALL, |it| it.name().to_owned(), &self.format)?;
        for (what, number) in
            [("blocks", self.blocks), ("workers", self.workers), ("row_blocks", self.row_blocks.unwrap_or(1))]
        {
            if !(1..=LARGEST_GRID).contains(&number) {
                return Err(format!("{what} is {number}, not 1 to {LARGEST_GRID}"));
            }
        }
        if self.bytes == 0 || self.hidden == Some(0) {
            return Err("a tensor of no bytes".into());
        }
        let tuning = Tuning {
            algorithm: Some(algorithm),
            format: Some(format),
            blocks: Some(self.blocks),
            workers: Some(self.workers),
            row_blocks: self.row_blocks,
            pass_units: None,
        };
        Ok(Measured { dtype, hidden: self.hidden, bytes: self.bytes, tuning })
    }
}
