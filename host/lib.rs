//! Tensor-parallel Llama decode with few and fast synchronisations.
//!
//! *Few*: Sync-Point Drop ([`spd`]) skips the all-reduce after attention in the blocks that bear it.
//! *Fast*: NVRAR ([`comm`]) reduces in the node, exchanges between nodes by recursive doubling and
//! broadcasts in the node.
//!
//! The way of a token through the crate: [`model`] (config, weights, tokenizer, sharding) →
//! a [`runner::Runner`] ([`mod@reference`] on the CPU) over [`comm`] → logits → [`generate`].
//!
//! Without default features three modules remain, for other engines: [`kernels`] (PTX and typed launches),
//! [`comm`] and [`driver`] (whose CUDA back end is the feature `cuda`).

#[cfg(feature = "model")]
pub mod bench;
#[cfg(feature = "cli")]
pub mod cli;
pub mod comm;
pub mod driver;
#[cfg(feature = "model")]
pub mod engine;
#[cfg(feature = "model")]
pub mod eval;
#[cfg(feature = "model")]
pub mod generate;
pub mod kernels;
#[cfg(feature = "model")]
pub mod model;
#[cfg(feature = "model")]
pub mod reference;
#[cfg(feature = "model")]
pub mod runner;
#[cfg(feature = "model")]
pub mod spd;
