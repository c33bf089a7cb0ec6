//! Plots of results as SVG: lines with error bars over linear or logarithmic axes, and stacked bars.
//!
//! The same figure gives the same bytes on every machine: text is left to the viewer, and no font is read.

mod axis;
mod draw;

use std::path::{Path, PathBuf};

pub use axis::Scale;

/// Panels in a grid under one title.
#[derive(Debug, Clone)]
pub struct Figure {
    /// Above all.
    pub title: String,
    /// Below all, small: machine, commit, method.
    pub caption: String,
    /// At least one, row by row.
    pub panels: Vec<Panel>,
}

/// One pair of axes and what stands in it.
#[derive(Debug, Clone)]
pub struct Panel {
    /// Above the axes.
    pub title: String,
    /// Below them.
    pub x_label: String,
    /// Beside them, with the unit.
    pub y_label: String,
    /// What stands in it.
    pub content: Content,
}

/// What a panel shows.
#[derive(Debug, Clone)]
pub enum Content {
    /// Points joined by lines.
    Lines {
        /// Of the x axis.
        x: Scale,
        /// Of the y axis.
        y: Scale,
        /// In the order of the legend.
        series: Vec<Series>,
    },
    /// Stacked bars; negative parts hang below zero.
    Bars {
        /// The parts' names, in the order of the legend.
        parts: Vec<String>,
        /// A bar each: its name and its parts.
        bars: Vec<(String, Vec<f64>)>,
    },
}

/// A line through points.
#[derive(Debug, Clone)]
pub struct Series {
    /// In the legend.
    pub name: String,
    /// Series of the same colour belong together; colours repeat after eight.
    pub color: usize,
    /// For what others measured.
    pub dashed: bool,
    /// From left to right.
    pub points: Vec<Point>,
}

/// A point with its error bar.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Across.
    pub x: f64,
    /// Up: the median.
    pub y: f64,
    /// Where the error bar begins (p10) and ends (p90).
    pub range: Option<(f64, f64)>,
}

/// Why there is no plot.
#[derive(Debug, thiserror::Error)]
pub enum PlotError {
    /// Nothing can be placed.
    #[error(
        "the plot '{title}' has nothing to show: its results are empty, or not above zero on a logarithmic axis"
    )]
    Empty {
        /// The figure's or panel's title.
        title: String,
    },
    /// The drawing library failed.
    #[error("the plot '{title}' cannot be drawn: {reason}")]
    Draw {
        /// The figure's title.
        title: String,
        /// What it said.
        reason: String,
    },
    /// The file cannot be written.
    #[error("{}: cannot write: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl Figure {
    /// The figure as an SVG document.
    ///
    /// # Errors
    /// No panels, or one without anything that its axes can show.
    pub fn svg(&self) -> Result<String, PlotError> {
        draw::figure(self)
    }

    /// Writes the document to a file.
    ///
    /// # Errors
    /// As [`Figure::svg`]; a file that cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), PlotError> {
        std::fs::write(path, self.svg()?).map_err(|source| PlotError::Io { path: path.to_owned(), source })
    }
}

#[cfg(test)]
mod tests;
