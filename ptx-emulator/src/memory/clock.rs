//! Sets of past operations.

/// A point in the execution: everything that was released into it happens before whoever acquires it.
///
/// A barrier phase, an mbarrier phase, a stream's end and an event each keep one.
#[derive(Debug, Clone, Default)]
pub struct Clock {}
