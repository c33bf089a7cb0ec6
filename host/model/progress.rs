//! How a download shows on stderr: a bar on a terminal, else two lines.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// One download under way.
pub(super) struct Progress {
    bar: ProgressBar,
    what: String,
}

impl Progress {
    /// Announces `what`, of `bytes` bytes.
    pub(super) fn start(what: &str, bytes: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr());
        let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} ({eta})";
        bar.set_style(
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        bar.set_message(what.to_string());
        if std::io::stderr().is_terminal() {
            bar.enable_steady_tick(Duration::from_millis(200));
        } else {
            eprintln!("fetching {what} ({})", HumanBytes(bytes));
        }
        Self { bar, what: what.to_string() }
    }

    /// `bytes` have arrived so far.
    pub(super) fn set(&self, bytes: u64) {
        self.bar.set_position(bytes.min(self.bar.length().unwrap_or(bytes)));
    }

    /// `bytes` more have arrived.
    pub(super) fn add(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// Everything is here.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
        eprintln!("fetched {}", self.what);
    }
}

/// An abandoned download leaves no half bar behind.
impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
