//! The few functions of cuBLASLt that a product needs, with our own signatures.
//!
//! Source: cuBLAS library documentation, "cuBLASLt"; numbers of attributes and types as in cublasLt.h 11.0 to 13.

use std::ffi::{c_int, c_void};

use libloading::Library;

/// `cublasStatus_t`; 0 is success.
pub(super) type Status = c_int;
/// Any of its handles and descriptors.
pub(super) type Opaque = *mut c_void;

/// `CUBLAS_COMPUTE_32F`.
pub(super) const COMPUTE_F32: c_int = 68;
/// `CUDA_R_32F`.
pub(super) const F32: c_int = 0;
/// `CUDA_R_16BF`.
pub(super) const BF16: c_int = 14;
/// `CUBLASLT_MATMUL_DESC_TRANSA`.
pub(super) const TRANSPOSE_A: c_int = 3;
/// `CUBLAS_OP_T`.
pub(super) const TRANSPOSED: c_int = 1;
/// `CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES`.
pub(super) const MAX_WORKSPACE_BYTES: c_int = 1;

/// `cublasLtMatmulAlgo_t`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Algo {
    data: [u64; 8],
}

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Heuristic {
    pub(super) algo: Algo,
    pub(super) workspace_bytes: usize,
    pub(super) state: Status,
    waves: f32,
    reserved: [c_int; 4],
}

macro_rules! functions {
    ($($name:ident = $symbol:literal: fn($($arg:ty),*) -> $result:ty;)*) => {
        /// Entry points; the library stays open as long.
        pub(super) struct Api {
            $(pub(super) $name: unsafe extern "C" fn($($arg),*) -> $result,)*
            _library: Library,
        }

        impl Api {
            /// Looks all of them up.
            ///
            /// # Errors
            /// The name of one that is not there.
            pub(super) fn of(library: Library) -> Result<Self, &'static str> {
                $(
                    // SAFETY: the signature is the library's, as the module says.
                    let $name = *unsafe { library.get::<unsafe extern "C" fn($($arg),*) -> $result>($symbol) }
                        .map_err(|_| $symbol)?;
                )*
                Ok(Self { $($name,)* _library: library })
            }
        }
    };
}

functions! {
    version = "cublasLtGetVersion": fn() -> usize;
    create = "cublasLtCreate": fn(*mut Opaque) -> Status;
    destroy = "cublasLtDestroy": fn(Opaque) -> Status;
    create_desc = "cublasLtMatmulDescCreate": fn(*mut Opaque, c_int, c_int) -> Status;
    set_desc = "cublasLtMatmulDescSetAttribute": fn(Opaque, c_int, *const c_void, usize) -> Status;
    destroy_desc = "cublasLtMatmulDescDestroy": fn(Opaque) -> Status;
    create_layout = "cublasLtMatrixLayoutCreate": fn(*mut Opaque, c_int, u64, u64, i64) -> Status;
    destroy_layout = "cublasLtMatrixLayoutDestroy": fn(Opaque) -> Status;
    create_preference = "cublasLtMatmulPreferenceCreate": fn(*mut Opaque) -> Status;
    set_preference = "cublasLtMatmulPreferenceSetAttribute": fn(Opaque, c_int, *const c_void, usize) -> Status;
    destroy_preference = "cublasLtMatmulPreferenceDestroy": fn(Opaque) -> Status;
    heuristic = "cublasLtMatmulAlgoGetHeuristic":
        fn(Opaque, Opaque, Opaque, Opaque, Opaque, Opaque, Opaque, c_int, *mut Heuristic, *mut c_int) -> Status;
    matmul = "cublasLtMatmul":
        fn(Opaque, Opaque, *const f32, *const c_void, Opaque, *const c_void, Opaque, *const f32, *const c_void,
           Opaque, *mut c_void, Opaque, *const Algo, *mut c_void, usize, Opaque) -> Status;
}

/// A descriptor that destroys itself.
pub(super) struct Owned {
    pub(super) raw: Opaque,
    destroy: unsafe extern "C" fn(Opaque) -> Status,
}

impl Owned {
    /// What `create` leaves at the address that it is given.
    ///
    /// # Errors
    /// Its status.
    ///
    /// # Safety
    /// On success there is a handle that `destroy` takes, while the library stays open.
    pub(super) unsafe fn new(
        destroy: unsafe extern "C" fn(Opaque) -> Status,
        create: impl FnOnce(*mut Opaque) -> Status,
    ) -> Result<Self, Status> {
        let mut raw = std::ptr::null_mut();
        match create(&mut raw) {
            0 => Ok(Self { raw, destroy }),
            status => Err(status),
        }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: ours alone, and made by its counterpart. A failure to free has nobody to go to.
        let _ = unsafe { (self.destroy)(self.raw) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structs_have_the_size_of_the_headers() {
        assert_eq!((size_of::<Algo>(), size_of::<Heuristic>()), (64, 96));
    }
}
