//! Versioned JSON files: read by their header first, written whole or not at all.

use std::io::{self, Write};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Parses a file of some format and version; `what` is its name for people. The reason of a refusal is one sentence.
pub(crate) fn parse<T: DeserializeOwned>(
    text: &str,
    what: &str,
    format: &str,
    version: u32,
) -> Result<T, String> {
    // The header is read by itself first, so that a newer file is refused by its version and not by a field.
    #[derive(Deserialize)]
    struct Header {
        format: String,
        version: u32,
    }
    let wrong = |e: serde_json::Error| format!("not a {what}: {e}");
    let header: Header = serde_json::from_str(text).map_err(wrong)?;
    if header.format != format {
        return Err(format!("not a {what}: its format is '{}', expected '{format}'", header.format));
    }
    if header.version != version {
        return Err(format!(
            "the {what} has version {}; this program reads version {version}: make the {what} anew",
            header.version
        ));
    }
    serde_json::from_str(text).map_err(wrong)
}

/// Writes `value` to `path`; on an error nothing is left of it.
pub(crate) fn write(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let folder = path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Asked for by itself: a failed temporary file is reported under a name that nobody chose.
    std::fs::metadata(folder)?;
    let mut temporary = temporary_in(folder)?;
    serde_json::to_writer_pretty(&mut temporary, value)?;
    temporary.write_all(b"\n")?;
    temporary.persist(path).map_err(|e| e.error)?;
    Ok(())
}

/// A file that vanishes unless it is persisted, with the permissions of any other new file.
fn temporary_in(folder: &Path) -> io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder)
}
