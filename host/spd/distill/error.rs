//! Why blocks cannot be distilled.

use std::path::{Path, PathBuf};

use crate::spd::PlanError;

/// Each message says what is wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum DistillError {
    /// Options, text and plan do not go together.
    #[error("cannot distil: {what}")]
    Refused {
        /// What, and what to do.
        what: String,
    },
    /// A loss that is infinite or undefined.
    #[error(
        "block {layer}: the loss is no finite number at step {step}: lower the learning rate; \
         if it happens at step 0, the model's weights are damaged"
    )]
    NotFinite {
        /// The block.
        layer: usize,
        /// The gradient step; 0 is before the first.
        step: usize,
    },
    /// The folder holds another run, or what is left of one was changed.
    #[error("{}: {what}; remove that folder or write to another place", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// "create", "read" or "write".
        action: &'static str,
        /// Its reason.
        source: std::io::Error,
    },
    /// The plan does not fit the model.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The model's files could not be read.
    #[error(transparent)]
    Model(#[from] crate::model::ModelError),
    /// The tensor library failed: a fault of this program.
    #[error("arithmetic failed ({0}): please report this")]
    Arithmetic(#[from] candle_core::Error),
}

impl DistillError {
    /// Wraps an I/O error with the path and the verb it happened under.
    pub(super) fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, action, source }
    }
}
