//! What kernels call: functions that NVSHMEM's device bitcode defines.
//!
//! Link `libnvshmem_device*.bc` into the kernels' bitcode (or join the PTX made from it), keep
//! `nvshmemi_device_state_d` visible, and hand the loaded module to `nvshmemx_cumodule_init` before the first launch.
//!
//! Addresses called *symmetric* lie in memory from `nvshmem_malloc`; `dst` names the caller's own copy and means the
//! one of `pe` at the same place. `_warp` and `_block` functions are called by all threads of the warp or block with
//! the same arguments. `_nbi` functions return before the source may be changed; [`nvshmem_quiet`] ends that.

use core::ffi::c_void;

unsafe extern "C" {
    /// The calling PE.
    pub fn nvshmem_my_pe() -> i32;
    /// Number of PEs.
    pub fn nvshmem_n_pes() -> i32;
    /// Where a symmetric object of another PE can be loaded and stored directly; null where it cannot.
    pub fn nvshmem_ptr(object: *const c_void, pe: i32) -> *mut c_void;

    /// Copies to another PE; the source may be changed on return.
    pub fn nvshmem_putmem(dst: *mut c_void, src: *const c_void, bytes: usize, pe: i32);
    /// Copies to another PE, by one thread.
    pub fn nvshmem_putmem_nbi(dst: *mut c_void, src: *const c_void, bytes: usize, pe: i32);
    /// Copies to another PE, by a warp.
    pub fn nvshmemx_putmem_nbi_warp(dst: *mut c_void, src: *const c_void, bytes: usize, pe: i32);
    /// Copies to another PE, by a block.
    pub fn nvshmemx_putmem_nbi_block(dst: *mut c_void, src: *const c_void, bytes: usize, pe: i32);
    /// Copies from another PE; complete on return.
    pub fn nvshmem_getmem(dst: *mut c_void, src: *const c_void, bytes: usize, pe: i32);

    /// Copies to another PE, then sets or adds to a signal there, by one thread.
    pub fn nvshmem_putmem_signal_nbi(
        dst: *mut c_void,
        src: *const c_void,
        bytes: usize,
        signal: *mut u64,
        value: u64,
        operation: i32,
        pe: i32,
    );
    /// Copies to another PE, then sets or adds to a signal there, by a warp.
    pub fn nvshmemx_putmem_signal_nbi_warp(
        dst: *mut c_void,
        src: *const c_void,
        bytes: usize,
        signal: *mut u64,
        value: u64,
        operation: i32,
        pe: i32,
    );
    /// Copies to another PE, then sets or adds to a signal there, by a block.
    pub fn nvshmemx_putmem_signal_nbi_block(
        dst: *mut c_void,
        src: *const c_void,
        bytes: usize,
        signal: *mut u64,
        value: u64,
        operation: i32,
        pe: i32,
    );
    /// Sets or adds to a signal of another PE.
    pub fn nvshmemx_signal_op(signal: *mut u64, value: u64, operation: i32, pe: i32);
    /// Waits until an own signal compares with `value` as asked; returns what it then was.
    pub fn nvshmem_signal_wait_until(signal: *mut u64, comparison: i32, value: u64) -> u64;
    /// Stores one value at another PE.
    pub fn nvshmem_uint64_p(dst: *mut u64, value: u64, pe: i32);
    /// Loads one value of another PE.
    pub fn nvshmem_uint64_g(src: *const u64, pe: i32) -> u64;

    /// Orders this thread's puts to each PE.
    pub fn nvshmem_fence();
    /// Waits until this thread's puts have arrived.
    pub fn nvshmem_quiet();
    /// Waits for all PEs and completes all puts; one thread calls it.
    pub fn nvshmem_barrier_all();
}

/// Signal operation: replace.
pub const SIGNAL_SET: i32 = 9;
/// Signal operation: add.
pub const SIGNAL_ADD: i32 = 10;
/// Comparison of waits: equal.
pub const CMP_EQ: i32 = 0;
/// Comparison of waits: greater or equal.
pub const CMP_GE: i32 = 5;
