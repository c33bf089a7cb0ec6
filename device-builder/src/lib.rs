//! Compile a `no_std` Rust kernel crate to PTX with a stock rustc and LLVM's own tools.
//!
//! The shape is rust-cuda's `cuda_builder`: kernels live in a crate of their own, and the host's
//! build script turns it into PTX. The compiler is the nvptx64 back end that every rustc carries;
//! no custom code generator, no pinned nightly, no CUDA toolkit.
//!
//! ```no_run
//! use device_builder::{Arch, CudaBuilder};
//!
//! let ptx = CudaBuilder::new("kernels").arch(Arch::Sm80).copy_to("ptx/sm_80.ptx").build()?;
//! println!("{} kernels", ptx.kernels().len());
//! # Ok::<(), device_builder::Error>(())
//! ```
//!
//! Refused: kernels whose launch bounds are not literals, devices below sm_70, linking of anything
//! that is not LLVM bitcode of a version that the found LLVM reads.

mod arch;
mod bitcode;
mod builder;
mod error;
mod link;
mod ptx;
mod ptxas;
mod sources;
mod toolchain;

pub use arch::Arch;
pub use bitcode::Llvm;
pub use builder::CudaBuilder;
pub use error::{Error, Result};
pub use ptx::{Header, Ptx};
pub use ptxas::{Ptxas, Resources};
pub use sources::source_hash;
pub use toolchain::{INSTALL_HELP, Toolchain};
