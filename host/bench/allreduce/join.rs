//! Lines that another program measured, read from CSV with the columns of [`Measurement`].

use std::fmt;
use std::path::{Path, PathBuf};

use super::record::{Call, Launching, Measurement};
use crate::bench::stats::Percentiles;
use crate::comm::DType;

/// Why a file cannot be joined.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The file cannot be read.
    #[error("{}: cannot read the file ({source})", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is something else.
    #[error(
        "{from}: {what}; give a file that `fewsync bench allreduce --csv` or a script of bench/peers wrote"
    )]
    Malformed {
        /// The file, or whose output.
        from: String,
        /// What is wrong in it.
        what: String,
    },
}

/// The lines of a file, and its comments.
///
/// # Errors
/// A file that cannot be read or is something else.
pub fn read(path: &Path) -> Result<(Vec<Measurement>, Vec<String>), JoinError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| JoinError::Io { path: path.to_owned(), source })?;
    let comments = text.lines().filter_map(|line| line.strip_prefix('#')).map(|line| line.trim().to_owned());
    Ok((parse(&path.display().to_string(), &text)?, comments.collect()))
}

/// The lines of a text; `from` is its origin, for errors. Other columns than those needed may be there, or not.
///
/// # Errors
/// A text that is something else.
pub fn parse(from: &str, text: &str) -> Result<Vec<Measurement>, JoinError> {
    let wrong = |what: String| JoinError::Malformed { from: from.to_owned(), what };
    let mut reader = csv::ReaderBuilder::new().comment(Some(b'#')).from_reader(text.as_bytes());
    let columns = reader.headers().map_err(|e| wrong(e.to_string()))?.clone();
    let column = |name: &str| {
        let found = columns.iter().position(|column| column == name);
        found.ok_or_else(|| wrong(format!("it has no column {name}")))
    };
    let names = ["contender", "variant", "call", "launch", "dtype", "tp", "topology", "bytes", "hidden"];
    let times = ["us_median", "us_p10", "us_p90"];
    let names = names.map(column).into_iter().collect::<Result<Vec<_>, _>>()?;
    let times = times.map(column).into_iter().collect::<Result<Vec<_>, _>>()?;
    let mut lines = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|e| wrong(e.to_string()))?;
        let cell = |index: usize| record.get(index).unwrap_or_default();
        let number = |index: usize| {
            let text = cell(index);
            text.parse::<usize>().map_err(|_| wrong(format!("'{text}' is not a whole number")))
        };
        let us = |index: usize| {
            let us = cell(index).parse().ok().filter(|us: &f64| us.is_finite() && *us > 0.0);
            us.ok_or_else(|| wrong(format!("'{}' is not a time in µs", cell(index))))
        };
        lines.push(Measurement::new(
            (cell(names[0]), cell(names[1])),
            one_of(&Call::ALL, cell(names[2])).map_err(wrong)?,
            one_of(&Launching::ALL, cell(names[3])).map_err(wrong)?,
            one_of(&[DType::Bf16, DType::F16, DType::F32], cell(names[4])).map_err(wrong)?,
            number(names[5])?,
            cell(names[6]).to_owned(),
            number(names[7])?,
            number(names[8])?,
            Percentiles { median: us(times[0])?, p10: us(times[1])?, p90: us(times[2])? },
        ));
    }
    Ok(lines)
}

fn one_of<T: Copy + fmt::Display>(all: &[T], text: &str) -> Result<T, String> {
    let found = all.iter().copied().find(|one| one.to_string() == text);
    let names = || all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    found.ok_or_else(|| format!("'{text}' is none of {}", names()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::machine::Machine;
    use crate::bench::report::Report;

    const HEADING: &str =
        "contender,variant,call,launch,dtype,tp,topology,bytes,hidden,us_median,us_p10,us_p90\n";

    #[test]
    fn what_is_written_is_read_back() {
        let us = Percentiles { p10: 2.5, median: 3.0, p90: 3.25 };
        let line = |call, launch| {
            Measurement::new(("torch", "one-shot"), call, launch, DType::F16, 2, "1x2".into(), 8192, 64, us)
        };
        let lines = vec![line(Call::Plain, Launching::Graph), line(Call::Fused, Launching::Eager)];
        let report = Report::new("allreduce", Machine::of(&[]), vec![], lines.clone());
        let text = Report::<Measurement>::csv_heading() + &report.csv_body();
        assert_eq!(parse("test", &text).unwrap(), lines);
    }

    #[test]
    fn what_is_no_result_is_refused() {
        let refusal = |text: &str| parse("peer.csv", text).unwrap_err().to_string();
        let error = refusal("a,b\n1,2\n");
        assert!(error.starts_with("peer.csv: it has no column contender; give a file that"), "{error}");
        let line = |cells: &str| refusal(&format!("{HEADING}{cells}\n"));
        assert!(line("t,o,sum,graph,bf16,2,1x2,8,0,1,1,1").contains("'sum' is none of plain, fused"));
        assert!(line("t,o,plain,graph,int8,2,1x2,8,0,1,1,1").contains("'int8' is none of bf16"));
        assert!(line("t,o,plain,graph,bf16,2,1x2,8 KiB,0,1,1,1").contains("'8 KiB' is not a whole number"));
        assert!(line("t,o,plain,graph,bf16,2,1x2,8,0,nan,1,1").contains("'nan' is not a time"));
        assert!(line("t,o,plain").contains("record"), "a line that is too short");
        let error = read(Path::new("/nowhere/peer.csv")).unwrap_err().to_string();
        assert!(error.starts_with("/nowhere/peer.csv: cannot read the file"), "{error}");
    }

    #[test]
    fn a_files_comments_come_along() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("peer.csv");
        std::fs::write(&path, format!("{HEADING}# torch 2\nt,o,plain,graph,bf16,2,1x2,8,0,1,1,1\n")).unwrap();
        let (lines, comments) = read(&path).unwrap();
        assert_eq!((lines.len(), comments), (1, vec!["torch 2".to_owned()]));
    }
}
