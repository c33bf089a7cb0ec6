//! NVIDIA's own products beside ours: cuBLASLt, opened at run time.
//!
//! Same operands, same formats: bf16 × bf16, sums in f32, written as bf16 or f32, added to what is there where
//! ours adds. Beside SwiGLU, which it does not have, it stores the product as it is. The kernel is the first
//! that its heuristic names, with a workspace of 32 MiB.

mod api;

use std::ffi::{c_int, c_void};

use api::{Algo, Api, BF16, COMPUTE_F32, F32, Heuristic, Opaque, Owned, Status};

use super::BenchError;
use super::operands::Operands;
use super::products::{Epilogue, Shape};
use crate::bench::library::{LibraryError, OptionalLibrary};
use crate::driver::{DeviceBuffer, Stream};

const WORKSPACE_BYTES: usize = 32 << 20;

const LIBRARY: OptionalLibrary = OptionalLibrary {
    name: "cuBLASLt",
    variable: "FEWSYNC_CUBLASLT",
    files: &["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so.11", "libcublasLt.so"],
    wheel: "nvidia-cublas",
};

/// Why there is no cuBLASLt to compare with.
#[derive(Debug, thiserror::Error)]
pub enum CublasLtError {
    /// It is not on this machine.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// The library has another interface.
    #[error("this cuBLASLt has no {symbol}: name one of CUDA 11 to 13 by FEWSYNC_CUBLASLT")]
    NoSuchFunction {
        /// What is missing.
        symbol: &'static str,
    },
    /// A call failed.
    #[error("{call} failed with status {status}")]
    Call {
        /// The function.
        call: &'static str,
        /// Its `cublasStatus_t`.
        status: Status,
    },
}

fn check(call: &'static str, status: Status) -> Result<(), CublasLtError> {
    if status == 0 { Ok(()) } else { Err(CublasLtError::Call { call, status }) }
}

/// The library on one device.
pub(super) struct CublasLt {
    /// Dropped first: it is destroyed by a function of the library.
    handle: Owned,
    api: Api,
    workspace: DeviceBuffer<u8>,
}

impl CublasLt {
    /// Opens the library on the operands' device.
    pub(super) fn open(operands: &Operands) -> Result<Result<Self, CublasLtError>, BenchError> {
        let workspace = operands.device.allocate(WORKSPACE_BYTES)?;
        Ok(Self::with(workspace))
    }

    fn with(workspace: DeviceBuffer<u8>) -> Result<Self, CublasLtError> {
        let library = LIBRARY.open()?;
        let api = Api::of(library).map_err(|symbol| CublasLtError::NoSuchFunction { symbol })?;
        // SAFETY: the library is open; the device's context is this thread's since the workspace was allocated.
        let handle = unsafe { Owned::new(api.destroy, |handle| (api.create)(handle)) };
        let handle = handle.map_err(|status| CublasLtError::Call { call: "cublasLtCreate", status })?;
        Ok(Self { handle, api, workspace })
    }

    /// `13.1.0`.
    pub(super) fn version(&self) -> String {
        // SAFETY: takes nothing.
        let version = unsafe { (self.api.version)() };
        format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
    }

    /// The product of a shape; none if the library has no kernel for it.
    pub(super) fn product(&self, shape: &Shape) -> Result<Option<Product<'_>>, CublasLtError> {
        let product = Product::describe(self, shape)?;
        let preference = self.preference()?;
        let (mut best, mut found) = (Heuristic::default(), 0);
        let Product { desc, w, a, out, .. } = &product;
        // SAFETY: descriptors are alive; room for one result.
        let status = unsafe {
            let (handle, out) = (self.handle.raw, out.raw);
            (self.api.heuristic)(
                handle,
                desc.raw,
                w.raw,
                a.raw,
                out,
                out,
                preference.raw,
                1,
                &mut best,
                &mut found,
            )
        };
        let usable = status == 0 && found > 0 && best.state == 0 && best.workspace_bytes <= WORKSPACE_BYTES;
        Ok(usable.then_some(Product { algo: best.algo, ..product }))
    }

    fn preference(&self) -> Result<Owned, CublasLtError> {
        let api = &self.api;
        // SAFETY: the library is open.
        let preference = unsafe { Owned::new(api.destroy_preference, |at| (api.create_preference)(at)) };
        let preference = preference
            .map_err(|status| CublasLtError::Call { call: "cublasLtMatmulPreferenceCreate", status })?;
        let (bytes, size) = (WORKSPACE_BYTES as u64, size_of::<u64>());
        // SAFETY: the attribute is a u64.
        let status =
            unsafe { (api.set_preference)(preference.raw, api::MAX_WORKSPACE_BYTES, pointer(&bytes), size) };
        check("cublasLtMatmulPreferenceSetAttribute", status)?;
        Ok(preference)
    }

    fn layout(&self, dtype: c_int, rows: usize, columns: usize) -> Result<Owned, CublasLtError> {
        let api = &self.api;
        let create = |at| {
            // SAFETY: the library is open.
            unsafe { (api.create_layout)(at, dtype, rows as u64, columns as u64, rows as i64) }
        };
        // SAFETY: a layout and its counterpart.
        unsafe { Owned::new(api.destroy_layout, create) }
            .map_err(|status| CublasLtError::Call { call: "cublasLtMatrixLayoutCreate", status })
    }
}

