//! Streams and events that own their handle and their device.

use super::{Device, EventId, Result, StreamId, StreamPriority};

/// A queue of work on one device: in order within, independent of other streams.
#[derive(Debug)]
pub struct Stream {
    device: Device,
    id: StreamId,
}

impl Stream {
    pub(super) fn new(device: &Device, priority: StreamPriority) -> Result<Self> {
        let id = device.gpu().create_stream(priority)?;
        Ok(Self { device: device.clone(), id })
    }

    /// The device it belongs to.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The back end's handle (a `CUstream` as an integer), for other libraries.
    pub fn id(&self) -> StreamId {
        self.id
    }

    /// Blocks until all work of the stream has finished, and reports what failed in it.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: we own the stream.
        unsafe { self.device.gpu().synchronize_stream(self.id) }
    }

    /// Makes this stream's later work wait for what the event recorded, on this device or a peer.
    pub fn wait(&self, event: &Event) -> Result<()> {
        self.device.expect_same_backend(&event.device, "the event")?;
        // SAFETY: we own the stream, and the event is borrowed; its destruction later is allowed.
        unsafe { self.device.gpu().wait_event(self.id, event.id) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: we own the stream and nobody has it any more. An error has nobody to go to here: it is an
        // earlier kernel's and the next call on the device repeats it.
        let _ = unsafe { self.device.gpu().destroy_stream(self.id) };
    }
}

/// A point in a stream's work that others can wait for, and time can be measured between.
#[derive(Debug)]
pub struct Event {
    device: Device,
    id: EventId,
}

impl Event {
    pub(super) fn new(device: &Device, timing: bool) -> Result<Self> {
        let id = device.gpu().create_event(timing)?;
        Ok(Self { device: device.clone(), id })
    }

    /// Marks the end of the stream's work so far; a later record replaces this one.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        self.device.expect_same(&stream.device, "the stream")?;
        // SAFETY: both are alive and of this device.
        unsafe { self.device.gpu().record_event(self.id, stream.id) }
    }

    /// Blocks until the latest record has happened.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: we own the event.
        unsafe { self.device.gpu().synchronize_event(self.id) }
    }

    /// Whether the latest record has happened.
    pub fn is_reached(&self) -> Result<bool> {
        // SAFETY: we own the event.
        unsafe { self.device.gpu().event_reached(self.id) }
    }

    /// Time from `start` to this event, in µs; both are timing events that have happened.
    pub fn elapsed_us(&self, start: &Event) -> Result<f64> {
        self.device.expect_same(&start.device, "the start event")?;
        // SAFETY: both are alive and of this device.
        unsafe { self.device.gpu().elapsed_us(start.id, self.id) }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: we own the event; work that waits for it keeps what it needs. Errors: as for streams.
        let _ = unsafe { self.device.gpu().destroy_event(self.id) };
    }
}
