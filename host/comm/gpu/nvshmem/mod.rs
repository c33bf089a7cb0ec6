//! NVSHMEM as the symmetric heap of ranks that are processes, one GPU each.
//!
//! The library is opened when it is asked for; the kernels that put are made once on the user's machine
//! (`fewsync build-kernels`), since they contain NVIDIA's code, and are found by the library's release.
//!
//! One allocation is the whole heap: collective calls of NVSHMEM, which wait without a limit for a process that is
//! gone, happen only when it is made and when it ends.

pub mod kernels;

use std::ffi::c_void;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nvshmem_sys::{Library, Module, Nvshmem, SymmetricMemory, UniqueId};

use super::{GpuComm, GroupOptions, SymmetricHeap};
use crate::comm::bootstrap::Bootstrap;
use crate::comm::{CommError, Shape};
use crate::driver::{Device, KernelLibrary};

/// Size of the heap unless told otherwise: regions of more than four buffers of any size.
pub const HEAP_BYTES: usize = 768 << 20;
/// How often a rank that waits for NVSHMEM looks whether its peers live.
const LOOK: Duration = Duration::from_millis(50);

/// NVSHMEM's heap on this process's GPU.
#[derive(Debug)]
pub struct NvshmemHeap {
    device: Device,
    /// The other ranks' heaps, where they can be stored to.
    peers: Vec<Option<u64>>,
    /// Loaded at the first need; NVSHMEM leaves the module before it is unloaded.
    puts: Mutex<Option<(Module, Arc<KernelLibrary>)>>,
    memory: SymmetricMemory,
    nvshmem: Nvshmem,
}

impl NvshmemHeap {
    /// Collective: initialises NVSHMEM on the device, PE r on rank r, and takes `bytes` of its heap.
    ///
    /// # Errors
    /// The library is missing, of another release on another rank, or does not come up; the time `limit` has passed;
    /// a peer failed.
    pub fn new(
        device: &Device,
        bootstrap: &dyn Bootstrap,
        bytes: usize,
        limit: Option<Duration>,
    ) -> Result<Self, CommError> {
        if device.gpu().backend() != "cuda" {
            return Err(CommError::Unsupported { what: "NVSHMEM on another device than a GPU of CUDA" });
        }
        let library = Library::open().map_err(refused)?;
        let (rank, ranks) = (bootstrap.rank(), bootstrap.world());
        let release = library.release();
        let all = bootstrap.all_gather("NVSHMEM's release", release.to_string().as_bytes())?;
        if let Some(other) = all.iter().position(|text| *text != release.to_string().as_bytes()) {
            let other_release = String::from_utf8_lossy(&all[other]);
            let reason = format!(
                "rank {rank} has release {release}, but rank {other} has {other_release}; install one release on all \
                 hosts"
            );
            return Err(CommError::Nvshmem { reason });
        }
        let id =
            if rank == 0 { UniqueId::new(&library).map_err(refused)?.to_bytes().to_vec() } else { vec![] };
        let ids = bootstrap.all_gather("NVSHMEM's unique id", &id)?;
        let id = <[u8; UniqueId::BYTES]>::try_from(ids[0].as_slice());
        let id =
            UniqueId::from_bytes(id.map_err(|_| CommError::Nvshmem { reason: "rank 0 has no id".into() })?);
        let on = device.clone();
        let start = move || {
            // Makes the device's context this thread's.
            on.synchronize()?;
            let nvshmem = Nvshmem::init(library, id, rank, ranks).map_err(refused)?;
            let memory = nvshmem.allocate(bytes).map_err(refused)?;
            Ok((nvshmem, memory))
        };
        let (nvshmem, memory) = watched(bootstrap, limit, start)?;
        let peers =
            (0..ranks).map(|pe| memory.peer_address(pe).map_err(refused)).collect::<Result<_, _>>()?;
        Ok(Self { device: device.clone(), peers, puts: Mutex::default(), memory, nvshmem })
    }

