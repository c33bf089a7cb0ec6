//! Shadow state of a region.

/// What is known of the accesses to a region.
#[derive(Debug, Default)]
pub(super) struct Tracking {}
