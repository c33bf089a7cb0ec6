//! Finding and opening the host library.

use std::ffi::{OsStr, OsString, c_int};
use std::path::{Path, PathBuf};

use crate::{Api, Error, Release};

/// Names NVSHMEM's folder, or the host library itself; where it is set, nothing else is looked at.
pub const HOME_VARIABLE: &str = "NVSHMEM_HOME";
const FILE: &str = "libnvshmem_host.so.3";

/// The opened host library. Nothing is initialised yet.
#[derive(Debug)]
pub struct Library {
    api: Api,
    path: PathBuf,
}

impl Library {
    /// Opens the first of: `NVSHMEM_HOME`; the Python environment's package `nvidia-nvshmem-cu13` (`VIRTUAL_ENV`, then
    /// the environments of the interpreters on `PATH`); the loader's path.
    ///
    /// # Errors
    /// It is nowhere, is no library, or lacks functions.
    pub fn open() -> Result<Self, Error> {
        Self::open_in(&|variable| std::env::var_os(variable).filter(|value| !value.is_empty()))
    }

    /// Opens this file.
    ///
    /// # Errors
    /// It is no library, or lacks functions.
    pub fn open_file(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        // SAFETY: running the initialisers of the library that the caller names is what it asks for.
        let library = unsafe { libloading::Library::new(&path) }
            .map_err(|error| Error::Unusable { path: path.clone(), reason: error.to_string() })?;
        Ok(Self { api: Api::load(library, &path)?, path })
    }

    fn open_in(env: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, Error> {
        match candidates(env).into_iter().find(|path| path.is_file()) {
            Some(path) => Self::open_file(path),
            None => match env(HOME_VARIABLE) {
                Some(home) => Self::open_file(Path::new(&home).join("lib").join(FILE)),
                None => Self::open_file(FILE).map_err(|error| match error {
                    Error::Unusable { .. } => Error::NotFound,
                    other => other,
                }),
            },
        }
    }

    /// The functions themselves.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// The file; a bare name if the loader found it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The library's release.
    pub fn release(&self) -> Release {
        let mut numbers: [c_int; 3] = [0; 3];
        let [major, minor, patch] = &mut numbers;
        // SAFETY: writes three ints; needs no initialisation.
        unsafe { (self.api.nvshmemx_vendor_get_version_info)(major, minor, patch) };
        let [major, minor, patch] = numbers.map(|number| number as u32);
        Release { major, minor, patch }
    }

    /// Refuses device code of another release: the state that the host writes for kernels has another layout there.
    ///
    /// # Errors
    /// [`Error::ReleaseMismatch`].
    pub fn expect_release(&self, device: Release) -> Result<(), Error> {
        let host = self.release();
        if host == device { Ok(()) } else { Err(Error::ReleaseMismatch { device, host }) }
    }
}

/// Where the library may lie.
fn candidates(env: &dyn Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    if let Some(home) = env(HOME_VARIABLE).map(PathBuf::from) {
        if home.is_file() {
            return vec![home];
        }
        return ["lib", "lib64", ""].map(|folder| home.join(folder).join(FILE)).to_vec();
    }
    let interpreters = env("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
    let prefixes = Vec::into_iter(interpreters).filter_map(|bin: PathBuf| bin.parent().map(Path::to_owned));
    let prefixes = env("VIRTUAL_ENV").map(PathBuf::from).into_iter().chain(prefixes);
    prefixes.flat_map(|prefix| packages(&prefix)).map(|p| p.join("nvidia/nvshmem/lib").join(FILE)).collect()
}

/// `lib/python3*/{site,dist}-packages` below a Python's prefix, newest first.
fn packages(prefix: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(prefix.join("lib")).into_iter().flatten().flatten();
    let is_python = |name: &OsStr| name.to_string_lossy().starts_with("python3");
    let mut pythons: Vec<_> =
        entries.filter(|entry| is_python(&entry.file_name())).map(|entry| entry.path()).collect();
    pythons.sort_by(|a, b| b.cmp(a));
    pythons.iter().flat_map(|python| ["site-packages", "dist-packages"].map(|p| python.join(p))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absence_junk_and_foreign_libraries_are_sentences() {
        let error = |home: Option<&Path>, path: &Path| {
            let env = |variable: &str| match variable {
                HOME_VARIABLE => home.map(|home| home.as_os_str().to_owned()),
                "PATH" => Some(path.join("bin").into_os_string()),
                _ => None,
            };
            Library::open_in(&env).unwrap_err()
        };
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(error(None, dir.path()), Error::NotFound));
        let named = error(Some(&dir.path().join("nowhere")), dir.path());
        assert!(matches!(&named, Error::Unusable { path, .. } if path.ends_with(FILE)), "{named}");

        let package = dir.path().join("lib/python3.12/site-packages/nvidia/nvshmem/lib");
        std::fs::create_dir_all(&package).unwrap();
        std::fs::write(package.join(FILE), "text").unwrap();
        let junk = error(None, dir.path());
        assert!(matches!(&junk, Error::Unusable { path, .. } if path.starts_with(&package)), "{junk}");

        // Any library that is on every machine that loads libraries.
        let foreign = Library::open_file("libc.so.6").unwrap_err();
        assert!(matches!(foreign, Error::NoSymbol { .. }), "{foreign}");
        assert!(foreign.to_string().starts_with("libc.so.6 has no function nvshmem"), "{foreign}");
    }
}
