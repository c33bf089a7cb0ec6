//! This crate's communicator as a contender.

use std::sync::Arc;

use half::bf16;

use super::AllReduceBenchError as Error;
use super::numbers;
use super::race::{Contestant, Task, each};
use super::record::{Call, OURS};
use crate::comm::gpu::{DeviceSlice, GpuBuffer, GpuComm, GroupOptions};
use crate::comm::{AllReduce, Communicator, DType, Epilogue, Phase, Shape, Stage};
use crate::driver::{Device, DeviceBuffer, DevicePtr, Stream};
use crate::engine::EngineError;

/// Added to the mean square; Llama 3's.
const EPS: f32 = 1e-5;
/// Of the norm's output: bf16 has eight bits.
const NORM_TOLERANCE: f32 = 0.01;

/// One rank with its tensor.
pub(super) struct OurRank {
    comm: GpuComm,
    device: Device,
    stream: Arc<Stream>,
    buf: GpuBuffer,
    /// What the tensor is filled with, in `dtype`.
    source: DeviceBuffer<u8>,
    dtype: DType,
    residual: DeviceBuffer<bf16>,
    residual_source: DeviceBuffer<bf16>,
    gain: DeviceBuffer<bf16>,
    out: DeviceBuffer<bf16>,
}

/// One rank per device, for tensors of up to `max_bytes`, with the epilogue up to `max_fused` elements in rows of up
/// to `max_hidden`.
pub(super) fn ranks(
    devices: &[Device],
    shape: Shape,
    options: &GroupOptions,
    dtype: DType,
    room: (usize, usize, usize),
) -> Result<Vec<OurRank>, Error> {
    let comms = GpuComm::group(devices, shape, options.clone());
    let comms = comms.map_err(|e| EngineError::of_group(&e).map_or_else(|| e.into(), Error::from))?;
    each(comms.into_iter().zip(devices), |(comm, device)| rank(comm, device, dtype, room))
}

/// The rank of a communicator.
pub(super) fn rank(
    comm: GpuComm,
    device: &Device,
    dtype: DType,
    (max_bytes, max_fused, max_hidden): (usize, usize, usize),
) -> Result<OurRank, Error> {
    let (rank, tp) = (comm.topology().rank, comm.topology().world());
    let stream = Arc::new(device.stream()?);
    let buf = comm.register(max_bytes)?;
    let numbers = (0..max_bytes / dtype.size_bytes()).map(|i| numbers::contribution(rank, i, tp));
    let bf16s = |n: usize, of: &dyn Fn(usize) -> f32| {
        let values: Vec<bf16> = (0..n).map(|i| bf16::from_f32(of(i))).collect();
        device.upload(&values, &stream)
    };
    let (residual, source) = (|i| numbers::contribution(tp, i, tp), numbers::bytes(numbers, dtype));
    Ok(OurRank {
        source: device.upload(&source, &stream)?,
        dtype,
        residual: bf16s(max_fused, &residual)?,
        residual_source: bf16s(max_fused, &residual)?,
        gain: bf16s(max_hidden, &gain)?,
        out: device.allocate_zeroed(max_fused, &stream)?,
        device: device.clone(),
        comm,
        stream,
        buf,
    })
}

fn gain(index: usize) -> f32 {
    1.0 + (index % 7) as f32 / 8.0
}

impl OurRank {
    fn wrong(&self, task: &Task, (index, found, expected): (usize, f32, f32)) -> Error {
        Error::Wrong {
            contender: OURS.to_owned(),
            call: task.call,
            bytes: task.bytes(),
            dtype: task.dtype,
            rank: self.comm.topology().rank,
            index,
            found,
            expected,
        }
    }

