//! Programmatic dependent launch (sm_90): a kernel may start before the one it depends on ends.
//!
//! The chain's rule: every kernel executes [`wait`] before it reads or writes anything that another
//! kernel touches. Weights are written by no kernel, so they may be read before.

/// `griddepcontrol.wait`: the kernels this one depends on have ended and their writes are visible.
#[inline(always)]
pub fn wait() {
    #[cfg(cuda_arch_min = "90")]
    // SAFETY: only waits.
    unsafe {
        core::arch::asm!("griddepcontrol.wait;", options(nostack));
    }
}

/// `griddepcontrol.launch_dependents`: dependents may be scheduled as soon as every block said so.
#[inline(always)]
pub fn launch_dependents() {
    #[cfg(cuda_arch_min = "90")]
    // SAFETY: only a hint to the scheduler; dependents still wait.
    unsafe {
        core::arch::asm!("griddepcontrol.launch_dependents;", options(nostack));
    }
}
