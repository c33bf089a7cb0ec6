//! Writing results to stdout, and notes to stderr.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use serde::Serialize;

/// Whether another process of the same run speaks for this one.
static SILENT: AtomicBool = AtomicBool::new(false);

/// From here on nothing is printed but complaints, and no results are written to files.
pub(super) fn be_silent() {
    SILENT.store(true, Ordering::Relaxed);
}

/// Whether this process is silent.
pub(super) fn is_silent() -> bool {
    SILENT.load(Ordering::Relaxed)
}

/// Prints one JSON object and a newline.
pub(super) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    write(&text)
}

/// Writes text as it stands and flushes it, so that streamed tokens appear at once.
pub(super) fn write(text: &str) -> anyhow::Result<()> {
    if is_silent() {
        return Ok(());
    }
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).context("cannot write to standard output")
}

/// Writes a line to stderr. Where nobody can read it, nobody misses it.
pub(super) fn note(line: &str) {
    if !is_silent() {
        write_line(line.to_owned());
    }
}

/// Says what went wrong, also in a process that is silent.
pub(super) fn complain(sentence: &str) {
    write_line(format!("error: {sentence}"));
}

/// In one piece: what a launcher gathers from several processes stays whole.
fn write_line(mut line: String) {
    line.push('\n');
    let _ = io::stderr().write_all(line.as_bytes());
}

/// Whether an error is the reader of our output gone.
pub(super) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.chain().find_map(|e| e.downcast_ref::<io::Error>());
    io.is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}
