//! Ranks that are GPUs of one process: NVRAR in one launch per collective.
//!
//! A rank that is alone exchanges nothing, but addend and epilogue are computed all the same, so that an engine
//! synchronises only through the trait, whatever the number of ranks.

mod choose;
mod options;

pub use choose::{Algorithm, Format, Tuning};
pub use options::{GroupOptions, PeerMemory};

use std::sync::Arc;

use half::bf16;

use super::{AllGather, AllReduce, CommError, Communicator, Counts, DType, Epilogue, Shape, Stage, Topology};
use crate::driver::{Device, DeviceBuffer, KernelLibrary, Stream};
use crate::kernels::{AddRmsNorm, Addr, Launch};

/// A rank on one GPU. Addends and epilogues are bf16.
#[derive(Debug)]
pub struct GpuComm {
    topology: Topology,
    device: Device,
    kernels: Arc<KernelLibrary>,
}

/// Part of a buffer in device memory, whose owner keeps it alive.
#[derive(Debug, Clone, Copy)]
pub struct DeviceSlice {
    at: Addr<bf16>,
    len: usize,
}

impl DeviceSlice {
    /// `len` elements from `at` on.
    ///
    /// # Safety
    /// They are device memory of the communicator's GPU, and stay allocated until its streams have run all that
    /// was enqueued with them, and while graphs that recorded it can be launched.
    pub unsafe fn new(at: Addr<bf16>, len: usize) -> Self {
        Self { at, len }
    }
}

/// Symmetric memory: this rank's part, and the slots that its peers write into.
#[derive(Debug)]
pub struct GpuBuffer {
    memory: DeviceBuffer<u8>,
}

impl GpuBuffer {
    /// The first element, for kernels that write what is to be summed or gathered.
    pub fn addr<T>(&self) -> Addr<T> {
        Addr::new(self.memory.ptr().0)
    }

    /// The memory itself.
    pub fn memory(&self) -> &DeviceBuffer<u8> {
        &self.memory
    }
}

impl GpuComm {
    /// The only rank of its group, on the device that `kernels` were loaded on.
    pub fn solo(kernels: Arc<KernelLibrary>) -> Self {
        let topology = Topology { nodes: 1, gpus_per_node: 1, rank: 0 };
        Self { topology, device: kernels.device().clone(), kernels }
    }

    /// One rank per device, in rank order; each goes to the thread that is to be that rank. Loads the embedded
    /// kernels on every device.
    ///
    /// # Errors
    /// A number of devices that is not the shape's, a device twice, GPUs without a path to each other (use
    /// [`PeerMemory::HostStaged`]), and what the driver refuses.
    pub fn group(devices: &[Device], shape: Shape, options: GroupOptions) -> Result<Vec<Self>, CommError> {
        let load = |device| Ok(Arc::new(KernelLibrary::load(device)?.programmatic(options.dependent_launch)));
        let kernels = devices.iter().map(load).collect::<Result<Vec<_>, CommError>>()?;
        Self::group_with(&kernels, shape, options)
    }

    /// [`group`](Self::group) on kernels that are loaded already, one library per rank.
    ///
    /// # Errors
    /// As [`group`](Self::group).
    pub fn group_with(
        kernels: &[Arc<KernelLibrary>],
        _shape: Shape,
        _options: GroupOptions,
    ) -> Result<Vec<Self>, CommError> {
        let [alone] = kernels else {
            return Err(CommError::Unsupported { what: "several GPUs" });
        };
        Ok(vec![Self::solo(Arc::clone(alone))])
    }

    fn launch(&self, stream: &Stream, launch: &Launch) -> Result<(), CommError> {
        // SAFETY: the launches of this module touch only a registered buffer and slices whose lengths were
        // checked; `DeviceSlice::new` promised that they stay.
        Ok(unsafe { self.kernels.launch(stream, launch) }?)
    }

