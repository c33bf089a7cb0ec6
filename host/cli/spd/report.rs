//! The results of `fewsync spd evaluate`: table, CSV columns, figure.

use std::fmt::Write;

use serde::Serialize;

use crate::bench::plot::{Content, Figure, Panel, Point, Scale, Series};
use crate::bench::report::{Record, Report, cell};
use crate::bench::stats::Percentiles;
use crate::spd::{Estimate, Quality, Times};

/// One plan's results.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Line {
    pub(super) model: String,
    pub(super) tp: usize,
    /// `zero-shot`, or the plan's name.
    pub(super) series: String,
    pub(super) dropped: usize,
    pub(super) level_percent: f64,
    pub(super) quality: Option<Quality>,
    /// By batch size.
    pub(super) times: Vec<Times>,
}

impl Record for Line {
    /// Times are those of the first two batch sizes.
    const COLUMNS: &'static [&'static str] = &[
        "model",
        "tp",
        "series",
        "dropped",
        "level_percent",
        "perplexity",
        "perplexity_low",
        "perplexity_high",
        "rise_percent",
        "rise_low",
        "rise_high",
        "kl",
        "kl_low",
        "kl_high",
        "top1_agreement",
        "top1_low",
        "top1_high",
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "batch_a",
        "first_token_ms_a",
        "step_ms_a",
        "batch_b",
        "first_token_ms_b",
        "step_ms_b",
    ];

    fn cells(&self) -> Vec<String> {
        let mut cells = vec![
            self.model.clone(),
            self.tp.to_string(),
            self.series.clone(),
            self.dropped.to_string(),
            format!("{:.1}", self.level_percent),
        ];
        let estimate = |of: fn(&Quality) -> Estimate, scale: f64, decimals| {
            let estimate = self.quality.as_ref().map(of);
            let bounds = estimate.and_then(|e| e.interval);
            let values = [estimate.map(|e| e.value), bounds.map(|b| b.0), bounds.map(|b| b.1)];
            values.map(|value| cell(value.map(|v| v * scale), decimals))
        };
        cells.extend(estimate(|q| q.perplexity, 1.0, 4));
        cells.extend(estimate(|q| q.rise, 100.0, 3));
        cells.extend(estimate(|q| q.kl, 1.0, 6));
        cells.extend(estimate(|q| q.top1_agreement, 1.0, 4));
        cells.extend(estimate(|q| q.accuracy, 1.0, 4));
        for i in 0..2 {
            let times = self.times.get(i);
            cells.push(times.map_or_else(String::new, |t| t.batch.to_string()));
            cells.push(cell(times.map(|t| t.first_token_ms.median), 3));
            cells.push(cell(times.map(|t| t.step_ms.median), 3));
        }
        cells
    }
}

/// One line a plan, for people.
pub(super) fn table(lines: &[Line]) -> String {
    let batches: Vec<usize> =
        lines.first().map_or_else(Vec::new, |line| line.times.iter().map(|t| t.batch).collect());
    let width = lines.iter().map(|line| line.series.len()).max().unwrap_or(0).max("series".len());
    let mut text = format!("{:width$}  drop  level", "series");
    if lines.iter().any(|line| line.quality.is_some()) {
        text += "  perplexity    rise [95 %]                kl       top-1   accuracy";
    }
    for batch in &batches {
        let _ = write!(text, "  {:>18}  {:>18}", format!("first token b{batch}"), format!("step b{batch}"));
    }
    text.push('\n');
    for line in lines {
        let _ = write!(text, "{:width$}  {:4}  {:4.0}%", line.series, line.dropped, line.level_percent);
        if let Some(q) = &line.quality {
            let interval = q.rise.interval.map_or_else(String::new, |(low, high)| {
                format!("[{:+.1}, {:+.1}]", low * 100.0, high * 100.0)
            });
            let _ = write!(
                text,
                "  {:10.4}  {:+8.2}% {interval:16}  {:8.5}  {:6.4}  {:8.4}",
                q.perplexity.value,
                q.rise.value * 100.0,
                q.kl.value,
                q.top1_agreement.value,
                q.accuracy.value
            );
        }
        let base = synchronised(lines);
        for (i, times) in line.times.iter().enumerate() {
            for of in [(|t: &Times| t.first_token_ms) as fn(&Times) -> Percentiles, |t| t.step_ms] {
                let (ms, base) =
                    (of(times).median, base.and_then(|base| base.times.get(i)).map(|t| of(t).median));
                let gain =
                    base.map_or_else(String::new, |base| format!("{:+.1}%", (ms / base - 1.0) * 100.0));
                let _ = write!(text, "  {ms:9.2} ms {gain:>6}");
            }
        }
        text.push('\n');
    }
    text
}

