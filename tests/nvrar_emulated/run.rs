//! Runs a scenario: the shipped launches on emulated devices, and what they left.

use std::sync::Arc;

use fewsync::comm::gpu::{
    DeviceSlice, GpuBuffer, GpuComm, Loopback, LoopbackBuffer, LoopbackPuts, LoopbackSlices,
};
use fewsync::comm::{AllGather, AllReduce, CommError, Communicator, Epilogue, Stage};
use fewsync::driver::{Device, DeviceBuffer, DevicePtr, KernelLibrary, Stream};
use fewsync::kernels::nvrar::NormAfter;
use fewsync::kernels::{Addr, Ptx};
use half::bf16;

use crate::inputs::{EPS, Inputs};
use crate::pes;
use crate::scenario::{Call, Home, Kind, Scenario};

pub(crate) type Result<T = ()> = std::result::Result<T, CommError>;

/// Residual and output of one rank.
pub(crate) type NormOfRank = (Vec<bf16>, Vec<bf16>);

/// What a run left.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The bytes of each buffer on each rank.
    pub(crate) buffers: Vec<Vec<Vec<u8>>>,
    /// By call and rank, where there is a norm.
    pub(crate) norms: Vec<Vec<NormOfRank>>,
    /// Words that nobody took; known of a loopback alone.
    pub(crate) untaken_words: usize,
}

/// The ranks of one GPU, and what they bring, in its memory.
struct Brought {
    /// By call and rank; empty where the call takes what is there.
    fresh: Vec<Vec<DeviceBuffer<u8>>>,
    /// By call.
    slices: Vec<Slices>,
}

/// `[ranks, stride]` each.
#[derive(Default)]
struct Slices {
    addend: Option<DeviceBuffer<bf16>>,
    norm: Option<NormSlices>,
}

struct NormSlices {
    residual: DeviceBuffer<bf16>,
    gain: DeviceBuffer<bf16>,
    out: DeviceBuffer<bf16>,
}

/// Runs it with the kernels of a PTX file, which are those that put where the ranks are PEs.
pub(crate) fn run(scenario: &Scenario, inputs: &Inputs, ptx: &'static Ptx) -> Result<Found> {
    if let Home::Pes { unit } = scenario.home {
        return pes::run(scenario, inputs, ptx, unit);
    }
    let devices = Device::emulated(&scenario.machine);
    let load = |device| {
        let library = KernelLibrary::load_file(device, ptx)?;
        Ok(Arc::new(library.programmatic(scenario.options.dependent_launch)))
    };
    let libraries = devices.iter().map(load).collect::<Result<Vec<_>>>()?;
    match scenario.home {
        Home::Loopback { .. } | Home::LoopbackPuts => loopback(scenario, inputs, &libraries),
        Home::Group | Home::Pes { .. } => group(scenario, inputs, &libraries),
    }
}

impl Brought {
    fn new(
        scenario: &Scenario,
        inputs: &Inputs,
        ranks: std::ops::Range<usize>,
        stream: &Stream,
    ) -> Result<Self> {
        let device = stream.device();
        let fresh = inputs.fresh.iter().map(|of_rank| {
            let own = of_rank.get(ranks.clone()).unwrap_or_default();
            own.iter().map(|bytes| Ok(device.upload(bytes, stream)?)).collect()
        });
        let slices = scenario.calls.iter().zip(&inputs.slices).map(|(call, given)| {
            let Kind::Sum { addend, hidden } = call.kind else { return Ok(Slices::default()) };
            let tensors = |of_rank: &[Vec<bf16>]| {
                let padded = of_rank[ranks.clone()].iter().flat_map(|own| {
                    let gap = stride(call) - own.len();
                    own.iter().copied().chain(std::iter::repeat_n(bf16::NAN, gap))
                });
                device.upload(&padded.collect::<Vec<_>>(), stream)
            };
            let norm = |_| -> Result<NormSlices> {
                Ok(NormSlices {
                    residual: tensors(&given.residual)?,
                    gain: device.upload(&given.gain, stream)?,
                    out: device.upload(&vec![bf16::NAN; ranks.len() * stride(call)], stream)?,
                })
            };
            let addend = addend.then(|| tensors(&given.addend)).transpose()?;
            Ok(Slices { addend, norm: hidden.map(norm).transpose()? })
        });
        Ok(Self { fresh: fresh.collect::<Result<_>>()?, slices: slices.collect::<Result<_>>()? })
    }

    /// Puts what is new of a call where it is summed.
    fn enqueue_fresh(&self, call: usize, to: impl Fn(usize) -> Addr<u8>, stream: &Stream) -> Result {
        for (rank, from) in self.fresh[call].iter().enumerate().filter(|(_, from)| !from.is_empty()) {
            let to = DevicePtr(to(rank).raw());
            // SAFETY: the buffer is at least as long, and both live until the stream has been waited for.
            unsafe { stream.device().gpu().copy_d2d(stream.id(), to, from.ptr(), from.size_bytes())? };
        }
        Ok(())
    }

