//! Recording a stream's work once and replaying it.

use super::{Device, GpuError, GraphId, Result, Stream};

/// Recorded work of a stream, replayed by one call.
#[derive(Debug)]
pub struct Graph {
    device: Device,
    id: GraphId,
    node_count: usize,
}

impl Stream {
    /// Records what `record` enqueues on this stream (and on streams that it makes wait for this one) without
    /// running it.
    ///
    /// Allocating, freeing, synchronising and host copies from or to pageable memory cannot be recorded and
    /// fail. The recording ends whatever `record` does, by panicking too.
    ///
    /// # Errors
    /// What `record` returns, or why its work cannot be a graph.
    pub fn capture<E: From<GpuError>>(&self, record: impl FnOnce() -> Result<(), E>) -> Result<Graph, E> {
        let capture = Capture::begin(self)?;
        record()?;
        Ok(capture.end()?)
    }
}

/// Ends a capture on every way out.
struct Capture<'stream> {
    stream: Option<&'stream Stream>,
}

impl<'stream> Capture<'stream> {
    fn begin(stream: &'stream Stream) -> Result<Self> {
        // SAFETY: the stream is alive.
        unsafe { stream.device().gpu().begin_capture(stream.id())? };
        Ok(Self { stream: Some(stream) })
    }

    fn end(mut self) -> Result<Graph> {
        let stream = self.stream.take().expect("a capture ends once");
        let device = stream.device();
        // SAFETY: the stream is alive, and this thread began its capture: a Capture never leaves `capture`.
        let (id, node_count) = unsafe { device.gpu().end_capture(stream.id())? };
        Ok(Graph { device: device.clone(), id, node_count })
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if let Some(stream) = self.stream {
            // SAFETY: as in `end`. The error that led here is the one worth reporting.
            let _ = unsafe { stream.device().gpu().abandon_capture(stream.id()) };
        }
    }
}

impl Graph {
    /// How many kernels, copies and fills were recorded.
    pub fn node_count(&self) -> usize {
        self.node_count
    }

    /// Runs the recorded work on a stream, which need not be the recorded one.
    ///
    /// # Safety
    /// All that the recorded calls refer to (buffers, modules, what their parameters point to) is still alive,
    /// stays so until the stream has run this launch, and is used by nobody else meanwhile; each recorded
    /// kernel's own obligation ([`super::Kernel::launch`]) holds again.
    pub unsafe fn launch(&self, stream: &Stream) -> Result<()> {
        self.device.expect_same(stream.device(), "the stream")?;
        // SAFETY: graph and stream are alive and of one device; the rest is the caller's promise.
        unsafe { self.device.gpu().launch_graph(self.id, stream.id()) }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: we own the graph; launches under way finish. Errors: as for streams.
        let _ = unsafe { self.device.gpu().destroy_graph(self.id) };
    }
}
