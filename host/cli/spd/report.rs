//! The results of `fewsync spd evaluate`: table, CSV columns, figure.

use std::fmt::Write;

use serde::Serialize;

use crate::bench::plot::{Content, Figure, Panel, Point, Scale, Series};
use crate::bench::report::{Record, Report, cell};
use crate::bench::stats::Percentiles;
use crate::spd::{Estimate, Quality, Times};

/// One plan's results at one batch size.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Line {
    pub(super) model: String,
    pub(super) tp: usize,
    /// `zero-shot`, or the plan's name.
    pub(super) series: String,
    pub(super) dropped: usize,
    pub(super) level_percent: f64,
    /// The same at every batch size.
    pub(super) quality: Option<Quality>,
    pub(super) times: Option<Times>,
}

impl Record for Line {
    #[rustfmt::skip]
    const COLUMNS: &'static [&'static str] = &[
        "model", "tp", "series", "dropped", "level_percent",
        "perplexity", "perplexity_low", "perplexity_high", "rise_percent", "rise_low", "rise_high",
        "kl", "kl_low", "kl_high", "top1_agreement", "top1_low", "top1_high",
        "accuracy", "accuracy_low", "accuracy_high",
        "batch", "first_token_ms", "first_token_p10", "first_token_p90", "step_ms", "step_p10", "step_p90",
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
        cells.push(self.times.map_or_else(String::new, |times| times.batch.to_string()));
        for of in TIMES {
            let ms = self.times.as_ref().map(of);
            cells.extend([ms.map(|p| p.median), ms.map(|p| p.p10), ms.map(|p| p.p90)].map(|v| cell(v, 3)));
        }
        cells
    }
}

/// What is timed: the first token, a decode step.
const TIMES: [fn(&Times) -> Percentiles; 2] = [|times| times.first_token_ms, |times| times.step_ms];

/// One line a plan and batch size, for people.
pub(super) fn table(lines: &[Line]) -> String {
    let width = lines.iter().map(|line| line.series.len()).max().unwrap_or(0).max("series".len());
    let mut text = format!("{:width$}  drop  level", "series");
    if lines.iter().any(|line| line.quality.is_some()) {
        text += "  perplexity      rise  95 % interval          kl   top-1  accuracy";
    }
    if lines.iter().any(|line| line.times.is_some()) {
        text += "  batch         first token                step";
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
                "  {:10.4}  {:+7.2}%  {interval:16}  {:8.5}  {:6.4}    {:6.4}",
                q.perplexity.value,
                q.rise.value * 100.0,
                q.kl.value,
                q.top1_agreement.value,
                q.accuracy.value
            );
        }
        if let Some(times) = &line.times {
            let _ = write!(text, "  {:5}", times.batch);
            for of in TIMES {
                let saved = saved_percent(lines, line, of).unwrap_or(0.0);
                let _ = write!(text, "  {:8.2} ms {:+6.1}%", of(times).median, -saved);
            }
        }
        text.push('\n');
    }
    text
}

/// Time saved against the line without any drop at the same batch size, in percent.
fn saved_percent(lines: &[Line], line: &Line, of: fn(&Times) -> Percentiles) -> Option<f64> {
    let times = line.times.as_ref()?;
    let same = |other: &&Line| other.dropped == 0 && other.times.is_some_and(|t| t.batch == times.batch);
    let base = lines.iter().find(same)?.times.as_ref().map(of)?;
    Some((1.0 - of(times).median / base.median) * 100.0)
}

/// Trade-off curves as in Figure 7 of the SPD paper: perplexity over the time saved, for the first token and for a
/// decode step, at each batch size. Without times: over the level. Without quality: time saved over the level.
pub(super) fn figure(report: &Report<Line>) -> Figure {
    let lines = report.measurements.as_slice();
    let quality = lines.iter().any(|line| line.quality.is_some());
    let mut batches: Vec<usize> = lines.iter().filter_map(|line| Some(line.times?.batch)).collect();
    batches.sort_unstable();
    batches.dedup();
    let level = |line: &Line| Some(line.level_percent);
    let mut panels = Vec::new();
    for batch in batches {
        let lines: Vec<Line> =
            lines.iter().filter(|line| line.times.is_some_and(|t| t.batch == batch)).cloned().collect();
        for (what, of) in ["time to first token", "time per token"].into_iter().zip(TIMES) {
            let saved = |line: &Line| saved_percent(&lines, line, of);
            let title = format!("{what}, batch {batch}");
            panels.push(if quality {
                let labels = [title, "time saved, %".into(), "perplexity".into()];
                curves(&lines, labels, saved, perplexity, Scale::Log10)
            } else {
                let point = |line: &Line| Some(Point { x: 0.0, y: saved(line)?, range: None });
                let labels = [title, "blocks that drop, %".into(), "time saved, %".into()];
                curves(&lines, labels, level, point, Scale::Linear)
            });
        }
    }
    if panels.is_empty() {
        let labels = [String::new(), "blocks that drop, %".into(), "perplexity".into()];
        panels.push(curves(lines, labels, level, perplexity, Scale::Log10));
    }
    let (model, tp) = lines.first().map_or(("", 0), |line| (line.model.as_str(), line.tp));
    Figure {
        title: format!("What Sync-Point Drop costs and saves: {model}, {tp} ranks"),
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

/// One series a plan. `labels` are the title's and those of both axes.
fn curves(
    lines: &[Line],
    [title, x_label, y_label]: [String; 3],
    x: impl Fn(&Line) -> Option<f64>,
    y: impl Fn(&Line) -> Option<Point>,
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
    Panel { title, x_label, y_label, content: Content::Lines { x: Scale::Linear, y: scale, series } }
}
