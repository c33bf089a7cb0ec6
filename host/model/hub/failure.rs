//! What went wrong with the hub, and the sentence for it.

use std::io::{self, ErrorKind};

use hf_hub::api::sync::ApiError;

use super::HubOptions;
use crate::model::{ModelError, cache};

/// A failed request or download.
#[derive(Debug)]
pub(super) enum Failure {
    /// The hub answered with this HTTP status.
    Status(u16),
    /// The hub was not reached, or the connection broke.
    Network(String),
    /// The cache could not be written.
    Disk(io::Error),
    /// The file arrived with other contents than the hub announced.
    Damaged(String),
    /// The hub's answer was not understood.
    Other(String),
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        match error {
            ApiError::RequestError(error) => match *error {
                ureq::Error::StatusCode(status) => Self::Status(status),
                ureq::Error::Json(_) | ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                    Self::Other(error.to_string())
                }
                _ => Self::Network(error.to_string()),
            },
            ApiError::IoError(error) => Self::from(error),
            other => Self::Other(other.to_string()),
        }
    }
}

/// Reading from the hub and writing to the disk fail alike; only the kind tells them apart.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::StorageFull
            | ErrorKind::QuotaExceeded
            | ErrorKind::PermissionDenied
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::NotFound
            | ErrorKind::AlreadyExists
            | ErrorKind::NotADirectory
            | ErrorKind::IsADirectory => Self::Disk(error),
            _ => Self::Network(error.to_string()),
        }
    }
}

impl Failure {
    /// Whether the same request may succeed a moment later.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self, Self::Network(_) | Self::Damaged(_) | Self::Status(408 | 429 | 500..))
    }

    pub(super) fn into_error(self, repo: &str, options: &HubOptions) -> ModelError {
        let endpoint = &options.endpoint;
        let (why, hint) = match self {
            Self::Disk(error) => return disk(&error, repo, options),
            Self::Status(404) => {
                let hint = "check the name: a model of the hub is named org/name";
                (format!("{endpoint} has no such model or file (404)"), hint.into())
            }
            Self::Status(status @ (401 | 403)) => {
                let token =
                    if options.token.is_some() { "this token may not read it" } else { "no token was sent" };
                let hint = format!(
                    "check the name, accept the model's licence on {endpoint}/{repo}, \
                     and set HF_TOKEN to an access token that may read it"
                );
                (format!("the model is gated, private or absent, and {token} ({status})"), hint)
            }
            Self::Status(status) => {
                (format!("{endpoint} answered with status {status}"), "try again later".into())
            }
            Self::Network(why) => {
                let hint = "check the network (and HF_ENDPOINT); start again to continue where it ended";
                (format!("{endpoint} cannot be reached or broke off ({why})"), hint.into())
            }
            Self::Damaged(why) => (why, "start again to fetch the file anew".into()),
            Self::Other(why) => (format!("{endpoint}: {why}"), "check HF_ENDPOINT".into()),
        };
        ModelError::Fetch { what: repo.into(), why, hint }
    }
}

fn disk(error: &io::Error, repo: &str, options: &HubOptions) -> ModelError {
    if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
        return ModelError::Fetch {
            what: repo.into(),
            why: format!("no space is left on the disk of {}", options.cache.display()),
            hint: "free some, or set HF_HOME to a folder on another disk; start again to continue".into(),
        };
    }
    cache::refused(&options.cache, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_a_broken_connection() {
        let options = HubOptions {
            endpoint: "http://hub".into(),
            cache: "/cache".into(),
            token: None,
            answer_limit: std::time::Duration::MAX,
        };
        let text = |kind: ErrorKind| {
            Failure::from(ApiError::IoError(kind.into())).into_error("a/b", &options).to_string()
        };
        assert!(text(ErrorKind::StorageFull).contains("no space is left on the disk of /cache"));
        assert!(text(ErrorKind::PermissionDenied).contains("is not writable"));
        assert!(text(ErrorKind::UnexpectedEof).contains("http://hub cannot be reached or broke off"));
    }
}
