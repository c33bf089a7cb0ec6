use super::*;

fn point(x: f64, y: f64) -> Point {
    Point { x, y, range: Some((0.9 * y, 1.2 * y)) }
}

fn lines(x: Scale, y: Scale) -> Panel {
    let points: Vec<Point> = [1.0, 8.0, 64.0].map(|m| point(m, 10.0 + m)).to_vec();
    let theirs = points.iter().map(|p| Point { y: 1.5 * p.y, range: None, ..*p }).collect();
    Panel {
        title: "gate & up".into(),
        x_label: "tokens".into(),
        y_label: "time, µs".into(),
        content: Content::Lines {
            x,
            y,
            series: vec![
                Series { name: "fewsync <ours>".into(), color: 0, dashed: false, points },
                Series { name: "cuBLASLt".into(), color: 0, dashed: true, points: theirs },
            ],
        },
    }
}

fn bars() -> Panel {
    Panel {
        title: "step".into(),
        x_label: String::new(),
        y_label: "ms".into(),
        content: Content::Bars {
            parts: vec!["gemm".into(), "gaps".into()],
            bars: vec![("batch 1".into(), vec![3.0, 1.0]), ("batch 8".into(), vec![4.0, -0.5])],
        },
    }
}

fn figure(panels: Vec<Panel>) -> Figure {
    Figure { title: "decode".into(), caption: "a machine".into(), panels }
}

/// Opening and closing tags in pairs, as XML wants them, and no bare `&` or `<` in text.
fn assert_well_formed(svg: &str) {
    let mut open = Vec::new();
    let mut rest = svg;
    while let Some(start) = rest.find('<') {
        let text = &rest[..start];
        let entities = ["&amp;", "&lt;", "&gt;", "&quot;", "&apos;", "&#39;"];
        assert_eq!(
            text.matches('&').count(),
            entities.iter().map(|e| text.matches(e).count()).sum::<usize>()
        );
        let end = start + rest[start..].find('>').expect("every tag ends");
        let tag = &rest[start + 1..end];
        assert!(!tag.contains('<'), "<{tag}>");
        let name = tag.split([' ', '/', '\n']).find(|name| !name.is_empty()).unwrap();
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "</{name}>");
        } else if !tag.ends_with('/') && !tag.starts_with(['?', '!']) {
            open.push(name);
        }
        rest = &rest[end + 1..];
    }
    assert!(open.is_empty(), "{open:?} stay open");
}

#[test]
fn a_figure_is_well_formed_and_has_what_it_was_given() {
    let svg = figure(vec![lines(Scale::Log2, Scale::Log10), lines(Scale::Linear, Scale::Linear), bars()])
        .svg()
        .unwrap();
    assert_well_formed(&svg);
    for text in [
        "decode",
        "a machine",
        "gate &amp; up",
        "fewsync &lt;ours&gt;",
        "cuBLASLt",
        "time, µs",
        "batch 8",
        "gaps",
    ] {
        assert!(svg.contains(text), "{text}");
    }
    assert!(svg.matches("<polyline").count() >= 4, "lines and error bars");
}

#[test]
fn the_same_figure_gives_the_same_bytes() {
    let figure = figure(vec![lines(Scale::Log2, Scale::Log10), bars()]);
    assert_eq!(figure.svg().unwrap(), figure.clone().svg().unwrap());
}

#[test]
fn what_cannot_be_shown_is_refused_by_name() {
    let refusal = |panels| figure(panels).svg().unwrap_err().to_string();
    assert!(refusal(vec![]).contains("'decode'"));
    let mut empty = lines(Scale::Log2, Scale::Log10);
    if let Content::Lines { series, .. } = &mut empty.content {
        series.iter_mut().for_each(|series| series.points.clear());
    }
    assert!(refusal(vec![bars(), empty]).contains("'gate & up'"));
}

#[test]
fn negative_parts_hang_below_zero() {
    let svg = figure(vec![bars()]).svg().unwrap();
    // Filled boxes of the bars: x, y, width, height.
    let number = |tag: &str, name: &str| -> f64 {
        let value = tag.split(&format!(" {name}=\"")).nth(1).unwrap();
        value.split('"').next().unwrap().parse().unwrap()
    };
    let of = |color: &str| -> Vec<(f64, f64)> {
        let tags = svg.split("<rect").filter(|tag| tag.contains(color) && number(tag, "width") > 20.0);
        tags.map(|tag| (number(tag, "y"), number(tag, "y") + number(tag, "height"))).collect()
    };
    let (gemm, gaps) = (of("#0072B2"), of("#D55E00"));
    assert_eq!((gemm.len(), gaps.len()), (2, 2), "{svg}");
    assert!(gaps[0].1 <= gemm[0].0 + 1.0, "a positive part stands on the one before");
    assert!(gaps[1].0 >= gemm[1].1 - 1.0, "a negative part begins at zero");
}

#[test]
fn a_file_that_cannot_be_written_is_named() {
    let refusal = figure(vec![bars()]).write(Path::new("/nowhere/a.svg")).unwrap_err().to_string();
    assert!(refusal.starts_with("/nowhere/a.svg: cannot write: "), "{refusal}");
}
