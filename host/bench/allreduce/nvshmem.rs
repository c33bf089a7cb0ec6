//! NVSHMEM's own sum on a stream as a contender, between processes.

use std::ffi::c_void;
use std::sync::Arc;

use nvshmem_sys::SymmetricMemory;

use super::AllReduceBenchError as Error;
use super::numbers;
use super::race::{Contestant, Task};
use super::record::NVSHMEM;
use crate::comm::DType;
use crate::comm::gpu::nvshmem::NvshmemHeap;
use crate::driver::{Device, DeviceBuffer, DevicePtr, Stream};

/// This process's PE with its tensor, summed out of place.
pub(super) struct NvshmemRank {
    heap: Arc<NvshmemHeap>,
    device: Device,
    stream: Arc<Stream>,
    dtype: DType,
    /// What the tensor is filled with.
    filling: DeviceBuffer<u8>,
    source: SymmetricMemory,
    sum: SymmetricMemory,
}

/// Collective: a PE for tensors of up to `max_bytes`.
pub(super) fn rank(
    device: &Device,
    heap: Arc<NvshmemHeap>,
    dtype: DType,
    max_bytes: usize,
) -> Result<NvshmemRank, Error> {
    let stream = Arc::new(device.stream()?);
    let nvshmem = heap.nvshmem();
    let (pe, n_pes) = (nvshmem.pe(), nvshmem.n_pes());
    let numbers = (0..max_bytes / dtype.size_bytes()).map(|i| numbers::contribution(pe, i, n_pes));
    let filling = device.upload(&numbers::bytes(numbers, dtype), &stream)?;
    device.synchronize()?;
    let memory = || nvshmem.allocate(max_bytes).map_err(refused);
    let (source, sum) = (memory()?, memory()?);
    Ok(NvshmemRank { heap, device: device.clone(), stream, dtype, filling, source, sum })
}

fn refused(error: nvshmem_sys::Error) -> Error {
    Error::Comm(crate::comm::CommError::Nvshmem { reason: error.to_string() })
}

impl NvshmemRank {
    fn copy_from_filling(&mut self, task: &Task) -> Result<(), Error> {
        let to = DevicePtr(self.source.address());
        // SAFETY: both hold so many bytes, and only this rank's stream uses them between two collectives.
        unsafe { self.device.gpu().copy_d2d(self.stream.id(), to, self.filling.ptr(), task.bytes())? };
        Ok(())
    }
}

impl Contestant for NvshmemRank {
    const NAME: &'static str = NVSHMEM;

    fn device(&self) -> &Device {
        &self.device
    }

    fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }

    fn refill(&mut self, task: &Task) -> Result<(), Error> {
        self.copy_from_filling(task)
    }

    /// NVSHMEM finds the device's context on the calling thread: what refills or captures has put it there.
    fn enqueue(&mut self, task: &Task) -> Result<(), Error> {
        assert_eq!(task.dtype, self.dtype, "the source has another type");
        let api = self.heap.nvshmem().library().api();
        let team = nvshmem_sys::types::TEAM_WORLD;
        let (to, from) = (self.sum.address() as usize, self.source.address() as usize);
        let stream = self.stream.id().0 as usize as *mut c_void;
        // SAFETY: symmetric memory of the tensor's size on both sides; all PEs make the same calls.
        let status = unsafe {
            match task.dtype {
                DType::Bf16 => (api.nvshmemx_bfloat16_sum_reduce_on_stream)(
                    team,
                    to as *mut _,
                    from as *const _,
                    task.numel,
                    stream,
                ),
                DType::F16 => (api.nvshmemx_half_sum_reduce_on_stream)(
                    team,
                    to as *mut _,
                    from as *const _,
                    task.numel,
                    stream,
                ),
                DType::F32 => (api.nvshmemx_float_sum_reduce_on_stream)(
                    team,
                    to as *mut _,
                    from as *const _,
                    task.numel,
                    stream,
                ),
            }
        };
        if status == 0 {
            return Ok(());
        }
        let call = "nvshmemx_sum_reduce_on_stream";
        Err(refused(nvshmem_sys::Error::Call { call, status, hint: "" }))
    }

    fn check(&self) -> Result<(), Error> {
        Ok(())
    }

    fn verify(&mut self, task: &Task) -> Result<(), Error> {
        let bytes = self.device.allocate::<u8>(task.bytes())?;
        let from = DevicePtr(self.sum.address());
        // SAFETY: both hold so many bytes; the stream is waited for by the download.
        unsafe { self.device.gpu().copy_d2d(self.stream.id(), bytes.ptr(), from, task.bytes())? };
        let mut found = vec![0; task.bytes()];
        bytes.download_at(0, &mut found, &self.stream)?;
        let nvshmem = self.heap.nvshmem();
        match numbers::first_wrong(&found, task.numel, task.dtype, nvshmem.n_pes()) {
            None => Ok(()),
            Some((index, found, expected)) => Err(Error::Wrong {
                contender: NVSHMEM.to_owned(),
                call: task.call,
                bytes: task.bytes(),
                dtype: task.dtype,
                rank: nvshmem.pe(),
                index,
                found,
                expected,
            }),
        }
    }
}
