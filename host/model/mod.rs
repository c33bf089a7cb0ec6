//! What a model is: its configuration, weights, tokenizer, and how it is split over ranks.

pub mod config;
pub mod error;
pub mod shapes;
pub mod tensor;

pub use config::{Config, RopeScaling};
pub use error::ModelError;
pub use tensor::{Storage, Tensor, TensorKind, TensorSource};
