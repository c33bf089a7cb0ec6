//! The schedule of a buffer's last call, kept: decoding repeats one size for ever.

use crate::comm::{
    Topology,
    schedule::{Step, gather_schedule, schedule},
};

/// One rank's steps, and what they are for.
#[derive(Debug, Default)]
pub(in crate::comm) struct Plan {
    of: Option<PlanKey>,
    pub(in crate::comm) steps: Vec<Step>,
}

#[derive(Debug, PartialEq, Eq)]
enum PlanKey {
    AllReduce { numel: usize },
    AllGather { offsets: Vec<usize> },
}

impl Plan {
    pub(super) fn all_reduce(&mut self, topology: &Topology, numel: usize, granule: usize) {
        if self.of != Some(PlanKey::AllReduce { numel }) {
            *self =
                Self { of: Some(PlanKey::AllReduce { numel }), steps: schedule(topology, numel, granule) };
        }
    }

    pub(super) fn all_gather(&mut self, topology: &Topology, offsets: &[usize]) {
        if !matches!(&self.of, Some(PlanKey::AllGather { offsets: known }) if known == offsets) {
            let steps = gather_schedule(topology, offsets);
            *self = Self { of: Some(PlanKey::AllGather { offsets: offsets.to_vec() }), steps };
        }
    }
}
