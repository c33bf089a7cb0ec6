//! Stream capture and graph replay.

use cust::sys::{self, CUgraph, CUstreamCaptureMode};

use super::{CudaGpu, handle, id};
use crate::driver::{GpuGraphs, GraphId, Result, StreamId};

impl GpuGraphs for CudaGpu {
    unsafe fn begin_capture(&self, stream: StreamId) -> Result<()> {
        self.enter()?;
        // Ranks are threads of one process: the mode keeps one rank's allocations out of another's capture.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive.
        let result = unsafe { sys::cuStreamBeginCapture_v2(handle(stream.0), mode) };
        self.check("cuStreamBeginCapture_v2", result)
    }

    unsafe fn abandon_capture(&self, stream: StreamId) -> Result<()> {
        // SAFETY: the caller's promise, passed on.
        let graph = unsafe { self.finish_capture(stream)? };
        self.destroy(graph)
    }

    unsafe fn end_capture(&self, stream: StreamId) -> Result<(GraphId, usize)> {
        // SAFETY: the caller's promise, passed on.
        let graph = unsafe { self.finish_capture(stream)? };
        let instantiated = self.instantiate(graph);
        self.destroy(graph)?;
        instantiated
    }

    unsafe fn launch_graph(&self, graph: GraphId, stream: StreamId) -> Result<()> {
        self.enter()?;
        // SAFETY: both are alive; what the graph does is the caller's promise.
        let result = unsafe { sys::cuGraphLaunch(handle(graph.0), handle(stream.0)) };
        self.check("cuGraphLaunch", result)
    }

    unsafe fn destroy_graph(&self, graph: GraphId) -> Result<()> {
        self.enter()?;
        // SAFETY: the caller owns the graph; launches under way finish.
        self.check("cuGraphExecDestroy", unsafe { sys::cuGraphExecDestroy(handle(graph.0)) })
    }
}

impl CudaGpu {
    /// # Safety
    /// The stream is alive and this thread began its capture.
    unsafe fn finish_capture(&self, stream: StreamId) -> Result<CUgraph> {
        self.enter()?;
        let mut graph = std::ptr::null_mut();
        // SAFETY: writes one handle; the rest is the caller's promise.
        let result = unsafe { sys::cuStreamEndCapture(handle(stream.0), &mut graph) };
        self.check("cuStreamEndCapture", result).map(|()| graph)
    }

    /// An executable graph and its node count. The graph stays the caller's.
    fn instantiate(&self, graph: CUgraph) -> Result<(GraphId, usize)> {
        let mut node_count = 0;
        // SAFETY: without a place for nodes this only counts them; the graph is alive.
        let result = unsafe { sys::cuGraphGetNodes(graph, std::ptr::null_mut(), &mut node_count) };
        self.check("cuGraphGetNodes", result)?;
        let mut executable = std::ptr::null_mut();
        // SAFETY: writes one handle; the graph is alive; no flags.
        let result = unsafe { sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0) };
        self.check("cuGraphInstantiateWithFlags", result)?;
        Ok((GraphId(id(executable)), node_count))
    }

    fn destroy(&self, graph: CUgraph) -> Result<()> {
        // SAFETY: the graph came from finish_capture and its executable, if any, does not need it.
        self.check("cuGraphDestroy", unsafe { sys::cuGraphDestroy(graph) })
    }
}
