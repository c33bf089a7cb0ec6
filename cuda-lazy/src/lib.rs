//! The CUDA driver API for [`cust`](https://docs.rs/cust), found at run time.
//!
//! `cust` and `cust_raw` link `libcuda` when they are built, so a program that uses them needs CUDA to build
//! and a driver to start. This crate defines every `cu*` symbol that cust_raw 0.11.3 declares and forwards
//! each one to `libcuda.so.1`, which is opened at the first call. Together with the `find_cuda_helper` patch
//! beside it, one binary builds without CUDA, starts without a driver and uses the driver where there is one.
//!
//! What a caller sees:
//! - no driver: every call returns `CUDA_ERROR_NO_DEVICE`; [`driver`] says why, in one sentence;
//! - a function that the installed driver lacks: `CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND`;
//! - a result newer than cust_raw's enum: `CUDA_ERROR_UNKNOWN`, and [`code`] has the number
//!   (an unknown value in a Rust enum would be undefined behaviour);
//! - what cust_raw does not declare: [`newer`] (launch attributes, tensor maps, libraries) and [`symbol`].
//!
//! Not covered: enums that the driver writes through pointers (attributes, capture status) arrive as they are;
//! read those through [`symbol`] with integer types where a newer driver may know more values.
//!
//! The symbols are only linked into programs that refer to this crate: call [`driver`] before anything else,
//! or write `use cuda_lazy as _;`. `FEWSYNC_LIBCUDA` overrides the library's path; it is read once.

mod driver;
mod library;
pub mod newer;
mod result;
mod shim;
mod table;

pub use cust_raw::CUresult;
pub use driver::{CudaVersion, DriverError, DriverInfo, driver};
pub use library::{LIBRARY_VARIABLE, LoadError, SymbolError, library_path, symbol};
pub use result::{Meaning, code, meaning, result};
pub use table::ENTRY_POINTS;
