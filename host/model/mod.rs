//! What a model is: its configuration, weights, tokenizer, and how it is split over ranks.

pub mod cache;
pub mod chat;
pub mod config;
mod digest;
pub mod error;
pub mod fetch;
pub mod hub;
mod progress;
pub mod tensor;
pub mod tokenizer;

pub use config::{Config, RopeScaling};
pub use error::ModelError;
pub use tensor::{Storage, Tensor, TensorKind, TensorSource};
pub use tokenizer::{GgufVocab, TextStream, Tokenizer};
