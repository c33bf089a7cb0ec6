//! A plot of measurements: time over tokens or context.

use super::Measurement;
use crate::bench::plot::{Content, Figure, Panel, Point, Scale, Series};
use crate::bench::report::Report;
use crate::bench::stats::Percentiles;

/// The time of every measurement; a panel for each part of each model's layer.
pub fn figure(report: &Report<Measurement>) -> Figure {
    let all = &report.measurements;
    let mut keys: Vec<(&str, &str)> = Vec::new();
    for one in all {
        if !keys.contains(&(&one.model, one.op)) {
            keys.push((&one.model, one.op));
        }
    }
    // What was swept lies across; what else varies tells the lines apart.
    let over_context = differ(all, |one| one.context);
    let name = |one: &Measurement| {
        let mut name = one.model.clone();
        if differ(all, |one| one.tp) {
            name += &format!(", tp {}", one.tp);
        }
        if over_context && differ(all, |one| one.m) && one.m != one.context {
            name += &format!(", m = {}", one.m);
        }
        name
    };
    let several_models = differ(all, |one| one.model.clone());
    let panels = keys.into_iter().map(|(model, op)| {
        let mut lines = Lines::default();
        for one in all.iter().filter(|one| one.model == model && one.op == op) {
            let x = if over_context { one.context } else { one.m } as f64;
            lines.add(name(one), x, one.us, one.cublaslt_us);
        }
        Panel {
            title: if several_models { format!("{op}, {model}") } else { op.to_owned() },
            x_label: if over_context { "context, tokens" } else { "m, tokens" }.into(),
            y_label: "time, µs".into(),
            content: Content::Lines { x: Scale::Log2, y: Scale::Log10, series: lines.series },
        }
    });
    Figure {
        title: format!("fewsync bench {}: median and p10–p90", report.bench),
        caption: report.machine.line(),
        panels: panels.collect(),
    }
}

/// Lines by name, each followed by cuBLASLt's in the same colour.
#[derive(Default)]
struct Lines {
    series: Vec<Series>,
    names: Vec<String>,
}

impl Lines {
    fn add(&mut self, name: String, x: f64, ours: Percentiles, theirs: Option<Percentiles>) {
        let color = self.names.iter().position(|known| *known == name).unwrap_or_else(|| {
            self.names.push(name.clone());
            self.names.len() - 1
        });
        let point = |us: Percentiles| Point { x, y: us.median, range: Some((us.p10, us.p90)) };
        let mut push = |name, dashed, point| {
            let ours = |series: &&mut Series| series.color == color && series.dashed == dashed;
            match self.series.iter_mut().find(ours) {
                Some(series) => series.points.push(point),
                None => self.series.push(Series { name, color, dashed, points: vec![point] }),
            }
        };
        let their_name = format!("{name}, cuBLASLt");
        push(name, false, point(ours));
        if let Some(theirs) = theirs {
            push(their_name, true, point(theirs));
        }
    }
}

fn differ<T: PartialEq>(all: &[Measurement], part: impl Fn(&Measurement) -> T) -> bool {
    all.windows(2).any(|pair| part(&pair[0]) != part(&pair[1]))
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::measurement;
    use super::*;
    use crate::bench::machine::Machine;

    fn lines(panel: &Panel) -> &[Series] {
        let Content::Lines { series, .. } = &panel.content else { panic!("not lines: {panel:?}") };
        series
    }

    #[test]
    fn a_panel_per_op_with_cublaslt_dashed_beside() {
        let measurements = vec![
            measurement("qkv", 1, Some(8.0)),
            measurement("qkv", 8, Some(70.0)),
            measurement("rope", 1, None),
            measurement("rope", 8, None),
        ];
        let figure = figure(&Report::new("decode-gemm", Machine::of(&[]), vec![], measurements));
        assert_eq!(figure.panels.iter().map(|panel| &*panel.title).collect::<Vec<_>>(), ["qkv", "rope"]);
        let [ours, theirs] = lines(&figure.panels[0]) else { panic!("two lines") };
        assert_eq!((ours.dashed, theirs.dashed, ours.color == theirs.color), (false, true, true));
        assert_eq!(ours.points[1], Point { x: 8.0, y: 80.0, range: Some((72.0, 96.0)) });
        assert_eq!(theirs.points.iter().map(|point| point.y).collect::<Vec<_>>(), [8.0, 70.0]);
        assert_eq!(lines(&figure.panels[1]).len(), 1);
        assert!(figure.svg().is_ok());
    }

    #[test]
    fn where_contexts_were_swept_they_lie_across() {
        let at = |m, context| Measurement { context, ..measurement("decode attention", m, None) };
        let all = vec![at(1, 1024), at(1, 8192), at(8, 1024), at(8, 8192)];
        let figure = figure(&Report::new("decode-attention", Machine::of(&[]), vec![], all));
        let series = lines(&figure.panels[0]);
        assert_eq!(
            series.iter().map(|s| &*s.name).collect::<Vec<_>>(),
            ["llama3-8b, m = 1", "llama3-8b, m = 8"]
        );
        assert_eq!(series[1].points[1].x, 8192.0);
    }

    #[test]
    fn each_model_has_its_panels() {
        let of = |model: &str, tp| Measurement { model: model.into(), tp, ..measurement("qkv", 1, None) };
        let all = vec![of("llama3-8b", 1), of("llama3-8b", 8), of("smollm2", 1)];
        let figure = figure(&Report::new("decode-gemm", Machine::of(&[]), vec![], all));
        let panels: Vec<_> = figure.panels.iter().map(|p| (&*p.title, lines(p).len())).collect();
        assert_eq!(panels, [("qkv, llama3-8b", 2), ("qkv, smollm2", 1)]);
        assert_eq!(lines(&figure.panels[0])[1].name, "llama3-8b, tp 8");
    }
}
