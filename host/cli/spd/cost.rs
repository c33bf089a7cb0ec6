//! What an all-reduce costs, as said on the command line.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};

use super::budget::positive;
use crate::cli::layout::at_least;
use crate::model::Config;
use crate::spd::{AllReduceTime, message_bytes};

#[derive(clap::Args)]
pub(super) struct CostArgs {
    /// Measured times of all-reduces, as `fewsync bench allreduce` writes them: a CSV file with the columns bytes and
    /// us_median; of several lines at one size the fastest counts
    #[arg(long, value_name = "FILE.csv", conflicts_with_all = ["alpha_us", "beta_gbs"])]
    allreduce_us: Option<PathBuf>,
    /// Time of an empty all-reduce
    #[arg(long, value_name = "US", requires = "beta_gbs", value_parser = positive)]
    alpha_us: Option<f64>,
    /// Bytes of the message per time, in 10^9 bytes a second
    #[arg(long, value_name = "GB/S", requires = "alpha_us", value_parser = positive)]
    beta_gbs: Option<f64>,
    /// Sequences that decode together: their number gives the message's size
    #[arg(long, value_name = "B", default_value_t = 1, value_parser = at_least::<1>)]
    batch: usize,
}

impl CostArgs {
    /// µs of one all-reduce behind attention in a decode step on `tp` ranks, where anything was said of it.
    pub(super) fn all_reduce_us(&self, config: &Config, tp: usize) -> anyhow::Result<Option<f64>> {
        let time = match (&self.allreduce_us, self.alpha_us, self.beta_gbs) {
            (Some(path), ..) => read_table(path, tp)?,
            (None, Some(alpha_us), Some(beta_gbs)) => AllReduceTime::AlphaBeta { alpha_us, beta_gbs },
            _ => return Ok(None),
        };
        Ok(Some(time.us(message_bytes(self.batch, config.hidden))))
    }
}

/// The lines of a decode step: ours, alone, in a graph, on so many ranks; as far as the file has such columns.
fn read_table(path: &Path, tp: usize) -> anyhow::Result<AllReduceTime> {
    let wrong = |what: String| anyhow!("{}: {what}", path.display());
    let mut reader = csv::ReaderBuilder::new()
        .comment(Some(b'#'))
        .from_path(path)
        .map_err(|e| wrong(format!("cannot read the table of all-reduce times ({e})")))?;
    let columns = reader.headers().map_err(|e| wrong(format!("not a CSV file ({e})")))?.clone();
    let column = |name: &str| columns.iter().position(|column| column == name);
    let needed = |name: &str| column(name).with_context(|| wrong(format!("has no column '{name}'")));
    let (bytes, us) = (needed("bytes")?, needed("us_median")?);
    let tp = tp.to_string();
    let wanted = [("contender", "fewsync"), ("call", "plain"), ("launch", "graph"), ("tp", tp.as_str())];
    let wanted = wanted.map(|(name, value)| (column(name), value));
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|e| wrong(format!("not a CSV file ({e})")))?;
        if wanted
            .iter()
            .any(|(column, value)| column.is_some_and(|column| record.get(column) != Some(*value)))
        {
            continue;
        }
        let size = record.get(bytes).and_then(|cell| cell.parse().ok());
        // What was not measured is left empty.
        let time = record.get(us).and_then(|cell| cell.parse().ok());
        rows.extend(size.zip(time));
    }
    AllReduceTime::table(rows).map_err(|e| wrong(format!("{e}, for {tp} ranks")))
}
