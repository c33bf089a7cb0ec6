//! GPU commands on a machine without a usable driver: one sentence each.

use crate::common::{command, finish, misuse, refuses};

#[test]
fn without_a_driver_nothing_passes() {
    for args in [
        &["selftest", "--device", "cuda"][..],
        &["selftest", "--device", "auto", "--quick", "--json"],
        &["selftest", "--device", "cuda:1", "--arch", "sm_80"],
        &["bench", "decode-gemm", "--device", "cuda"],
    ] {
        let child = command(args).env("FEWSYNC_LIBCUDA", "/nowhere/libcuda.so.1").spawn().unwrap();
        refuses(&finish(child), args, &["runs on a GPU", "/nowhere/libcuda.so.1"]);
    }
}

#[test]
fn devices_and_files_that_cannot_be() {
    misuse(&["selftest", "--device", "cpu"], &["'cpu'", "cuda:N"]);
    misuse(&["selftest", "--arch", "sm_70"], &["'sm_70'", "sm_90a", "sm_80"]);
    misuse(&["bench", "pointwise", "--m", "0"], &["'0'", "at least 1"]);
}
