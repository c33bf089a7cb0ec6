//! Device and pinned host memory.

use std::ffi::c_void;
use std::ptr::NonNull;

use cust::sys::{self, CUresult};

use super::{CudaGpu, handle};
use crate::driver::{
    DevicePtr, GpuError, GpuMemory, MemoryInfo, Pattern, PinnedAllocation, Result, StreamId,
};

/// Usable from every context, and mapped for the device.
const PINNED_FLAGS: u32 = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;

impl GpuMemory for CudaGpu {
    fn memory_info(&self) -> Result<MemoryInfo> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two sizes.
        self.check("cuMemGetInfo_v2", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok(MemoryInfo { free_bytes: free as u64, total_bytes: total as u64 })
    }

    fn allocate(&self, bytes: usize) -> Result<DevicePtr> {
        self.enter()?;
        let mut address = 0;
        // SAFETY: writes one address.
        match unsafe { sys::cuMemAlloc_v2(&mut address, bytes) } {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let MemoryInfo { free_bytes, total_bytes } = self.memory_info()?;
                let device = self.properties.label.clone();
                Err(GpuError::OutOfMemory { device, asked_bytes: bytes as u64, free_bytes, total_bytes })
            }
            result => self.check("cuMemAlloc_v2", result).map(|()| DevicePtr(address)),
        }
    }

    unsafe fn free(&self, memory: DevicePtr) -> Result<()> {
        self.enter()?;
        // SAFETY: the caller owns this allocation. The driver waits for pending work before it unmaps.
        self.check("cuMemFree_v2", unsafe { sys::cuMemFree_v2(memory.0) })
    }

    fn allocate_pinned(&self, bytes: usize) -> Result<PinnedAllocation> {
        self.enter()?;
        let mut address: *mut c_void = std::ptr::null_mut();
        // SAFETY: writes one pointer.
        self.check("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&mut address, bytes, PINNED_FLAGS) })?;
        let host = NonNull::new(address.cast::<u8>()).expect("cuMemHostAlloc succeeded");
        // SAFETY: `bytes` bytes of ours.
        unsafe { host.write_bytes(0, bytes) };
        let mut device = 0;
        // SAFETY: writes one address; the memory was mapped for the device above.
        let result = unsafe { sys::cuMemHostGetDevicePointer_v2(&mut device, address, 0) };
        if let Err(error) = self.check("cuMemHostGetDevicePointer_v2", result) {
            // SAFETY: allocated above and given to nobody.
            unsafe { sys::cuMemFreeHost(address) };
            return Err(error);
        }
        Ok(PinnedAllocation { host, device: DevicePtr(device) })
    }

    unsafe fn free_pinned(&self, memory: PinnedAllocation) -> Result<()> {
        self.enter()?;
        // SAFETY: the caller owns this allocation.
        self.check("cuMemFreeHost", unsafe { sys::cuMemFreeHost(memory.host.as_ptr().cast()) })
    }

    unsafe fn copy_h2d(&self, stream: StreamId, to: DevicePtr, from: *const u8, bytes: usize) -> Result<()> {
        self.enter()?;
        // SAFETY: the caller's promise: live stream, ranges valid until the stream has run this.
        let result = unsafe { sys::cuMemcpyHtoDAsync_v2(to.0, from.cast(), bytes, handle(stream.0)) };
        self.check("cuMemcpyHtoDAsync_v2", result)
    }

    unsafe fn copy_d2h(&self, stream: StreamId, to: *mut u8, from: DevicePtr, bytes: usize) -> Result<()> {
        self.enter()?;
        // SAFETY: as for copy_h2d.
        let result = unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), from.0, bytes, handle(stream.0)) };
        self.check("cuMemcpyDtoHAsync_v2", result)
    }

    unsafe fn copy_d2d(&self, stream: StreamId, to: DevicePtr, from: DevicePtr, bytes: usize) -> Result<()> {
        self.enter()?;
        // SAFETY: as for copy_h2d. Addresses are unified, so this one finds a peer's device by itself.
        let result = unsafe { sys::cuMemcpyAsync(to.0, from.0, bytes, handle(stream.0)) };
        self.check("cuMemcpyAsync", result)
    }

    unsafe fn fill(&self, stream: StreamId, to: DevicePtr, pattern: Pattern, count: usize) -> Result<()> {
        self.enter()?;
        let stream = handle(stream.0);
        match pattern {
            Pattern::U8(value) => {
                // SAFETY: as for copy_h2d.
                let result = unsafe { sys::cuMemsetD8Async(to.0, value, count, stream) };
                self.check("cuMemsetD8Async", result)
            }
            Pattern::U16(value) => {
                // SAFETY: as for copy_h2d; the address is a multiple of 2.
                let result = unsafe { sys::cuMemsetD16Async(to.0, value, count, stream) };
                self.check("cuMemsetD16Async", result)
            }
            Pattern::U32(value) => {
                // SAFETY: as for copy_h2d; the address is a multiple of 4.
                let result = unsafe { sys::cuMemsetD32Async(to.0, value, count, stream) };
                self.check("cuMemsetD32Async", result)
            }
        }
    }
}
