//! The kernels that put, completed by NVSHMEM's device code: where their files lie, and how one is made.
//!
//! A file is named by release, architecture and the hash of the sources of our part, and says all three in its
//! header. It holds NVIDIA's code and stays on the machine (or cluster) that it was made on.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use nvshmem_sys::Release;

use crate::comm::CommError;
use crate::driver::Properties;
use crate::kernels::{NVSHMEM_FUNCTIONS, NVSHMEM_PTX, Ptx};

/// Names a folder of such files, which is looked into first.
pub const KERNELS_VARIABLE: &str = "FEWSYNC_KERNELS";
/// Begins the line of a file that says its release.
const RELEASE_LINE: &str = "// nvshmem: ";
/// Digits of the hash in a file's name.
const HASH_DIGITS: usize = 12;

/// Variables that NVSHMEM's host library looks for in a module; the second half exists from 3.8 on.
pub const VARIABLES: [&str; 4] = [
    "nvshmemi_device_state_d",
    "nvshmemi_device_lib_version_d",
    "nvshmemi_ibgda_device_state_d",
    "nvshmemi_gpunetio_device_state_d",
];

/// Our part for a device, and the text of the file that completes it.
///
/// # Errors
/// There is no file, naming the command that makes it; a file of another release than its name says.
pub fn find(device: &Properties, release: Release) -> Result<(&'static Ptx, String), CommError> {
    let (major, minor) = (device.capability.major, device.capability.minor);
    let ptx = NVSHMEM_PTX.iter().find(|ptx| ptx.runs_on(major, minor));
    let what = "NVSHMEM on a GPU below compute capability 8.0";
    let ptx = ptx.ok_or(CommError::Unsupported { what })?;
    find_in(&folders(&|variable| std::env::var_os(variable).filter(|value| !value.is_empty())), ptx, release)
}

fn find_in(
    folders: &[PathBuf],
    ptx: &'static Ptx,
    release: Release,
) -> Result<(&'static Ptx, String), CommError> {
    let name = file_name(ptx, release);
    let Some(path) = folders.iter().map(|folder| folder.join(&name)).find(|path| path.is_file()) else {
        let looked: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
        let reason = format!(
            "the kernels for release {release} on {arch} are not there ({name} in {looked}): run 'fewsync \
             build-kernels --nvshmem DIR' with NVSHMEM's folder, or use direct stores",
            arch = ptx.arch,
            looked = looked.join(", "),
        );
        return Err(CommError::Nvshmem { reason });
    };
    let unreadable = |reason: &dyn std::fmt::Display| CommError::Nvshmem {
        reason: format!("{}: {reason}", path.display()),
    };
    let text = fs::read_to_string(&path).map_err(|error| unreadable(&error))?;
    let made_for = text.lines().take(4).find_map(|line| line.strip_prefix(RELEASE_LINE));
    let inside = Release::of_ptx(&text);
    if made_for != Some(&release.to_string()) || inside != Some(release) {
        return Err(unreadable(&format_args!("not made for release {release}; build it again")));
    }
    Ok((ptx, text))
}

/// `FEWSYNC_KERNELS`; `kernels` beside the program; the cache.
fn folders(env: &dyn Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    if let Some(named) = env(KERNELS_VARIABLE) {
        return vec![named.into()];
    }
    let program = std::env::current_exe().ok().and_then(|path| Some(path.parent()?.join("kernels")));
    program.into_iter().chain(cache(env)).collect()
}

/// Where the files are kept: `kernels` in `FEWSYNC_CACHE`, else in `fewsync` of the user's cache folder.
pub fn cache_folder() -> Option<PathBuf> {
    cache(&|variable| std::env::var_os(variable).filter(|value| !value.is_empty()))
}

fn cache(env: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let cache = env("FEWSYNC_CACHE").map(PathBuf::from);
    Some(cache.or_else(|| Some(dirs::cache_dir()?.join("fewsync")))?.join("kernels"))
}

/// The name of the file that completes `ptx` with a release.
pub fn file_name(ptx: &Ptx, release: Release) -> String {
    let hash = ptx.sources().get(..HASH_DIGITS).unwrap_or("unknown");
    format!("nvshmem-{release}.{}.{hash}.ptx", ptx.arch)
}

/// Why PTX could not be joined.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// NVSHMEM's PTX does not say its release.
    #[error("NVSHMEM's device code does not say its release: nvshmemi_device_lib_version_d is missing")]
    NoRelease,
    /// A file is not PTX as LLVM writes it.
    #[error("{file} has no line '{directive}': it is not PTX for {arch}")]
    NoDirective {
        /// Which one.
        file: &'static str,
        /// What is missing.
        directive: String,
        /// The architecture.
        arch: &'static str,
    },
    /// A function that our kernels call is missing.
    #[error("NVSHMEM's device code has no function {function}")]
    NoFunction {
        /// Which one.
        function: &'static str,
    },
}

