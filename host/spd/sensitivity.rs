//! What a model loses when a block drops its first all-reduce: the measurement and its file.

mod sweep;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::calibration::TextId;
use super::file;
use super::meter::{Metric, Score};
use crate::runner::RunError;
pub use sweep::{state_bytes, sweep};

const FORMAT: &str = "fewsync-spd-sensitivity";
const VERSION: u32 = 1;

/// How a block's loss is isolated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ranking {
    /// The block drops alone.
    Single,
    /// It drops, and so do all behind it; its share is the change against those alone (SPD paper, Section 4.2.1).
    Cumulative,
}

/// What was measured of one block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockScores {
    /// This block alone drops.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub single: Option<Score>,
    /// This block and all behind it drop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cumulative: Option<Score>,
}

impl BlockScores {
    /// The score of a ranking.
    pub fn get(&self, ranking: Ranking) -> Option<Score> {
        match ranking {
            Ranking::Single => self.single,
            Ranking::Cumulative => self.cumulative,
        }
    }
}

/// A measurement of a model on some ranks and a text; complete or on its way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sensitivity {
    format: String,
    version: u32,
    /// [`crate::model::TensorSource::fingerprint`] of the model.
    pub model: String,
    /// The number of ranks.
    pub tp: usize,
    /// The text.
    pub text: TextId,
    /// The model's own score: nothing drops.
    pub synchronised: Option<Score>,
    /// One entry a block.
    pub blocks: Vec<BlockScores>,
}

/// Why there is no measurement.
#[derive(Debug, thiserror::Error)]
pub enum SensitivityError {
    /// The file cannot be read or written.
    #[error("{}: cannot {action} the sensitivity file ({source}); {hint}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// "read" or "write".
        action: &'static str,
        /// What to do.
        hint: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is none, or not for this model, degree, version or text.
    #[error("{}: {what}", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// What does not fit, and what to do.
        what: String,
    },
    /// A ranking that was not measured, or not to its end.
    #[error(
        "the sensitivity file lacks the {} ranking of block {block}: run `fewsync spd sensitivity` to its end \
         with --ranking {}", .ranking.name(), .ranking.name()
    )]
    Incomplete {
        /// Which.
        ranking: Ranking,
        /// The first block without a score.
        block: usize,
    },
    /// The model failed.
    #[error(transparent)]
    Run(#[from] RunError),
}

impl Ranking {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Cumulative => "cumulative",
        }
    }
}

impl Sensitivity {
    /// Nothing measured yet.
    pub fn new(model: String, tp: usize, n_layers: usize, text: TextId) -> Self {
        let blocks = vec![BlockScores::default(); n_layers];
        Self { format: FORMAT.into(), version: VERSION, model, tp, text, synchronised: None, blocks }
    }

    /// Reads a file and checks that it is for this model and number of ranks.
    ///
    /// # Errors
    /// A file that cannot be read, is no such file, or is for something else.
    pub fn read(path: &Path, model: &str, tp: usize, n_layers: usize) -> Result<Self, SensitivityError> {
        let text = std::fs::read_to_string(path).map_err(|source| SensitivityError::Io {
            path: path.into(),
            action: "read",
            hint: "`fewsync spd sensitivity --out` writes one",
            source,
        })?;
        let unfit = |what| SensitivityError::Unfit { path: path.into(), what };
        let read: Self = file::parse(&text, "sensitivity file", FORMAT, VERSION).map_err(unfit)?;
        if read.model != model {
            let other = &read.model;
            return Err(unfit(format!(
                "measured on another model ({other}, this one is {model}): measure anew"
            )));
        }
        if read.tp != tp {
            let other = read.tp;
            return Err(unfit(format!(
                "measured on {other} ranks, not {tp}: run with --tp {other} or measure anew"
            )));
        }
        if read.blocks.len() != n_layers {
            let have = read.blocks.len();
            return Err(unfit(format!("has {have} blocks, but the model has {n_layers}: measure anew")));
        }
        Ok(read)
    }

    /// Refuses to go on with another text, or with the same one in other chunks.
    ///
    /// # Errors
    /// Another digest or division; `path` is the file's name.
    pub fn check_text(&self, text: &TextId, path: &Path) -> Result<(), SensitivityError> {
        let TextId { digest, chunks, chunk_len, .. } = &self.text;
        if (digest, chunks, chunk_len) == (&text.digest, &text.chunks, &text.chunk_len) {
            return Ok(());
        }
        let source = &self.text.source;
        let what = format!(
            "measured on another text or in other chunks ({source}, {chunks} x {chunk_len} tokens): give the same, \
             or another --out"
        );
        Err(SensitivityError::Unfit { path: path.into(), what })
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// A path that cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), SensitivityError> {
        let hint = "give a path in a folder that exists and is writable";
        let io = |source| SensitivityError::Io { path: path.into(), action: "write", hint, source };
        file::write(path, self).map_err(io)
    }

