//! Results as CSV and JSON: one form for every benchmark.
//!
//! A CSV file begins with the names of its columns. Above the lines of each run stand comments (`#`): the
//! machine, the command, and what is to be known of the numbers. Runs of one benchmark append to one file.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::machine::Machine;

/// One line of results.
pub trait Record: Serialize {
    /// What its cells are, units in the name.
    const COLUMNS: &'static [&'static str];

    /// As many as there are columns; what is not known is empty.
    fn cells(&self) -> Vec<String>;
}

/// The results of one run.
#[derive(Debug, Serialize)]
pub struct Report<R> {
    /// The benchmark's name, which is the first column: `decode-gemm`.
    pub bench: &'static str,
    /// The command that made it.
    pub command: String,
    /// Where it was made.
    pub machine: Machine,
    /// What a reader has to know of the numbers, one sentence each: ceilings, what is missing and why.
    pub notes: Vec<String>,
    /// The results.
    pub measurements: Vec<R>,
}

/// Why results could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The file cannot be read or written.
    #[error("{}: cannot write: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file holds something else.
    #[error("{}: its columns are not those of '{bench}': name a new file", path.display())]
    OtherColumns {
        /// The file.
        path: PathBuf,
        /// What was to be appended.
        bench: &'static str,
    },
}

impl<R: Record> Report<R> {
    /// Results of this process, whose arguments are the command.
    pub fn new(bench: &'static str, machine: Machine, notes: Vec<String>, measurements: Vec<R>) -> Self {
        let words: Vec<String> = std::env::args().skip(1).map(|word| quoted(&word)).collect();
        Self { bench, command: format!("fewsync {}", words.join(" ")), machine, notes, measurements }
    }

    /// The names of the columns, as the first line of a file.
    pub fn csv_heading() -> String {
        csv_line(std::iter::once("bench").chain(R::COLUMNS.iter().copied()))
    }

    /// Comments and lines, without the names of the columns.
    pub fn csv_body(&self) -> String {
        let mut text = format!("# {}\n# {}\n", self.machine.line(), self.command);
        text.extend(self.notes.iter().map(|note| format!("# {note}\n")));
        for record in &self.measurements {
            let cells = record.cells();
            debug_assert_eq!(cells.len(), R::COLUMNS.len());
            text += &csv_line(std::iter::once(self.bench).chain(cells.iter().map(String::as_str)));
        }
        text
    }

    /// Appends to a file, which is made where there is none.
    ///
    /// # Errors
    /// A file with other columns, or one that cannot be written.
    pub fn append_csv(&self, path: &Path) -> Result<(), ReportError> {
        let io = |source| ReportError::Io { path: path.to_owned(), source };
        let mut file = OpenOptions::new().create(true).append(true).read(true).open(path).map_err(io)?;
        let (heading, mut first) = (Self::csv_heading(), String::new());
        BufReader::new(&file).read_line(&mut first).map_err(io)?;
        if !first.is_empty() && first != heading {
            return Err(ReportError::OtherColumns { path: path.to_owned(), bench: self.bench });
        }
        let heading = if first.is_empty() { heading } else { String::new() };
        file.write_all((heading + &self.csv_body()).as_bytes()).map_err(io)
    }
}

/// A number with so many decimals; empty where there is none.
pub fn cell(value: impl Into<Option<f64>>, decimals: usize) -> String {
    value.into().map_or_else(String::new, |value| format!("{value:.decimals$}"))
}

fn csv_line<'a>(cells: impl IntoIterator<Item = &'a str>) -> String {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let bytes = writer.write_record(cells).ok().and_then(|()| writer.into_inner().ok());
    String::from_utf8(bytes.expect("memory takes every write")).expect("cells are text")
}

/// As a shell reads it back.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_=.,:/+%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Line {
        model: &'static str,
        us: Option<f64>,
    }

    impl Record for Line {
        const COLUMNS: &'static [&'static str] = &["model", "us"];

        fn cells(&self) -> Vec<String> {
            vec![self.model.into(), cell(self.us, 2)]
        }
    }

    fn report() -> Report<Line> {
        let measurements = vec![Line { model: "a,layers=2", us: Some(1.5) }, Line { model: "b", us: None }];
        Report::new("copy", Machine::of(&[]), vec!["a note".into()], measurements)
    }

    #[test]
    fn runs_append_below_one_heading_and_cells_are_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.csv");
        report().append_csv(&path).unwrap();
        report().append_csv(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("bench,model,us\n# "), "{text}");
        assert_eq!(text.matches("bench,model").count(), 1);
        assert_eq!(text.matches("# a note\ncopy,\"a,layers=2\",1.50\ncopy,b,\n").count(), 2, "{text}");
        let mut reader = csv::ReaderBuilder::new().comment(Some(b'#')).from_path(&path).unwrap();
        assert_eq!(reader.records().map(|record| record.unwrap().len()).collect::<Vec<_>>(), [3; 4]);
    }

    #[test]
    fn a_file_with_other_columns_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.csv");
        std::fs::write(&path, "bench,other\n").unwrap();
        let refusal = report().append_csv(&path).unwrap_err().to_string();
        assert!(refusal.ends_with("its columns are not those of 'copy': name a new file"), "{refusal}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "bench,other\n");
    }

    #[test]
    fn a_file_that_cannot_be_is_named() {
        let refusal = report().append_csv(Path::new("/nowhere/r.csv")).unwrap_err().to_string();
        assert!(refusal.starts_with("/nowhere/r.csv: cannot write: "), "{refusal}");
    }

    #[test]
    fn the_command_can_be_pasted() {
        assert_eq!(quoted("random:llama3-8b,layers=2"), "random:llama3-8b,layers=2");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn json_has_the_same_parts() {
        let json = serde_json::to_value(report()).unwrap();
        assert_eq!((&json["bench"], &json["notes"][0]), (&"copy".into(), &"a note".into()));
        assert_eq!(json["measurements"][0]["us"], 1.5);
        assert!(json["machine"]["cpu"].is_string() && json["command"].is_string());
    }
}
