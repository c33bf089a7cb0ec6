//! Sync-Point Drop: which blocks skip the all-reduce behind attention (SPD, ICML 2025, arXiv 2502.20727).
//!
//! The plan says what each block does, and every back end follows it. The rest finds plans, over any
//! [`Runner`](crate::runner::Runner): [`Sensitivity`] measures what each block's drop costs.

mod calibration;
mod file;
mod meter;
mod plan;
mod replacement;
mod sensitivity;
mod spec;

pub use calibration::{Calibration, TextId};
pub use meter::{Meter, Metric, Score};
pub use plan::{BlockPlan, Plan, PlanError};
pub(crate) use replacement::{Replaced, ReplacementFile};
pub use sensitivity::{BlockScores, Ranking, Sensitivity, SensitivityError, state_bytes, sweep};
pub use spec::SpdSpec;
