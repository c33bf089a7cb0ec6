//! What can be wrong with a model on disk, on the way to it, or in its files.

use std::path::PathBuf;

/// Each message says what is wrong, where, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// `--model` names nothing that exists.
    #[error("no model '{spec}': {hint}")]
    NotFound {
        /// What was asked for.
        spec: String,
        /// What would have been accepted.
        hint: String,
    },
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// "read", "map", "create", …
        action: &'static str,
        /// Its reason.
        source: std::io::Error,
    },
    /// The file is damaged: truncated, inconsistent, or not what its name says.
    #[error("{}: {what}; fetch or convert the file again", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What does not fit, with byte counts or names where they help.
        what: String,
    },
    /// The file is sound, but holds something this program does not run.
    #[error("{}: {what} is not supported; supported: {supported}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The architecture, dtype, option, … met.
        what: String,
        /// What would work.
        supported: String,
    },
    /// A file that belongs to the model is not there.
    #[error("{}: there is no such file; {hint}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// Where to get it, or what to do without.
        hint: String,
    },
    /// The vocabulary or tokenizer is inconsistent, or of a kind this program does not run.
    #[error("tokenizer: {what}")]
    Tokenizer {
        /// What, and what would work.
        what: String,
    },
    /// The tokenizer can produce ids that the model has no embedding for.
    #[error(
        "the tokenizer has {tokens} tokens, but the model embeds only {vocab}; \
         use the tokenizer that came with the model"
    )]
    Vocabulary {
        /// One above the tokenizer's largest id.
        tokens: usize,
        /// Rows of the embedding table.
        vocab: usize,
    },
    /// The chat template is missing, does not parse, or refuses the messages.
    #[error("chat template: {what}")]
    Chat {
        /// The template engine's reason, one line.
        what: String,
    },
    /// The cache folder cannot be used.
    #[error(
        "{} {what}; set FEWSYNC_CACHE (for models of the hub: HF_HOME) to a folder you can write, \
         or give a model file with --model FILE",
        path.display()
    )]
    Cache {
        /// The folder or the file in its place.
        path: PathBuf,
        /// Completes "PATH …".
        what: String,
    },
    /// Fetching from a hub or a package registry failed.
    #[error("cannot fetch {what}: {why}; {hint}")]
    Fetch {
        /// What was being fetched.
        what: String,
        /// The tool's or server's reason, one line.
        why: String,
        /// What to do.
        hint: String,
    },
}

impl ModelError {
    /// Wraps an I/O error with the path and the verb it happened under.
    pub fn io(path: impl Into<PathBuf>, action: &'static str, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), action, source }
    }

    /// A damaged file.
    pub fn corrupt(path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self::Corrupt { path: path.into(), what: what.into() }
    }

    /// A sound file with something in it that is not run here.
    pub fn unsupported(
        path: impl Into<PathBuf>,
        what: impl Into<String>,
        supported: impl Into<String>,
    ) -> Self {
        Self::Unsupported { path: path.into(), what: what.into(), supported: supported.into() }
    }

    /// Nothing to open where `spec` points; `hint` says what would have been accepted.
    pub fn not_found(spec: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::NotFound { spec: spec.into(), hint: hint.into() }
    }
}
