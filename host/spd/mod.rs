//! Sync-Point Drop: which blocks skip the all-reduce behind attention (SPD, ICML 2025, arXiv 2502.20727).
//!
//! The plan says what each block does, and every back end follows it. The rest finds plans, over any
//! [`Runner`](crate::runner::Runner): [`Sensitivity`] measures what each block's drop costs, [`greedy`] chooses blocks.

mod calibration;
mod choose;
#[cfg(feature = "distill")]
pub mod distill;
mod file;
mod grouping;
mod latency;
mod levels;
mod meter;
mod plan;
mod replacement;
mod search;
mod sensitivity;
mod spec;
mod timing;

pub use calibration::{Calibration, TextId};
pub use choose::{Class, Thresholds, ascending, predicted_count};
pub use grouping::{Grouping, dealt, group_heads};
pub use latency::{AllReduceTime, SyncCost, message_bytes, passes};
pub use levels::{Estimate, Quality, at_level, qualities};
pub use meter::{Meter, Metric, Score};
pub use plan::{BlockPlan, Plan, PlanError};
pub(crate) use replacement::{Replaced, ReplacementFile};
pub use search::{Choice, Greedy, dropping, greedy, longest_within};
pub use sensitivity::{BlockScores, Ranking, Sensitivity, SensitivityError, state_bytes, sweep};
pub use spec::SpdSpec;
pub use timing::{Times, Timing, times};