/// Joins our kernels with NVSHMEM's functions, made from its bitcode for the same architecture, into one module:
/// our declarations of those functions give way to their definitions. The PTX version is theirs, which is not the
/// older one. Returns the text and the release.
///
/// # Errors
/// Text that is not PTX for that architecture, or lacks what the kernels call.
pub fn join(ptx: &Ptx, nvshmem: &str) -> Result<(String, Release), JoinError> {
    let release = Release::of_ptx(nvshmem).ok_or(JoinError::NoRelease)?;
    let completed = ptx.text_with(&NVSHMEM_FUNCTIONS.map(|function| (function, "")));
    let completed = completed.map_err(|function| JoinError::NoFunction { function })?;
    let (ours_head, ours) = split_header("our PTX", &completed, ptx.arch)?;
    let (theirs_head, theirs) = split_header("NVSHMEM's PTX", nvshmem, ptx.arch)?;
    let is_comment = |line: &&str| line.starts_with("//");
    let comments: String = ours_head.lines().filter(is_comment).map(|line| format!("{line}\n")).collect();
    let directives = theirs_head.lines().filter(|line| !is_comment(line) && !line.is_empty());
    let directives: String = directives.map(|line| format!("{line}\n")).collect();
    let is_defined = |function: &&str| {
        let begin = format!(".visible .func {function}(");
        theirs.lines().any(|line| line == begin)
    };
    if let Some(function) = NVSHMEM_FUNCTIONS.into_iter().find(|function| !is_defined(function)) {
        return Err(JoinError::NoFunction { function });
    }
    let text = format!(
        "// Made by fewsync build-kernels. Contains device code of NVSHMEM, under NVIDIA's licence: do not pass on.\n\
         {RELEASE_LINE}{release}\n{comments}{directives}{theirs}\n{ours}"
    );
    Ok((text, release))
}

/// What stands up to the end of `.address_size 64`, and the rest.
fn split_header<'a>(
    file: &'static str,
    text: &'a str,
    arch: &'static str,
) -> Result<(&'a str, &'a str), JoinError> {
    let missing = |directive: &str| JoinError::NoDirective { file, directive: directive.to_owned(), arch };
    let target = format!(".target {arch}");
    let has_target = text.lines().take(16).any(|line| line == target);
    const LAST: &str = ".address_size 64\n";
    let at = text.find(LAST).ok_or_else(|| missing(LAST.trim_end()))?;
    if has_target { Ok(text.split_at(at + LAST.len())) } else { Err(missing(&target)) }
}

/// Writes a joined file into a folder, whole or not at all; returns its path.
///
/// # Errors
/// What the file system refuses.
pub fn write(folder: &Path, ptx: &Ptx, release: Release, text: &str) -> std::io::Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let path = folder.join(file_name(ptx, release));
    let part = path.with_extension(format!("part{}", std::process::id()));
    fs::write(&part, text)?;
    fs::rename(&part, &path)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSION: &str =
        ".visible .const .align 4 .b8 nvshmemi_device_lib_version_d[12] = {3, 0, 0, 0, 4, 0, 0, 0, 5};\n";

    fn theirs(arch: &str, functions: &[&str]) -> String {
        let functions: String = functions
            .iter()
            .map(|name| format!(".visible .func {name}(\n\t.param .b64 a\n)\n{{\n\tret;\n}}\n"))
            .collect();
        format!("//\n.version 8.2\n.target {arch}\n.address_size 64\n\n{VERSION}{functions}")
    }

    fn ours(arch: &str) -> &'static Ptx {
        NVSHMEM_PTX.iter().find(|ptx| ptx.arch == arch).unwrap()
    }

    #[test]
    fn a_joined_module_defines_what_it_calls_and_declares_nothing_twice() {
        for ptx in &NVSHMEM_PTX {
            let (text, release) = join(ptx, &theirs(ptx.arch, &NVSHMEM_FUNCTIONS)).unwrap();
            assert_eq!(release.to_string(), "3.4.5");
            assert_eq!(text.matches(".version 8.2\n").count(), 1);
            assert_eq!(text.matches(".version ").count(), 1);
            assert_eq!(text.matches(".target ").count(), 1);
            assert!(!text.contains(".extern .func"), "{}: something is left open", ptx.arch);
            for function in NVSHMEM_FUNCTIONS {
                assert_eq!(text.matches(&format!(".func {function}")).count(), 1, "{function}");
                assert!(text.contains(&format!("\t{function},\n")) || text.contains(function), "{function}");
            }
            assert_eq!(text.matches(".visible .entry ").count(), ptx.entries.len());
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let ptx = ours("sm_80");
        let error = |theirs: &str| join(ptx, theirs).unwrap_err().to_string();
        assert!(error(&theirs("sm_90a", &NVSHMEM_FUNCTIONS)).contains("'.target sm_80'"));
        assert!(error(&theirs("sm_80", &NVSHMEM_FUNCTIONS[..1])).contains(NVSHMEM_FUNCTIONS[1]));
        assert!(error(".version 8.0\n").contains("release"));
    }

    #[test]
    fn a_file_is_found_by_release_and_its_absence_names_the_command() {
        let folder = std::env::temp_dir().join(format!("fewsync-kernels-{}", std::process::id()));
        let ptx = ours("sm_80");
        let (text, release) = join(ptx, &theirs("sm_80", &NVSHMEM_FUNCTIONS)).unwrap();
        let folders = [folder.join("empty"), folder.clone()];
        let missing = find_in(&folders, ptx, release).unwrap_err().to_string();
        assert!(missing.contains("build-kernels") && missing.contains("3.4.5"), "{missing}");
        let path = write(&folder, ptx, release, &text).unwrap();
        assert_eq!(find_in(&folders, ptx, release).unwrap().1, text);
        let other: Release = "3.8.0".parse().unwrap();
        fs::rename(&path, folder.join(file_name(ptx, other))).unwrap();
        let wrong = find_in(&folders, ptx, other).unwrap_err().to_string();
        assert!(wrong.contains("not made for release 3.8.0"), "{wrong}");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_named_folder_is_the_only_one() {
        let folders = folders(&|variable| (variable == KERNELS_VARIABLE).then(|| "/k".into()));
        assert_eq!(folders, [PathBuf::from("/k")]);
    }
}
