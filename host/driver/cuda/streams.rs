//! Streams and events.

use cust::sys::{self, CUresult};

use super::{CudaGpu, handle, id};
use crate::driver::{EventId, GpuStreams, Result, StreamId, StreamPriority};

const STREAM_NON_BLOCKING: u32 = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
const EVENT_DEFAULT: u32 = sys::CUevent_flags::CU_EVENT_DEFAULT as u32;
const EVENT_DISABLE_TIMING: u32 = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;

impl GpuStreams for CudaGpu {
    fn create_stream(&self, priority: StreamPriority) -> Result<StreamId> {
        self.enter()?;
        let (mut least, mut greatest) = (0, 0);
        // SAFETY: writes two ints.
        let result = unsafe { sys::cuCtxGetStreamPriorityRange(&mut least, &mut greatest) };
        self.check("cuCtxGetStreamPriorityRange", result)?;
        let priority = match priority {
            StreamPriority::Normal => least,
            StreamPriority::High => greatest,
        };
        let mut stream = std::ptr::null_mut();
        // SAFETY: writes one handle.
        let result = unsafe { sys::cuStreamCreateWithPriority(&mut stream, STREAM_NON_BLOCKING, priority) };
        self.check("cuStreamCreateWithPriority", result)?;
        Ok(StreamId(id(stream)))
    }

    unsafe fn destroy_stream(&self, stream: StreamId) -> Result<()> {
        self.enter()?;
        // SAFETY: the caller owns the stream; its work still finishes.
        self.check("cuStreamDestroy_v2", unsafe { sys::cuStreamDestroy_v2(handle(stream.0)) })
    }

    unsafe fn synchronize_stream(&self, stream: StreamId) -> Result<()> {
        self.enter()?;
        // SAFETY: the stream is alive.
        self.check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(handle(stream.0)) })
    }

    fn create_event(&self, timing: bool) -> Result<EventId> {
        self.enter()?;
        let mut event = std::ptr::null_mut();
        let flags = if timing { EVENT_DEFAULT } else { EVENT_DISABLE_TIMING };
        // SAFETY: writes one handle.
        self.check("cuEventCreate", unsafe { sys::cuEventCreate(&mut event, flags) })?;
        Ok(EventId(id(event)))
    }

    unsafe fn destroy_event(&self, event: EventId) -> Result<()> {
        self.enter()?;
        // SAFETY: the caller owns the event; what waits for it is not affected.
        self.check("cuEventDestroy_v2", unsafe { sys::cuEventDestroy_v2(handle(event.0)) })
    }

    unsafe fn record_event(&self, event: EventId, stream: StreamId) -> Result<()> {
        self.enter()?;
        // SAFETY: both are alive and of this context.
        self.check("cuEventRecord", unsafe { sys::cuEventRecord(handle(event.0), handle(stream.0)) })
    }

    unsafe fn wait_event(&self, stream: StreamId, event: EventId) -> Result<()> {
        self.enter()?;
        // SAFETY: both are alive; the event may be another device's; no flags.
        let result = unsafe { sys::cuStreamWaitEvent(handle(stream.0), handle(event.0), 0) };
        self.check("cuStreamWaitEvent", result)
    }

    unsafe fn synchronize_event(&self, event: EventId) -> Result<()> {
        self.enter()?;
        // SAFETY: the event is alive.
        self.check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(handle(event.0)) })
    }

    unsafe fn event_reached(&self, event: EventId) -> Result<bool> {
        self.enter()?;
        // SAFETY: the event is alive.
        match unsafe { sys::cuEventQuery(handle(event.0)) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            result => self.check("cuEventQuery", result).map(|()| true),
        }
    }

    unsafe fn elapsed_us(&self, start: EventId, end: EventId) -> Result<f64> {
        self.enter()?;
        let mut milliseconds = 0.0;
        // SAFETY: writes one float; both events are alive.
        let result = unsafe { sys::cuEventElapsedTime(&mut milliseconds, handle(start.0), handle(end.0)) };
        self.check("cuEventElapsedTime", result)?;
        Ok(f64::from(milliseconds) * 1e3)
    }
}
