//! What a model is: its configuration, weights, tokenizer, and how it is split over ranks.

pub mod config;
pub mod encoding;
pub mod error;
mod fingerprint;
pub mod random;
pub mod shapes;
mod stored;
pub mod tensor;

pub use config::{Config, RopeScaling};
pub use error::ModelError;
pub use tensor::{Storage, Tensor, TensorKind, TensorSource};
