//! Everything that is neither a matrix product nor attention.

pub mod add;
pub mod advance;
pub mod argmax;
pub mod embedding;
pub mod philox;
pub mod rmsnorm;
pub mod rope;
pub mod sample;
