//! A measurement as a line of CSV.

use super::Measurement;
use crate::bench::breakdown::Breakdown;
use crate::bench::report::{Record, cell};
use crate::bench::stats::Percentiles;

impl Record for Measurement {
    const COLUMNS: &'static [&'static str] = &[
        "model",
        "tp",
        "topology",
        "spd_blocks",
        "device",
        "batch",
        "prompt",
        "decode",
        "runs",
        "tokens_per_s",
        "step_ms_median",
        "step_ms_p10",
        "step_ms_p90",
        "time_to_first_token_ms_median",
        "time_to_first_token_ms_p10",
        "time_to_first_token_ms_p90",
        "end_to_end_ms_median",
        "end_to_end_ms_p10",
        "end_to_end_ms_p90",
        "sync_points_per_token",
        "block_all_reduces_per_token",
        "gemm_us",
        "attention_us",
        "pointwise_us",
        "sync_us",
        "head_us",
        "gaps_us",
        "host_us",
        "gemm_saved_us",
        "attention_saved_us",
        "pointwise_saved_us",
        "sync_saved_us",
        "head_saved_us",
    ];

    fn cells(&self) -> Vec<String> {
        let Self { model, tp, topology, spd_blocks, device, workload, times, breakdown } = self;
        let mut cells = vec![
            model.clone(),
            tp.to_string(),
            topology.clone(),
            spd_blocks.to_string(),
            device.clone(),
            workload.batch.to_string(),
            workload.prompt.to_string(),
            workload.decode.to_string(),
            workload.runs.to_string(),
            cell(times.tokens_per_s, 1),
        ];
        let ms = |p: &Percentiles, decimals| [p.median, p.p10, p.p90].map(|ms| cell(ms, decimals));
        cells.extend(ms(&times.step_ms, 4));
        cells.extend(ms(&times.time_to_first_token_ms, 2));
        cells.extend(ms(&times.end_to_end_ms, 1));
        cells.extend([times.sync_points_per_token, times.block_all_reduces_per_token].map(|n| cell(n, 0)));
        cells.extend(breakdown.as_ref().map(parts).unwrap_or_else(|| vec![String::new(); 12]));
        cells
    }
}

fn parts(breakdown: &Breakdown) -> Vec<String> {
    let saved = breakdown.classes.iter().map(|class| class.saved_us);
    breakdown.parts().map(|(_, us)| us).chain(saved).map(|us| cell(us, 1)).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::bench::decode::{DecodeTimes, Workload};
    use crate::runner::profile::{ClassProfile, KernelClass, StepProfile};

    /// A step of `batch` ms.
    pub(in super::super) fn measurement(batch: usize, with_breakdown: bool) -> Measurement {
        let ms = |ms: f64| Percentiles { p10: 0.9 * ms, median: ms, p90: 1.1 * ms };
        let step_ms = ms(batch as f64);
        let class = |class: KernelClass| ClassProfile {
            class,
            kernels: usize::from(class != KernelClass::Sync),
            alone_us: vec![if class == KernelClass::Sync { 0.0 } else { 200.0 }],
            without_us: vec![850.0],
        };
        let profile = StepProfile { whole_us: vec![900.0], classes: KernelClass::ALL.map(class).into() };
        Measurement {
            model: "random:llama3-8b,layers=2".into(),
            tp: 1,
            topology: "1x1".into(),
            spd_blocks: 0,
            device: "cpu".into(),
            workload: Workload { batch, prompt: 32, decode: 128, runs: 3 },
            times: DecodeTimes {
                time_to_first_token_ms: ms(50.0),
                step_ms,
                tokens_per_s: 1000.0,
                end_to_end_ms: ms(178.0),
                sync_points_per_token: 0.0,
                block_all_reduces_per_token: 0.0,
            },
            breakdown: with_breakdown.then(|| Breakdown::of(&profile, 1e3 * step_ms.median)),
        }
    }

    #[test]
    fn a_line_has_every_column_and_nothing_for_what_is_unknown() {
        let known = "random:llama3-8b,layers=2;1;1x1;0;cpu;1;32;128;3;1000.0;1.0000;0.9000;1.1000;50.00;45.00;55.00;\
                     178.0;160.2;195.8;0;0;";
        assert_eq!(measurement(1, false).cells().join(";"), format!("{known}{}", ";".repeat(11)));
        let parts = "125.0;125.0;125.0;0.0;125.0;400.0;100.0;50.0;50.0;50.0;0.0;50.0";
        assert_eq!(measurement(1, true).cells().join(";"), format!("{known}{parts}"));
        assert_eq!(measurement(1, true).cells().len(), Measurement::COLUMNS.len());
    }
}
