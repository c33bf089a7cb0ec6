//! Stream capture and graph replay.

use super::EmulatedGpu;
use super::capture::{Capture, Recorded};
use super::state::Graph;
use super::work::Work;
use crate::driver::{GpuGraphs, GraphId, Result, StreamId};

impl GpuGraphs for EmulatedGpu {
    unsafe fn begin_capture(&self, stream: StreamId) -> Result<()> {
        self.with(|state| {
            if state.capture_of(stream.0).is_some() {
                let reason = "the stream is being captured already";
                return Err(self.call_error(
                    "begin_capture",
                    901,
                    "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
                    reason,
                ));
            }
            state.captures.push(Capture::new(stream.0, std::thread::current().id()));
            Ok(())
        })
    }

    unsafe fn abandon_capture(&self, stream: StreamId) -> Result<()> {
        self.take_capture(stream).map(drop)
    }

    unsafe fn end_capture(&self, stream: StreamId) -> Result<(GraphId, usize)> {
        let recorded: Recorded = self.take_capture(stream)?.end().map_err(|reason| {
            self.call_error("end_capture", 901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", reason)
        })?;
        self.with(|state| {
            let (id, n_nodes) = (state.new_id(), recorded.n_nodes);
            state.graphs.insert(id, Graph { recorded, last: None });
            Ok((GraphId(id), n_nodes))
        })
    }

    /// Each stream that was captured is a stream of its own again, so that what ran side by side still does.
    unsafe fn launch_graph(&self, graph: GraphId, stream: StreamId) -> Result<()> {
        self.with(|state| {
            if let Some(capture) = state.capture_of(stream.0) {
                let reason = "a graph within a captured stream is not emulated";
                capture.broken = Some(reason);
                return Err(self.call_error(
                    "launch_graph",
                    900,
                    "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
                    reason,
                ));
            }
            let end = state.new_point();
            let lanes = state.instantiate(graph.0);
            let before = state.graphs.get_mut(&graph.0).and_then(|graph| graph.last.replace(end));
            if let Some(before) = before {
                state.queue(stream.0, Work::Wait(before));
            }
            for (number, lane) in lanes.into_iter().enumerate() {
                let lane_stream =
                    if number == 0 { stream.0 } else { state.new_stream(self.properties.ordinal) };
                lane.into_iter().for_each(|work| state.queue(lane_stream, work));
                if number > 0 {
                    state.destroy_stream(lane_stream);
                }
            }
            state.queue(stream.0, Work::Record(end));
            Ok(())
        })
    }

    unsafe fn destroy_graph(&self, graph: GraphId) -> Result<()> {
        self.world.lock().graphs.remove(&graph.0);
        Ok(())
    }
}

impl EmulatedGpu {
    fn take_capture(&self, stream: StreamId) -> Result<Capture> {
        let mut state = self.world.lock();
        let at = state.captures.iter().position(|capture| capture.origin() == stream.0);
        at.map(|at| state.captures.swap_remove(at)).ok_or_else(|| {
            let reason = "no capture began on this stream";
            self.call_error("end_capture", 901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", reason)
        })
    }

    /// What would wait, or change memory, while this thread captures cannot be recorded.
    pub(super) fn refuse_while_capturing(&self, call: &'static str) -> Result<()> {
        let thread = std::thread::current().id();
        self.with(|state| match state.captures.iter_mut().find(|capture| capture.thread == thread) {
            None => Ok(()),
            Some(capture) => Err(self.break_capture(capture, call)),
        })
    }

    /// As [`Self::refuse_while_capturing`], for calls on the captured stream, by whichever thread.
    pub(super) fn refuse_captured(&self, call: &'static str, stream: StreamId) -> Result<()> {
        self.with(|state| match state.capture_of(stream.0) {
            None => Ok(()),
            Some(capture) => Err(self.break_capture(capture, call)),
        })
    }

    fn break_capture(&self, capture: &mut Capture, call: &'static str) -> crate::driver::GpuError {
        let reason = "it is not permitted while a stream is captured";
        capture.broken = Some("something that cannot be recorded was called");
        self.call_error(call, 900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", reason)
    }
}