    /// Residuals and outputs of each of `ranks` ranks.
    fn norms(&self, calls: &[Call], stream: &Stream) -> Result<Vec<Vec<NormOfRank>>> {
        let of_call = |(call, slices): (&Call, &Slices)| {
            let Some(NormSlices { residual, out, .. }) = &slices.norm else { return Ok(Vec::new()) };
            let (residual, out) = (residual.download(stream)?, out.download(stream)?);
            let pairs = residual.chunks(stride(call)).zip(out.chunks(stride(call)));
            Ok(pairs.map(|(a, b)| (a[..call.numel].to_vec(), b[..call.numel].to_vec())).collect())
        };
        calls.iter().zip(&self.slices).map(of_call).collect()
    }
}

/// Elements from one rank's slices to the next one's; all are aligned to 16 bytes.
fn stride(call: &Call) -> usize {
    call.numel.next_multiple_of(8)
}

fn loopback(scenario: &Scenario, inputs: &Inputs, libraries: &[Arc<KernelLibrary>]) -> Result<Found> {
    let (shape, options) = (scenario.shape, scenario.options.clone());
    let ranks = match scenario.home {
        Home::LoopbackPuts => {
            Loopback::over_puts(&libraries[0], &LoopbackPuts::load(&libraries[0])?, shape, options)?
        }
        _ => Loopback::new(libraries, shape, options)?,
    };
    let (per_gpu, world) = (ranks.ranks_per_gpu(), scenario.shape.world());
    let mut bufs: Vec<LoopbackBuffer> =
        (0..scenario.buffers()).map(|_| ranks.register(scenario.bytes())).collect::<Result<_>>()?;
    let stream = |library: &Arc<KernelLibrary>| Ok(library.device().stream()?);
    let streams: Vec<Vec<Stream>> = libraries
        .iter()
        .map(|library| (0..bufs.len()).map(|_| stream(library)).collect())
        .collect::<Result<_>>()?;
    let mut brought = Vec::new();
    for (gpu, streams) in streams.iter().enumerate() {
        let own = gpu * per_gpu..(gpu + 1) * per_gpu;
        for rank in own.clone() {
            bufs.iter_mut().try_for_each(|buf| buf.write(rank, &inputs.background, &streams[0]))?;
        }
        brought.push(Brought::new(scenario, inputs, own, &streams[0])?);
    }
    for (gpu, brought) in brought.iter().enumerate() {
        for (i, call) in scenario.calls.iter().enumerate() {
            let stream = &streams[gpu][call.buf];
            brought.enqueue_fresh(i, |rank| bufs[call.buf].addr(gpu * per_gpu + rank), stream)?;
            enqueue_loopback(&ranks, gpu, stream, &mut bufs[call.buf], call, &brought.slices[i])?;
        }
    }
    streams.iter().flatten().try_for_each(Stream::synchronize)?;
    ranks.check()?;
    let mut found = Found { norms: vec![Vec::new(); scenario.calls.len()], ..Found::default() };
    for buf in &bufs {
        let mut of_rank = vec![vec![0; scenario.bytes()]; world];
        for (rank, bytes) in of_rank.iter_mut().enumerate() {
            buf.read(rank, bytes, &streams[rank / per_gpu][0])?;
            found.untaken_words += buf.untaken_words(rank, &streams[rank / per_gpu][0])?;
        }
        found.buffers.push(of_rank);
    }
    for (brought, streams) in brought.iter().zip(&streams) {
        let norms = brought.norms(&scenario.calls, &streams[0])?;
        found.norms.iter_mut().zip(norms).for_each(|(all, own)| all.extend(own));
    }
    Ok(found)
}

fn enqueue_loopback(
    ranks: &Loopback,
    gpu: usize,
    stream: &Stream,
    buf: &mut LoopbackBuffer,
    call: &Call,
    slices: &Slices,
) -> Result {
    let what = (call.numel, call.dtype);
    match &call.kind {
        Kind::Phase(phase) => ranks.phase(gpu, stream, buf, *phase, what),
        Kind::Gather { offsets } => ranks.all_gather(gpu, stream, buf, offsets, call.dtype),
        Kind::Sum { hidden, .. } => {
            let norm = slices.norm.as_ref().map(|it| NormAfter {
                residual: it.residual.addr(),
                gain: it.gain.addr(),
                out: it.out.addr(),
                hidden: hidden.unwrap_or_default() as u32,
                eps: EPS,
            });
            let addend = slices.addend.as_ref().map_or(Addr::NULL, DeviceBuffer::addr);
            let slices = LoopbackSlices { addend, norm, stride: stride(call) };
            // SAFETY: the slices have a tensor for each rank and live until the streams have been waited for.
            unsafe { ranks.all_reduce(gpu, stream, buf, what, slices) }
        }
    }
}

