//! Opening the driver's library once, and looking functions up in it.

use std::ffi::{CStr, c_void};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

use cust_raw::CUresult;
use libloading::Library;

/// The environment variable that names another driver library than the system's.
pub const LIBRARY_VARIABLE: &str = "FEWSYNC_LIBCUDA";

#[cfg(windows)]
const SYSTEM_LIBRARY: &str = "nvcuda.dll";
#[cfg(not(windows))]
const SYSTEM_LIBRARY: &str = "libcuda.so.1";

/// The driver's library could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "no CUDA driver: {} could not be opened ({reason}); install NVIDIA's driver or set {LIBRARY_VARIABLE} to its path",
    library.display()
)]
pub struct LoadError {
    /// The path or file name that was tried.
    pub library: PathBuf,
    /// What the system's loader said.
    pub reason: String,
}

/// A driver function could not be found by name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SymbolError {
    /// There is no driver to look in.
    #[error(transparent)]
    NoDriver(#[from] LoadError),
    /// The driver is there but has no function of this name.
    #[error("the CUDA driver {} has no {name}; it is older than this function: update it", library.display())]
    Missing {
        /// The function asked for.
        name: String,
        /// The driver's library.
        library: PathBuf,
    },
}

struct Loaded {
    path: PathBuf,
    // Never closed: the driver installs exit handlers and threads that must not lose their code.
    library: Library,
}

fn loaded() -> Result<&'static Loaded, LoadError> {
    static LOADED: OnceLock<Result<Loaded, LoadError>> = OnceLock::new();
    LOADED.get_or_init(open).as_ref().map_err(Clone::clone)
}

fn open() -> Result<Loaded, LoadError> {
    let path = std::env::var_os(LIBRARY_VARIABLE)
        .filter(|value| !value.is_empty())
        .map_or_else(|| PathBuf::from(SYSTEM_LIBRARY), PathBuf::from);
    // SAFETY: the path is the system's CUDA driver, or one that the user named as such; its initialisers are
    // what every CUDA program runs.
    match unsafe { Library::new(&path) } {
        Ok(library) => Ok(Loaded { path, library }),
        Err(error) => {
            let message = loader_message(&error);
            // The name is said already.
            let reason =
                message.strip_prefix(&format!("{}: ", path.display())).unwrap_or(&message).to_owned();
            Err(LoadError { library: path, reason })
        }
    }
}

/// What the system's loader said, which libloading keeps as the error's source.
fn loader_message(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// The driver library in use, as it was asked for (`libcuda.so.1` unless [`LIBRARY_VARIABLE`] is set).
pub fn library_path() -> Result<&'static Path, LoadError> {
    loaded().map(|loaded| loaded.path.as_path())
}

pub(crate) fn address(name: &CStr) -> Result<NonNull<c_void>, SymbolError> {
    let loaded = loaded()?;
    // SAFETY: the symbol is read as a bare address; giving it a type is `symbol`'s and the shim's business.
    let found = unsafe { loaded.library.get::<*mut c_void>(name.to_bytes_with_nul()) };
    found.ok().and_then(|symbol| NonNull::new(*symbol)).ok_or_else(|| SymbolError::Missing {
        name: name.to_string_lossy().into_owned(),
        library: loaded.path.clone(),
    })
}

/// Looks up a driver function by name, for what neither cust_raw nor [`crate::newer`] declares.
///
/// `F` is its function pointer type. Let it return `u32` and pass that to [`crate::result`], since a driver
/// may return codes that [`CUresult`] does not know. Versioned names (`cuMemAlloc_v2`) are not resolved: ask
/// for the name that the driver exports.
///
/// ```no_run
/// use std::ffi::{c_int, c_uint};
/// type DeviceGetCount = unsafe extern "C" fn(*mut c_int) -> c_uint;
/// // SAFETY: this is cuDeviceGetCount's signature in cuda.h.
/// let device_get_count: DeviceGetCount = unsafe { cuda_lazy::symbol(c"cuDeviceGetCount")? };
/// # Ok::<(), cuda_lazy::SymbolError>(())
/// ```
///
/// # Safety
/// `F` is an `unsafe extern "C" fn` with the signature that `cuda.h` gives this function.
pub unsafe fn symbol<F: Copy>(name: &CStr) -> Result<F, SymbolError> {
    const { assert!(size_of::<F>() == size_of::<*mut c_void>(), "F must be a function pointer") };
    let address = address(name)?.as_ptr();
    // SAFETY: the sizes are equal and the caller promises that F is this function's pointer type; the library
    // is never closed, so the address stays valid.
    Ok(unsafe { std::mem::transmute_copy(&address) })
}

/// One driver function's address, looked up at the first call and kept.
pub(crate) struct Slot(AtomicPtr<c_void>);

impl Slot {
    pub(crate) const fn new() -> Self {
        Self(AtomicPtr::new(std::ptr::null_mut()))
    }

    #[inline]
    pub(crate) fn get(&self, name: &CStr) -> Result<NonNull<c_void>, CUresult> {
        match NonNull::new(self.0.load(Ordering::Acquire)) {
            Some(address) => Ok(address),
            None => self.resolve(name),
        }
    }

    #[cold]
    fn resolve(&self, name: &CStr) -> Result<NonNull<c_void>, CUresult> {
        let address = address(name).map_err(|error| match error {
            SymbolError::NoDriver(_) => CUresult::CUDA_ERROR_NO_DEVICE,
            SymbolError::Missing { .. } => CUresult::CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND,
        })?;
        self.0.store(address.as_ptr(), Ordering::Release);
        Ok(address)
    }
}
