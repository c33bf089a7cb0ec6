//! Whole programs on [`Memory`](super::Memory): what it allows, and what it catches.

mod grids;
mod litmus;
mod machine;
mod oracle;
mod plain;
mod races;
