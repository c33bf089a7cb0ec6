//! The command line as its users meet it: results in the promised form, mistakes answered in one sentence.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[path = "../common/mod.rs"]
mod common;

mod damaged;
#[cfg(feature = "distill")]
mod distill;
mod fetching;
mod generate;
mod measure;
mod misuse;
mod plans;
mod selftest;
mod spd;
mod tuning;
