#!/usr/bin/env bash
# Checks that ptx/ is what device/ compiles to, that it assembles without spills, and that device/ is tidy.
# Needs a device toolchain and ptxas (docs/device.md); installs them where it may, and otherwise says that
# it skips, or fails where CI is set.
set -euo pipefail
cd "$(dirname "$0")/.."

skip() {
    echo "tests/device.sh: $1" >&2
    [ -z "${CI:-}" ] || exit 1
    echo "tests/device.sh: skipped" >&2
    exit 0
}

mkdir -p "${CARGO_TARGET_DIR:-target}"
target=$(cd "${CARGO_TARGET_DIR:-target}" && pwd)

# The toolchain that the committed files name, Debian's: only with it are bytes compared.
if ! dpkg -s rustc-web rust-web-src llvm-22 >/dev/null 2>&1 && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -q && apt-get install -qy --no-install-recommends rustc-web rust-web-src llvm-22; } >&2 ||
        echo "tests/device.sh: Debian's toolchain cannot be installed here; looking for another" >&2
fi
cargo run --quiet --release -p device-builder -- toolchain || skip "no device toolchain"

# The version that ptx/resources.toml names, so that its table is compared too.
if [ -z "${PTXAS:-}" ] && ! command -v ptxas >/dev/null; then
    version=$(sed -n 's/^ptxas = "\(.*\)"/\1/p' ptx/resources.toml)
    PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --no-deps --upgrade --target "$target/ptxas" "nvidia-cuda-nvcc==$version" ||
        skip "no ptxas, and pip cannot install nvidia-cuda-nvcc"
    PTXAS=$(find "$target/ptxas" -name ptxas -type f -print -quit)
    export PTXAS
fi

cargo run --quiet --release -p device-builder -- check --relocated
cargo fmt --manifest-path device/Cargo.toml --check
