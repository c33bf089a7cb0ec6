//! The memory that peers write into.

use std::sync::Arc;

use super::heap::Place;
use super::layout::Layout;
use super::options::PeerMemory;
use crate::driver::{Device, DeviceBuffer, DevicePtr, GpuError, Pattern, PinnedBuffer, Stream};
use crate::kernels::nvrar::Format;

/// What peers write into: one rank's region of one buffer.
#[derive(Debug)]
pub(super) enum Region {
    Device(DeviceBuffer<u8>),
    Pinned(PinnedBuffer<u8>),
    Symmetric(Place),
    /// From an offset on, in memory that it shares with other ranks' regions.
    Slice(Arc<DeviceBuffer<u8>>, usize),
}

/// The regions of all ranks for one buffer.
#[derive(Debug)]
pub(super) struct Regions {
    /// How each rank of the crew finds them.
    pub(super) views: Vec<View>,
    /// None is freed while the crew's kernels may write into it.
    pub(super) kept: Arc<[Arc<Region>]>,
}

/// The regions of all ranks, as one rank's kernels name them.
#[derive(Debug, Clone)]
pub(super) struct View {
    /// Of each rank: its address, or its PE where messages to it are put.
    pub(super) names: Vec<u64>,
    /// Where messages to be put are staged; 0 if none are.
    pub(super) staging: u64,
}

impl Region {
    /// A region in which nothing has arrived.
    pub(super) fn new(
        device: &Device,
        layout: &Layout,
        memory: PeerMemory,
        stream: &Stream,
    ) -> Result<Self, GpuError> {
        let words = layout.area(Format::Words);
        if memory == PeerMemory::HostStaged {
            let mut region = device.allocate_pinned::<u8>(layout.bytes)?;
            region[words.offset..][..2 * words.bytes].fill(u8::MAX);
            return Ok(Self::Pinned(region));
        }
        Self::Device(device.allocate::<u8>(layout.bytes)?).emptied(device, layout, stream)
    }

    /// Marks every place as empty; returns when that is done.
    pub(super) fn emptied(self, device: &Device, layout: &Layout, stream: &Stream) -> Result<Self, GpuError> {
        let words = layout.area(Format::Words);
        let all = DevicePtr(self.address());
        let (gpu, places) = (device.gpu(), all.add_bytes(words.offset));
        // SAFETY: within the region, which nobody else has yet; the stream has run both on return.
        unsafe {
            gpu.fill(stream.id(), all, Pattern::U8(0), layout.bytes)?;
            gpu.fill(stream.id(), places, Pattern::U8(u8::MAX), 2 * words.bytes)?;
        }
        stream.synchronize()?;
        Ok(self)
    }

    pub(super) fn address(&self) -> u64 {
        match self {
            Self::Device(region) => region.ptr().0,
            Self::Pinned(region) => region.ptr().0,
            Self::Symmetric(place) => place.address(),
            Self::Slice(memory, at) => memory.ptr_at(*at).0,
        }
    }
}

impl Regions {
    /// For a crew of `count` that stores into all of them.
    pub(super) fn of(all: Arc<[Arc<Region>]>, count: usize) -> Self {
        let view = View { names: all.iter().map(|region| region.address()).collect(), staging: 0 };
        Self { views: vec![view; count], kept: all }
    }
}
