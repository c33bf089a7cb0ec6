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
        "bound",
        "cublaslt_us",
        "ratio",
    ];

    fn cells(&self) -> Vec<String> {
        let Self { model, tp, op, kernel, m, n, k, context, us, .. } = self;
        let mut cells = vec![model.clone(), tp.to_string(), (*op).into(), (*kernel).into()];
        cells.extend([m, n, k, context].map(usize::to_string));
        cells.extend([us.median, us.p10, us.p90].map(|us| cell(us, 3)));
        cells.extend([cell(self.gb_per_s, 1), cell(self.tflop_per_s, 2), cell(self.percent_of_ceiling, 1)]);
        let theirs = cell(self.cublaslt_us.map(|us| us.median), 3);
        cells.extend([self.bound.name().into(), theirs, cell(self.ratio, 3)]);
        cells
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::bench::kernels::Bound;
    use crate::bench::stats::Percentiles;

    /// Ten microseconds per token, cuBLASLt's time if it is there.
    pub(in super::super) fn measurement(op: &'static str, m: usize, cublaslt_us: Option<f64>) -> Measurement {
        let us = Percentiles { p10: 9.0 * m as f64, median: 10.0 * m as f64, p90: 12.0 * m as f64 };
        Measurement {
            model: "llama3-8b".into(),
            tp: 1,
            op,
            kernel: "gemv_bf16_m1_store",
            m,
            n: 6144,
            k: 4096,
            context: 0,
            us,
            gb_per_s: 3588.44,
            tflop_per_s: 3.588,
            percent_of_ceiling: 79.06,
            bound: Bound::Memory,
            cublaslt_us: cublaslt_us.map(|median| Percentiles { p10: median, median, p90: median }),
            ratio: cublaslt_us.map(|median| median / us.median),
        }
    }

    #[test]
    fn a_line_has_every_column_and_nothing_for_what_is_unknown() {
        let line = |theirs| measurement("qkv", 2, theirs).cells().join(",");
        let ours =
            "llama3-8b,1,qkv,gemv_bf16_m1_store,2,6144,4096,0,20.000,18.000,24.000,3588.4,3.59,79.1,memory";
        assert_eq!(line(Some(15.0)), format!("{ours},15.000,0.750"));
        assert_eq!(line(None), format!("{ours},,"));
        assert_eq!(measurement("qkv", 1, None).cells().len(), Measurement::COLUMNS.len());
    }
}