    /// Refuses what does not fit before anything is enqueued.
    fn check_op(op: &AllReduce<'_, Self>) -> Result<(), CommError> {
        check_size(op.buf, op.numel, op.dtype)?;
        let length = |what, slice: &DeviceSlice| match slice.len {
            found if found == op.numel => Ok(()),
            found => Err(CommError::Length { what, expected: op.numel, found }),
        };
        if let Some(addend) = op.addend {
            length("the addend", addend)?;
        }
        if let Epilogue::ResidualRmsNorm { residual, gain, out, .. } = &op.epilogue {
            length("the residual", residual)?;
            length("the norm's output", out)?;
            if gain.len == 0 || !op.numel.is_multiple_of(gain.len) {
                return Err(CommError::Rows { numel: op.numel, hidden: gain.len });
            }
        }
        Ok(())
    }
}

fn check_size(buf: &GpuBuffer, numel: usize, dtype: DType) -> Result<(), CommError> {
    let bytes = buf.memory.size_bytes();
    if numel.checked_mul(dtype.size_bytes()).is_none_or(|needed| needed > bytes) {
        return Err(CommError::TooLarge { numel, dtype, bytes });
    }
    Ok(())
}

impl Communicator for GpuComm {
    type Stream = Stream;
    type Slice = DeviceSlice;
    type Buffer = GpuBuffer;

    fn topology(&self) -> &Topology {
        &self.topology
    }

    fn register(&self, bytes: usize) -> Result<GpuBuffer, CommError> {
        let stream = self.device.stream()?;
        let memory = self.device.allocate_zeroed(bytes, &stream)?;
        stream.synchronize()?;
        Ok(GpuBuffer { memory })
    }

    /// bf16 only, where there is an addend or an epilogue. An addend needs an epilogue: its sum is formed in the
    /// norm's output first.
    fn enqueue(&self, stream: &Stream, op: AllReduce<'_, Self>) -> Result<(), CommError> {
        Self::check_op(&op)?;
        let AllReduce { buf, numel, dtype, addend, epilogue } = op;
        let Epilogue::ResidualRmsNorm { residual, gain, eps, out } = epilogue else {
            let what = "an addend without an epilogue, where a rank is alone on its GPU";
            return addend.map_or(Ok(()), |_| Err(CommError::Unsupported { what }));
        };
        if dtype != DType::Bf16 {
            return Err(CommError::Unsupported { what: "an epilogue over other types than bf16 on a GPU" });
        }
        if numel == 0 {
            return Ok(());
        }
        let rows = |x: Addr<bf16>, residual: Addr<bf16>| AddRmsNorm {
            x,
            residual,
            weight: gain.at,
            out: out.at,
            n_tokens: (numel / gain.len) as u32,
            hidden: gain.len as u32,
            eps,
        };
        if let Some(addend) = addend {
            // Only the sum is wanted; the norm of it is overwritten below.
            self.launch(stream, &rows(addend.at, buf.addr()).launch())?;
        }
        self.launch(stream, &rows(buf.addr(), residual.at).launch())
    }

    fn enqueue_stage(&self, _stream: &Stream, op: Stage<'_, Self>) -> Result<(), CommError> {
        check_size(op.buf, op.numel, op.dtype)
    }

    fn enqueue_gather(&self, _stream: &Stream, op: AllGather<'_, Self>) -> Result<(), CommError> {
        let [start, end] = *op.offsets else {
            return Err(CommError::Offsets { offsets: op.offsets.to_vec(), world: 1 });
        };
        if start != 0 || end < start {
            return Err(CommError::Offsets { offsets: op.offsets.to_vec(), world: 1 });
        }
        check_size(op.buf, end, op.dtype)
    }

    fn split(&self, _colour: usize, _key: usize) -> Result<Self, CommError> {
        Ok(Self::solo(Arc::clone(&self.kernels)))
    }

    fn check(&self) -> Result<(), CommError> {
        Ok(())
    }

    fn counts(&self) -> Counts {
        Counts::default()
    }
}
