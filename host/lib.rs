//! Tensor-parallel Llama decode with few and fast synchronisations.
//!
//! *Few*: Sync-Point Drop ([`spd`]) skips the all-reduce after attention in the blocks that bear it.
//! *Fast*: NVRAR ([`comm`]) reduces in the node, exchanges between nodes by recursive doubling and
//! broadcasts in the node.
//!
//! The way of a token through the crate: [`model`] (config, weights, tokenizer, sharding) →
//! a [`runner::Runner`] ([`mod@reference`] on the CPU) over [`comm`] → logits → [`generate`].

pub mod bench;
#[cfg(feature = "cli")]
pub mod cli;
pub mod comm;
pub mod driver;
pub mod eval;
pub mod generate;
pub mod model;
pub mod reference;
pub mod runner;
pub mod spd;
