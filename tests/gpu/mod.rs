//! The GPU of tests that need one.

use std::sync::{Mutex, MutexGuard, PoisonError};

use fewsync::driver::Device;

/// The GPU, for one test at a time: some compare free memory or measure overlap. Without one the test says so,
/// or fails if `FEWSYNC_REQUIRE_GPU` is set.
pub(crate) fn gpu(test: &str) -> Option<(MutexGuard<'static, ()>, Device)> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    match Device::cuda(0) {
        Ok(device) => {
            println!("{test}: {} ({})", device.label(), device.properties().driver);
            Some((guard, device))
        }
        Err(reason) if std::env::var_os("FEWSYNC_REQUIRE_GPU").is_some() => panic!("{test}: {reason}"),
        Err(reason) => {
            println!("{test}: skipped, {reason}");
            None
        }
    }
}
