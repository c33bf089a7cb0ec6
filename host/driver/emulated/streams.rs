//! Streams and events.

use super::EmulatedGpu;
use super::state::{Event, Record, State, Until};
use super::work::{Point, Work};
use crate::driver::{EventId, GpuStreams, Result, StreamId, StreamPriority};

impl GpuStreams for EmulatedGpu {
    /// The schedule knows no priorities.
    fn create_stream(&self, _priority: StreamPriority) -> Result<StreamId> {
        self.with(|state| Ok(StreamId(state.new_stream(self.properties.ordinal))))
    }

    unsafe fn destroy_stream(&self, stream: StreamId) -> Result<()> {
        self.world.lock().destroy_stream(stream.0);
        Ok(())
    }

    unsafe fn synchronize_stream(&self, stream: StreamId) -> Result<()> {
        self.refuse_captured("synchronize_stream", stream)?;
        self.wait(Until::Stream(stream.0))
    }

    fn create_event(&self, timing: bool) -> Result<EventId> {
        self.with(|state| {
            let id = state.new_id();
            state.events.insert(id, Event { timing, ..Event::default() });
            Ok(EventId(id))
        })
    }

    unsafe fn destroy_event(&self, event: EventId) -> Result<()> {
        self.world.lock().events.remove(&event.0);
        Ok(())
    }

    unsafe fn record_event(&self, event: EventId, stream: StreamId) -> Result<()> {
        self.with(|state| {
            let last = match state.capture_of(stream.0) {
                Some(capture) => Record::Captured(capture.origin(), capture.mark(stream.0)),
                None => {
                    let point = state.new_point();
                    state.queue(stream.0, Work::Record(point));
                    Record::At(point)
                }
            };
            state.events.get_mut(&event.0).expect("the caller's event is alive").last = last;
            Ok(())
        })
    }

    unsafe fn wait_event(&self, stream: StreamId, event: EventId) -> Result<()> {
        self.with(|state| match last_record(state, event) {
            Record::Never => Ok(()),
            Record::At(point) => match state.capture_of(stream.0) {
                None => {
                    state.queue(stream.0, Work::Wait(point));
                    Ok(())
                }
                Some(capture) => {
                    let reason = "a captured stream cannot wait for work outside of the capture";
                    capture.broken = Some(reason);
                    Err(self.call_error("wait_event", 905, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", reason))
                }
            },
            Record::Captured(origin, mark) => match state.capture_of(origin) {
                Some(capture) => {
                    capture.wait(stream.0, mark);
                    Ok(())
                }
                None => {
                    let reason = "the event was recorded in a capture that has ended";
                    Err(self.call_error("wait_event", 907, "CUDA_ERROR_CAPTURED_EVENT", reason))
                }
            },
        })
    }

    unsafe fn synchronize_event(&self, event: EventId) -> Result<()> {
        let Some(point) = self.point(event, "synchronize_event")? else { return Ok(()) };
        self.wait(Until::Point(point))
    }

    unsafe fn event_reached(&self, event: EventId) -> Result<bool> {
        let Some(point) = self.point(event, "event_reached")? else { return Ok(true) };
        // Whoever asks again and again waits, too.
        self.world.drive_once();
        self.with(|state| {
            let is_reached = state.is_reached(point);
            if is_reached {
                state.note_done(Until::Point(point));
            }
            Ok(is_reached)
        })
    }

    unsafe fn elapsed_us(&self, start: EventId, end: EventId) -> Result<f64> {
        let call = "elapsed_us";
        self.with(|state| {
            let time_ns = |event: EventId| {
                let Event { timing, last } = &state.events[&event.0];
                match last {
                    Record::At(point) if *timing => state.reached_at_ns(*point).ok_or_else(|| {
                        let reason = "an event has not been reached yet";
                        self.call_error(call, 600, "CUDA_ERROR_NOT_READY", reason)
                    }),
                    _ => {
                        let reason = "an event was never recorded, or made without timing";
                        Err(self.call_error(call, 400, "CUDA_ERROR_INVALID_HANDLE", reason))
                    }
                }
            };
            Ok((time_ns(end)? as f64 - time_ns(start)? as f64) / 1e3)
        })
    }
}

fn last_record(state: &State, event: EventId) -> Record {
    state.events.get(&event.0).expect("the caller's event is alive").last
}

impl EmulatedGpu {
    /// The point that the host may wait for, none if the event was never recorded.
    fn point(&self, event: EventId, call: &'static str) -> Result<Option<Point>> {
        self.with(|state| match last_record(state, event) {
            Record::Never => Ok(None),
            Record::At(point) => Ok(Some(point)),
            Record::Captured(..) => {
                let reason = "the event was recorded in a capture, where nothing has happened yet";
                Err(self.call_error(call, 907, "CUDA_ERROR_CAPTURED_EVENT", reason))
            }
        })
    }
}
