//! A figure through plotters' SVG back end.
//!
//! Axes are linear to plotters: values are placed, and ticks chosen and labelled, by [`super::axis`].

use std::ops::Range;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint};
use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::axis::{Axis, Scale};
use super::{Content, Figure, Panel, PlotError, Point, Series};

const PANEL_PIXELS: (u32, u32) = (470, 330);
/// Room for the caption below a single panel.
const LEAST_WIDTH: u32 = 760;
const TITLE_PIXELS: u32 = 34;
const CAPTION_PIXELS: u32 = 22;
const MOST_COLUMNS: usize = 3;
/// Told apart by colour-blind readers, and in print: Okabe and Ito, Color Universal Design (2008).
const COLORS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(120, 120, 120),
    RGBColor(0, 0, 0),
];
const GRID: RGBColor = RGBColor(225, 225, 225);
const FONT: &str = "sans-serif";

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Axis, Axis>>;
type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

pub(super) fn figure(figure: &Figure) -> Result<String, PlotError> {
    if figure.panels.is_empty() {
        return Err(PlotError::Empty { title: figure.title.clone() });
    }
    let plans = figure.panels.iter().map(Plan::new).collect::<Result<Vec<_>, _>>()?;
    let columns = plans.len().min(MOST_COLUMNS);
    let rows = plans.len().div_ceil(columns);
    let width = (PANEL_PIXELS.0 * columns as u32).max(LEAST_WIDTH);
    let height = TITLE_PIXELS + PANEL_PIXELS.1 * rows as u32 + CAPTION_PIXELS;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (width, height)).into_drawing_area();
        let draw = || -> Drawn {
            root.fill(&WHITE)?;
            let (title, rest) = root.split_vertically(TITLE_PIXELS);
            let (panels, caption) = rest.split_vertically(PANEL_PIXELS.1 * rows as u32);
            text(&title, &figure.title, 18, width)?;
            text(&caption, &figure.caption, 11, width)?;
            for (plan, area) in plans.iter().zip(panels.split_evenly((rows, columns))) {
                plan.draw(&area)?;
            }
            root.present()
        };
        let failed = |e: DrawingAreaErrorKind<_>| PlotError::Draw {
            title: figure.title.clone(),
            reason: e.to_string(),
        };
        draw().map_err(failed)?;
    }
    Ok(svg)
}

/// A line of text in the middle of an area.
fn text(area: &Area<'_>, text: &str, pixels: u32, width: u32) -> Drawn {
    let style = (FONT, pixels).into_font().color(&BLACK).pos(Pos::new(HPos::Center, VPos::Top));
    area.draw_text(text, &style, (width as i32 / 2, 7))
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, place: &f64, (first, last): (i32, i32)) -> i32 {
        let share = (place - self.places.start) / (self.places.end - self.places.start);
        first + (share * f64::from(last - first)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.places.clone()
    }
}

/// A panel whose axes are known.
struct Plan<'a> {
    panel: &'a Panel,
    x: Axis,
    y: Axis,
}

impl<'a> Plan<'a> {
    fn new(panel: &'a Panel) -> Result<Self, PlotError> {
        let axes = match &panel.content {
            Content::Lines { x, y, series } => {
                let points = || series.iter().flat_map(|series| &series.points);
                let ends = |point: &Point| point.range.map_or([point.y; 2], |(low, high)| [low, high]);
                let x = Axis::over(*x, points().map(|point| point.x));
                x.zip(Axis::over(*y, points().flat_map(|point| [point.y].into_iter().chain(ends(point)))))
            }
            Content::Bars { bars, .. } => {
                let sums = |(_, parts): &(String, Vec<f64>)| {
                    [1.0, -1.0].map(|sign| parts.iter().filter(|&&part| part * sign > 0.0).sum::<f64>())
                };
                let y = Axis::over(Scale::Linear, bars.iter().flat_map(sums));
                // Room for the legend at the right.
                let places = -0.6..1.4 * bars.len() as f64 - 0.4;
                let ticks = (0..bars.len()).map(|i| i as f64).collect();
                y.map(|y| (Axis { scale: Scale::Linear, places, ticks }, y))
            }
        };
        let (x, y) = axes.ok_or_else(|| PlotError::Empty { title: panel.title.clone() })?;
        Ok(Self { panel, x, y })
    }

    fn draw(&self, area: &Area<'_>) -> Drawn {
        let Self { panel, x, y } = self;
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .caption(&panel.title, (FONT, 14))
            .x_label_area_size(38)
            .y_label_area_size(56)
            .build_cartesian_2d(x.clone(), y.clone())?;
        let x_label = |place: &f64| match &panel.content {
            Content::Bars { bars, .. } => bars[*place as usize].0.clone(),
            Content::Lines { .. } => x.label(*place),
        };
        chart
            .configure_mesh()
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .label_style((FONT, 11))
            .axis_desc_style((FONT, 12))
            .x_label_formatter(&x_label)
            .y_label_formatter(&|place| y.label(*place))
            .x_desc(&panel.x_label)
            .y_desc(y.described(&panel.y_label))
            .draw()?;
        match &panel.content {
            Content::Lines { series, .. } => {
                series.iter().try_for_each(|series| self.line(&mut chart, series))?
            }
            Content::Bars { parts, bars } => stacks(&mut chart, parts, bars)?,
        }
        chart
            .configure_series_labels()
            .position(self.legend_position())
            .background_style(WHITE.mix(0.8))
            .border_style(GRID)
            .label_font((FONT, 11))
            .legend_area_size(22)
            .draw()
    }