fn group(scenario: &Scenario, inputs: &Inputs, libraries: &[Arc<KernelLibrary>]) -> Result<Found> {
    let comms = GpuComm::group_with(libraries, scenario.shape, scenario.options.clone())?;
    let one_rank = |comm: GpuComm| {
        let mut rank = Rank::new(scenario, inputs, comm, libraries)?;
        rank.enqueue(scenario)?;
        rank.finish(scenario)
    };
    let one_rank = &one_rank;
    let found: Vec<Result<Found>> = std::thread::scope(|scope| {
        let threads: Vec<_> = comms.into_iter().map(|comm| scope.spawn(move || one_rank(comm))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    together(scenario, found)
}

/// What all ranks found.
pub(crate) fn together(scenario: &Scenario, found: Vec<Result<Found>>) -> Result<Found> {
    let mut all = Found { buffers: vec![Vec::new(); scenario.buffers()], ..Found::default() };
    all.norms.resize_with(scenario.calls.len(), Vec::new);
    for found in found {
        let Found { buffers, norms, .. } = found?;
        all.buffers.iter_mut().zip(buffers).for_each(|(all, own)| all.extend(own));
        all.norms.iter_mut().zip(norms).for_each(|(all, own)| all.extend(own));
    }
    Ok(all)
}

/// A rank of a group, with what it brings.
pub(crate) struct Rank {
    bufs: Vec<GpuBuffer>,
    streams: Vec<Stream>,
    brought: Brought,
    comm: GpuComm,
}

impl Rank {
    pub(crate) fn new(
        scenario: &Scenario,
        inputs: &Inputs,
        comm: GpuComm,
        libraries: &[Arc<KernelLibrary>],
    ) -> Result<Self> {
        let rank = comm.topology().rank;
        let device = libraries[rank].device();
        let bufs: Vec<GpuBuffer> =
            (0..scenario.buffers()).map(|_| comm.register(scenario.bytes())).collect::<Result<_>>()?;
        let streams: Vec<Stream> = bufs.iter().map(|_| Ok(device.stream()?)).collect::<Result<_>>()?;
        let background = device.upload(&inputs.background, &streams[0])?;
        for (buf, stream) in bufs.iter().zip(&streams) {
            let to = DevicePtr(buf.addr::<u8>().raw());
            // SAFETY: the buffer is as long, and both live until the stream has been waited for.
            unsafe { device.gpu().copy_d2d(stream.id(), to, background.ptr(), background.size_bytes())? };
            stream.synchronize()?;
        }
        let brought = Brought::new(scenario, inputs, rank..rank + 1, &streams[0])?;
        Ok(Self { bufs, streams, brought, comm })
    }

    /// All calls.
    pub(crate) fn enqueue(&mut self, scenario: &Scenario) -> Result {
        let Self { bufs, streams, brought, comm } = self;
        for (i, call) in scenario.calls.iter().enumerate() {
            let stream = &streams[call.buf];
            brought.enqueue_fresh(i, |_| bufs[call.buf].addr(), stream)?;
            enqueue_rank(comm, stream, &mut bufs[call.buf], call, &brought.slices[i])?;
        }
        Ok(())
    }

    /// Waits, and reads what is there.
    pub(crate) fn finish(&self, scenario: &Scenario) -> Result<Found> {
        let Self { bufs, streams, brought, comm } = self;
        streams.iter().try_for_each(Stream::synchronize)?;
        comm.check()?;
        let buffers = bufs.iter().map(|buf| {
            let mut bytes = vec![0; scenario.bytes()];
            buf.memory().download_at(0, &mut bytes, &streams[0])?;
            Ok(vec![bytes])
        });
        let buffers = buffers.collect::<Result<_>>()?;
        Ok(Found { buffers, norms: brought.norms(&scenario.calls, &streams[0])?, untaken_words: 0 })
    }
}

fn enqueue_rank(
    comm: &GpuComm,
    stream: &Stream,
    buf: &mut GpuBuffer,
    call: &Call,
    slices: &Slices,
) -> Result {
    let &Call { numel, dtype, .. } = call;
    match &call.kind {
        Kind::Phase(phase) => comm.enqueue_stage(stream, Stage { phase: *phase, buf, numel, dtype }),
        Kind::Gather { offsets } => comm.enqueue_gather(stream, AllGather { buf, offsets, dtype }),
        Kind::Sum { .. } => {
            // SAFETY: the slices live until the streams have been waited for.
            let slice = |of: &DeviceBuffer<bf16>, len| unsafe { DeviceSlice::new(of.addr(), len) };
            let addend = slices.addend.as_ref().map(|it| slice(it, numel));
            let norm = slices.norm.as_ref();
            let mut norm = norm.map(|NormSlices { residual, gain, out }| {
                (slice(residual, numel), slice(gain, gain.len()), slice(out, numel))
            });
            let epilogue = match &mut norm {
                Some((residual, gain, out)) => Epilogue::ResidualRmsNorm { residual, gain, eps: EPS, out },
                None => Epilogue::None,
            };
            comm.enqueue(stream, AllReduce { buf, numel, dtype, addend: addend.as_ref(), epilogue })
        }
    }
}
