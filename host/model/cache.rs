//! The folder that fetched models are kept in.

use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::ModelError;

/// The environment variable that names another cache folder.
pub const CACHE_VARIABLE: &str = "FEWSYNC_CACHE";

/// The cache folder: `FEWSYNC_CACHE`, else `fewsync` in the user's cache folder. It need not exist.
pub fn cache_dir() -> Result<PathBuf, ModelError> {
    choose(std::env::var_os(CACHE_VARIABLE), dirs::cache_dir())
}

fn choose(variable: Option<OsString>, user_cache: Option<PathBuf>) -> Result<PathBuf, ModelError> {
    if let Some(dir) = variable.filter(|dir| !dir.is_empty()) {
        return Ok(dir.into());
    }
    user_cache.map(|dir| dir.join("fewsync")).ok_or_else(no_home)
}

/// The default place of a cache is in the user's home folder.
pub(super) fn no_home() -> ModelError {
    let what = "is unknown, because this user has no home folder".into();
    ModelError::Cache { path: "the cache folder".into(), what }
}

/// Creates the folder and its parents where they are missing.
pub(super) fn create(dir: &Path) -> Result<(), ModelError> {
    std::fs::create_dir_all(dir).map_err(|e| refused(dir, &e))
}

/// Takes the lock file at `path`, waiting for other processes; dropping the file releases it.
pub(super) fn lock(path: &Path, waiting_for: &str) -> Result<File, ModelError> {
    let fail = |e: &std::io::Error| refused(path, e);
    let file = File::options().create(true).append(true).open(path).map_err(|e| fail(&e))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => {
            eprintln!("waiting for another process that is fetching {waiting_for}")
        }
        Err(TryLockError::Error(e)) => return Err(fail(&e)),
    }
    file.lock().map_err(|e| fail(&e))?;
    Ok(file)
}

/// Why `path`, in the cache folder or the folder itself, could not be written.
pub(super) fn refused(path: &Path, error: &std::io::Error) -> ModelError {
    let what = match error.kind() {
        ErrorKind::AlreadyExists | ErrorKind::NotADirectory => {
            let file = path.ancestors().find(|part| part.is_file()).unwrap_or(path);
            return ModelError::Cache { path: file.into(), what: "is a file, where a folder must be".into() };
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => "is not writable".into(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "cannot grow: no space is left on its disk".into()
        }
        _ => format!("cannot be written: {error}"),
    };
    ModelError::Cache { path: path.into(), what }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_wins_unless_it_is_empty() {
        let user = || Some(PathBuf::from("/home/u/.cache"));
        assert_eq!(choose(Some("/data".into()), user()).unwrap(), Path::new("/data"));
        assert_eq!(choose(Some("".into()), user()).unwrap(), Path::new("/home/u/.cache/fewsync"));
        assert_eq!(choose(None, user()).unwrap(), Path::new("/home/u/.cache/fewsync"));
        assert!(choose(None, None).unwrap_err().to_string().contains(CACHE_VARIABLE));
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cache");
        std::fs::write(&file, "").unwrap();
        for wanted in [file.clone(), file.join("smollm2")] {
            let error = create(&wanted).unwrap_err();
            assert!(matches!(&error, ModelError::Cache { path, .. } if *path == file), "{error}");
            let text = error.to_string();
            assert!(text.contains("is a file") && text.contains(CACHE_VARIABLE), "{text}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_read_only_folder_is_named() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let set = |mode| std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(mode)).unwrap();
        set(0o555);
        let lock = lock(&dir.path().join("lock"), "x");
        set(0o755);
        // The superuser may write anywhere; the system's own refusal stands in for that case.
        let denied = || refused(dir.path(), &ErrorKind::PermissionDenied.into());
        let text = lock.err().unwrap_or_else(denied).to_string();
        assert!(text.contains("is not writable") && text.contains(CACHE_VARIABLE), "{text}");
    }

    #[test]
    fn one_holder_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = lock(&path, "x").unwrap();
        let (done, waiter) = (std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false)), path.clone());
        let flag = done.clone();
        let thread = std::thread::spawn(move || {
            let _held = lock(&waiter, "x").unwrap();
            assert!(flag.load(std::sync::atomic::Ordering::SeqCst));
        });
        std::thread::sleep(std::time::Duration::from_millis(100));
        done.store(true, std::sync::atomic::Ordering::SeqCst);
        drop(held);
        thread.join().unwrap();
    }
}
