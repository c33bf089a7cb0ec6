//! What `fewsync bench` measures.

pub mod decode;
pub mod kernels;
pub mod stats;
