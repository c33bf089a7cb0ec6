#!/usr/bin/env bash
# Passes all tests. Needs Rust and Python 3 with pip; the trained model that some tests run is fetched once
# into the user's cache folder (FEWSYNC_CACHE overrides which).
set -euo pipefail
cd "$(dirname "$0")/.."

missing() {
    echo "tests/run.sh: $1" >&2
    exit 1
}
command -v cargo >/dev/null || missing "cargo is not installed: install Rust 1.89 or newer with rustup"
command -v python3 >/dev/null || missing "python3 is not installed: the trained model is fetched with pip"
python3 -m pip --version >/dev/null 2>&1 || missing "pip is not installed: install it (Debian: python3-pip)"

# Release: the tests compute a real model. Every part must build by itself.
cargo test --release --workspace
for features in "" model cuda; do
    cargo check --release --no-default-features --features "$features"
done
# Another engine's crate, and the examples for its author.
cargo build --release --manifest-path examples/cudarc/Cargo.toml --target-dir target/examples