    /// The library in use, for its own collectives.
    pub fn nvshmem(&self) -> &Nvshmem {
        &self.nvshmem
    }

    fn load(&self) -> Result<(Module, Arc<KernelLibrary>), CommError> {
        let library = self.nvshmem.library();
        let (ptx, text) = kernels::find(self.device.properties(), library.release())?;
        let loaded = KernelLibrary::load_linked(&self.device, ptx, &text)?;
        self.device.synchronize()?;
        // SAFETY: a CUmodule of this device, which the library beside the guard keeps; its release was checked.
        let module = unsafe { self.nvshmem.init_module(loaded.module().id().0 as usize as *mut c_void) };
        Ok((module.map_err(refused)?, Arc::new(loaded)))
    }
}

impl SymmetricHeap for NvshmemHeap {
    fn address(&self) -> u64 {
        self.memory.address()
    }

    fn bytes(&self) -> usize {
        self.memory.bytes()
    }

    fn peer(&self, rank: usize) -> Option<u64> {
        self.peers.get(rank).copied().flatten()
    }

    fn puts(&self) -> Result<Arc<KernelLibrary>, CommError> {
        let mut puts = self.puts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, kernels)) = &*puts {
            return Ok(Arc::clone(kernels));
        }
        let loaded = self.load()?;
        let kernels = Arc::clone(&loaded.1);
        *puts = Some(loaded);
        Ok(kernels)
    }

    fn abandon(&self) {
        self.nvshmem.abandon();
        // NVSHMEM goes on working on the device until the process ends: context and kernels have to stay as long.
        std::mem::forget(self.device.clone());
        let puts = self.puts.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::forget(puts.as_ref().map(|(_, kernels)| Arc::clone(kernels)));
    }
}

impl Drop for NvshmemHeap {
    fn drop(&mut self) {
        // What follows calls NVSHMEM, which wants the device's context on its thread. An error has nobody to go to.
        let _ = self.device.synchronize();
    }
}

impl GpuComm {
    /// Collective: [`in_processes`](Self::in_processes) over NVSHMEM, with [`HEAP_BYTES`] of heap.
    ///
    /// # Errors
    /// As [`NvshmemHeap::new`] and [`in_processes`](Self::in_processes).
    pub fn over_nvshmem(
        kernels: &Arc<KernelLibrary>,
        shape: Shape,
        options: GroupOptions,
        bootstrap: Arc<dyn Bootstrap>,
    ) -> Result<Self, CommError> {
        let heap = NvshmemHeap::new(kernels.device(), &*bootstrap, HEAP_BYTES, options.meeting_limit)?;
        Self::in_processes(kernels, shape, options, bootstrap, Arc::new(heap))
    }
}

fn refused(error: nvshmem_sys::Error) -> CommError {
    CommError::Nvshmem { reason: error.to_string() }
}

/// Runs `start` on a thread of its own, and gives up on it when a peer has failed or the limit has passed.
fn watched<T: Send + 'static>(
    bootstrap: &dyn Bootstrap,
    limit: Option<Duration>,
    start: impl FnOnce() -> Result<T, CommError> + Send + 'static,
) -> Result<T, CommError> {
    let (sender, started) = channel();
    let begin = Instant::now();
    std::thread::spawn(move || drop(sender.send(start())));
    loop {
        match started.recv_timeout(LOOK) {
            Ok(result) => return result,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(CommError::Nvshmem { reason: "its initialisation panicked".into() });
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        if let Some((peer, cause)) = bootstrap.failure() {
            return Err(CommError::PeerFailed { rank: bootstrap.rank(), peer, cause });
        }
        if limit.is_some_and(|limit| begin.elapsed() > limit) {
            let reason =
                format!("initialisation took more than {limit:?}", limit = limit.unwrap_or_default());
            return Err(CommError::Nvshmem { reason });
        }
    }
}
