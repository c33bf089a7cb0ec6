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

/// The numbers of a linear congruential generator (Knuth's MMIX); the high bits are the better ones.
fn numbers(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state
    }
}
