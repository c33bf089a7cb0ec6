//! Times from a file that `fewsync spd evaluate --csv` wrote, on another machine say.

use std::path::Path;

use anyhow::{Context, anyhow, ensure};

use super::report::Line;
use super::timing::{BlockSync, TimedOver};
use crate::bench::report::Record;
use crate::bench::stats::Percentiles;
use crate::spd::{Plan, Times, Timing};

/// One list a plan: the lines for as many ranks and dropped blocks, of a model of as many blocks.
pub(super) fn read(path: &Path, plans: &[Plan]) -> anyhow::Result<Vec<Vec<TimedOver>>> {
    let wrong = |what: String| anyhow!("{}: {what}", path.display());
    let reader = csv::ReaderBuilder::new().comment(Some(b'#')).from_path(path);
    let mut reader = reader.map_err(|e| wrong(format!("cannot read the times ({e})")))?;
    let columns = reader.headers().map_err(|e| wrong(format!("not a CSV file ({e})")))?.clone();
    ensure!(
        columns.iter().skip(1).eq(Line::COLUMNS.iter().copied()),
        wrong("its columns are not those of `fewsync spd evaluate --csv`".into())
    );
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|e| wrong(format!("not a CSV file ({e})")))?;
        let row = Row { columns: &columns, record: &record };
        rows.push(row.parse().with_context(|| path.display().to_string())?);
    }
    let times_of = |model: &str, plan: &Plan| {
        let (tp, dropped, n_layers) = (plan.tp(), plan.n_dropped(), plan.blocks().len());
        let level = 100.0 * dropped as f64 / n_layers as f64;
        let same =
            |key: &Key| key.tp == tp && key.dropped == dropped && (key.level_percent - level).abs() < 0.1;
        let mut times: Vec<TimedOver> = Vec::new();
        for (_, timed) in rows.iter().filter(|(key, _)| key.model == model && same(key)) {
            let known = |t: &TimedOver| {
                (&t.link, t.times.batch, t.times.prompt)
                    == (&timed.link, timed.times.batch, timed.times.prompt)
            };
            // Series that drop as many blocks share a measurement.
            if !times.iter().any(known) {
                times.push(timed.clone());
            }
        }
        ensure!(
            !times.is_empty(),
            wrong(format!(
                "has no times of {dropped} of {n_layers} blocks dropped on {tp} ranks: time that level"
            ))
        );
        Ok(times)
    };
    let mut models: Vec<&str> = rows.iter().map(|(key, _)| &*key.model).collect();
    models.sort_unstable();
    models.dedup();
    let all_of =
        |&model: &&str| plans.iter().map(|plan| times_of(model, plan)).collect::<anyhow::Result<Vec<_>>>();
    let mut found: Vec<_> = models.iter().map(all_of).collect();
    let timed: Vec<&str> =
        models.iter().zip(&found).filter(|(_, it)| it.is_ok()).map(|(&it, _)| it).collect();
    ensure!(
        timed.len() < 2,
        wrong(format!(
            "has times of several models ({}) at these levels: keep the lines of one",
            timed.join(", ")
        ))
    );
    // What is missing is said of the model that comes nearest: there is mostly one.
    let best = found.iter().position(Result::is_ok).unwrap_or(0);
    if found.is_empty() { Err(wrong("has no times".into())) } else { found.swap_remove(best) }
}

/// What a line's times are of.
struct Key {
    model: String,
    tp: usize,
    dropped: usize,
    level_percent: f64,
}

struct Row<'a> {
    columns: &'a csv::StringRecord,
    record: &'a csv::StringRecord,
}

