//! A measurement as a line of CSV.

use super::Measurement;
use crate::bench::report::{Record, cell};

impl Record for Measurement {
    const COLUMNS: &'static [&'static str] = &[
        "model",
        "tp",
        "op",
        "kernel",
        "m",
        "n",
        "k",
        "context",
        "us_median",
        "us_p10",
        "us_p90",
        "gb_per_s",
        "tflop_per_s",
        "percent_of_ceiling",
    ];

    fn cells(&self) -> Vec<String> {
        let Self { model, tp, op, kernel, m, n, k, context, us, .. } = self;
        let mut cells = vec![model.clone(), tp.to_string(), (*op).into(), (*kernel).into()];
        cells.extend([m, n, k, context].map(usize::to_string));
        cells.extend([us.median, us.p10, us.p90].map(|us| cell(us, 3)));
        cells.extend([cell(self.gb_per_s, 1), cell(self.tflop_per_s, 2), cell(self.percent_of_ceiling, 1)]);
        cells
    }
}
