//! What `fewsync bench` measures, and how results are kept.

pub mod decode;
pub mod kernels;
pub mod library;
pub mod machine;
#[cfg(feature = "cli")]
pub mod plot;
#[cfg(feature = "cli")]
pub mod report;
pub mod stats;
