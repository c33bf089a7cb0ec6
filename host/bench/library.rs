//! NVIDIA's libraries that a benchmark compares with, opened at run time where they are.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use libloading::Library;

/// A library that need not be there, and where it may lie.
#[derive(Debug, Clone, Copy)]
pub struct OptionalLibrary {
    /// For people: `cuBLASLt`.
    pub name: &'static str,
    /// Names a file or a folder; where it is set, nothing else is looked at.
    pub variable: &'static str,
    /// File names, the best first.
    pub files: &'static [&'static str],
    /// The Python package that brings it.
    pub wheel: &'static str,
}

/// Why a library is not used.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// It is in none of the usual places.
    #[error(
        "{name} was not found ({files} on the loader's path, in CUDA_HOME, CUDA_PATH, /usr/local/cuda and Python's \
         packages): install CUDA's libraries or 'pip install {wheel}', or name the file by {variable}"
    )]
    NotFound {
        /// The library.
        name: &'static str,
        /// The names that were tried.
        files: String,
        /// The Python package that brings it.
        wheel: &'static str,
        /// The variable that names it.
        variable: &'static str,
    },
    /// The file that the variable names cannot be opened.
    #[error("{variable} names {}, which cannot be opened as {name}: {reason}", path.display())]
    Named {
        /// The library.
        name: &'static str,
        /// The variable.
        variable: &'static str,
        /// Its value.
        path: PathBuf,
        /// What the loader said.
        reason: String,
    },
}

impl OptionalLibrary {
    /// Opens the first that can be.
    ///
    /// # Errors
    /// It is nowhere, or not where its variable says.
    pub fn open(&self) -> Result<Library, LibraryError> {
        self.open_in(&|variable| std::env::var_os(variable).filter(|value| !value.is_empty()))
    }

    fn open_in(&self, env: &dyn Fn(&str) -> Option<OsString>) -> Result<Library, LibraryError> {
        let mut reason = String::new();
        for path in self.candidates(env) {
            // SAFETY: running NVIDIA's (or the named) library's initialisers is what the user asked for.
            match unsafe { Library::new(&path) } {
                Ok(library) => return Ok(library),
                Err(error) => reason = error.to_string(),
            }
        }
        let &Self { name, variable, files, wheel } = self;
        Err(match env(variable) {
            Some(path) => LibraryError::Named { name, variable, path: path.into(), reason },
            None => LibraryError::NotFound { name, files: files.join(", "), wheel, variable },
        })
    }

    /// In the order in which they are tried: the variable alone, or the loader's path (a bare name), CUDA's
    /// folders, the Python packages of the environment and of the interpreters on the path.
    fn candidates(&self, env: &dyn Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
        let all_in = |folder: &Path| self.files.iter().map(|file| folder.join(file)).collect::<Vec<_>>();
        if let Some(named) = env(self.variable).map(PathBuf::from) {
            return if named.is_dir() { all_in(&named) } else { vec![named] };
        }
        let mut folders = vec![PathBuf::new()];
        let toolkits = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env).map(PathBuf::from);
        folders.extend(toolkits.chain([PathBuf::from("/usr/local/cuda")]).map(|root| root.join("lib64")));
        let interpreters = env("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
        let prefixes =
            Vec::into_iter(interpreters).filter_map(|bin: PathBuf| bin.parent().map(Path::to_owned));
        for prefix in env("VIRTUAL_ENV").map(PathBuf::from).into_iter().chain(prefixes) {
            folders.extend(wheel_folders(&prefix));
        }
        let mut seen = Vec::new();
        folders.retain(|folder| {
            !seen.contains(folder) && {
                seen.push(folder.clone());
                true
            }
        });
        folders.iter().flat_map(|folder| all_in(folder)).collect()
    }
}

/// `lib/python3*/{site,dist}-packages/nvidia/*/lib` below a Python's prefix.
fn wheel_folders(prefix: &Path) -> Vec<PathBuf> {
    let pythons = entries(&prefix.join("lib"))
        .into_iter()
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python3")));
    let packages = pythons.flat_map(|python| ["site-packages", "dist-packages"].map(|p| python.join(p)));
    packages.flat_map(|packages| entries(&packages.join("nvidia"))).map(|wheel| wheel.join("lib")).collect()
}

/// Newest names first; none where the folder is not.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort_by(|a, b| b.cmp(a));
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIBRARY: OptionalLibrary = OptionalLibrary {
        name: "cuFoo",
        variable: "FEWSYNC_CUFOO",
        files: &["libcufoo.so.2", "libcufoo.so.1"],
        wheel: "nvidia-cufoo",
    };

    fn environment<'a>(set: &'a [(&'a str, &'a Path)]) -> impl Fn(&str) -> Option<OsString> + 'a {
        |variable| set.iter().find(|(name, _)| *name == variable).map(|(_, value)| (*value).into())
    }

    #[test]
    fn the_loader_comes_first_then_cuda_then_python() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for wheel in
            ["v/lib/python3.12/site-packages/nvidia/cu13/lib", "p/lib/python3/dist-packages/nvidia/cufoo/lib"]
        {
            std::fs::create_dir_all(root.join(wheel)).unwrap();
        }
        std::fs::create_dir_all(root.join("p/bin")).unwrap();
        let [cuda, env, bin] = ["cuda", "v", "p/bin"].map(|path| root.join(path));
        let set = [("CUDA_HOME", &*cuda), ("CUDA_PATH", &*cuda), ("VIRTUAL_ENV", &*env), ("PATH", &*bin)];
        let found = LIBRARY.candidates(&environment(&set));
        let newest: Vec<_> =
            found.iter().step_by(2).map(|path| path.strip_prefix(root).unwrap_or(path)).collect();
        let expected = [
            "libcufoo.so.2",
            "cuda/lib64/libcufoo.so.2",
            "/usr/local/cuda/lib64/libcufoo.so.2",
            "v/lib/python3.12/site-packages/nvidia/cu13/lib/libcufoo.so.2",
            "p/lib/python3/dist-packages/nvidia/cufoo/lib/libcufoo.so.2",
        ];
        assert_eq!(newest, expected.map(Path::new));
        assert_eq!(found[1], Path::new("libcufoo.so.1"));
    }

    #[test]
    fn the_variable_names_a_file_or_a_folder_and_nothing_else_is_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("mine.so");
        assert_eq!(LIBRARY.candidates(&environment(&[("FEWSYNC_CUFOO", &file)])), [file.as_path()]);
        let folder = LIBRARY.candidates(&environment(&[("FEWSYNC_CUFOO", dir.path())]));
        assert_eq!(folder, LIBRARY.files.iter().map(|file| dir.path().join(file)).collect::<Vec<_>>());
    }

    #[test]
    fn refusals_say_what_to_do() {
        let refusal = |set: &[(&str, &Path)]| LIBRARY.open_in(&environment(set)).unwrap_err().to_string();
        let nowhere = refusal(&[]);
        assert!(nowhere.starts_with("cuFoo was not found (libcufoo.so.2, libcufoo.so.1 on"), "{nowhere}");
        assert!(
            nowhere.ends_with("'pip install nvidia-cufoo', or name the file by FEWSYNC_CUFOO"),
            "{nowhere}"
        );
        let named = refusal(&[("FEWSYNC_CUFOO", Path::new("/nowhere/x.so"))]);
        assert!(
            named.starts_with("FEWSYNC_CUFOO names /nowhere/x.so, which cannot be opened as cuFoo: "),
            "{named}"
        );
    }
}
