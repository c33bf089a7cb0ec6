//! The CUDA driver API, over cust and its raw bindings.
//!
//! cust gives devices, primary contexts and the bindings. Everything else is made here from `cust::sys`, since
//! cust's handles do not keep their context, its non-blocking streams are blocking ones, and capture, launch
//! attributes and shared memory above 48 KiB are not in its safe API. Calls newer than cust come from
//! `cuda_lazy::newer`.

mod graphs;
mod memory;
mod modules;
mod streams;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use cuda_lazy::{CudaVersion, DriverInfo};
use cust::context::{Context, CurrentContext};
use cust::device::{Device, DeviceAttribute};
use cust::error::CudaError;
use cust::sys::{self, CUresult};

use super::{Capability, Gpu, GpuError, Properties, PtxVersion, Result};

/// The portable kernels are PTX 7.4 for sm_80.
const OLDEST_DRIVER: CudaVersion = CudaVersion::new(11, 4);
const OLDEST_CAPABILITY: Capability = Capability { major: 8, minor: 0 };

/// One GPU and its primary context.
pub(super) struct CudaGpu {
    context: Context,
    properties: Properties,
    /// The contexts of peers that this device has access to, kept alive with it.
    peers: Mutex<BTreeMap<u32, Context>>,
}

impl fmt::Debug for CudaGpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CudaGpu").field(&self.properties.label).finish()
    }
}

fn driver() -> Result<DriverInfo> {
    cuda_lazy::driver(OLDEST_DRIVER).map_err(|error| GpuError::NoDriver { reason: error.to_string() })
}

pub(super) fn device_count() -> Result<u32> {
    driver().map(|driver| driver.device_count)
}

/// GPU `ordinal`, the same one for everybody in the process who has it open.
pub(super) fn open(ordinal: u32) -> Result<Arc<CudaGpu>> {
    static OPEN: Mutex<BTreeMap<u32, Weak<CudaGpu>>> = Mutex::new(BTreeMap::new());
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(gpu) = open.get(&ordinal).and_then(Weak::upgrade) {
        return Ok(gpu);
    }
    let gpu = Arc::new(CudaGpu::open(ordinal)?);
    open.insert(ordinal, Arc::downgrade(&gpu));
    Ok(gpu)
}

impl CudaGpu {
    /// Opens GPU `ordinal`: driver, number and compute capability are checked before its context is made.
    fn open(ordinal: u32) -> Result<Self> {
        let driver = driver()?;
        if ordinal >= driver.device_count {
            return Err(GpuError::NoSuchDevice { ordinal, count: driver.device_count });
        }
        let label = format!("cuda:{ordinal}");
        let device = Device::get_device(ordinal).map_err(cust_error("cuDeviceGet", &label))?;
        let properties = properties(device, ordinal, &driver)?;
        if properties.capability < OLDEST_CAPABILITY {
            return Err(GpuError::UnsupportedDevice {
                device: properties.label,
                found: properties.capability,
                oldest: OLDEST_CAPABILITY,
            });
        }
        let context =
            Context::new(device).map_err(cust_error("cuDevicePrimaryCtxRetain", &properties.label))?;
        Ok(Self { context, properties, peers: Mutex::default() })
    }

    /// Makes this device's context the calling thread's. Every call begins with it.
    fn enter(&self) -> Result<()> {
        CurrentContext::set_current(&self.context)
            .map_err(cust_error("cuCtxSetCurrent", &self.properties.label))
    }

    fn check(&self, call: &'static str, result: CUresult) -> Result<()> {
        if result == CUresult::CUDA_SUCCESS {
            return Ok(());
        }
        Err(call_error(call, &self.properties.label, cuda_lazy::code(result)))
    }
}

fn call_error(call: &'static str, device: &str, code: u32) -> GpuError {
    let cuda_lazy::Meaning { name, text: mut reason } = cuda_lazy::meaning(code);
    // From here on the context is lost, whichever call happens to report it.
    if (700..=719).contains(&code) {
        reason += "; an earlier kernel on this device did it, and the process must be restarted";
    }
    GpuError::Call { call, device: device.to_owned(), code, name, reason }
}

fn cust_error(call: &'static str, device: &str) -> impl Fn(CudaError) -> GpuError {
    move |error| call_error(call, device, error as u32)
}

