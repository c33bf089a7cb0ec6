//! Device and pinned host memory.

use super::EmulatedGpu;
use super::capture::Mark;
use super::state::{State, Until};
use super::work::{HostRange, Work};
use crate::driver::{
    DevicePtr, GpuError, GpuMemory, MemoryInfo, Pattern, PinnedAllocation, Result, StreamId,
};

impl EmulatedGpu {
    fn info(&self, state: &State) -> MemoryInfo {
        let total_bytes = self.properties.total_memory_bytes;
        let used_bytes = state.used_bytes(self.properties.ordinal);
        MemoryInfo { free_bytes: total_bytes.saturating_sub(used_bytes), total_bytes }
    }

    fn refused(&self, call: &'static str, reason: String) -> GpuError {
        self.call_error(call, 1, "CUDA_ERROR_INVALID_VALUE", reason)
    }

    /// Enqueues a copy from or to the host; only pinned memory stays where it is for as long as a graph may replay.
    fn copy_host(
        &self,
        call: &'static str,
        stream: StreamId,
        host: HostRange,
        work: Work<Mark>,
    ) -> Result<()> {
        self.with(|state| {
            let is_pinned = state.is_pinned(host);
            if let Some(capture) = state.capture_of(stream.0)
                && !is_pinned
            {
                let reason = "a copy from or to host memory that is not pinned cannot be recorded";
                capture.broken = Some(reason);
                return Err(self.call_error(call, 900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", reason));
            }
            state.enqueue(stream.0, work);
            Ok(())
        })
    }
}

impl GpuMemory for EmulatedGpu {
    fn memory_info(&self) -> Result<MemoryInfo> {
        self.with(|state| Ok(self.info(state)))
    }

    fn allocate(&self, bytes: usize) -> Result<DevicePtr> {
        self.refuse_while_capturing("allocate")?;
        self.with(|state| {
            let MemoryInfo { free_bytes, total_bytes } = self.info(state);
            if bytes as u64 > free_bytes {
                let (device, asked_bytes) = (self.label(), bytes as u64);
                return Err(GpuError::OutOfMemory { device, asked_bytes, free_bytes, total_bytes });
            }
            let at = state.allocate(self.properties.ordinal, bytes as u64);
            at.map(DevicePtr).map_err(|reason| self.refused("allocate", reason))
        })
    }

    unsafe fn free(&self, memory: DevicePtr) -> Result<()> {
        self.refuse_while_capturing("free")?;
        self.world.wait_until(Until::Device(self.properties.ordinal));
        // Whatever has failed, the memory goes back.
        let freed = self.world.lock().free(memory.0);
        freed.map_err(|reason| self.refused("free", reason))
    }

    fn allocate_pinned(&self, bytes: usize) -> Result<PinnedAllocation> {
        self.refuse_while_capturing("allocate_pinned")?;
        self.with(|state| {
            let (host, device) =
                state.allocate_pinned(bytes).map_err(|reason| self.refused("allocate_pinned", reason))?;
            Ok(PinnedAllocation { host, device: DevicePtr(device) })
        })
    }

    unsafe fn free_pinned(&self, memory: PinnedAllocation) -> Result<()> {
        self.world.wait_until(Until::Device(self.properties.ordinal));
        let freed = self.world.lock().free_pinned(memory.device.0);
        freed.map_err(|reason| self.refused("free_pinned", reason))
    }

    unsafe fn copy_h2d(&self, stream: StreamId, to: DevicePtr, from: *const u8, bytes: usize) -> Result<()> {
        let from = HostRange { at: from.cast_mut(), bytes };
        self.copy_host("copy_h2d", stream, from, Work::CopyIn { to: to.0, from })
    }

    unsafe fn copy_d2h(&self, stream: StreamId, to: *mut u8, from: DevicePtr, bytes: usize) -> Result<()> {
        let to = HostRange { at: to, bytes };
        self.copy_host("copy_d2h", stream, to, Work::CopyOut { to, from: from.0 })
    }

    unsafe fn copy_d2d(&self, stream: StreamId, to: DevicePtr, from: DevicePtr, bytes: usize) -> Result<()> {
        self.with(|state| {
            state.enqueue(stream.0, Work::Copy { to: to.0, from: from.0, bytes });
            Ok(())
        })
    }

    unsafe fn fill(&self, stream: StreamId, to: DevicePtr, pattern: Pattern, count: usize) -> Result<()> {
        let pattern: &[u8] = match &pattern {
            Pattern::U8(value) => &value.to_le_bytes(),
            Pattern::U16(value) => &value.to_le_bytes(),
            Pattern::U32(value) => &value.to_le_bytes(),
        };
        let work = Work::Fill { to: to.0, bytes: count * pattern.len(), pattern: pattern.into() };
        self.with(|state| {
            state.enqueue(stream.0, work);
            Ok(())
        })
    }
}
