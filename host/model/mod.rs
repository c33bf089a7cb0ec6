//! What a model is: its configuration, weights, tokenizer, and how it is split over ranks.

pub mod cache;
pub mod chat;
pub mod checkpoint;
pub mod config;
pub mod encoding;
mod digest;
pub mod error;
pub mod fetch;
mod fingerprint;
pub mod gguf;
pub mod hub;
mod progress;
pub mod random;
pub mod safetensors;
pub mod shapes;
mod stored;
pub mod tensor;
#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
pub mod testing;
pub mod tokenizer;

pub use checkpoint::Checkpoint;
pub use config::{Config, RopeScaling};
pub use error::ModelError;
pub use tensor::{Storage, Tensor, TensorKind, TensorSource};
pub use tokenizer::{GgufVocab, TextStream, Tokenizer};