    /// Whether every block has a score of every one of `rankings`.
    pub fn is_complete(&self, rankings: &[Ranking]) -> bool {
        let scored = |block: &BlockScores| rankings.iter().all(|&ranking| block.get(ranking).is_some());
        self.synchronised.is_some() && self.blocks.iter().all(scored)
    }

    /// The model's own score.
    ///
    /// # Errors
    /// A measurement that did not come that far.
    pub fn synchronised(&self) -> Result<Score, SensitivityError> {
        self.synchronised.ok_or(SensitivityError::Incomplete { ranking: Ranking::Single, block: 0 })
    }

    /// What each block adds to the metric: against the synchronised model, or against the blocks behind it alone.
    ///
    /// # Errors
    /// A ranking that is not complete.
    pub fn rises(&self, ranking: Ranking, metric: Metric) -> Result<Vec<f64>, SensitivityError> {
        let base = metric.of(&self.synchronised()?);
        let value = |(block, scores): (usize, &BlockScores)| {
            let missing = SensitivityError::Incomplete { ranking, block };
            scores.get(ranking).map(|score| metric.of(&score)).ok_or(missing)
        };
        let values = self.blocks.iter().enumerate().map(value).collect::<Result<Vec<f64>, _>>()?;
        let behind = values.iter().skip(1).copied().chain([base]);
        Ok(match ranking {
            Ranking::Single => values.iter().map(|value| value - base).collect(),
            Ranking::Cumulative => values.iter().zip(behind).map(|(value, behind)| value - behind).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(perplexity: f64) -> Option<Score> {
        Some(Score { perplexity, kl: perplexity / 100.0, top1_agreement: 1.0, accuracy: 0.5 })
    }

    fn text(digest: &str) -> TextId {
        TextId { source: "file".into(), digest: digest.into(), chunks: 2, chunk_len: 8 }
    }

    fn measured() -> Sensitivity {
        let mut s = Sensitivity::new("sha256:m".into(), 2, 3, text("a"));
        s.synchronised = score(10.0);
        s.blocks = [(40.0, 50.0), (10.5, 13.0), (12.0, 12.0)]
            .map(|(single, all)| BlockScores { single: score(single), cumulative: score(all) })
            .to_vec();
        s
    }

    #[test]
    fn both_rankings_isolate_a_block() {
        let s = measured();
        assert_eq!(s.rises(Ranking::Single, Metric::Perplexity).unwrap(), [30.0, 0.5, 2.0]);
        assert_eq!(s.rises(Ranking::Cumulative, Metric::Perplexity).unwrap(), [37.0, 1.0, 2.0]);
        let kl = s.rises(Ranking::Cumulative, Metric::Kl).unwrap();
        assert!((kl[0] - 0.37).abs() < 1e-12, "{kl:?}");
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut s = measured();
        assert!(s.is_complete(&[Ranking::Single, Ranking::Cumulative]));
        s.blocks[1].cumulative = None;
        assert!(s.is_complete(&[Ranking::Single]) && !s.is_complete(&[Ranking::Cumulative]));
        let error = s.rises(Ranking::Cumulative, Metric::Perplexity).unwrap_err().to_string();
        assert!(error.contains("cumulative ranking of block 1"), "{error}");
    }

    #[test]
    fn a_file_is_read_back_and_refused_for_anything_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.json");
        measured().write(&path).unwrap();
        let read = Sensitivity::read(&path, "sha256:m", 2, 3).unwrap();
        assert_eq!(read, measured());
        read.check_text(&text("a"), &path).unwrap();
        let refused = |result: Result<Sensitivity, SensitivityError>, reason: &str| {
            let error = result.unwrap_err().to_string();
            assert!(error.contains("s.json") && error.contains(reason), "{error}");
        };
        refused(Sensitivity::read(&path, "sha256:n", 2, 3), "another model (sha256:m, this one is sha256:n)");
        refused(Sensitivity::read(&path, "sha256:m", 3, 3), "on 2 ranks, not 3");
        refused(Sensitivity::read(&path, "sha256:m", 2, 4), "has 3 blocks, but the model has 4");
        refused(read.check_text(&text("b"), &path).map(|()| measured()), "another text");
        let longer = TextId { chunks: 1, chunk_len: 16, ..text("a") };
        refused(read.check_text(&longer, &path).map(|()| measured()), "in other chunks");
        std::fs::write(&path, r#"{"format": "fewsync-spd-plan", "version": 1}"#).unwrap();
        refused(Sensitivity::read(&path, "sha256:m", 2, 3), "expected 'fewsync-spd-sensitivity'");
    }
}
