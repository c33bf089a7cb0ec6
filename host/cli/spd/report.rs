//! The results of `fewsync spd evaluate`: table and CSV columns.

use std::fmt::Write;

use serde::Serialize;

use super::timing::{BlockSync, TimedOver};
use crate::bench::report::{Record, cell};
use crate::spd::{Estimate, Quality, Times, Timing};

/// One plan's results under one workload over one link.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Line {
    pub(super) model: String,
    pub(super) tp: usize,
    /// `zero-shot`, or the plan's name.
    pub(super) series: String,
    pub(super) dropped: usize,
    pub(super) level_percent: f64,
    /// The same under every workload.
    pub(super) quality: Option<Quality>,
    pub(super) timed: Option<TimedOver>,
}

/// The two times of a workload.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Phase {
    /// Prompts to the first token.
    Prefill,
    /// One token of each sequence.
    Step,
}

impl Phase {
    pub(super) const ALL: [Self; 2] = [Self::Prefill, Self::Step];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Prefill => "time to first token",
            Self::Step => "time per token",
        }
    }

    pub(super) fn of(self, times: &Times) -> Timing {
        match self {
            Self::Prefill => times.first_token,
            Self::Step => times.step,
        }
    }
}

impl Line {
    pub(super) fn timing(&self, phase: Phase) -> Option<Timing> {
        self.timed.as_ref().map(|timed| phase.of(&timed.times))
    }

    fn sync(&self, phase: Phase) -> Option<BlockSync> {
        self.timed.as_ref()?.sync.map(|sync| sync[phase as usize])
    }

    /// What the dropped sync points take by themselves.
    pub(super) fn predicted_ms(&self, phase: Phase) -> Option<f64> {
        Some(self.sync(phase)?.saved_ms(self.dropped))
    }
}

impl Record for Line {
    #[rustfmt::skip]
    const COLUMNS: &'static [&'static str] = &[
        "model", "tp", "series", "dropped", "level_percent",
        "perplexity", "perplexity_low", "perplexity_high", "rise_percent", "rise_low", "rise_high",
        "kl", "kl_low", "kl_high", "top1_agreement", "top1_low", "top1_high",
        "accuracy", "accuracy_low", "accuracy_high",
        "link", "batch", "prompt",
        "first_token_ms", "first_token_p10", "first_token_p90",
        "first_token_saved_ms", "first_token_saved_p10", "first_token_saved_p90", "first_token_predicted_ms",
        "first_token_sum_us", "first_token_fused_us", "first_token_norm_us",
        "step_ms", "step_p10", "step_p90", "step_saved_ms", "step_saved_p10", "step_saved_p90", "step_predicted_ms",
        "step_sum_us", "step_fused_us", "step_norm_us",
    ];

    fn cells(&self) -> Vec<String> {
        let mut cells = vec![
            self.model.clone(),
            self.tp.to_string(),
            self.series.clone(),
            self.dropped.to_string(),
            format!("{:.1}", self.level_percent),
        ];
        let estimate = |of: fn(&Quality) -> Estimate, scale: f64, decimals| {
            let estimate = self.quality.as_ref().map(of);
            let bounds = estimate.and_then(|e| e.interval);
            let values = [estimate.map(|e| e.value), bounds.map(|b| b.0), bounds.map(|b| b.1)];
            values.map(|value| cell(value.map(|v| v * scale), decimals))
        };
        cells.extend(estimate(|q| q.perplexity, 1.0, 4));
        cells.extend(estimate(|q| q.rise, 100.0, 3));
        cells.extend(estimate(|q| q.kl, 1.0, 6));
        cells.extend(estimate(|q| q.top1_agreement, 1.0, 4));
        cells.extend(estimate(|q| q.accuracy, 1.0, 4));
        let timed = |of: fn(&TimedOver) -> String| self.timed.as_ref().map_or_else(String::new, of);
        cells.extend([
            timed(|t| t.link.clone()),
            timed(|t| t.times.batch.to_string()),
            timed(|t| t.times.prompt.to_string()),
        ]);
        for phase in Phase::ALL {
            let (timing, sync) = (self.timing(phase), self.sync(phase));
            for ms in [timing.map(|t| t.ms), timing.map(|t| t.saved_ms)] {
                cells
                    .extend([ms.map(|p| p.median), ms.map(|p| p.p10), ms.map(|p| p.p90)].map(|v| cell(v, 4)));
            }
            cells.push(cell(self.predicted_ms(phase), 4));
            let us = [sync.map(|s| s.sum_us), sync.map(|s| s.fused_us), sync.map(|s| s.norm_us)];
            cells.extend(us.map(|us| cell(us, 2)));
        }
        cells
    }
}

/// One line a plan, workload and link, for people.
pub(super) fn table(lines: &[Line]) -> String {
    let width = lines.iter().map(|line| line.series.len()).max().unwrap_or(0).max("series".len());
    let mut text = format!("{:width$}  drop  level", "series");
    if lines.iter().any(|line| line.quality.is_some()) {
        text += "  perplexity      rise  95 % interval          kl   top-1  accuracy";
    }
    if lines.iter().any(|line| line.timed.is_some()) {
        text += "  over            batch  prompt";
        for what in ["first token", "step"] {
            let _ = write!(text, "  {what:>14}           saved (predicted)");
        }
    }
    text.push('\n');
    for line in lines {
        let _ = write!(text, "{:width$}  {:4}  {:4.0}%", line.series, line.dropped, line.level_percent);
        if let Some(q) = &line.quality {
            let interval = q.rise.interval.map_or_else(String::new, |(low, high)| {
                format!("[{:+.1}, {:+.1}]", low * 100.0, high * 100.0)
            });
            let _ = write!(
                text,
                "  {:10.4}  {:+7.2}%  {interval:16}  {:8.5}  {:6.4}    {:6.4}",
                q.perplexity.value,
                q.rise.value * 100.0,
                q.kl.value,
                q.top1_agreement.value,
                q.accuracy.value
            );
        }
        if let Some(TimedOver { link, times, .. }) = &line.timed {
            let _ = write!(text, "  {link:14}  {:5}  {:6}", times.batch, times.prompt);
            for phase in Phase::ALL {
                text += &timing_text(phase.of(times), line.predicted_ms(phase));
            }
        }
        text.push('\n');
    }
    text
}

fn timing_text(timing: Timing, predicted_ms: Option<f64>) -> String {
    let (ms, saved) = (timing.ms.median, timing.saved_ms.median);
    let predicted = predicted_ms.map_or_else(|| "-".into(), |ms| format!("{ms:.3}"));
    format!("  {ms:8.3} ms {:+6.1}%  {saved:8.3} ({predicted:>7}) ms", -timing.saved_percent())
}
