//! The `fewsync` command.

fn main() {}
