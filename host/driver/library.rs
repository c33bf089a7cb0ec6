//! This crate's own kernels, loaded on a device: typed launches on streams.

use std::collections::HashMap;

use super::{Device, Kernel, LaunchConfig, Module, PtxHeader, Result, Stream};
use crate::kernels::{Launch, PTX, Ptx, Target};

/// The embedded PTX on one device, every kernel looked up.
#[derive(Debug)]
pub struct KernelLibrary {
    device: Device,
    ptx: &'static Ptx,
    kernels: HashMap<&'static str, Kernel>,
    module: Module,
    programmatic: bool,
}

impl KernelLibrary {
    /// Loads the best of the embedded PTX files that device and driver take.
    ///
    /// # Errors
    /// Why the portable file cannot be used where none can; a file without one of its kernels.
    pub fn load(device: &Device) -> Result<Self> {
        let mut refusal = None;
        for ptx in &PTX {
            let header = PtxHeader::parse(ptx.text, device.properties())?;
            match header.check(device.properties()) {
                Ok(()) => return Self::load_file(device, ptx),
                Err(error) => refusal = Some(error),
            }
        }
        Err(refusal.expect("there is at least one PTX file"))
    }

    /// Loads one of the embedded PTX files.
    ///
    /// # Errors
    /// If the device or its driver cannot take it.
    pub fn load_file(device: &Device, ptx: &'static Ptx) -> Result<Self> {
        Self::load_linked(device, ptx, ptx.text)
    }

    /// Loads the kernels of an embedded PTX file out of `text`, which is that file with the functions that it
    /// leaves open.
    ///
    /// # Errors
    /// If the device or its driver cannot take it, or a kernel is not in it.
    pub fn load_linked(device: &Device, ptx: &'static Ptx, text: &str) -> Result<Self> {
        let module = device.load_module(text)?;
        let kernels = ptx.entries.iter().map(|entry| Ok((entry.name, module.kernel(entry.name)?)));
        let kernels = kernels.collect::<Result<_>>()?;
        Ok(Self { device: device.clone(), ptx, kernels, module, programmatic: ptx.is_programmatic() })
    }

    /// With or without programmatic dependent launch, where the PTX has it (the default is with).
    pub fn programmatic(self, on: bool) -> Self {
        Self { programmatic: on && self.ptx.is_programmatic(), ..self }
    }

    /// The device that the kernels are loaded on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The file that was loaded.
    pub fn ptx(&self) -> &'static Ptx {
        self.ptx
    }

    /// What launches are chosen for.
    pub fn target(&self) -> Target {
        Target::new(self.device.properties().multiprocessors, self.ptx.has_wgmma())
    }

    /// What was loaded, for other libraries.
    pub fn module(&self) -> &Module {
        &self.module
    }

    /// A kernel by the name of its [`Launch`].
    pub fn kernel(&self, entry: &str) -> Option<&Kernel> {
        self.kernels.get(entry)
    }

    /// Whether its launches are programmatic dependent ones.
    pub fn is_programmatic(&self) -> bool {
        self.programmatic
    }

    /// Enqueues a launch. With programmatic dependent launch it may begin before the kernel ahead of it in the
    /// stream has ended, and waits for it by itself.
    ///
    /// Its tensor maps are encoded here.
    ///
    /// # Errors
    /// As [`Kernel::launch`]; a driver that encodes no tensor maps.
    ///
    /// # Safety
    /// As [`Kernel::launch`]: what the launch's arguments say is there, is there. Weights, block tables and the
    /// other inputs that kernels may read ahead of their predecessor's end are not written by any kernel or copy
    /// enqueued just before.
    pub unsafe fn launch(&self, stream: &Stream, launch: &Launch) -> Result<()> {
        let kernel =
            self.kernels.get(launch.entry).expect("build.rs checks that every launch has its kernel");
        let [x, y, z] = launch.grid;
        let mut config = LaunchConfig::new((x, y, z), launch.threads).shared(launch.shared_bytes);
        config.programmatic = self.programmatic;
        config.cluster = (launch.cluster > 1).then(|| launch.cluster.into());
        let launch = launch.with_tensor_maps(|map| self.device.gpu().encode_tensor_map(map))?;
        // SAFETY: the parameters have the entry point's layout; the rest is the caller's promise.
        unsafe { kernel.launch(stream, &config, launch.params()) }
    }
}