impl Row<'_> {
    fn cell(&self, name: &str) -> &str {
        let column = self.columns.iter().position(|column| column == name);
        column.and_then(|column| self.record.get(column)).unwrap_or_default()
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> anyhow::Result<T> {
        let cell = self.cell(name);
        cell.parse().map_err(|_| anyhow!("'{cell}' is no number for the column '{name}'"))
    }

    fn percentiles(&self, median: &str, stem: &str) -> anyhow::Result<Percentiles> {
        let [p10, p90] = ["p10", "p90"].map(|rank| self.number(&format!("{stem}_{rank}")));
        Ok(Percentiles { p10: p10?, median: self.number(median)?, p90: p90? })
    }

    fn timing(&self, phase: &str) -> anyhow::Result<Timing> {
        let saved = format!("{phase}_saved");
        Ok(Timing {
            ms: self.percentiles(&format!("{phase}_ms"), phase)?,
            saved_ms: self.percentiles(&format!("{saved}_ms"), &saved)?,
        })
    }

    fn sync(&self, phase: &str) -> anyhow::Result<Option<BlockSync>> {
        if self.cell(&format!("{phase}_sum_us")).is_empty() {
            return Ok(None);
        }
        let us = |what: &str| self.number(&format!("{phase}_{what}_us"));
        Ok(Some(BlockSync { sum_us: us("sum")?, fused_us: us("fused")?, norm_us: us("norm")? }))
    }

    fn parse(&self) -> anyhow::Result<(Key, TimedOver)> {
        let times = Times {
            batch: self.number("batch")?,
            prompt: self.number("prompt")?,
            first_token: self.timing("first_token")?,
            step: self.timing("step")?,
        };
        let sync = self.sync("first_token")?.zip(self.sync("step")?).map(|(prefill, step)| [prefill, step]);
        let key = Key {
            model: self.cell("model").to_owned(),
            tp: self.number("tp")?,
            dropped: self.number("dropped")?,
            level_percent: self.number("level_percent")?,
        };
        Ok((key, TimedOver { link: self.cell("link").to_owned(), times, sync }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::machine::Machine;
    use crate::bench::report::Report;

    fn plan(dropped: &[usize]) -> Plan {
        crate::spd::dropping(2, 4, dropped)
    }

    fn line(dropped: usize, link: &str) -> Line {
        let percentiles = |median| Percentiles { p10: median - 0.5, median, p90: median + 0.5 };
        let timing = |ms| Timing { ms: percentiles(ms), saved_ms: percentiles(dropped as f64) };
        let sync = |us| BlockSync { sum_us: us, fused_us: us + 1.0, norm_us: 0.5 };
        let times = Times { batch: 1, prompt: 8, first_token: timing(20.0), step: timing(2.0) };
        Line {
            model: "random:tiny,layers=4".into(),
            tp: 2,
            series: "zero-shot".into(),
            dropped,
            level_percent: 25.0 * dropped as f64,
            quality: None,
            timed: Some(TimedOver { link: link.into(), times, sync: Some([sync(9.0), sync(3.0)]) }),
        }
    }

    #[test]
    fn times_are_read_back_by_what_drops() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("times.csv");
        let lines = vec![line(0, "direct"), line(2, "direct"), line(2, "host-staged"), line(2, "direct")];
        let expected: Vec<TimedOver> = lines[1..3].iter().map(|line| line.timed.clone().unwrap()).collect();
        Report::new("spd-evaluate", Machine::of(&[]), vec![], lines).append_csv(&path).unwrap();
        let found = read(&path, &[plan(&[]), plan(&[1, 3])]).unwrap();
        assert_eq!((found[0].len(), found[0][0].link.as_str()), (1, "direct"));
        let links: Vec<_> =
            found[1].iter().map(|timed| (timed.link.clone(), timed.times, timed.sync)).collect();
        assert_eq!(links, expected.into_iter().map(|t| (t.link, t.times, t.sync)).collect::<Vec<_>>());
        let refusal = read(&path, &[plan(&[0])]).unwrap_err().to_string();
        assert!(
            refusal.ends_with("has no times of 1 of 4 blocks dropped on 2 ranks: time that level"),
            "{refusal}"
        );
        // Another model with the same levels: whose times are meant is not known.
        let other = |dropped| Line { model: "random:tiny,layers=4,seed=1".into(), ..line(dropped, "direct") };
        let lines = vec![line(0, "direct"), other(0), other(2)];
        let two = dir.path().join("two.csv");
        Report::new("spd-evaluate", Machine::of(&[]), vec![], lines).append_csv(&two).unwrap();
        let refusal = read(&two, &[plan(&[])]).unwrap_err().to_string();
        assert!(refusal.contains("times of several models"), "{refusal}");
        assert_eq!(read(&two, &[plan(&[]), plan(&[1, 3])]).unwrap().len(), 2);
        // The same number of blocks of a longer model.
        assert!(read(&path, &[crate::spd::dropping(2, 8, &[0, 1])]).is_err());
        std::fs::write(&path, "bench,model\n").unwrap();
        assert!(read(&path, &[]).unwrap_err().to_string().contains("its columns are not those"));
    }
}
