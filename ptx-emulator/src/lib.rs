//! PTX, executed on the CPU: exactly, slowly and suspiciously.

pub mod text;
