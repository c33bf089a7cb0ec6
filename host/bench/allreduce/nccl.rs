//! NCCL as a contender: the few functions that an all-reduce needs, looked up at run time.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use std::sync::Arc;

use libloading::Library;

use super::AllReduceBenchError as Error;
use super::numbers;
use super::race::{Contestant, Task};
use super::record::NCCL;
use crate::bench::library::OptionalLibrary;
use crate::comm::DType;
use crate::driver::{Device, DeviceBuffer, Stream};

/// Where NCCL is looked for.
pub(super) const LIBRARY: OptionalLibrary = OptionalLibrary {
    name: "NCCL",
    variable: "FEWSYNC_NCCL",
    files: &["libnccl.so.2"],
    wheel: "nvidia-nccl-cu13",
};

/// `ncclRedOp_t`.
const NCCL_SUM: c_int = 0;

type Handle = *mut c_void;
type CommInitAll = unsafe extern "C" fn(*mut Handle, c_int, *const c_int) -> c_int;
type CommDestroy = unsafe extern "C" fn(Handle) -> c_int;
type ReduceAll =
    unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, *mut c_void) -> c_int;
type GetVersion = unsafe extern "C" fn(*mut c_int) -> c_int;
type GetErrorString = unsafe extern "C" fn(c_int) -> *const c_char;

/// The library's functions.
struct Api {
    init_all: CommInitAll,
    destroy: CommDestroy,
    all_reduce: ReduceAll,
    error_string: GetErrorString,
    version: String,
    // Last, so that the functions are gone before it.
    _library: Library,
}

/// The version of the NCCL that would be compared with.
///
/// # Errors
/// Why there is none.
pub(super) fn version() -> Result<String, Error> {
    Ok(Api::open()?.version.clone())
}

impl Api {
    fn open() -> Result<Arc<Self>, Error> {
        let library = LIBRARY.open()?;
        fn find<T: Copy>(library: &Library, call: &'static str) -> Result<T, Error> {
            // SAFETY: each caller names the function of this type in nccl.h, unchanged since NCCL 2.2.
            unsafe { library.get::<T>(call) }.map(|symbol| *symbol).map_err(|_| Error::NoSuchCall { call })
        }
        let get_version: GetVersion = find(&library, "ncclGetVersion")?;
        let mut version = 0;
        // SAFETY: writes one int.
        unsafe { get_version(&mut version) };
        Ok(Arc::new(Self {
            init_all: find(&library, "ncclCommInitAll")?,
            destroy: find(&library, "ncclCommDestroy")?,
            all_reduce: find(&library, "ncclAllReduce")?,
            error_string: find(&library, "ncclGetErrorString")?,
            version: readable_version(version),
            _library: library,
        }))
    }

    fn check(&self, call: &'static str, result: c_int) -> Result<(), Error> {
        if result == 0 {
            return Ok(());
        }
        // SAFETY: the library returns a static string for any number.
        let reason = unsafe { CStr::from_ptr((self.error_string)(result)) }.to_string_lossy().into_owned();
        Err(Error::Nccl { call, version: self.version.clone(), reason })
    }
}

/// `22809` is 2.28.9; before 2.9 the numbers were shorter.
fn readable_version(version: c_int) -> String {
    let (major, minor) = if version < 10_000 { (1000, 100) } else { (10_000, 100) };
    format!("{}.{}.{}", version / major, version % major / minor, version % minor)
}

/// `ncclDataType_t`.
fn data_type(dtype: DType) -> c_int {
    match dtype {
        DType::F16 => 6,
        DType::F32 => 7,
        DType::Bf16 => 9,
    }
}

/// One rank with its tensor, summed out of place as NCCL prefers.
pub(super) struct NcclRank {
    api: Arc<Api>,
    handle: Handle,
    rank: usize,
    tp: usize,
    device: Device,
    stream: Arc<Stream>,
    source: DeviceBuffer<u8>,
    sum: DeviceBuffer<u8>,
}

// SAFETY: NCCL lets any one thread at a time use a communicator.
unsafe impl Send for NcclRank {}

impl Drop for NcclRank {
    fn drop(&mut self) {
        // SAFETY: we own the communicator, and its work has finished: every measurement waits for its stream.
        let _ = unsafe { (self.api.destroy)(self.handle) };
    }
}

/// One rank per device, for tensors of up to `max_bytes`; and the library's version.
pub(super) fn ranks(
    devices: &[Device],
    dtype: DType,
    max_bytes: usize,
) -> Result<(Vec<NcclRank>, String), Error> {
    let api = Api::open()?;
    let ordinals: Vec<c_int> = devices.iter().map(|device| device.properties().ordinal as c_int).collect();
    let mut handles = vec![ptr::null_mut(); devices.len()];
    // SAFETY: both arrays have one entry per device.
    let result = unsafe { (api.init_all)(handles.as_mut_ptr(), ordinals.len() as c_int, ordinals.as_ptr()) };
    api.check("ncclCommInitAll", result)?;
    let tp = devices.len();
    let ranks = handles.into_iter().zip(devices).enumerate().map(|(rank, (handle, device))| {
        let stream = Arc::new(device.stream()?);
        let numbers = (0..max_bytes / dtype.size_bytes()).map(|i| numbers::contribution(rank, i, tp));
        let source = device.upload(&numbers::bytes(numbers, dtype), &stream)?;
        let sum = device.allocate(max_bytes)?;
        Ok(NcclRank { api: Arc::clone(&api), handle, rank, tp, device: device.clone(), stream, source, sum })
    });
    Ok((ranks.collect::<Result<_, Error>>()?, api.version.clone()))
}

impl Contestant for NcclRank {
    const NAME: &'static str = NCCL;

    fn device(&self) -> &Device {
        &self.device
    }

    fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }

    /// Nothing is overwritten; the copy is there because others have one.
    fn refill(&mut self, task: &Task) -> Result<(), Error> {
        Ok(self.sum.copy_at(0, &self.source, 0, task.bytes(), &self.stream)?)
    }

    fn enqueue(&mut self, task: &Task) -> Result<(), Error> {
        let (from, to) = (self.source.ptr().0 as usize as *const _, self.sum.ptr().0 as usize as *mut _);
        let stream = self.stream.id().0 as usize as *mut c_void;
        let dtype = data_type(task.dtype);
        // SAFETY: both buffers hold the tensor on the communicator's device, whose stream it is.
        let result =
            unsafe { (self.api.all_reduce)(from, to, task.numel, dtype, NCCL_SUM, self.handle, stream) };
        self.api.check("ncclAllReduce", result)
    }

    fn check(&self) -> Result<(), Error> {
        Ok(())
    }

    fn verify(&mut self, task: &Task) -> Result<(), Error> {
        let mut bytes = vec![0; task.bytes()];
        self.sum.download_at(0, &mut bytes, &self.stream)?;
        match numbers::first_wrong(&bytes, task.numel, task.dtype, self.tp) {
            None => Ok(()),
            Some((index, found, expected)) => Err(Error::Wrong {
                contender: NCCL.to_owned(),
                call: task.call,
                bytes: task.bytes(),
                dtype: task.dtype,
                rank: self.rank,
                index,
                found,
                expected,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_readable() {
        assert_eq!([22_809, 21_803, 2_708].map(readable_version), ["2.28.9", "2.18.3", "2.7.8"]);
    }
}
