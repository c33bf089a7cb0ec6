//! The GPUs of tests that need them.

use std::sync::{Mutex, MutexGuard, PoisonError};

use fewsync::driver::Device;

/// The first GPU, for one test at a time: some compare free memory or measure overlap. Without one the test says so,
/// or fails if `FEWSYNC_REQUIRE_GPU` is set.
pub(crate) fn gpu(test: &str) -> Option<(MutexGuard<'static, ()>, Device)> {
    let (guard, mut gpus) = gpus(test, 1)?;
    Some((guard, gpus.remove(0)))
}

/// How many GPUs there must be.
pub(crate) fn required() -> u32 {
    std::env::var("FEWSYNC_REQUIRE_GPU").map_or(0, |n| n.parse().unwrap_or(1))
}

/// The first `n` GPUs, likewise. On a machine with fewer the test is skipped; `FEWSYNC_REQUIRE_GPU` is the number that
/// there must be.
pub(crate) fn gpus(test: &str, n: u32) -> Option<(MutexGuard<'static, ()>, Vec<Device>)> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    match (0..n).map(Device::cuda).collect::<Result<Vec<_>, _>>() {
        Ok(gpus) => {
            let labels: Vec<&str> = gpus.iter().map(Device::label).collect();
            println!("{test}: {} ({})", labels.join(", "), gpus[0].properties().driver);
            Some((guard, gpus))
        }
        Err(reason) if required() >= n => panic!("{test}: {reason}"),
        Err(reason) => {
            println!("{test}: skipped, {reason}");
            None
        }
    }
}