fn pointer<T>(value: &T) -> *const c_void {
    std::ptr::from_ref(value).cast()
}

/// One shape's product: descriptors and the kernel that was chosen.
///
/// Its matrices are column by column, so our `out[m, n] = a[m, k] · w[n, k]ᵀ` is its
/// `out[n × m] = w[k × n]ᵀ · a[k × m]`.
pub(super) struct Product<'a> {
    lt: &'a CublasLt,
    desc: Owned,
    w: Owned,
    a: Owned,
    out: Owned,
    algo: Algo,
    beta: f32,
}

impl<'a> Product<'a> {
    fn describe(lt: &'a CublasLt, &Shape { m, n, k, epilogue }: &Shape) -> Result<Self, CublasLtError> {
        let api = &lt.api;
        // SAFETY: the library is open.
        let desc = unsafe { Owned::new(api.destroy_desc, |at| (api.create_desc)(at, COMPUTE_F32, F32)) };
        let desc = desc.map_err(|status| CublasLtError::Call { call: "cublasLtMatmulDescCreate", status })?;
        // SAFETY: the attribute is an int.
        let status = unsafe {
            (api.set_desc)(desc.raw, api::TRANSPOSE_A, pointer(&api::TRANSPOSED), size_of::<c_int>())
        };
        check("cublasLtMatmulDescSetAttribute", status)?;
        let dtype = if epilogue == Epilogue::F32 { F32 } else { BF16 };
        let (w, a, out) = (lt.layout(BF16, k, n)?, lt.layout(BF16, k, m)?, lt.layout(dtype, n, m)?);
        let beta = if epilogue == Epilogue::Add { 1.0 } else { 0.0 };
        Ok(Self { lt, desc, w, a, out, algo: Algo::default(), beta })
    }

    /// Enqueues the product with the weights at this byte offset of the arena.
    pub(super) fn enqueue(
        &self,
        stream: &Stream,
        operands: &Operands,
        offset: usize,
    ) -> Result<(), CublasLtError> {
        let Self { lt, desc, w, a, out, algo, beta } = self;
        let address = |address: u64| address as usize as *mut c_void;
        let (w_at, a_at, out_at) = (operands.arena.ptr_at(offset), operands.arena.ptr(), operands.out.ptr());
        let (workspace, stream) = (address(lt.workspace.ptr().0), address(stream.id().0) as Opaque);
        // SAFETY: the arena holds activations and weights of the shape (`Operands::copies`, `check_shared`), the
        // output area takes the result, the workspace is as large as was promised; all outlive the stream's work.
        let status = unsafe {
            (lt.api.matmul)(
                lt.handle.raw,
                desc.raw,
                &1.0,
                address(w_at.0),
                w.raw,
                address(a_at.0),
                a.raw,
                beta,
                address(out_at.0),
                out.raw,
                address(out_at.0),
                out.raw,
                algo,
                workspace,
                WORKSPACE_BYTES,
                stream,
            )
        };
        check("cublasLtMatmul", status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_name_the_call() {
        assert_eq!(
            check("cublasLtMatmul", 15).unwrap_err().to_string(),
            "cublasLtMatmul failed with status 15"
        );
        assert!(check("cublasLtMatmul", 0).is_ok());
    }

    /// libc stands in for a library that is there and is not the one that was asked for.
    #[test]
    fn a_library_without_the_functions_is_refused() {
        // SAFETY: libc's initialisers have run already.
        let library = unsafe { libloading::Library::new("libc.so.6") };
        let Ok(library) = library else { return };
        assert_eq!(Api::of(library).err(), Some("cublasLtGetVersion"));
    }
}
