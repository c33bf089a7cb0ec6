//! This crate's communicator as a contender.

use std::sync::Arc;

use half::bf16;

use super::AllReduceBenchError as Error;
use super::contest::Sweep;
use super::numbers;
use super::race::{Contestant, Task, each};
use super::record::{Call, OURS};
use crate::comm::gpu::{DeviceSlice, GpuBuffer, GpuComm, GroupOptions, Tuning};
use crate::comm::{AllReduce, Communicator, DType, Epilogue, Phase, Shape, Stage};
use crate::driver::{Device, DeviceBuffer, DevicePtr, KernelLibrary, Stream};
use crate::engine::EngineError;
use crate::kernels::AddRmsNorm;

/// Added to the mean square; Llama 3's.
const EPS: f32 = 1e-5;
/// Of the norm's output: bf16 has eight bits.
const NORM_TOLERANCE: f32 = 0.01;

/// One rank with its tensor.
pub(super) struct OurRank {
    comm: GpuComm,
    kernels: Arc<KernelLibrary>,
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

/// One rank per device, with room for these tasks.
pub(super) fn ranks_for(
    devices: &[Device],
    sweep: &Sweep,
    options: &GroupOptions,
    tasks: &[Task],
) -> Result<Vec<OurRank>, Error> {
    ranks(devices, sweep.shape, options, sweep.dtype, room_for(tasks))
}

/// Bytes of the largest tensor, elements of the largest fused one and of the longest row.
pub(super) fn room_for(tasks: &[Task]) -> (usize, usize, usize) {
    let rows = || tasks.iter().filter(|task| task.hidden > 0);
    let max_bytes = tasks.iter().map(Task::bytes).max().unwrap_or(0);
    let max_fused = rows().map(|task| task.numel).max().unwrap_or(0);
    let max_hidden = rows().map(|task| task.hidden).max().unwrap_or(0);
    (max_bytes, max_fused, max_hidden)
}

/// One rank per device, for tensors of up to `max_bytes`, with the epilogue up to `max_fused` elements in rows of up
/// to `max_hidden`.
fn ranks(
    devices: &[Device],
    shape: Shape,
    options: &GroupOptions,
    dtype: DType,
    room: (usize, usize, usize),
) -> Result<Vec<OurRank>, Error> {
    let load = |device| Ok(Arc::new(KernelLibrary::load(device)?.programmatic(options.dependent_launch)));
    let kernels = devices.iter().map(load).collect::<Result<Vec<_>, Error>>()?;
    let comms = GpuComm::group_with(&kernels, shape, options.clone());
    let comms = comms.map_err(|e| EngineError::of_group(&e).map_or_else(|| e.into(), Error::from))?;
    each(comms.into_iter().zip(kernels), |(comm, kernels)| rank(comm, kernels, dtype, room))
}

/// The rank of a communicator.
pub(super) fn rank(
    comm: GpuComm,
    kernels: Arc<KernelLibrary>,
    dtype: DType,
    (max_bytes, max_fused, max_hidden): (usize, usize, usize),
) -> Result<OurRank, Error> {
    let device = kernels.device();
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
        kernels: Arc::clone(&kernels),
        stream,
        buf,
    })
}

fn gain(index: usize) -> f32 {
    1.0 + (index % 7) as f32 / 8.0
}

impl OurRank {
    /// From now on sums like this; equal on all ranks.
    pub(super) fn set_tuning(&self, tuning: Option<Tuning>) {
        self.comm.set_tuning(tuning);
    }

    /// Whether messages to other nodes are put.
    pub(super) fn puts_between_nodes(&self) -> bool {
        self.comm.puts_between_nodes()
    }

    /// What a task is executed with.
    pub(super) fn tuning_of(&self, task: &Task) -> Result<Tuning, Error> {
        let hidden = (task.call == Call::Fused).then_some(task.hidden);
        Ok(self.comm.tuning_of(&self.buf, (task.numel, task.dtype), hidden)?)
    }

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

    /// Residual and norm behind a fused call, or without the sum.
    fn verify_epilogue(&self, task: &Task) -> Result<(), Error> {
        let (rank, tp) = (self.comm.topology().rank, self.comm.topology().world());
        let added = |index| match task.call {
            Call::Norm => numbers::contribution(rank, index, tp),
            _ => numbers::sum(index, tp),
        };
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
                let expected = added(index) + numbers::contribution(tp, index, tp);
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
        if matches!(task.call, Call::Fused | Call::Norm) {
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
            Call::Norm => {
                let norm = AddRmsNorm {
                    x: buf.addr(),
                    residual: self.residual.addr(),
                    sum: self.residual.addr(),
                    weight: self.gain.addr(),
                    out: self.out.addr(),
                    n_tokens: (numel / hidden) as u32,
                    hidden: hidden as u32,
                    eps: EPS,
                };
                // SAFETY: the rank's own memory of at least so many elements, alive as long as its graphs.
                return Ok(unsafe { self.kernels.launch(&self.stream, &norm.launch()) }?);
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
        match task.call {
            Call::Plain | Call::Fused => {}
            Call::Norm => return self.verify_epilogue(task),
            Call::Reduce | Call::Put | Call::Broadcast => return Ok(()),
        }
        let mut bytes = vec![0; task.bytes()];
        self.buf.memory().download_at(0, &mut bytes, &self.stream)?;
        let wrong = numbers::first_wrong(&bytes, task.numel, task.dtype, self.comm.topology().world());
        wrong.map_or(Ok(()), |wrong| Err(self.wrong(task, wrong)))?;
        if task.call == Call::Fused { self.verify_epilogue(task) } else { Ok(()) }
    }
}
