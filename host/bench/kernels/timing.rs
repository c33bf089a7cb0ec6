//! The time of one launch among many in a CUDA graph.

use super::operands::Operands;
use super::{BenchError, Work, cublaslt};
use crate::bench::stats::Percentiles;
use crate::driver::{Device, DeviceBuffer, Event, KernelLibrary, Stream};
use crate::kernels::{Argmax, Launch, Rows};

/// Launches before the first measured one.
const WARM_UPS: usize = 100;
/// Measured replays of the graph.
const REPLAYS: usize = 30;

/// Replays graphs of launches, each on cold data of its own, and times the replays.
pub(super) struct Timer<'a> {
    pub(super) library: &'a KernelLibrary,
    pub(super) operands: &'a Operands,
    stream: Stream,
    start: Event,
    end: Event,
    /// Reads more than twice the L2 cache; with its results.
    scrub: Launch,
    _scrub_results: (DeviceBuffer<u64>, DeviceBuffer<u32>),
}

impl<'a> Timer<'a> {
    pub(super) fn new(
        device: &Device,
        library: &'a KernelLibrary,
        operands: &'a Operands,
    ) -> Result<Self, BenchError> {
        let stream = device.stream()?;
        let cells = device.allocate_zeroed::<u64>(2, &stream)?;
        let counters = device.allocate_zeroed::<u32>(2, &stream)?;
        stream.synchronize()?;
        // From the arena's end, which few measurements reach.
        let wanted = usize::try_from(device.properties().l2_bytes).unwrap_or(0) * 5 / 2;
        let bytes = wanted.min(operands.arena.len()) / 16 * 16;
        let scrub = Argmax {
            logits: Rows::new(operands.at(operands.arena.len() - bytes), 0),
            len: (bytes / 4) as u32,
            n_rows: 1,
            indices: counters.addr().at(1),
            values: crate::kernels::Addr::NULL,
            best: cells.addr(),
            counters: counters.addr(),
        }
        .launch();
        let (start, end) = (device.timing_event()?, device.timing_event()?);
        Ok(Self { library, operands, stream, start, end, scrub, _scrub_results: (cells, counters) })
    }

    /// Time per launch, over replays. The launches of a replay follow each other as in a decode step, with
    /// programmatic dependent launch where the PTX has it; the cache is scrubbed before each replay.
    pub(super) fn time(&self, work: &Work<'_>) -> Result<Percentiles, BenchError> {
        self.time_as(work, |offset| {
            // SAFETY: the works' launches read the arena and write the output area within their bounds.
            Ok(unsafe { self.library.launch(&self.stream, &(work.launch)(offset)) }?)
        })
    }

    /// The same of cuBLASLt's product in the place of ours.
    pub(super) fn time_cublaslt(
        &self,
        work: &Work<'_>,
        product: &cublaslt::Product<'_>,
    ) -> Result<Percentiles, BenchError> {
        self.time_as(work, |offset| Ok(product.enqueue(&self.stream, self.operands, offset)?))
    }

    /// `enqueue` takes the offset of the copy that it works on.
    fn time_as(
        &self,
        work: &Work<'_>,
        enqueue: impl Fn(usize) -> Result<(), BenchError>,
    ) -> Result<Percentiles, BenchError> {
        self.operands.check_shared(work.op, work.shared_bytes)?;
        let n = self.operands.copies(work.op, work.copy_bytes)?;
        let stride = Operands::stride(work.copy_bytes);
        let graph = self.stream.capture(|| (0..n).try_for_each(|i| enqueue(i * stride)))?;
        for _ in 0..WARM_UPS.div_ceil(n) {
            // SAFETY: arena, outputs and module outlive this call, and nobody else uses the outputs.
            unsafe { graph.launch(&self.stream)? };
        }
        let mut us = Vec::with_capacity(REPLAYS);
        for _ in 0..REPLAYS {
            // SAFETY: the scrub reads the arena and writes its own results.
            unsafe { self.library.launch(&self.stream, &self.scrub)? };
            self.start.record(&self.stream)?;
            // SAFETY: as above.
            unsafe { graph.launch(&self.stream)? };
            self.end.record(&self.stream)?;
            self.end.synchronize()?;
            us.push(self.end.elapsed_us(&self.start)? / n as f64);
        }
        Ok(Percentiles::of(&us))
    }

    /// Time of a copy of so many bytes from one half of the arena to the other.
    pub(super) fn time_copy(
        &self,
        bytes: usize,
        to: &mut DeviceBuffer<u8>,
    ) -> Result<Percentiles, BenchError> {
        let mut us = Vec::with_capacity(REPLAYS);
        for replay in 0..REPLAYS + 3 {
            self.start.record(&self.stream)?;
            to.copy_at(0, &self.operands.arena, 0, bytes, &self.stream)?;
            self.end.record(&self.stream)?;
            self.end.synchronize()?;
            if replay >= 3 {
                us.push(self.end.elapsed_us(&self.start)?);
            }
        }
        Ok(Percentiles::of(&us))
    }
}
