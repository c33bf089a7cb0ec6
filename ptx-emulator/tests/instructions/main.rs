//! Each family of instructions against an independent model, over edge cases and random values.
//!
//! Models are written from the PTX ISA in scalar Rust and share no code with the emulator.

#![allow(clippy::unwrap_used)]
// Tables of names and models, and arrays by lane, are what these tests are made of.
#![allow(clippy::type_complexity, clippy::needless_range_loop)]

#[path = "../common/mod.rs"]
mod common;

mod approximate;
mod asynchronous;
mod atomics;
mod compare;
mod convert;
mod float;
mod halves;
mod integer;
mod lanes;
mod matrices;
mod mma;
mod subbyte;
mod vectors;
mod warp;
