//! Driver functions newer than cust_raw's declarations, with their structures as in CUDA 13.0's `cuda.h`.
//!
//! They are Rust functions, not linker symbols, and behave like the others: a driver that lacks one answers
//! `CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND`. `# Safety` of each: the arguments are what NVIDIA's driver API
//! reference asks of the function of this name.
#![expect(non_snake_case, clippy::too_many_arguments)]

use std::ffi::{c_char, c_int, c_uint, c_void};

use cust_raw::{CUdeviceptr, CUfunction, CUjit_option, CUmodule, CUresult, CUstream};

use crate::shim::forward;

/// A launch's shape and attributes, for [`cuLaunchKernelEx`].
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct CUlaunchConfig {
    /// Blocks in x, y, z.
    pub grid: [c_uint; 3],
    /// Threads per block in x, y, z.
    pub block: [c_uint; 3],
    /// Dynamic shared memory per block.
    pub shared_memory_bytes: c_uint,
    /// The stream to launch on.
    pub stream: CUstream,
    /// `attribute_count` attributes; may be null when there are none.
    pub attributes: *mut CUlaunchAttribute,
    /// How many attributes there are.
    pub attribute_count: c_uint,
}

/// One launch attribute: an identifier and a value of at most 64 bytes.
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy)]
pub struct CUlaunchAttribute {
    id: c_uint,
    padding: c_uint,
    value: [c_uint; 16],
}

impl CUlaunchAttribute {
    const fn new(id: c_uint, values: [c_uint; 3]) -> Self {
        let mut value = [0; 16];
        (value[0], value[1], value[2]) = (values[0], values[1], values[2]);
        Self { id, padding: 0, value }
    }

    /// All blocks are resident at once and may wait for each other (`CU_LAUNCH_ATTRIBUTE_COOPERATIVE`).
    pub const fn cooperative() -> Self {
        Self::new(2, [1, 0, 0])
    }

    /// Blocks per cluster (`CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION`); each divides the grid.
    pub const fn cluster(dimensions: [c_uint; 3]) -> Self {
        Self::new(4, dimensions)
    }

    /// The launch may start before the kernel ahead of it in the stream has ended
    /// (`CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION`).
    pub const fn programmatic_stream_serialization() -> Self {
        Self::new(6, [1, 0, 0])
    }
}

/// An opaque tensor map, passed to kernels by value as a `.param` of 128 bytes.
#[repr(C, align(128))]
#[derive(Debug, Clone, Copy)]
pub struct CUtensorMap {
    opaque: [u64; 16],
}

impl CUtensorMap {
    /// A map to be filled by [`cuTensorMapEncodeTiled`].
    pub const fn zeroed() -> Self {
        Self { opaque: [0; 16] }
    }

    /// The map as kernel parameter bytes.
    pub fn to_bytes(&self) -> [u8; 128] {
        let mut bytes = [0; 128];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(self.opaque) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

/// `CU_TENSOR_MAP_DATA_TYPE_*` that the kernels use.
pub mod tensor_map {
    use std::ffi::c_uint;

    /// Element type: half precision.
    pub const FLOAT16: c_uint = 6;
    /// Element type: single precision.
    pub const FLOAT32: c_uint = 7;
    /// Element type: bf16.
    pub const BFLOAT16: c_uint = 9;
    /// No interleaving.
    pub const INTERLEAVE_NONE: c_uint = 0;
    /// Shared memory is written in plain rows.
    pub const SWIZZLE_NONE: c_uint = 0;
    /// 16-byte units are permuted within 128-byte rows.
    pub const SWIZZLE_128B: c_uint = 3;
    /// L2 fetches no more than asked.
    pub const L2_PROMOTION_NONE: c_uint = 0;
    /// L2 fetches 128 bytes at a time.
    pub const L2_PROMOTION_128B: c_uint = 2;
    /// L2 fetches 256 bytes at a time.
    pub const L2_PROMOTION_256B: c_uint = 3;
    /// Elements outside the tensor read as zero.
    pub const OUT_OF_BOUNDS_ZERO: c_uint = 0;
}

/// A loaded library, independent of any context.
#[repr(transparent)]
#[derive(Debug, Clone, Copy)]
pub struct CUlibrary(pub *mut c_void);

/// A kernel of a [`CUlibrary`].
#[repr(transparent)]
#[derive(Debug, Clone, Copy)]
pub struct CUkernel(pub *mut c_void);

macro_rules! newer_entry_points {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?);)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// See the module.
        pub unsafe fn $name($($arg: $type),*) -> CUresult {
            forward!($name($($arg: $type),*))
        }
    )*};
}

