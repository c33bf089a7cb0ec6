//! PTX modules and the kernels in them.

use std::ffi::CString;
use std::sync::Arc;

use super::{
    Device, GpuError, KernelAttributes, KernelId, LaunchConfig, ModuleId, PtxHeader, Result, Stream,
};

/// A PTX module, compiled and loaded on one device. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Module {
    loaded: Arc<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    device: Device,
    id: ModuleId,
}

impl Drop for Loaded {
    fn drop(&mut self) {
        // SAFETY: we own the module, and every kernel of it held us. An error has nobody to go to here: it is
        // an earlier kernel's and the next call on the device repeats it.
        let _ = unsafe { self.device.gpu().unload_module(self.id) };
    }
}

impl Module {
    pub(super) fn load(device: &Device, ptx: &str) -> Result<Self> {
        PtxHeader::parse(ptx, device.properties())?.check(device.properties())?;
        let ptx = CString::new(ptx).map_err(|_| GpuError::MalformedPtx {
            device: device.label().to_owned(),
            directive: "(it contains NUL)",
        })?;
        let id = device.gpu().load_module(&ptx)?;
        Ok(Self { loaded: Arc::new(Loaded { device: device.clone(), id }) })
    }

    /// The device it is loaded on.
    pub fn device(&self) -> &Device {
        &self.loaded.device
    }

    /// The back end's handle (a `CUmodule` as an integer), for other libraries.
    pub fn id(&self) -> ModuleId {
        self.loaded.id
    }

    /// A kernel by its entry point's name.
    ///
    /// # Errors
    /// [`GpuError::NoSuchKernel`] if the module has none of this name.
    pub fn kernel(&self, entry: &str) -> Result<Kernel> {
        let device = &self.loaded.device;
        let no_such_kernel =
            || GpuError::NoSuchKernel { device: device.label().to_owned(), entry: entry.to_owned() };
        let name = CString::new(entry).map_err(|_| no_such_kernel())?;
        // SAFETY: the module is alive, and the kernel will hold it.
        let (id, attributes) = unsafe {
            let id = device.gpu().kernel(self.loaded.id, &name)?;
            (id, device.gpu().kernel_attributes(id)?)
        };
        let mut kernel = Kernel { module: Arc::clone(&self.loaded), id, entry: entry.to_owned(), attributes };
        kernel.allow_all_shared_memory()?;
        Ok(kernel)
    }
}

/// One kernel of a loaded module, ready to launch. It keeps its module loaded.
#[derive(Debug, Clone)]
pub struct Kernel {
    module: Arc<Loaded>,
    id: KernelId,
    entry: String,
    attributes: KernelAttributes,
}

impl Kernel {
    /// More than 48 KiB needs opting in. Opting in to all there is costs nothing: what a launch takes is what it
    /// asks for.
    fn allow_all_shared_memory(&mut self) -> Result<()> {
        let per_block = self.device().properties().shared_bytes_per_block;
        let most = per_block.saturating_sub(self.attributes.static_shared_bytes);
        if most > self.attributes.dynamic_shared_bytes {
            // SAFETY: we hold the module, so the kernel is alive.
            unsafe { self.device().gpu().set_dynamic_shared(self.id, most)? };
            self.attributes.dynamic_shared_bytes = most;
        }
        Ok(())
    }

    /// The device it runs on.
    pub fn device(&self) -> &Device {
        &self.module.device
    }

    /// The entry point's name.
    pub fn entry(&self) -> &str {
        &self.entry
    }

    /// The back end's handle (a `CUfunction` as an integer), for other libraries.
    pub fn id(&self) -> KernelId {
        self.id
    }

    /// What the compiler made of it.
    pub fn attributes(&self) -> &KernelAttributes {
        &self.attributes
    }

    /// How many blocks of this shape the whole device holds at once: the largest grid whose blocks may wait
    /// for each other.
    pub fn resident_blocks(&self, block_threads: u32, dynamic_shared_bytes: u32) -> Result<u64> {
        // SAFETY: we hold the module, so the kernel is alive.
        let per_multiprocessor =
            unsafe { self.device().gpu().resident_blocks(self.id, block_threads, dynamic_shared_bytes)? };
        Ok(u64::from(per_multiprocessor) * u64::from(self.device().properties().multiprocessors))
    }

    /// Enqueues the kernel on a stream. `parameters` is its PTX parameter space: every `.param` in order, at
    /// its natural alignment, as a `#[repr(C)]` struct of them is laid out.
    ///
    /// # Errors
    /// [`GpuError::InvalidLaunch`] if the device cannot run this configuration. What goes wrong while the
    /// kernel runs is reported by a later synchronisation.
    ///
    /// # Safety
    /// - `parameters` has the layout that the entry point declares, in which no parameter but the first is aligned to
    ///   more than 16 bytes.
    /// - What the kernel reads and writes through them is memory of this device, pinned memory or a peer's
    ///   memory, in bounds; it stays allocated, and is not accessed in conflict by the host or by other
    ///   streams, until the stream has run the kernel, and whenever a graph that recorded it is launched.
    /// - If blocks wait for one another, all of them are resident at once ([`LaunchConfig::cooperative`]).
    pub unsafe fn launch(&self, stream: &Stream, config: &LaunchConfig, parameters: &[u8]) -> Result<()> {
        let device = self.device();
        device.expect_same(stream.device(), "the stream")?;
        config
            .check(device.properties(), &self.attributes)
            .map_err(|reason| device.gpu().invalid_launch(&self.entry, reason))?;
        if config.cooperative {
            self.check_resident(config)?;
        }
        let launch = |block: &[u8]| {
            // SAFETY: stream and kernel are alive and of one device, the configuration was checked; the rest is the
            // caller's promise.
            unsafe { device.gpu().launch(stream.id(), self.id, config, block) }
        };
        match self.attributes.parameters_at {
            0 => launch(parameters),
            at => launch(&[&vec![0; at as usize], parameters].concat()),
        }
    }

    fn check_resident(&self, config: &LaunchConfig) -> Result<()> {
        let block_threads = u32::try_from(config.block.count()).unwrap_or(u32::MAX);
        let resident = self.resident_blocks(block_threads, config.dynamic_shared_bytes)?;
        let blocks = config.grid.count();
        if blocks <= resident {
            return Ok(());
        }
        let reason = format!("a cooperative grid of {blocks} blocks was asked for, {resident} fit at once");
        Err(self.device().gpu().invalid_launch(&self.entry, reason))
    }
}
