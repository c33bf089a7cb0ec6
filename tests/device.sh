#!/usr/bin/env bash
# Checks that ptx/ is what device/ compiles to, that it assembles without spills, that what another toolchain
# makes of device/ passes the same tests, and that device/ is tidy. Needs a device toolchain and ptxas
# (docs/device.md); installs them where it may, and otherwise says that it skips, or fails where CI is set.
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
packages=(rustc-web rust-web-src rust-web-clippy llvm-22)
if ! dpkg -s "${packages[@]}" >/dev/null 2>&1 && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -q && apt-get install -qy --no-install-recommends "${packages[@]}"; } >&2 ||
        echo "tests/device.sh: Debian's toolchain cannot be installed here; looking for another" >&2
fi
toolchain=$(cargo run --quiet --release -p device-builder -- toolchain) || skip "no device toolchain"
echo "$toolchain"

# The version that ptx/resources.toml names, so that its table is compared too.
if [ -z "${PTXAS:-}" ] && ! command -v ptxas >/dev/null; then
    version=$(sed -n 's/^ptxas = "\(.*\)"/\1/p' ptx/resources.toml)
    PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --no-deps --upgrade --target "$target/ptxas" "nvidia-cuda-nvcc==$version" ||
        skip "no ptxas, and pip cannot install nvidia-cuda-nvcc"
    PTXAS=$(find "$target/ptxas" -name ptxas -type f -print -quit)
    export PTXAS
fi

cargo run --quiet --release -p device-builder -- check --relocated

# Where the toolchain that is found first is not the recorded one, its PTX is judged as the committed PTX is.
if ! grep -qF "${toolchain% (*}" ptx/sm_80.ptx; then
    FEWSYNC_BUILD_DEVICE=1 cargo test --locked --release --test ptx
fi

# Debian's compiler is a stable one, so it is told to take the target's unstable options.
if dpkg -s "${packages[@]}" >/dev/null 2>&1; then
    for cfg in '' '--cfg cuda_arch="sm_90a" --cfg cuda_arch_min="90"'; do
        (cd device && PATH=/usr/bin:$PATH RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 RUSTFLAGS=$cfg CARGO_TARGET_DIR="$target/device-clippy" \
            /usr/bin/cargo-clippy clippy --quiet --locked --release -Zbuild-std=core --target nvptx64-nvidia-cuda -- -D warnings)
    done
fi
cargo fmt --manifest-path device/Cargo.toml --check
