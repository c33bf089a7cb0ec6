//! The hash that ties generated PTX to the sources it was made from.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// SHA-256, in hex, of a kernel crate: `Cargo.toml`, `Cargo.lock`, `build.rs` and everything under
/// `src/`, each as relative path, length and bytes, in path order.
pub fn source_hash(crate_dir: impl AsRef<Path>) -> Result<String> {
    let root = crate_dir.as_ref();
    let mut files = Vec::new();
    for name in ["Cargo.toml", "Cargo.lock", "build.rs"] {
        let path = root.join(name);
        if path.is_file() {
            files.push(path);
        }
    }
    collect(&root.join("src"), &mut files)?;
    files.sort();

    let mut hasher = Sha256::new();
    for path in files {
        let bytes = fs::read(&path).map_err(Error::io(&path))?;
        let relative = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().replace('\\', "/");
        hasher.update(format!("{relative}\0{}\0", bytes.len()));
        hasher.update(bytes);
    }
    Ok(hasher.finalize().iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    }))
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io(dir))? {
        let path = entry.map_err(Error::io(dir))?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depends_on_names_and_contents_but_not_on_the_place() {
        let make = |name: &str, text: &str| {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("src")).unwrap();
            fs::write(dir.path().join("src").join(name), text).unwrap();
            (source_hash(dir.path()).unwrap(), dir)
        };
        let (first, _a) = make("lib.rs", "text");
        assert_eq!(first, make("lib.rs", "text").0);
        assert_ne!(first, make("lib.rs", "texts").0);
        assert_ne!(first, make("lob.rs", "text").0);
    }
}
