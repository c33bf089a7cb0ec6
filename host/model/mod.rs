//! What a model is: its configuration, weights, tokenizer, and how it is split over ranks.

pub mod cache;
pub mod chat;
pub mod checkpoint;
pub mod config;
mod digest;
pub mod encoding;
pub mod error;
pub mod fetch;
mod fingerprint;
pub mod gguf;
pub mod hub;
mod open;
mod progress;
pub mod random;
pub mod safetensors;
pub mod shapes;
pub mod sharding;
pub(crate) mod stored;
pub mod tensor;
#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
pub mod testing;
pub mod tokenizer;

pub use checkpoint::Checkpoint;
pub use config::{Config, RopeScaling};
pub use error::ModelError;
#[cfg(feature = "cli")]
pub(crate) use fingerprint::{DIGEST_BYTES, Fingerprint};
pub use open::Model;
pub use tensor::{Storage, Tensor, TensorKind, TensorSource};
pub use tokenizer::{GgufVocab, TextStream, Tokenizer};
