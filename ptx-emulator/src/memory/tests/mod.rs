//! Whole programs on [`Memory`](super::Memory): what it allows, and what it catches.

mod litmus;
mod machine;
mod plain;
mod races;
