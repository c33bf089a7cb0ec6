#!/usr/bin/env bash
# Runs ranks as processes under Open MPI's mpirun, without the feature mpi and with it, and compares their text with
# that of one process. Needs Open MPI with its development files, and libclang; installs them where it may, and
# otherwise says that it skips, or fails where CI is set.
set -euo pipefail
cd "$(dirname "$0")/.."

skip() {
    echo "tests/mpi.sh: $1" >&2
    [ -z "${CI:-}" ] || exit 1
    echo "tests/mpi.sh: skipped" >&2
    exit 0
}

packages=(openmpi-bin libopenmpi-dev libclang-dev)
if ! command -v mpirun mpicc >/dev/null || ! ls /usr/lib/llvm-*/lib/libclang*.so* >/dev/null 2>&1; then
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || skip "no Open MPI or libclang (Debian: ${packages[*]})"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -q && apt-get install -qy --no-install-recommends "${packages[@]}"; } >&2 ||
        skip "${packages[*]} cannot be installed here"
fi
mpirun --version | head -1

mkdir -p "${CARGO_TARGET_DIR:-target}"
target=$(cd "${CARGO_TARGET_DIR:-target}" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# One after the other: both builds have the same name. With the default features they share their dependencies with
# the tests.
cargo check --locked --release --no-default-features --features mpi
cargo build --locked --release --bin fewsync
cp "$target/release/fewsync" "$scratch/plain"
cargo build --locked --release --features mpi --bin fewsync
cp "$target/release/fewsync" "$scratch/mpi"

# As root, and with more ranks than cores.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
mpi() {
    timeout 120 mpirun --oversubscribe "$@"
}
generate=(generate --device cpu --model random:tiny --prompt hello --max-tokens 16 --topology 2x2)
"$scratch/plain" "${generate[@]}" 2>/dev/null >"$scratch/expected"
for binary in plain mpi; do
    mpi -n 4 "$scratch/$binary" "${generate[@]}" >"$scratch/text" 2>"$scratch/notes"
    cmp "$scratch/expected" "$scratch/text"
    [ "$(grep -c 'sync points per token' "$scratch/notes")" = 1 ] || { cat "$scratch/notes" >&2; exit 1; }
    # A failure is that of the whole run, and told once.
    if mpi -n 3 "$scratch/$binary" "${generate[@]}" >/dev/null 2>"$scratch/notes"; then
        echo "tests/mpi.sh: $binary: 3 processes ran as 2x2" >&2
        exit 1
    fi
    [ "$(grep -c 'error: 3 processes were started, but --topology asks for 4' "$scratch/notes")" = 1 ] ||
        { cat "$scratch/notes" >&2; exit 1; }
    "$scratch/$binary" "${generate[@]}" 2>/dev/null | cmp - "$scratch/expected"
done
echo "tests/mpi.sh: passed"