newer_entry_points! {
    /// Launches with attributes (CUDA 11.8): cluster, cooperative, programmatic dependent launch.
    fn cuLaunchKernelEx(
        config: *const CUlaunchConfig,
        function: CUfunction,
        parameters: *mut *mut c_void,
        extra: *mut *mut c_void,
    );
    /// How many clusters of this shape the device holds at once (CUDA 11.8).
    fn cuOccupancyMaxActiveClusters(clusters: *mut c_int, function: CUfunction, config: *const CUlaunchConfig);
    /// Offset and size of a kernel's parameter; `CUDA_ERROR_INVALID_VALUE` past the last one (CUDA 12.4).
    fn cuFuncGetParamInfo(function: CUfunction, index: usize, offset: *mut usize, bytes: *mut usize);
    /// Describes a tiled tensor to the bulk copy engine (CUDA 12.0).
    fn cuTensorMapEncodeTiled(
        map: *mut CUtensorMap,
        data_type: c_uint,
        rank: c_uint,
        address: *mut c_void,
        dimensions: *const u64,
        strides_bytes: *const u64,
        box_dimensions: *const c_uint,
        element_strides: *const c_uint,
        interleave: c_uint,
        swizzle: c_uint,
        l2_promotion: c_uint,
        out_of_bounds_fill: c_uint,
    );
    /// Loads PTX, a cubin or a fatbin for all contexts (CUDA 12.0).
    fn cuLibraryLoadData(
        library: *mut CUlibrary,
        code: *const c_void,
        jit_options: *mut CUjit_option,
        jit_values: *mut *mut c_void,
        jit_count: c_uint,
        library_options: *mut c_uint,
        library_values: *mut *mut c_void,
        library_count: c_uint,
    );
    /// Unloads a library (CUDA 12.0).
    fn cuLibraryUnload(library: CUlibrary);
    /// A library's kernel by name (CUDA 12.0).
    fn cuLibraryGetKernel(kernel: *mut CUkernel, library: CUlibrary, name: *const c_char);
    /// A library's module in the current context (CUDA 12.0).
    fn cuLibraryGetModule(module: *mut CUmodule, library: CUlibrary);
    /// A library's global variable in the current context (CUDA 12.0).
    fn cuLibraryGetGlobal(
        address: *mut CUdeviceptr,
        bytes: *mut usize,
        library: CUlibrary,
        name: *const c_char,
    );
    /// A kernel's function in the current context (CUDA 12.0).
    fn cuKernelGetFunction(function: *mut CUfunction, kernel: CUkernel);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn layouts_are_those_of_cuda_13_0() {
        assert_eq!((size_of::<CUlaunchConfig>(), align_of::<CUlaunchConfig>()), (56, 8));
        assert_eq!(offset_of!(CUlaunchConfig, shared_memory_bytes), 24);
        assert_eq!(offset_of!(CUlaunchConfig, stream), 32);
        assert_eq!(offset_of!(CUlaunchConfig, attribute_count), 48);
        assert_eq!((size_of::<CUlaunchAttribute>(), offset_of!(CUlaunchAttribute, value)), (72, 8));
        assert_eq!((size_of::<CUtensorMap>(), align_of::<CUtensorMap>()), (128, 128));
    }
}
