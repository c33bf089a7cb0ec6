//! A measurement as a line of results, and how lines compare.

use std::fmt;

use serde::Serialize;

use crate::bench::stats::Percentiles;
use crate::comm::DType;

/// Which call was timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Call {
    /// The sum alone.
    Plain,
    /// The sum, the residual added and the RMSNorm, in one call.
    Fused,
    /// The residual added and the RMSNorm, without the sum: what stays of a fused call where the sum is left out.
    Norm,
    /// The first phase alone: reduce-scatter in the node.
    Reduce,
    /// The second phase alone: recursive doubling between nodes.
    Put,
    /// The third phase alone: all-gather in the node.
    Broadcast,
}

/// How calls were launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Launching {
    /// As a CUDA graph of all calls of a sample.
    Graph,
    /// One by one.
    Eager,
}

impl Call {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Plain, Self::Fused, Self::Norm, Self::Reduce, Self::Put, Self::Broadcast];

    /// As in results.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Fused => "fused",
            Self::Norm => "norm",
            Self::Reduce => "reduce",
            Self::Put => "put",
            Self::Broadcast => "broadcast",
        }
    }
}

impl Launching {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Graph, Self::Eager];

    /// As in results.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Graph => "graph",
            Self::Eager => "eager",
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Launching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The name of this crate among the contenders.
pub const OURS: &str = "fewsync";
/// The name of NVSHMEM's own sum.
pub const NVSHMEM: &str = "nvshmem";
/// NCCL's.
pub const NCCL: &str = "nccl";
/// The variant of a contender that chooses by itself.
pub const AUTOMATIC: &str = "auto";

/// One line of results.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measurement {
    /// `fewsync`, `nccl`, `torch`.
    pub contender: String,
    /// What of it: `auto`, `ring-ll`, `one-shot`.
    pub variant: String,
    /// Which call.
    pub call: Call,
    /// How it was launched.
    pub launch: Launching,
    /// Type of the elements.
    #[serde(serialize_with = "as_text")]
    pub dtype: DType,
    /// Ranks.
    pub tp: usize,
    /// Nodes × ranks per node.
    pub topology: String,
    /// Of the tensor.
    pub bytes: usize,
    /// Elements of a row, for the norm; 0 where there is none.
    pub hidden: usize,
    /// One call on the slowest rank, in µs.
    pub us: Percentiles,
    /// The tensor's bytes over the median.
    pub gb_per_s: f64,
    /// Over the median of NCCL's own choice, for the same tensor and launch.
    pub ratio_nccl: Option<f64>,
    /// Over the fastest of NCCL's forced variants and its own choice.
    pub ratio_nccl_best: Option<f64>,
    /// Over the fastest variant of torch's symmetric memory.
    pub ratio_torch_best: Option<f64>,
    /// µs above the plain call of the same contender on the same tensor.
    pub us_over_plain: Option<f64>,
    /// Of a whole sum, what each rank's link carries at least, each way, if no switch adds up: 2(P - 1)/P of the
    /// tensor's bytes over the median, as nccl-tests define it.
    pub bus_gb_per_s: Option<f64>,
}

fn as_text<S: serde::Serializer>(dtype: &DType, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(dtype)
}

impl Measurement {
    /// Without comparisons: [`compare`] adds them.
    #[expect(clippy::too_many_arguments, reason = "a line has that many columns")]
    pub fn new(
        (contender, variant): (&str, &str),
        call: Call,
        launch: Launching,
        dtype: DType,
        tp: usize,
        topology: String,
        bytes: usize,
        hidden: usize,
        us: Percentiles,
    ) -> Self {
        let gb_per_s = bytes as f64 / us.median / 1e3;
        let is_whole = matches!(call, Call::Plain | Call::Fused);
        let bus_gb_per_s = is_whole.then(|| gb_per_s * 2.0 * (tp as f64 - 1.0) / tp as f64);
        Self {
            contender: contender.to_owned(),
            variant: variant.to_owned(),
            call,
            launch,
            dtype,
            tp,
            topology,
            bytes,
            hidden,
            us,
            gb_per_s,
            ratio_nccl: None,
            ratio_nccl_best: None,
            ratio_torch_best: None,
            us_over_plain: None,
            bus_gb_per_s,
        }
    }

    /// Whether another line is the plain sum of the same tensor, launched alike.
    fn is_plain_of(&self, other: &Self) -> bool {
        let key = |m: &Self| (m.launch, m.dtype, m.tp, m.bytes);
        self.call == Call::Plain && key(self) == key(other)
    }
}

