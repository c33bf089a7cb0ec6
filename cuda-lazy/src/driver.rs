//! Is there a usable driver, and if not, why.

use std::ffi::c_int;
use std::fmt;
use std::path::PathBuf;

use cust_raw::{CUresult, cuDeviceGetCount, cuDriverGetVersion, cuInit};

use crate::library::{LoadError, library_path};
use crate::result::{Meaning, code, meaning};

/// A CUDA version: what a driver supports, or what a feature needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CudaVersion {
    /// `13` of 13.0.
    pub major: u32,
    /// `0` of 13.0.
    pub minor: u32,
}

impl CudaVersion {
    /// The version `major.minor`.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// From the encoding of `cuDriverGetVersion`: 1000 × major + 10 × minor.
    pub const fn from_encoded(encoded: u32) -> Self {
        Self { major: encoded / 1000, minor: encoded % 1000 / 10 }
    }
}

impl fmt::Display for CudaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A driver that is open and initialised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriverInfo {
    /// The library, as it was opened.
    pub library: PathBuf,
    /// The newest CUDA version that the driver supports.
    pub version: CudaVersion,
    /// How many GPUs it offers this process; at least 1.
    pub device_count: u32,
}

/// Why there is no usable driver. Each message is one sentence that says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    /// The library could not be opened.
    #[error(transparent)]
    NotFound(#[from] LoadError),
    /// The driver is older than what was asked for.
    #[error(
        "the CUDA driver {} supports CUDA {found}, but {oldest} or newer is needed: update NVIDIA's driver",
        library.display()
    )]
    TooOld {
        /// The driver's library.
        library: PathBuf,
        /// What it supports.
        found: CudaVersion,
        /// The oldest version that will do.
        oldest: CudaVersion,
    },
    /// The driver works but has no GPU to offer.
    #[error(
        "the CUDA driver {} (CUDA {version}) sees no GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES",
        library.display()
    )]
    NoDevices {
        /// The driver's library.
        library: PathBuf,
        /// What it supports.
        version: CudaVersion,
    },
    /// A first call failed.
    #[error(
        "the CUDA driver {} does not start: {call} returned {name} ({text}); check nvidia-smi and that the \
         driver's library and kernel module are of one version",
        library.display()
    )]
    Failed {
        /// The driver's library.
        library: PathBuf,
        /// The function that failed.
        call: &'static str,
        /// Its result by name.
        name: String,
        /// What that means.
        text: String,
    },
}

/// Opens and initialises the driver; `oldest` is the least CUDA version that the caller can use.
///
/// # Errors
/// No driver, a driver older than `oldest`, no GPU, or a driver that fails to initialise.
pub fn driver(oldest: CudaVersion) -> Result<DriverInfo, DriverError> {
    let library = library_path()?.to_path_buf();
    let check = |call: &'static str, result: CUresult| match result {
        CUresult::CUDA_SUCCESS => Ok(()),
        result => {
            let Meaning { name, text } = meaning(code(result));
            Err(DriverError::Failed { library: library.clone(), call, name, text })
        }
    };

    let mut encoded: c_int = 0;
    // SAFETY: writes one int; this call is allowed before cuInit.
    check("cuDriverGetVersion", unsafe { cuDriverGetVersion(&mut encoded) })?;
    let version = CudaVersion::from_encoded(encoded.unsigned_abs());
    if version < oldest {
        return Err(DriverError::TooOld { library, found: version, oldest });
    }

    // SAFETY: no flags are defined; calling it again is allowed.
    match unsafe { cuInit(0) } {
        CUresult::CUDA_ERROR_NO_DEVICE => return Err(DriverError::NoDevices { library, version }),
        result => check("cuInit", result)?,
    }
    let mut count: c_int = 0;
    // SAFETY: writes one int.
    check("cuDeviceGetCount", unsafe { cuDeviceGetCount(&mut count) })?;
    match u32::try_from(count) {
        Ok(device_count @ 1..) => Ok(DriverInfo { library, version, device_count }),
        _ => Err(DriverError::NoDevices { library, version }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_decoded_and_ordered() {
        assert_eq!(CudaVersion::from_encoded(13_000), CudaVersion::new(13, 0));
        assert_eq!(CudaVersion::from_encoded(11_040).to_string(), "11.4");
        assert!(CudaVersion::new(11, 8) < CudaVersion::new(12, 0));
    }
}
