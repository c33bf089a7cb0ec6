//! A plot of measurements: time over bytes, a panel for whole sums, one for the ratio to others, one for phases.

use super::record::{AUTOMATIC, Call, Launching, Measurement, NCCL, OURS};
use crate::bench::plot::{Content, Figure, Panel, Point, Scale, Series};
use crate::bench::report::Report;

/// All that was launched as graphs; where nothing was, all that was launched one by one.
pub fn figure(report: &Report<Measurement>) -> Figure {
    let all = &report.measurements;
    let graphs = all.iter().any(|m| m.launch == Launching::Graph);
    let launch = if graphs { Launching::Graph } else { Launching::Eager };
    let shown = || all.iter().filter(|m| m.launch == launch);
    let us = |m: &Measurement| Point { x: m.bytes as f64, y: m.us.median, range: Some((m.us.p10, m.us.p90)) };
    let ratio =
        |m: &Measurement, ratio: Option<f64>| ratio.map(|y| Point { x: m.bytes as f64, y, range: None });

    let mut panels = Vec::new();
    // What can be forced of NCCL would hide the rest; it is in the table.
    let forced = |m: &Measurement| m.contender == NCCL && m.variant != AUTOMATIC;
    let sums = shown().filter(|m| m.call == Call::Plain && !forced(m));
    let sums = series(sums, |m| format!("{} {}", m.contender, m.variant), us);
    push(&mut panels, "sum", "time per call, µs", Scale::Log10, sums);
    let fused = |m: &Measurement| match m.call {
        Call::Norm => format!("residual and norm alone, rows of {}", m.hidden),
        _ => format!("{} {}, rows of {}", m.contender, m.variant, m.hidden),
    };
    let fused = series(shown().filter(|m| matches!(m.call, Call::Fused | Call::Norm)), fused, us);
    push(&mut panels, "sum, residual and norm", "time per call, µs", Scale::Log10, fused);
    let ours = || shown().filter(|m| m.call == Call::Plain && m.contender == OURS);
    let compared = |name: &str, color: usize, of: fn(&Measurement) -> Option<f64>| {
        let points: Vec<Point> = ours().filter_map(|m| ratio(m, of(m))).collect();
        (!points.is_empty()).then(|| Series { name: name.into(), color, dashed: false, points })
    };
    let ratios = [
        compared("to NCCL's own choice", 0, |m| m.ratio_nccl),
        compared("to NCCL's best", 1, |m| m.ratio_nccl_best),
        compared("to torch's best", 2, |m| m.ratio_torch_best),
    ];
    let ratios = ratios.into_iter().flatten().collect();
    push(&mut panels, "ours over others", "ratio of times", Scale::Linear, ratios);
    let phases = shown().filter(|m| !matches!(m.call, Call::Plain | Call::Fused | Call::Norm));
    let phases = series(phases, |m| format!("{} alone", m.call), us);
    push(&mut panels, "phases", "time per call, µs", Scale::Log10, phases);
    let first = shown().next();
    let of = first.map_or_else(String::new, |m| format!(" of {} over {} ranks", m.dtype, m.topology));
    let launched = if graphs { "in CUDA graphs" } else { "launched one by one" };
    Figure { title: format!("All-reduce{of}, {launched}"), caption: report.machine.line(), panels }
}

/// Lines by name, in the order of their first points; those of others dashed.
fn series<'a>(
    lines: impl Iterator<Item = &'a Measurement>,
    name: impl Fn(&Measurement) -> String,
    point: impl Fn(&Measurement) -> Point,
) -> Vec<Series> {
    let mut all: Vec<Series> = Vec::new();
    for line in lines {
        let name = name(line);
        match all.iter_mut().find(|series| series.name == name) {
            Some(series) => series.points.push(point(line)),
            None => {
                let dashed = line.contender != OURS;
                all.push(Series { name, color: all.len(), dashed, points: vec![point(line)] });
            }
        }
    }
    for series in &mut all {
        series.points.sort_by(|a, b| a.x.total_cmp(&b.x));
    }
    all
}

fn push(panels: &mut Vec<Panel>, title: &str, y_label: &str, y: Scale, series: Vec<Series>) {
    if !series.is_empty() {
        let content = Content::Lines { x: Scale::Log2, y, series };
        panels.push(Panel { title: title.into(), x_label: "bytes".into(), y_label: y_label.into(), content });
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::compare;
    use super::*;
    use crate::bench::machine::Machine;
    use crate::bench::stats::Percentiles;
    use crate::comm::DType;

    #[test]
    fn every_kind_of_result_has_its_panel() {
        let line = |contender: &str, call, bytes, median| {
            let us = Percentiles { p10: median, median, p90: median };
            let name = (contender, "auto");
            Measurement::new(name, call, Launching::Graph, DType::Bf16, 2, "1x2".into(), bytes, 4096, us)
        };
        let mut lines = vec![
            line(OURS, Call::Plain, 16_384, 4.0),
            line(OURS, Call::Plain, 8192, 3.0),
            line("nccl", Call::Plain, 8192, 9.0),
        ];
        let panels = |lines: &[Measurement]| {
            let figure = figure(&Report::new("allreduce", Machine::of(&[]), vec![], lines.to_vec()));
            figure.svg().unwrap();
            figure.panels
        };
        assert_eq!(panels(&lines).len(), 1, "nothing compared yet");
        compare(&mut lines);
        lines.extend([line(OURS, Call::Fused, 8192, 3.5), line(OURS, Call::Reduce, 8192, 2.0)]);
        let all = panels(&lines);
        let titles: Vec<&str> = all.iter().map(|panel| panel.title.as_str()).collect();
        assert_eq!(titles, ["sum", "sum, residual and norm", "ours over others", "phases"]);
        let Content::Lines { series, .. } = &all[0].content else { panic!("lines") };
        assert_eq!(
            series.iter().map(|s| (s.points.len(), s.dashed)).collect::<Vec<_>>(),
            [(2, false), (1, true)]
        );
        assert!(series[0].points[0].x < series[0].points[1].x);
    }
}
