//! A plot of decode: times over the batch, and the parts of a step.

use super::Measurement;
use crate::bench::breakdown::Breakdown;
use crate::bench::plot::{Content, Figure, Panel, Point, Scale, Series};
use crate::bench::report::Report;
use crate::bench::stats::Percentiles;

/// Time per token, tokens per second and time to first token; where steps were taken apart, their parts.
pub fn figure(report: &Report<Measurement>) -> Figure {
    let all = &report.measurements;
    let name = |one: &Measurement| match one.spd_blocks {
        0 => format!("{}, tp {}, {}", one.model, one.tp, one.device),
        spd => format!("{}, tp {}, {spd} blocks dropped, {}", one.model, one.tp, one.device),
    };
    let panel = |title: &str, y_label: &str, y: Scale, value: &dyn Fn(&Measurement) -> Percentiles| {
        let mut series: Vec<Series> = Vec::new();
        for one in all {
            let Percentiles { p10, median, p90 } = value(one);
            let point = Point { x: one.workload.batch as f64, y: median, range: Some((p10, p90)) };
            match series.iter_mut().find(|series| series.name == name(one)) {
                Some(series) => series.points.push(point),
                None => {
                    let color = series.len();
                    series.push(Series { name: name(one), color, dashed: false, points: vec![point] });
                }
            }
        }
        Panel {
            title: title.into(),
            x_label: "batch, sequences".into(),
            y_label: y_label.into(),
            content: Content::Lines { x: Scale::Log2, y, series },
        }
    };
    let rate = |one: &Measurement| {
        let rate = |step_ms: f64| one.workload.batch as f64 * 1e3 / step_ms;
        let Percentiles { p10, median, p90 } = one.times.step_ms;
        Percentiles { p10: rate(p90), median: rate(median), p90: rate(p10) }
    };
    let mut panels = vec![
        panel("time per step", "ms", Scale::Linear, &|one| one.times.step_ms),
        panel("tokens per second, all sequences", "tokens/s", Scale::Log10, &rate),
        panel("time to first token", "ms", Scale::Log10, &|one| one.times.time_to_first_token_ms),
    ];
    panels.extend(parts(all));
    let prompt = all.first().map_or(0, |one| one.workload.prompt);
    Figure {
        title: format!("fewsync bench decode behind {prompt} tokens: median and p10–p90"),
        caption: report.machine.line(),
        panels,
    }
}

/// Bars of the steps that were taken apart: what classes take alone, and what would be saved without them.
fn parts(all: &[Measurement]) -> Vec<Panel> {
    let apart: Vec<_> = all.iter().filter_map(|one| Some((one, one.breakdown.as_ref()?))).collect();
    let Some((_, first)) = apart.first() else { return Vec::new() };
    let bars = |values: &dyn Fn(&Breakdown) -> Vec<f64>| -> Vec<(String, Vec<f64>)> {
        let name = |one: &Measurement| match one.spd_blocks {
            0 => format!("batch {}", one.workload.batch),
            spd => format!("batch {}, {spd} dropped", one.workload.batch),
        };
        apart.iter().map(|(one, parts)| (name(one), values(parts))).collect()
    };
    let panel = |title: &str, parts: Vec<&str>, bars| Panel {
        title: title.into(),
        x_label: String::new(),
        y_label: "ms per step".into(),
        content: Content::Bars { parts: parts.into_iter().map(str::to_owned).collect(), bars },
    };
    vec![
        panel(
            "where a step goes",
            first.parts().map(|(name, _)| name).collect(),
            bars(&|breakdown| breakdown.parts().map(|(_, us)| us / 1e3).collect()),
        ),
        panel(
            "what a step would save without",
            first.classes.iter().map(|class| class.class.name()).collect(),
            bars(&|breakdown| breakdown.classes.iter().map(|class| class.saved_us / 1e3).collect()),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::measurement;
    use super::*;
    use crate::bench::machine::Machine;

    fn of(with_breakdown: bool) -> Figure {
        let measurements = vec![measurement(1, with_breakdown), measurement(8, with_breakdown)];
        figure(&Report::new("decode", Machine::of(&[]), vec![], measurements))
    }

    #[test]
    fn times_lie_over_the_batch_with_their_percentiles() {
        let figure = of(false);
        assert_eq!(figure.panels.len(), 3);
        let Content::Lines { series, .. } = &figure.panels[1].content else { panic!("lines") };
        let Point { x, y, range } = series[0].points[1];
        assert_eq!((x, y), (8.0, 1000.0));
        let (low, high) = range.unwrap();
        assert!(low < 1000.0 && 1000.0 < high, "slow steps are few tokens: {low} {high}");
        assert!(figure.svg().is_ok());
    }

    #[test]
    fn a_bars_parts_add_up_to_its_step() {
        let figure = of(true);
        assert_eq!(figure.panels.len(), 5);
        let Content::Bars { parts, bars } = &figure.panels[3].content else { panic!("bars") };
        assert_eq!(parts, &["gemm", "attention", "pointwise", "sync", "head", "gaps", "host"]);
        for (name, step_ms) in [("batch 1", 1.0), ("batch 8", 8.0)] {
            let (_, values) = bars.iter().find(|(bar, _)| bar == name).unwrap();
            assert!((values.iter().sum::<f64>() - step_ms).abs() < 1e-9, "{name}: {values:?}");
        }
        assert!(figure.svg().is_ok());
    }
}
