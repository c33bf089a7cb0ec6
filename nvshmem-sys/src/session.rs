//! An initialised NVSHMEM.

use std::ffi::c_void;
use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::types::{
    INIT_WITH_MPI_COMM, INIT_WITH_UNIQUEID, InitArgsV1, InitAttrV1, ModuleHandle, STATUS_IS_INITIALIZED,
    UniqueIdArgsV1, UniqueIdV1, version,
};
use crate::{Api, Error, Library, SymmetricMemory, Team};

static INITIALIZED: AtomicBool = AtomicBool::new(false);

/// What one PE makes and all are told, so that they find each other.
#[derive(Clone, Copy)]
pub struct UniqueId(UniqueIdV1);

impl UniqueId {
    /// Bytes of an id.
    pub const BYTES: usize = size_of::<UniqueIdV1>();

    /// A new id, on one PE. It holds an address of this host: `NVSHMEM_BOOTSTRAP_UID_SOCK_IFNAME` chooses which.
    ///
    /// # Errors
    /// What the library refuses.
    pub fn new(library: &Library) -> Result<Self, Error> {
        let mut id = UniqueIdV1 { version: version::<UniqueIdV1>(), internal: [0; 124] };
        // SAFETY: writes one id; needs no initialisation.
        let status = unsafe { (library.api().nvshmemx_get_uniqueid)(&mut id) };
        succeeded("nvshmemx_get_uniqueid", status)?;
        Ok(Self(id))
    }

    /// For the way to other processes.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        // SAFETY: plain bytes without padding: a 4-byte number and 124 chars.
        unsafe { std::mem::transmute(self.0) }
    }

    /// As [`to_bytes`](Self::to_bytes) gave them.
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        // SAFETY: any bytes are a value.
        Self(unsafe { std::mem::transmute::<[u8; Self::BYTES], UniqueIdV1>(bytes) })
    }
}

impl fmt::Debug for UniqueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UniqueId")
    }
}

/// NVSHMEM on this process's device. Dropping the last clone finalises it, which is collective; after a failure of
/// another PE use [`abandon`](Self::abandon).
#[derive(Debug, Clone)]
pub struct Nvshmem {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    library: Library,
    pe: usize,
    n_pes: usize,
    /// The library wants its calls one at a time.
    turn: Mutex<()>,
    abandoned: AtomicBool,
    /// The id has to outlive the initialisation.
    _id: Option<Box<UniqueIdV1>>,
}

