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
    #[arg(long, value_name = "FILE.csv")]
    csv: Option<PathBuf>,
    /// Also plot the results
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

/// Refuses a path at which no file can be written later on.
pub(super) fn check_file(path: &Path) -> anyhow::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    ensure!(
        folder.is_none_or(Path::is_dir),
        "{}: its folder does not exist, or is none: make it first",
        path.display()
    );
    ensure!(!path.is_dir(), "{}: this is a folder: name a file in it", path.display());
    ensure!(
        path != Path::new("-") && (path.is_file() || !path.exists()),
        "{}: results are kept in files; --json prints them on standard output",
        path.display()
    );
    Ok(())
}

impl ResultFiles {
    /// Refuses what could not be written when all is measured.
    pub(super) fn check<R: Record>(&self, bench: &'static str) -> anyhow::Result<()> {
        if output::is_silent() {
            return Ok(());
        }
        for path in [&self.csv, &self.plot].into_iter().flatten() {
            check_file(path)?;
        }
        if let Some(plot) = &self.plot {
            let is_svg = plot.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("svg"));
            ensure!(is_svg, "{}: a plot is an SVG file: name it FILE.svg", plot.display());
            ensure!(self.csv.as_ref() != Some(plot), "--csv and --plot name the same file: name two");
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