/// The line without any drop, which times are compared with.
fn synchronised(lines: &[Line]) -> Option<&Line> {
    lines.iter().find(|line| line.dropped == 0)
}

/// Trade-off curves as in Figure 7 of the SPD paper: perplexity over the time saved, for the first token and for a
/// decode step, at each batch size. Without times: over the level. Without quality: time saved over the level.
pub(super) fn figure(report: &Report<Line>) -> Figure {
    let lines = &report.measurements;
    let quality = lines.iter().any(|line| line.quality.is_some());
    let first = lines.first();
    let mut panels = Vec::new();
    for (i, batch) in first.map_or(&[][..], |line| &line.times).iter().map(|times| times.batch).enumerate() {
        for (what, of) in [
            ("time to first token", (|t: &Times| t.first_token_ms.median) as fn(&Times) -> f64),
            ("time per token", |t: &Times| t.step_ms.median),
        ] {
            let base = synchronised(lines).and_then(|base| base.times.get(i)).map(of);
            let saved = |line: &Line| Some((1.0 - of(line.times.get(i)?) / base?) * 100.0);
            let title = format!("{what}, batch {batch}");
            let panel = if quality {
                curves(lines, title, "time saved, %", saved, perplexity, "perplexity", Scale::Log10)
            } else {
                let point =
                    |line: &Line| saved(line).map(|y| Point { x: line.level_percent, y, range: None });
                curves(
                    lines,
                    title,
                    "blocks dropped, %",
                    |line| Some(line.level_percent),
                    point,
                    "time saved, %",
                    Scale::Linear,
                )
            };
            panels.push(panel);
        }
    }
    if panels.is_empty() {
        let level = |line: &Line| Some(line.level_percent);
        panels.push(curves(
            lines,
            String::new(),
            "blocks dropped, %",
            level,
            perplexity,
            "perplexity",
            Scale::Log10,
        ));
    }
    let model = first.map_or("", |line| line.model.as_str());
    let tp = first.map_or(0, |line| line.tp);
    Figure {
        title: format!("What Sync-Point Drop costs and buys: {model}, {tp} ranks"),
        caption: report.machine.line(),
        panels,
    }
}

/// Perplexity with the interval of its rise, from which the text's own scatter is gone.
fn perplexity(line: &Line) -> Option<Point> {
    let Quality { perplexity, rise, .. } = line.quality?;
    let own = perplexity.value / (1.0 + rise.value);
    let range = rise.interval.map(|(low, high)| (own * (1.0 + low), own * (1.0 + high)));
    Some(Point { x: 0.0, y: perplexity.value, range })
}

fn curves(
    lines: &[Line],
    title: String,
    x_label: &str,
    x: impl Fn(&Line) -> Option<f64>,
    y: impl Fn(&Line) -> Option<Point>,
    y_label: &str,
    scale: Scale,
) -> Panel {
    let mut series: Vec<Series> = Vec::new();
    for line in lines {
        let (Some(x), Some(y)) = (x(line), y(line)) else { continue };
        let point = Point { x, ..y };
        match series.iter_mut().find(|series| series.name == line.series) {
            Some(series) => series.points.push(point),
            None => {
                let (name, color) = (line.series.clone(), series.len());
                series.push(Series { name, color, dashed: false, points: vec![point] });
            }
        }
    }
    Panel {
        title,
        x_label: x_label.into(),
        y_label: y_label.into(),
        content: Content::Lines { x: Scale::Linear, y: scale, series },
    }
}
