//! Where the results of a benchmark go: stdout, CSV, SVG.

use std::path::PathBuf;

use crate::bench::plot::Figure;
use crate::bench::report::{Record, Report};

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
    /// Writes the files that were asked for; the figure is made only for one.
    pub(super) fn write<R: Record>(
        &self,
        report: &Report<R>,
        figure: impl FnOnce() -> Figure,
    ) -> anyhow::Result<()> {
        if let Some(path) = &self.csv {
            report.append_csv(path)?;
        }
        if let Some(path) = &self.plot {
            figure().write(path)?;
        }
        Ok(())
    }
}
