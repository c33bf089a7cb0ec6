//! The kernels that put, over an emulated network.

use fewsync::kernels::{NVSHMEM_PTX, PTX, Ptx};

use crate::scenario::Scenario;
use crate::schedules::{keep_loaded, try_all};

/// Tried by a run of continuous integration.
pub(crate) const SCHEDULES: u64 = 600;

/// The committed file for an architecture.
pub(crate) fn shipped(arch: &str) -> &'static Ptx {
    NVSHMEM_PTX.iter().find(|ptx| ptx.arch == arch).expect("a committed architecture")
}

/// Every rank ends with the bits that the model has, whatever the order in which units of puts arrive.
#[test]
fn schedules_of_puts() {
    let _loaded = [keep_loaded(&PTX.each_ref()), keep_loaded(&NVSHMEM_PTX.each_ref())];
    try_all("schedules_of_puts", SCHEDULES, Scenario::of_puts, |scenario| shipped(scenario.arch));
}
