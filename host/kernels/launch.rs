//! A launch as plain data.

use std::fmt;

use bytemuck::NoUninit;

use super::TensorMap;

/// Room for the largest parameter struct.
const MAX_PARAM_BYTES: usize = 320;

/// The largest cluster that every device with clusters takes.
pub const MAX_CLUSTER: u32 = 8;

/// What launches are chosen for: a device, and the PTX that it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Multiprocessors.
    pub sm_count: u32,
    /// The PTX has the kernels over Hopper's `wgmma` ([`Ptx::has_wgmma`](super::Ptx::has_wgmma)).
    pub has_wgmma: bool,
    /// Up to so many rows of activations products are by [`Gemv`](super::Gemv) where that fits them, and by `mma.sync`
    /// beside it.
    pub gemv_rows: u32,
}

impl Target {
    /// A device that runs the kernels over `wgmma`, or one that does not.
    pub const fn new(sm_count: u32, has_wgmma: bool) -> Self {
        Self { sm_count, has_wgmma, gemv_rows: if has_wgmma { 0 } else { super::Gemv::MAX_ROWS } }
    }

    /// The same for the products of a model with hidden states of so many elements: kernels that follow each other are
    /// to be of one kind ([`Tiling::choose`](super::Tiling::choose)), so this is not chosen for each product by itself.
    /// On an H200 one row over `wgmma` makes a decode step of Llama 3 70B 2 to 6 % faster, of 3.2 1B 6 % and of SmolLM2
    /// 3 %, but that of Llama 3 8B 2 % slower.
    pub const fn for_hidden(self, hidden: usize) -> Self {
        match (self.has_wgmma, hidden) {
            (true, 4096) => Self { gemv_rows: 1, ..self },
            _ => self,
        }
    }
}

/// One kernel launch, for any driver library: entry point, grid, block, shared memory and parameters.
///
/// With the raw driver API, `cuLaunchKernel(f, grid[0], grid[1], grid[2], threads, 1, 1, shared_bytes, stream,
/// [params().as_ptr()], null)`: every kernel takes exactly one parameter, a struct by value. Above 48 KiB of
/// `shared_bytes` the function needs `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES` once before, and with a `cluster`
/// above 1 the launch is `cuLaunchKernelEx` with `CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION` (the fused all-reduce, and
/// products whose blocks share k).
///
/// A launch with [`tensor_maps`](Self::tensor_maps) runs as it is, and faster once the driver has encoded them:
/// [`with_tensor_maps`](Self::with_tensor_maps).
///
/// [`params`](Self::params) is the kernel's one parameter, for `kernelParams`. In a block for the driver's `extra` it begins
/// where `cuFuncGetParamInfo` says: not at 0 in kernels with tensor maps.
///
/// # Safety of a launch
/// Building one is safe, launching it is not: the kernel reads and writes the addresses it was given. The
/// kernel's documentation in `device/` says what has to be there.
#[derive(Clone, Copy)]
pub struct Launch {
    /// The kernel's name in the PTX.
    pub entry: &'static str,
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Blocks of a cluster, in x; 1 for none.
    pub cluster: u32,
    /// Threads of a block, in x.
    pub threads: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
    params: Params,
    tensor_maps: Option<TensorMaps>,
}

/// Maps that a kernel uses where its parameters have them.
#[derive(Clone, Copy)]
pub(super) struct TensorMaps {
    /// With where each of them goes.
    pub(super) maps: [(usize, TensorMap); 2],
    /// Where a u32 says that they are there.
    pub(super) flag_at: usize,
}

/// Parameters at the alignment of their struct, and of the maps in it.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Params {
    bytes: [u8; MAX_PARAM_BYTES],
    len: usize,
}

impl Launch {
    pub(super) fn new<P: NoUninit>(
        entry: &'static str,
        grid: [u32; 3],
        threads: u32,
        shared_bytes: u32,
        params: &P,
    ) -> Self {
        const { assert!(size_of::<P>() <= MAX_PARAM_BYTES && align_of::<P>() <= align_of::<Params>()) };
        let mut bytes = [0; MAX_PARAM_BYTES];
        bytes[..size_of::<P>()].copy_from_slice(bytemuck::bytes_of(params));
        let params = Params { bytes, len: size_of::<P>() };
        Self { entry, grid, cluster: 1, threads, shared_bytes, params, tensor_maps: None }
    }

    /// In clusters of so many blocks, in x.
    pub(super) fn in_clusters(self, cluster: u32) -> Self {
        Self { cluster, ..self }
    }

    /// With these maps to be encoded.
    pub(super) fn to_encode(self, tensor_maps: Option<TensorMaps>) -> Self {
        Self { tensor_maps, ..self }
    }

    /// The parameter struct's bytes, 64-byte aligned.
    pub fn params(&self) -> &[u8] {
        &self.params.bytes[..self.params.len]
    }

    /// Matrices that the kernel takes by tensor copies if its parameters have their maps; without those it copies them by
    /// its threads.
    pub fn tensor_maps(&self) -> impl Iterator<Item = &TensorMap> {
        self.tensor_maps.iter().flat_map(|maps| maps.maps.iter().map(|(_, map)| map))
    }

    /// The launch with its maps in the parameters: `encode` calls `cuTensorMapEncodeTiled` with the map's arguments and
    /// returns what that has written.
    ///
    /// # Errors
    /// Those of `encode`.
    pub fn with_tensor_maps<E>(
        mut self,
        mut encode: impl FnMut(&TensorMap) -> Result<[u8; TensorMap::BYTES], E>,
    ) -> Result<Self, E> {
        if let Some(TensorMaps { maps, flag_at }) = self.tensor_maps.take() {
            for (at, map) in maps {
                self.params.bytes[at..at + TensorMap::BYTES].copy_from_slice(&encode(&map)?);
            }
            self.params.bytes[flag_at..flag_at + 4].copy_from_slice(&1_u32.to_ne_bytes());
        }
        Ok(self)
    }
}

impl fmt::Debug for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { entry, grid: [x, y, z], cluster, threads, shared_bytes, .. } = self;
        let clusters = if *cluster > 1 { format!(" in clusters of {cluster}") } else { String::new() };
        write!(f, "{entry}<<<{x}×{y}×{z}{clusters}, {threads}, {shared_bytes} B>>>")
    }
}
