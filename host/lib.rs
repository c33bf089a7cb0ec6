//! Tensor-parallel Llama decode with few and fast synchronisations.
//!
//! *Few*: Sync-Point Drop ([`spd`]) skips the all-reduce after attention in the blocks that bear it.
//! *Fast*: NVRAR ([`comm`]) reduces in the node, exchanges between nodes by recursive doubling and
//! broadcasts in the node.
//!
//! The way of a token through the crate: [`model`] (config, weights, tokenizer, sharding) →
//! a [`runner::Runner`] ([`mod@reference`] on the CPU) over [`comm`] → logits → [`generate`].
//!
//! The likeliest token behind a prompt, on three ranks whose last ten blocks skip a sync point:
//!
//! ```no_run
//! use fewsync::comm::Shape;
//! use fewsync::generate::argmax;
//! use fewsync::model::Model;
//! use fewsync::reference::{Reference, ReferenceOptions};
//! use fewsync::runner::{Batch, Runner};
//! use fewsync::spd::SpdSpec;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = Model::open("smollm2")?;
//! let shape = Shape::new(1, 3)?;
//! let plan = SpdSpec::Last(10).resolve(&model.config, &*model.source, shape.world())?;
//! let options = ReferenceOptions::new(shape);
//! let mut runner = Reference::load(&model.config, &model.source, &plan, &options, &Default::default())?;
//! let prompt = model.tokenizer.encode("The capital of France is")?;
//! let logits = runner.forward(&Batch::prefill(0, &prompt))?.logits;
//! println!("{}", model.tokenizer.decode_continuation(&[argmax(&logits)]));
//! # Ok(())
//! # }
//! ```
//!
//! Without default features three modules remain, for other engines: [`kernels`] (PTX and typed launches),
//! [`comm`] and [`driver`] (whose back ends are the features `cuda` and `emulate`).

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
pub mod selftest;
#[cfg(feature = "model")]
pub mod spd;