// SAFETY: the id is only kept; NVSHMEM's host calls may come from any thread, one at a time (`turn`).
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Nvshmem {
    /// Collective: initialises `rank` of `ranks` PEs, all of which have the same id, on the device that is current on
    /// the calling thread.
    ///
    /// # Errors
    /// What the library refuses; that no device came with it; that the process did it before.
    pub fn init(library: Library, id: UniqueId, rank: usize, ranks: usize) -> Result<Self, Error> {
        let mut id = Box::new(id.0);
        let mut attr = attributes();
        // SAFETY: writes the attributes; the id lives in its box as long as the session.
        let status = unsafe {
            (library.api().nvshmemx_set_attr_uniqueid_args)(rank as i32, ranks as i32, &*id, &mut attr)
        };
        succeeded("nvshmemx_set_attr_uniqueid_args", status)?;
        attr.args.uid_args.id = &mut *id;
        Self::init_with(library, INIT_WITH_UNIQUEID, attr, Some(id))
    }

    /// Collective: initialises the ranks of an MPI communicator.
    ///
    /// # Errors
    /// As [`init`](Self::init).
    ///
    /// # Safety
    /// `comm` is the address of an `MPI_Comm` of an initialised MPI of the implementation that NVSHMEM's
    /// `nvshmem_bootstrap_mpi.so.3` was built with (Open MPI), and stays one.
    pub unsafe fn init_with_mpi(library: Library, comm: NonNull<c_void>) -> Result<Self, Error> {
        let mut attr = attributes();
        attr.mpi_comm = comm.as_ptr();
        Self::init_with(library, INIT_WITH_MPI_COMM, attr, None)
    }

    fn init_with(
        library: Library,
        flags: u32,
        mut attr: InitAttrV1,
        id: Option<Box<UniqueIdV1>>,
    ) -> Result<Self, Error> {
        if INITIALIZED.swap(true, Ordering::SeqCst) {
            return Err(Error::AlreadyInitialized);
        }
        let api = library.api();
        // SAFETY: the attributes are complete; what they point to lives.
        let (status, state) =
            unsafe { ((api.nvshmemx_hostlib_init_attr)(flags, &mut attr), (api.nvshmemx_init_status)()) };
        succeeded("nvshmemx_hostlib_init_attr", status)?;
        // 3.4.5 returns 0 without a driver.
        if state < STATUS_IS_INITIALIZED {
            return Err(Error::NoDevice { status: state });
        }
        // SAFETY: initialised.
        let (pe, n_pes) = unsafe { ((api.nvshmem_my_pe)(), (api.nvshmem_n_pes)()) };
        let (pe, n_pes) = (pe as usize, n_pes as usize);
        let (turn, abandoned) = (Mutex::new(()), AtomicBool::new(false));
        Ok(Self { shared: Arc::new(Shared { library, pe, n_pes, turn, abandoned, _id: id }) })
    }

    /// The library.
    pub fn library(&self) -> &Library {
        &self.shared.library
    }

    /// This PE.
    pub fn pe(&self) -> usize {
        self.shared.pe
    }

    /// Number of PEs.
    pub fn n_pes(&self) -> usize {
        self.shared.n_pes
    }

    /// Collective: `bytes` of symmetric device memory, zeroed.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn allocate(&self, bytes: usize) -> Result<SymmetricMemory, Error> {
        SymmetricMemory::new(self, bytes)
    }

    /// The team of all PEs.
    pub fn world(&self) -> Team {
        Team::world(self)
    }

    /// Collective: all PEs meet, and all puts have arrived.
    pub fn barrier(&self) {
        self.call(|api| {
            // SAFETY: initialised.
            unsafe { (api.nvshmem_barrier_all)() }
        });
    }

    /// Waits until this PE's puts from the host have arrived.
    pub fn quiet(&self) {
        self.call(|api| {
            // SAFETY: initialised.
            unsafe { (api.nvshmem_quiet)() }
        });
    }

    /// Makes a loaded module's kernels able to call NVSHMEM.
    ///
    /// # Errors
    /// What the library refuses, such as a module without NVSHMEM's device code.
    ///
    /// # Safety
    /// `module` is a `CUmodule` of the device that NVSHMEM was initialised on, holds NVSHMEM device code of the
    /// library's release ([`Library::expect_release`]), and outlives what is returned.
    pub unsafe fn init_module(&self, module: ModuleHandle) -> Result<Module, Error> {
        // SAFETY: the caller's promise.
        let status = self.call(|api| unsafe { (api.nvshmemx_cumodule_init)(module) });
        let hint = ": the module has to contain NVSHMEM's device code, of the host library's release";
        succeeded_or("nvshmemx_cumodule_init", status, hint)?;
        Ok(Module { nvshmem: self.clone(), module })
    }

    /// Skips every collective end from here on: frees and finalisation would wait for a PE that is gone. The process
    /// is to end soon.
    pub fn abandon(&self) {
        self.shared.abandoned.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.shared.abandoned.load(Ordering::SeqCst)
    }

    pub(crate) fn call<T>(&self, call: impl FnOnce(&Api) -> T) -> T {
        let _turn = self.turn();
        call(self.shared.library.api())
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.shared.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn check_pe(&self, pe: usize) -> Result<i32, Error> {
        let n_pes = self.n_pes();
        if pe < n_pes { Ok(pe as i32) } else { Err(Error::NoSuchPe { pe, n_pes }) }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if !self.abandoned.load(Ordering::SeqCst) {
            // SAFETY: initialised, and nothing that came from it is left.
            unsafe { (self.library.api().nvshmemx_hostlib_finalize)() };
        }
    }
}

/// A module whose kernels can call NVSHMEM, until it is dropped; drop it before the module is unloaded.
#[derive(Debug)]
pub struct Module {
    nvshmem: Nvshmem,
    module: ModuleHandle,
}

// SAFETY: a driver handle, which any thread may use.
unsafe impl Send for Module {}
// SAFETY: as above; nothing is reached through a shared reference.
unsafe impl Sync for Module {}

impl Drop for Module {
    fn drop(&mut self) {
        if !self.nvshmem.is_abandoned() {
            // SAFETY: `Nvshmem::init_module` promised that it is still loaded. A refusal has nobody to go to.
            self.nvshmem.call(|api| unsafe { (api.nvshmemx_cumodule_finalize)(self.module) });
        }
    }
}

fn attributes() -> InitAttrV1 {
    InitAttrV1 {
        version: version::<InitAttrV1>(),
        mpi_comm: std::ptr::null_mut(),
        args: InitArgsV1 {
            version: version::<InitArgsV1>(),
            uid_args: UniqueIdArgsV1 {
                version: version::<UniqueIdArgsV1>(),
                id: std::ptr::null_mut(),
                rank: -1,
                ranks: -1,
            },
            content: [0; 96],
        },
    }
}

pub(crate) fn succeeded(call: &'static str, status: i32) -> Result<(), Error> {
    succeeded_or(call, status, "")
}

fn succeeded_or(call: &'static str, status: i32, hint: &'static str) -> Result<(), Error> {
    if status == 0 { Ok(()) } else { Err(Error::Call { call, status, hint }) }
}
