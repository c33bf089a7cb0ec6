//! What `fewsync spd evaluate` found, as plots.

use super::report::{Line, Phase};
use crate::bench::plot::{Content, Figure, Panel, Point, Scale, Series};
use crate::bench::report::Report;
use crate::spd::Quality;

/// Trade-off curves as in Figure 7 of the SPD paper: perplexity over the time saved, for the first token and for a
/// decode step, under each workload. Without times: over the level. Without quality: time saved over the level.
pub(super) fn figure(report: &Report<Line>) -> Figure {
    let lines = report.measurements.as_slice();
    let quality = lines.iter().any(|line| line.quality.is_some());
    let level = |line: &Line| Some(line.level_percent);
    let mut panels = Vec::new();
    for (batch, prompt) in workloads(lines) {
        let lines: Vec<&Line> = lines.iter().filter(|line| workload(line) == Some((batch, prompt))).collect();
        for phase in Phase::ALL {
            let saved = |line: &Line| line.timing(phase).map(|timing| timing.saved_percent());
            let title = match phase {
                Phase::Prefill => format!("{}, {batch} x {prompt} tokens", phase.name()),
                Phase::Step => format!("{}, batch {batch} behind {prompt}", phase.name()),
            };
            panels.push(if quality {
                let labels = [title, "time saved, %".into(), "perplexity".into()];
                panel(labels, Scale::Log10, curves(&lines, name, saved, perplexity))
            } else {
                let labels = [title, "blocks that drop, %".into(), "time saved, %".into()];
                let point = |line: &Line| Some(Point { x: 0.0, y: saved(line)?, range: None });
                let mut series = curves(&lines, name, level, point);
                series.extend(predicted(&lines, phase));
                panel(labels, Scale::Linear, series)
            });
        }
    }
    if panels.is_empty() {
        let labels = [String::new(), "blocks that drop, %".into(), "perplexity".into()];
        let lines: Vec<&Line> = lines.iter().collect();
        panels.push(panel(labels, Scale::Log10, curves(&lines, name, level, perplexity)));
    }
    let (model, tp) = lines.first().map_or(("", 0), |line| (line.model.as_str(), line.tp));
    Figure {
        title: format!("What Sync-Point Drop costs and saves: {model}, {tp} ranks"),
        caption: report.machine.line(),
        panels,
    }
}

/// Batch and prompt.
fn workload(line: &Line) -> Option<(usize, usize)> {
    line.timed.as_ref().map(|timed| (timed.times.batch, timed.times.prompt))
}

fn workloads(lines: &[Line]) -> Vec<(usize, usize)> {
    let mut all: Vec<(usize, usize)> = lines.iter().filter_map(workload).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// The series; where something was timed, over what.
fn name(line: &Line) -> String {
    match &line.timed {
        Some(timed) => format!("{}, {}", line.series, timed.link),
        None => line.series.clone(),
    }
}

/// What the dropped sync points take by themselves, in percent of the synchronised time; dashed, in the colours of what
/// was measured.
fn predicted(lines: &[&Line], phase: Phase) -> Vec<Series> {
    let percent = |line: &Line| {
        let timing = line.timing(phase)?;
        let synchronised = timing.ms.median + timing.saved_ms.median;
        let y = 100.0 * line.predicted_ms(phase)? / synchronised;
        Some(Point { x: 0.0, y, range: None })
    };
    let name = |line: &Line| format!("{}: its dropped sync points alone", name(line));
    let mut series = curves(lines, name, |line| Some(line.level_percent), percent);
    series.iter_mut().for_each(|series| series.dashed = true);
    series
}

/// Perplexity with the interval of its rise, from which the text's own scatter is gone.
fn perplexity(line: &Line) -> Option<Point> {
    let Quality { perplexity, rise, .. } = line.quality?;
    let own = perplexity.value / (1.0 + rise.value);
    let range = rise.interval.map(|(low, high)| (own * (1.0 + low), own * (1.0 + high)));
    Some(Point { x: 0.0, y: perplexity.value, range })
}

/// Points by name, in the order of the lines.
fn curves(
    lines: &[&Line],
    name: impl Fn(&Line) -> String,
    x: impl Fn(&Line) -> Option<f64>,
    y: impl Fn(&Line) -> Option<Point>,
) -> Vec<Series> {
    let mut series: Vec<Series> = Vec::new();
    for line in lines {
        let (Some(x), Some(y)) = (x(line), y(line)) else { continue };
        let (name, point) = (name(line), Point { x, ..y });
        match series.iter_mut().find(|series| series.name == name) {
            Some(series) => series.points.push(point),
            None => {
                let color = series.len();
                series.push(Series { name, color, dashed: false, points: vec![point] });
            }
        }
    }
    series
}

/// `labels` are the title's and those of both axes.
fn panel([title, x_label, y_label]: [String; 3], scale: Scale, series: Vec<Series>) -> Panel {
    Panel { title, x_label, y_label, content: Content::Lines { x: Scale::Linear, y: scale, series } }
}