/// Fills in the columns that compare a line with others. Whole all-reduces are compared with plain ones of others,
/// phases with nothing.
pub fn compare(lines: &mut [Measurement]) {
    let all = lines.to_vec();
    for line in lines {
        let fastest = |wanted: &dyn Fn(&Measurement) -> bool| {
            let medians = all.iter().filter(|m| m.is_plain_of(line) && wanted(m)).map(|m| m.us.median);
            medians.min_by(f64::total_cmp)
        };
        if !matches!(line.call, Call::Plain | Call::Fused) {
            continue;
        }
        let over = |other: Option<f64>| other.map(|other| line.us.median / other);
        let nccl = over(fastest(&|m| m.contender == NCCL && m.variant == AUTOMATIC));
        let nccl_best = over(fastest(&|m| m.contender == NCCL));
        let torch_best = over(fastest(&|m| m.contender == "torch"));
        let plain = fastest(&|m| m.contender == line.contender && m.variant == line.variant);
        let over_plain = plain.filter(|_| line.call == Call::Fused).map(|plain| line.us.median - plain);
        (line.ratio_nccl, line.ratio_nccl_best, line.ratio_torch_best) = (nccl, nccl_best, torch_best);
        line.us_over_plain = over_plain;
    }
}

#[cfg(feature = "cli")]
impl crate::bench::report::Record for Measurement {
    const COLUMNS: &'static [&'static str] = &[
        "contender",
        "variant",
        "call",
        "launch",
        "dtype",
        "tp",
        "topology",
        "bytes",
        "hidden",
        "us_median",
        "us_p10",
        "us_p90",
        "gb_per_s",
        "ratio_nccl",
        "ratio_nccl_best",
        "ratio_torch_best",
        "us_over_plain",
        "bus_gb_per_s",
    ];

    fn cells(&self) -> Vec<String> {
        use crate::bench::report::cell;
        let Self { contender, variant, call, launch, dtype, tp, topology, bytes, hidden, us, .. } = self;
        let mut cells = vec![contender.clone(), variant.clone(), call.name().into(), launch.name().into()];
        cells.extend([dtype.to_string(), tp.to_string(), topology.clone()]);
        cells.extend([bytes, hidden].map(usize::to_string));
        cells.extend([us.median, us.p10, us.p90].map(|us| cell(us, 3)));
        cells.push(cell(self.gb_per_s, 2));
        cells.extend([self.ratio_nccl, self.ratio_nccl_best, self.ratio_torch_best].map(|r| cell(r, 3)));
        cells.push(cell(self.us_over_plain, 3));
        cells.push(cell(self.bus_gb_per_s, 2));
        cells
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(contender: &str, variant: &str, call: Call, bytes: usize, median: f64) -> Measurement {
        let us = Percentiles { p10: median - 0.5, median, p90: median + 0.5 };
        let name = (contender, variant);
        Measurement::new(name, call, Launching::Graph, DType::Bf16, 2, "1x2".into(), bytes, 0, us)
    }

    /// nccl-tests, doc/PERFORMANCE.md: of two ranks the algorithm's bandwidth, of four one and a half times as much.
    #[test]
    fn the_bus_carries_what_nccl_tests_say() {
        let of = |call, tp| {
            let us = Percentiles { p10: 9.0, median: 10.0, p90: 11.0 };
            let (name, shape) = ((OURS, AUTOMATIC), format!("1x{tp}"));
            let line = Measurement::new(name, call, Launching::Graph, DType::Bf16, tp, shape, 1 << 20, 0, us);
            line.bus_gb_per_s
        };
        let is_near = |found: Option<f64>, expected: f64| (found.unwrap() - expected).abs() < 1e-9;
        assert!(is_near(of(Call::Plain, 2), 104.8576));
        assert!(is_near(of(Call::Fused, 4), 157.2864));
        assert_eq!(of(Call::Reduce, 4), None, "a phase is no all-reduce");
    }

    #[test]
    fn lines_are_compared_with_the_plain_sum_of_the_same_tensor() {
        let mut lines = [
            line(OURS, AUTOMATIC, Call::Plain, 8192, 3.0),
            line(OURS, AUTOMATIC, Call::Fused, 8192, 3.5),
            line(OURS, AUTOMATIC, Call::Reduce, 8192, 2.0),
            line(NCCL, AUTOMATIC, Call::Plain, 8192, 12.0),
            line(NCCL, "tree-ll", Call::Plain, 8192, 10.0),
            line("torch", "one-shot", Call::Plain, 8192, 6.0),
            line("torch", "two-shot", Call::Plain, 8192, 7.5),
            line("torch", "one-shot", Call::Plain, 1024, 1.0),
            line(OURS, AUTOMATIC, Call::Plain, 4096, 3.0),
        ];
        compare(&mut lines);
        let ratios = |i: usize| {
            let Measurement { ratio_nccl, ratio_nccl_best, ratio_torch_best, us_over_plain, .. } = lines[i];
            (ratio_nccl, ratio_nccl_best, ratio_torch_best, us_over_plain)
        };
        assert_eq!(ratios(0), (Some(0.25), Some(0.3), Some(0.5), None));
        assert_eq!(ratios(1), (Some(3.5 / 12.0), Some(0.35), Some(3.5 / 6.0), Some(0.5)));
        assert_eq!(ratios(2), (None, None, None, None), "a phase is no all-reduce");
        assert_eq!(ratios(8), (None, None, None, None), "another size");
        assert_eq!(lines[6].ratio_torch_best, Some(1.25));
    }
}