    /// Where the bars leave room, or the corner that the lines cross least.
    fn legend_position(&self) -> SeriesLabelPosition {
        use SeriesLabelPosition::{LowerLeft, LowerRight, UpperLeft, UpperRight};
        let Content::Lines { series, .. } = &self.panel.content else { return UpperRight };
        let longest = series.iter().map(|series| series.name.chars().count()).max().unwrap_or(0);
        // Shares of the axes, from the pixels of a letter, a line and the axes.
        let width = (6.5 * longest as f64 + 45.0) / 390.0;
        let height = (14.0 * series.len() as f64 + 15.0) / 250.0;
        let drawn: Vec<_> = series.iter().flat_map(|series| self.along(series)).collect();
        let crossings = |right: bool, upper: bool| {
            let inside = |&&(x, y): &&(f64, f64)| {
                (if right { 1.0 - x } else { x }) < width && (if upper { 1.0 - y } else { y }) < height
            };
            drawn.iter().filter(inside).count()
        };
        let corners = [
            (UpperLeft, crossings(false, true)),
            (UpperRight, crossings(true, true)),
            (LowerRight, crossings(true, false)),
            (LowerLeft, crossings(false, false)),
        ];
        corners.into_iter().min_by_key(|(_, crossings)| *crossings).map_or(UpperLeft, |(corner, _)| corner)
    }

    /// Points along a line, as shares of the axes.
    fn along(&self, series: &Series) -> Vec<(f64, f64)> {
        const STEPS: usize = 16;
        let share =
            |axis: &Axis, place: f64| (place - axis.places.start) / (axis.places.end - axis.places.start);
        let place = |point: &Point| {
            Some((share(&self.x, self.x.scale.place(point.x)?), share(&self.y, self.y.scale.place(point.y)?)))
        };
        let places: Vec<(f64, f64)> = series.points.iter().filter_map(place).collect();
        let between = |ends: &[(f64, f64)]| {
            let [(x0, y0), (x1, y1)] = [ends[0], ends[ends.len() - 1]];
            (0..=STEPS).map(move |i| {
                let t = i as f64 / STEPS as f64;
                (x0 + t * (x1 - x0), y0 + t * (y1 - y0))
            })
        };
        match places.len() {
            0 | 1 => places,
            _ => places.windows(2).flat_map(between).collect(),
        }
    }

    fn line(&self, chart: &mut Chart<'_, '_>, series: &Series) -> Drawn {
        let color = COLORS[series.color % COLORS.len()];
        let place = |point: &Point| Some((self.x.scale.place(point.x)?, self.y.scale.place(point.y)?));
        let places: Vec<(f64, f64)> = series.points.iter().filter_map(place).collect();
        let bars = series.points.iter().filter_map(|point| {
            let ((low, high), (x, y)) = (point.range?, place(point)?);
            let ends = [self.y.scale.place(low)?, self.y.scale.place(high)?];
            Some(ErrorBar::new_vertical(x, ends[0], y, ends[1], color, 4))
        });
        chart.draw_series(bars)?;
        chart.draw_series(places.iter().map(|&at| Circle::new(at, 2, color.filled())))?;
        let stroke = color.stroke_width(2);
        let sample = |(x, y): (i32, i32)| [(x, y), (x + 18, y)];
        if series.dashed {
            let line = chart.draw_series(DashedLineSeries::new(places, 5, 4, stroke))?;
            line.label(&series.name).legend(move |at| DashedPathElement::new(sample(at), 5, 4, stroke));
        } else {
            let line = chart.draw_series(LineSeries::new(places, stroke))?;
            line.label(&series.name).legend(move |at| PathElement::new(sample(at), stroke));
        }
        Ok(())
    }
}

fn stacks(chart: &mut Chart<'_, '_>, parts: &[String], bars: &[(String, Vec<f64>)]) -> Drawn {
    // Up and down from zero, bar by bar.
    let mut ends = vec![[0.0f64; 2]; bars.len()];
    for (i, name) in parts.iter().enumerate() {
        let color = COLORS[i % COLORS.len()];
        let boxes = bars.iter().zip(&mut ends).enumerate().map(|(at, ((_, values), ends))| {
            let value = values.get(i).copied().unwrap_or(0.0);
            let end = &mut ends[usize::from(value < 0.0)];
            let from = std::mem::replace(end, *end + value);
            let at = at as f64;
            Rectangle::new([(at - 0.3, from), (at + 0.3, *end)], color.filled())
        });
        chart
            .draw_series(boxes)?
            .label(name)
            .legend(move |(x, y)| Rectangle::new([(x + 4, y - 5), (x + 14, y + 5)], color.filled()));
    }
    Ok(())
}
