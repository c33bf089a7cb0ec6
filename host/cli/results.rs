//! Where the results of a benchmark go: stdout, CSV, SVG.

use std::path::{Path, PathBuf};

use anyhow::ensure;

use super::output;
use crate::bench::plot::Figure;
use crate::bench::report::{Record, Report, check_columns};

/// The files of every benchmark.
#[derive(clap::Args)]
pub(super) struct ResultFiles {
    /// Also append the results to this file
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Also plot the results
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

impl ResultFiles {
    /// Refuses what could not be written when all is measured.
    pub(super) fn check<R: Record>(&self, bench: &'static str) -> anyhow::Result<()> {
        if output::is_silent() {
            return Ok(());
        }
        for path in [&self.csv, &self.plot].into_iter().flatten() {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            ensure!(
                folder.is_none_or(Path::is_dir),
                "{}: its folder does not exist, or is none: make it first",
                path.display()
            );
            ensure!(!path.is_dir(), "{}: this is a folder: name a file in it", path.display());
        }
        Ok(self.csv.as_deref().map_or(Ok(()), |path| check_columns::<R>(bench, path))?)
    }

    /// Writes the files that were asked for; the figure is made only for one.
    pub(super) fn write<R: Record>(
        &self,
        report: &Report<R>,
        figure: impl FnOnce() -> Figure,
    ) -> anyhow::Result<()> {
        if output::is_silent() {
            return Ok(());
        }
        if let Some(path) = &self.csv {
            report.append_csv(path)?;
        }
        if let Some(path) = &self.plot {
            figure().write(path)?;
        }
        Ok(())
    }
}
