//! One kernel: `sum[i] = a[i] + b[i]`.
#![no_std]
#![feature(abi_ptx, stdarch_nvptx)]

use core::arch::nvptx::{_block_dim_x, _block_idx_x, _thread_idx_x};

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // SAFETY: ends the thread; there is nothing to unwind.
    unsafe { core::arch::nvptx::trap() }
}

/// At most 256 threads a block; becomes `.maxntid` in the PTX.
#[unsafe(export_name = "launch_bounds$vecadd$256$1")]
pub static LAUNCH_BOUNDS: u8 = 0;

/// # Safety
/// `a`, `b` and `sum` point to `len` floats on the device; `sum` overlaps neither.
#[unsafe(no_mangle)]
pub unsafe extern "ptx-kernel" fn vecadd(a: *const f32, b: *const f32, sum: *mut f32, len: u32) {
    // SAFETY: special registers are always readable; the guard keeps the pointers in bounds.
    unsafe {
        let i = (_block_idx_x() as u32) * (_block_dim_x() as u32) + _thread_idx_x() as u32;
        if i < len {
            let i = i as usize;
            *sum.add(i) = *a.add(i) + *b.add(i);
        }
    }
}
