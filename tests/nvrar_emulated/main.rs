//! The all-reduce between emulated devices, as shipped: random calls on random machines, judged to the bit.
//!
//! A *schedule* is one seed: a group, a machine with its order of warps and its weak memory, some calls in flight at
//! once. `FEWSYNC_SCHEDULES=N` tries N of them instead of 1000, `FEWSYNC_SEED=S` begins with seed S. A failure prints
//! its seed and the command that tries it again.
#![cfg(feature = "emulate")]

mod inputs;
mod letters;
mod meeting;
mod model;
mod mutations;
mod pes;
mod puts;
mod run;
mod scenario;
mod schedules;
#[path = "../common/seeds.rs"]
mod seeds;
mod soak;
mod stops;
#[cfg(feature = "model")]
mod tuning;
