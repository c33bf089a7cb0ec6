//! What `fewsync bench` measures.

pub mod decode;
pub mod stats;
