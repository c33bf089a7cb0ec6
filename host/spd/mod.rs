//! Sync-Point Drop: which blocks skip the all-reduce behind attention (SPD, ICML 2025, arXiv 2502.20727).

#[cfg(feature = "distill")]
pub mod distill;
mod plan;
mod replacement;
mod spec;

pub use plan::{BlockPlan, Plan, PlanError};
pub(crate) use replacement::{Replaced, ReplacementFile};
pub use spec::SpdSpec;
