//! A network within one GPU: puts between ranks that share a launch.
//!
//! The kernels that put leave two functions of NVSHMEM open. `network.ptx` defines them as copies from a rank's heap to
//! the same place of another one's; the heaps are equal slices of one allocation. What is put arrives at once and in
//! order: what a real network may do besides is for emulated ones to try (`tests/nvrar_emulated/puts.rs`).

use std::sync::Arc;

use super::super::crew::Crew;
use super::super::layout::Layout;
use super::super::region::{Region, Regions, View};
use crate::driver::{GpuError, KernelLibrary};
use crate::kernels::{NVSHMEM_FUNCTIONS, NVSHMEM_PTX};

/// Two functions, for a file of any architecture.
const NETWORK: &str = include_str!("network.ptx");
/// What the network counts PEs' distances in.
const PAGE_BYTES: usize = 4096;

/// The kernels that put, completed by the network.
#[derive(Debug, Clone)]
pub struct LoopbackPuts(pub(super) Arc<KernelLibrary>);

impl LoopbackPuts {
    /// Loads those that belong to `kernels`, on the same device, to be launched like them.
    ///
    /// # Errors
    /// If the device or its driver cannot take them.
    pub fn load(kernels: &KernelLibrary) -> Result<Self, GpuError> {
        let arch = kernels.ptx().arch;
        let ptx = NVSHMEM_PTX.iter().find(|ptx| ptx.arch == arch).expect("both sets have all architectures");
        let [first, second] = NVSHMEM_FUNCTIONS;
        let text = ptx.text_with(&[(first, NETWORK), (second, "")]);
        let text = text.expect("files of NVSHMEM_PTX declare these functions");
        let puts = KernelLibrary::load_linked(kernels.device(), ptx, &text)?;
        Ok(Self(Arc::new(puts.programmatic(kernels.is_programmatic()))))
    }
}

/// Empty regions of all ranks of a group in one allocation, each followed by its rank's staging area.
pub(super) fn regions(crew: &Crew, layout: &Layout) -> Result<Regions, GpuError> {
    let (device, heap_bytes) = (crew.device(), 2 * layout.bytes);
    let heaps = Arc::new(device.allocate::<u8>(crew.count * heap_bytes)?);
    let stream = device.stream()?;
    let region = |rank| {
        let slice = Region::Slice(Arc::clone(&heaps), rank * heap_bytes);
        Ok(Arc::new(slice.emptied(device, layout, &stream)?))
    };
    let kept: Arc<[_]> = (0..crew.count).map(region).collect::<Result<_, GpuError>>()?;
    let view = |rank: usize| {
        let node = |rank| rank / crew.shape.gpus_per_node;
        let is_near = |peer: &usize| node(*peer) == node(rank);
        let name = |peer| if is_near(&peer) { kept[peer].address() } else { pe(rank, peer, heap_bytes) };
        let names = (0..crew.count).map(name).collect();
        View { names, staging: kept[rank].address() + layout.bytes as u64 }
    };
    let views = (0..crew.count).map(view).collect();
    Ok(Regions { views, kept })
}

/// What the network calls a peer: a number of 32 bits with a sign.
fn pe(rank: usize, peer: usize, heap_bytes: usize) -> u64 {
    let pages = (heap_bytes / PAGE_BYTES) as i64;
    ((peer as i64 - rank as i64) * pages) as u64
}