fn properties(device: Device, ordinal: u32, driver: &DriverInfo) -> Result<Properties> {
    let name = device.name().map_err(cust_error("cuDeviceGetName", &format!("cuda:{ordinal}")))?;
    let label = format!("cuda:{ordinal} ({name})");
    let attribute = |attribute: DeviceAttribute| {
        let value = device.get_attribute(attribute).map_err(cust_error("cuDeviceGetAttribute", &label))?;
        Ok::<u32, GpuError>(value.unsigned_abs())
    };
    Ok(Properties {
        ordinal,
        driver: format!("CUDA {}", driver.version),
        newest_ptx: PtxVersion::of_cuda(driver.version.major, driver.version.minor),
        capability: Capability {
            major: attribute(DeviceAttribute::ComputeCapabilityMajor)?,
            minor: attribute(DeviceAttribute::ComputeCapabilityMinor)?,
        },
        multiprocessors: attribute(DeviceAttribute::MultiprocessorCount)?,
        total_memory_bytes: device.total_memory().map_err(cust_error("cuDeviceTotalMem_v2", &label))? as u64,
        l2_bytes: attribute(DeviceAttribute::L2CacheSize)?.into(),
        shared_bytes_per_block: shared_bytes_optin(device, &label)?,
        shared_bytes_per_multiprocessor: attribute(DeviceAttribute::MaxSharedMemoryPerMultiprocessor)?,
        registers_per_multiprocessor: attribute(DeviceAttribute::MaxRegistersPerMultiprocessor)?,
        max_threads_per_block: attribute(DeviceAttribute::MaxThreadsPerBlock)?,
        max_threads_per_multiprocessor: attribute(DeviceAttribute::MaxThreadsPerMultiprocessor)?,
        name,
        label,
    })
}

/// The attribute above 48 KiB, which cust's enum does not have.
fn shared_bytes_optin(device: Device, label: &str) -> Result<u32> {
    let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
    let mut bytes = 0;
    // SAFETY: writes one int; the device is valid.
    match unsafe { sys::cuDeviceGetAttribute(&mut bytes, attribute, device.as_raw()) } {
        CUresult::CUDA_SUCCESS => Ok(bytes.unsigned_abs()),
        result => Err(call_error("cuDeviceGetAttribute", label, cuda_lazy::code(result))),
    }
}

impl Gpu for CudaGpu {
    fn backend(&self) -> &'static str {
        "cuda"
    }

    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn synchronize(&self) -> Result<()> {
        self.enter()?;
        // SAFETY: the context is current.
        self.check("cuCtxSynchronize", unsafe { sys::cuCtxSynchronize() })
    }

    fn can_access_peer(&self, peer_ordinal: u32) -> Result<bool> {
        let device = |ordinal| {
            Device::get_device(ordinal).map_err(cust_error("cuDeviceGet", &format!("cuda:{ordinal}")))
        };
        let (this, peer) = (device(self.properties.ordinal)?, device(peer_ordinal)?);
        let mut can = 0;
        // SAFETY: writes one int; both devices are valid.
        let result = unsafe { sys::cuDeviceCanAccessPeer(&mut can, this.as_raw(), peer.as_raw()) };
        self.check("cuDeviceCanAccessPeer", result)?;
        Ok(can != 0)
    }

    fn enable_peer_access(&self, peer_ordinal: u32) -> Result<()> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if peers.contains_key(&peer_ordinal) {
            return Ok(());
        }
        let label = format!("cuda:{peer_ordinal}");
        let peer = Device::get_device(peer_ordinal).map_err(cust_error("cuDeviceGet", &label))?;
        let peer = Context::new(peer).map_err(cust_error("cuDevicePrimaryCtxRetain", &label))?;
        self.enter()?;
        // SAFETY: both contexts are alive; no flags are defined.
        match unsafe { sys::cuCtxEnablePeerAccess(peer.as_raw(), 0) } {
            CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => {}
            result => self.check("cuCtxEnablePeerAccess", result)?,
        }
        peers.insert(peer_ordinal, peer);
        Ok(())
    }
}

/// A back end's id as the driver's pointer.
fn handle<T>(id: u64) -> *mut T {
    id as usize as *mut T
}

/// The driver's pointer as a back end's id.
fn id<T>(handle: *mut T) -> u64 {
    handle as usize as u64
}
