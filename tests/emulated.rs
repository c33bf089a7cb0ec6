//! What emulated devices find, and the engine on one of them.
#![cfg(all(feature = "emulate", feature = "cli"))]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod common;
#[path = "emulated/engine.rs"]
mod engine;
#[path = "emulated/faults.rs"]
mod faults;
#[path = "emulated/kernels.rs"]
mod kernels;
#[path = "emulated/network.rs"]
mod network;
#[path = "emulated/peers.rs"]
mod peers;
#[path = "emulated/prompts.rs"]
mod prompts;