    /// Residual and norm behind a fused call.
    fn verify_epilogue(&self, task: &Task) -> Result<(), Error> {
        let tp = self.comm.topology().world();
        let (mut residual, mut out) = (vec![bf16::ZERO; task.numel], vec![bf16::ZERO; task.numel]);
        self.residual.download_at(0, &mut residual, &self.stream)?;
        self.out.download_at(0, &mut out, &self.stream)?;
        for (row, (residual, out)) in
            residual.chunks_exact(task.hidden).zip(out.chunks_exact(task.hidden)).enumerate()
        {
            let squares: f64 = residual.iter().map(|x| x.to_f64() * x.to_f64()).sum();
            let scale = 1.0 / (squares / task.hidden as f64 + f64::from(EPS)).sqrt();
            for (column, (x, y)) in residual.iter().zip(out).enumerate() {
                let index = row * task.hidden + column;
                let expected = numbers::sum(index, tp) + numbers::contribution(tp, index, tp);
                if x.to_f32() != expected {
                    return Err(self.wrong(task, (index, x.to_f32(), expected)));
                }
                let expected = (x.to_f64() * scale) as f32 * gain(column);
                let error = (y.to_f32() - expected).abs();
                if error.is_nan() || error > NORM_TOLERANCE * expected.abs().max(0.1) {
                    return Err(self.wrong(task, (index, y.to_f32(), expected)));
                }
            }
        }
        Ok(())
    }
}

impl Contestant for OurRank {
    const NAME: &'static str = OURS;

    fn device(&self) -> &Device {
        &self.device
    }

    fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }

    fn refill(&mut self, task: &Task) -> Result<(), Error> {
        assert_eq!(task.dtype, self.dtype, "the source has another type");
        assert!(task.bytes() <= self.source.len(), "the tensor was not planned for");
        let to = DevicePtr(self.buf.addr::<u8>().raw());
        // SAFETY: both are the rank's memory of at least so many bytes, and only its stream uses them.
        unsafe {
            self.device.gpu().copy_d2d(self.stream.id(), to, self.source.ptr(), task.bytes())?;
        }
        if task.call == Call::Fused {
            self.residual.copy_at(0, &self.residual_source, 0, task.numel, &self.stream)?;
        }
        Ok(())
    }

    fn enqueue(&mut self, task: &Task) -> Result<(), Error> {
        let &Task { call, numel, dtype, hidden } = task;
        let buf = &mut self.buf;
        let phase = match call {
            Call::Plain => {
                let op = AllReduce { buf, numel, dtype, addend: None, epilogue: Epilogue::None };
                return Ok(self.comm.enqueue(&self.stream, op)?);
            }
            Call::Fused => {
                // SAFETY: the rank's own memory of at least so many elements, alive as long as its graphs.
                let slice = |at: &DeviceBuffer<bf16>, len| unsafe { DeviceSlice::new(at.addr(), len) };
                let (mut residual, mut out) = (slice(&self.residual, numel), slice(&self.out, numel));
                let gain = slice(&self.gain, hidden);
                let (residual, out) = (&mut residual, &mut out);
                let epilogue = Epilogue::ResidualRmsNorm { residual, gain: &gain, eps: EPS, out };
                let op = AllReduce { buf, numel, dtype, addend: None, epilogue };
                return Ok(self.comm.enqueue(&self.stream, op)?);
            }
            Call::Reduce => Phase::Reduce,
            Call::Put => Phase::Put,
            Call::Broadcast => Phase::Broadcast,
        };
        Ok(self.comm.enqueue_stage(&self.stream, Stage { phase, buf, numel, dtype })?)
    }

    fn check(&self) -> Result<(), Error> {
        Ok(self.comm.check()?)
    }

    fn verify(&mut self, task: &Task) -> Result<(), Error> {
        if !matches!(task.call, Call::Plain | Call::Fused) {
            return Ok(());
        }
        let mut bytes = vec![0; task.bytes()];
        self.buf.memory().download_at(0, &mut bytes, &self.stream)?;
        let wrong = numbers::first_wrong(&bytes, task.numel, task.dtype, self.comm.topology().world());
        wrong.map_or(Ok(()), |wrong| Err(self.wrong(task, wrong)))?;
        if task.call == Call::Fused { self.verify_epilogue(task) } else { Ok(()) }
    }
}
