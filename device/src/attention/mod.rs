//! Attention over a paged KV cache, on `mma.sync`.
//!
//! [`flash`] holds the online softmax over one tile of keys and values; [`prefill`] runs it with rows
//! that are query tokens of one head, [`decode`] with rows that are the query heads of one KV head.

pub mod decode;
pub mod flash;
pub mod paged;
pub mod prefill;
