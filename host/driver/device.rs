//! A device of any back end, and what can be made on it.

use std::sync::Arc;

use bytemuck::Pod;

use super::{
    DeviceBuffer, Event, Gpu, GpuError, MemoryInfo, Module, PinnedBuffer, Properties, Result, Stream,
    StreamPriority,
};

/// A GPU. Cloning is cheap, and everything made on it keeps it alive.
#[derive(Debug, Clone)]
pub struct Device {
    gpu: Arc<dyn Gpu>,
}

impl Device {
    /// A device of a back end.
    pub fn new(gpu: Arc<dyn Gpu>) -> Self {
        Self { gpu }
    }

    /// The CUDA GPU of this number, with its primary context (the one that CUDA's runtime, NVSHMEM and cuBLAS
    /// use in the same process).
    ///
    /// # Errors
    /// No driver, one older than CUDA 11.4, no such GPU, one below compute capability 8.0.
    #[cfg(feature = "cuda")]
    pub fn cuda(ordinal: u32) -> Result<Self> {
        Ok(Self::new(super::cuda::open(ordinal)?))
    }

    /// The CUDA GPU of this number; this build has no CUDA back end.
    ///
    /// # Errors
    /// Always [`GpuError::NotBuilt`].
    #[cfg(not(feature = "cuda"))]
    pub fn cuda(_ordinal: u32) -> Result<Self> {
        Err(GpuError::NotBuilt { feature: "cuda" })
    }

    /// How many CUDA GPUs there are.
    ///
    /// # Errors
    /// No driver, one older than CUDA 11.4, no GPU.
    #[cfg(feature = "cuda")]
    pub fn cuda_count() -> Result<u32> {
        super::cuda::device_count()
    }

    /// How many CUDA GPUs there are; this build has no CUDA back end.
    ///
    /// # Errors
    /// Always [`GpuError::NotBuilt`].
    #[cfg(not(feature = "cuda"))]
    pub fn cuda_count() -> Result<u32> {
        Err(GpuError::NotBuilt { feature: "cuda" })
    }

    /// The devices of a new emulated machine, as `FEWSYNC_EMULATE` describes it, at least `count` of them.
    ///
    /// # Errors
    /// A description that says nothing, or more devices than a machine has.
    #[cfg(feature = "emulate")]
    pub fn emulate(count: u32) -> Result<Vec<Self>> {
        use super::emulated::{EMULATE_VARIABLE, EmulatorOptions, MAX_DEVICES};
        if count > MAX_DEVICES {
            let reason =
                format!("{count} emulated devices were asked for, and a machine has at most {MAX_DEVICES}");
            return Err(GpuError::NoDriver { reason });
        }
        let mut options = EmulatorOptions::from_env()
            .map_err(|error| GpuError::NoDriver { reason: format!("{EMULATE_VARIABLE}: {error}") })?;
        options.devices = options.devices.max(count);
        Ok(Self::emulated(&options))
    }

    /// The devices of a new emulated machine; this build has no emulator.
    ///
    /// # Errors
    /// Always [`GpuError::NotBuilt`].
    #[cfg(not(feature = "emulate"))]
    pub fn emulate(_count: u32) -> Result<Vec<Self>> {
        Err(GpuError::NotBuilt { feature: "emulate" })
    }

    /// The back end's own interface.
    pub fn gpu(&self) -> &dyn Gpu {
        &*self.gpu
    }

    /// What the device is and what its limits are.
    pub fn properties(&self) -> &Properties {
        self.gpu.properties()
    }

    /// How messages name the device: `cuda:0 (NVIDIA H200)`.
    pub fn label(&self) -> &str {
        &self.properties().label
    }

    /// How much device memory is free.
    pub fn memory_info(&self) -> Result<MemoryInfo> {
        self.gpu.memory_info()
    }

    /// Blocks until all work on the device has finished, and reports what failed in it.
    pub fn synchronize(&self) -> Result<()> {
        self.gpu.synchronize()
    }

    /// Device memory for `len` elements, contents undefined.
    pub fn allocate<T: Pod>(&self, len: usize) -> Result<DeviceBuffer<T>> {
        DeviceBuffer::new(self, len)
    }

    /// Device memory for `len` elements, zeroed on the stream.
    pub fn allocate_zeroed<T: Pod>(&self, len: usize, stream: &Stream) -> Result<DeviceBuffer<T>> {
        let mut buffer = self.allocate(len)?;
        buffer.zero(stream)?;
        Ok(buffer)
    }

    /// A copy of `data` in device memory; returns when it is there.
    pub fn upload<T: Pod>(&self, data: &[T], stream: &Stream) -> Result<DeviceBuffer<T>> {
        let mut buffer = self.allocate(data.len())?;
        buffer.upload(data, stream)?;
        Ok(buffer)
    }

    /// Zeroed host memory that the device can address and copy without staging.
    pub fn allocate_pinned<T: Pod>(&self, len: usize) -> Result<PinnedBuffer<T>> {
        PinnedBuffer::new(self, len)
    }

    /// A new stream, independent of all others.
    pub fn stream(&self) -> Result<Stream> {
        Stream::new(self, StreamPriority::Normal)
    }

    /// A new stream of this priority, independent of all others.
    pub fn stream_with_priority(&self, priority: StreamPriority) -> Result<Stream> {
        Stream::new(self, priority)
    }

    /// A new event for ordering streams.
    pub fn event(&self) -> Result<Event> {
        Event::new(self, false)
    }

    /// A new event that time can be measured with.
    pub fn timing_event(&self) -> Result<Event> {
        Event::new(self, true)
    }

    /// Loads a PTX module.
    ///
    /// # Errors
    /// PTX that is newer than the driver, is for another architecture, or does not compile.
    pub fn load_module(&self, ptx: &str) -> Result<Module> {
        Module::load(self, ptx)
    }

    /// Whether this device could address the peer's memory.
    pub fn can_access_peer(&self, peer: &Device) -> Result<bool> {
        self.expect_same_backend(peer, "the peer")?;
        Ok(self.same_as(peer) || self.gpu.can_access_peer(peer.properties().ordinal)?)
    }

    /// Lets this device's kernels and copies address the peer's memory, from now on.
    ///
    /// # Errors
    /// [`GpuError::NoPeerAccess`] where there is no path.
    pub fn enable_peer_access(&self, peer: &Device) -> Result<()> {
        if !self.can_access_peer(peer)? {
            return Err(GpuError::NoPeerAccess {
                device: self.label().to_owned(),
                peer: peer.label().to_owned(),
            });
        }
        if self.same_as(peer) { Ok(()) } else { self.gpu.enable_peer_access(peer.properties().ordinal) }
    }

    /// Whether both are the same GPU.
    pub fn same_as(&self, other: &Device) -> bool {
        Arc::ptr_eq(&self.gpu, &other.gpu)
    }

    /// An error unless `what`, made on `owner`, can be used here.
    pub(crate) fn expect_same(&self, owner: &Device, what: &'static str) -> Result<()> {
        if self.same_as(owner) { Ok(()) } else { Err(self.wrong_device(owner, what)) }
    }

    /// An error unless `what`, made on `owner`, can be used here or on a peer.
    pub(super) fn expect_same_backend(&self, owner: &Device, what: &'static str) -> Result<()> {
        let same = self.gpu.backend() == owner.gpu.backend();
        if same { Ok(()) } else { Err(self.wrong_device(owner, what)) }
    }

    fn wrong_device(&self, owner: &Device, what: &'static str) -> GpuError {
        GpuError::WrongDevice { what, found: owner.label().to_owned(), device: self.label().to_owned() }
    }
}
