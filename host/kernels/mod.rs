//! The GPU kernels for any Rust engine: PTX as constants, launches as typed data.
//!
//! Needs no CUDA toolkit, no nightly compiler and no driver crate. An engine loads [`Ptx::text`] with whatever
//! it uses (cust, cudarc, the raw driver API), fills in a launch's arguments and hands the resulting
//! [`Launch`] to its own stream; `examples/` shows all three.
//!
//! ```
//! use fewsync::kernels::{Addr, Ptx, RmsNorm};
//!
//! let ptx = Ptx::for_capability(9, 0).expect("8.0 or newer");
//! let (x, weight, out) = (Addr::new(0x1000), Addr::new(0x2000), Addr::new(0x3000));
//! let launch = RmsNorm { x, weight, out, n_tokens: 4, hidden: 4096, eps: 1e-5 }.launch();
//! assert_eq!((launch.entry, launch.grid), ("rmsnorm_bf16", [4, 1, 1]));
//! assert!(ptx.entry(launch.entry).is_some());
//! ```
//!
//! What is checked when this crate is compiled: every kernel in the PTX has a launch here, every launch has a
//! kernel in every PTX file, and their parameters have the same size (`build.rs`). What is the caller's
//! business: that the addresses hold what the arguments' documentation says, so launching is `unsafe` in every
//! driver library.
//!
//! Shapes decide the rest: which tile, how many splits, how many threads. Those choices are pure functions
//! ([`MatMul`], [`Tiling::choose`], [`decode_splits`]) whose results are arguments, so that a caller can choose otherwise.

mod address;
mod attention;
mod gemm;
mod launch;
pub mod nvrar;
/// The parameter structs, compiled on both sides.
#[path = "../../device/src/params.rs"]
pub mod params;
mod pointwise;
mod prefill;
mod ptx;
mod sampling;
mod tensor_map;
mod tiling;

pub use address::{Addr, Rows};
pub use attention::{
    AttnDecode, DecodeScratch, HeadDim, PageSize, PagedKv, RopeKvWrite, UnsupportedShape, decode_splits,
};
pub use gemm::{Gemm, Gemv, GemvKernel, MatMul, Norm, Product};
pub use launch::{Launch, MAX_CLUSTER, Target};
pub use pointwise::{Add, AddRmsNorm, Embedding, RmsNorm};
pub use prefill::AttnPrefill;
pub(crate) use ptx::release;
pub use ptx::{Entry, NVSHMEM_FUNCTIONS, NVSHMEM_PTX, PTX, Ptx};
pub use sampling::{AdvancePositions, Argmax, Sample};
pub use tensor_map::TensorMap;
pub use tiling::{Tile, Tiling};
