//! A plot of measurements: a panel per part of the layer, time over tokens or context.

use super::Measurement;
use crate::bench::plot::{Content, Figure, Panel, Point, Scale, Series};
use crate::bench::report::Report;

/// The time of every measurement.
pub fn figure(report: &Report<Measurement>) -> Figure {
    let all = &report.measurements;
    let mut ops = Vec::new();
    all.iter().for_each(|one| {
        if !ops.contains(&one.op) {
            ops.push(one.op)
        }
    });
    // What was swept lies across; what else varies tells the lines apart.
    let over_context = differ(all, |one| one.context);
    let name = |one: &Measurement| {
        let tokens = if over_context && differ(all, |one| one.m) && one.m != one.context {
            format!(", m = {}", one.m)
        } else {
            String::new()
        };
        let tp = if differ(all, |one| one.tp) { format!(", tp {}", one.tp) } else { String::new() };
        format!("{}{tp}{tokens}", one.model)
    };
    let panels = ops.into_iter().map(|op| {
        let mut series: Vec<Series> = Vec::new();
        for one in all.iter().filter(|one| one.op == op) {
            let x = if over_context { one.context } else { one.m } as f64;
            let (name, point) =
                (name(one), Point { x, y: one.us.median, range: Some((one.us.p10, one.us.p90)) });
            match series.iter_mut().find(|series| series.name == name) {
                Some(series) => series.points.push(point),
                None => series.push(Series { name, color: series.len(), dashed: false, points: vec![point] }),
            }
        }
        Panel {
            title: op.to_owned(),
            x_label: if over_context { "context, tokens" } else { "m, tokens" }.into(),
            y_label: "time, µs".into(),
            content: Content::Lines { x: Scale::Log2, y: Scale::Log10, series },
        }
    });
    Figure {
        title: format!("fewsync bench {}", report.bench),
        caption: report.machine.line(),
        panels: panels.collect(),
    }
}

fn differ<T: PartialEq>(all: &[Measurement], part: impl Fn(&Measurement) -> T) -> bool {
    all.windows(2).any(|pair| part(&pair[0]) != part(&pair[1]))
}
