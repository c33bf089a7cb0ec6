#!/usr/bin/env bash
# Gathers what runs on a GPU machine without cargo into one folder: bench/stage.sh OUTDIR [--nvshmem DIR]
# With NVSHMEM's folder (docs/device.md), its kernels too, in OUTDIR/kernels.
set -euo pipefail
out=${1:?usage: bench/stage.sh OUTDIR [--nvshmem DIR]}
nvshmem=
if [ "${2:-}" = --nvshmem ]; then
    nvshmem=$(cd "${3:?--nvshmem needs a folder}" && pwd)
fi
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/.."

# Recorded in every measurement's header; -dirty where the tree has changes.
FEWSYNC_COMMIT=$(git describe --always --dirty --abbrev=12 --exclude '*')
export FEWSYNC_COMMIT

# Prints the path of the executable that cargo made of one target, and nothing if it makes none.
executable() {
    cargo build --locked --release --message-format=json-render-diagnostics "$@" |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1
}

gather() {
    [ -f "$2" ] || { echo "bench/stage.sh: cargo made no executable for $1" >&2; exit 1; }
    install -m 755 "$2" "$out/$1"
    echo "$out/$1  ($(du -h "$out/$1" | cut -f1))"
}

gather fewsync "$(executable --bin fewsync)"
if [ -n "$nvshmem" ]; then
    "$out/fewsync" build-kernels --nvshmem "$nvshmem" --out "$out/kernels"
fi
for test in gpu_driver comm_gpu engine; do
    gather "$test" "$(executable --test "$test")"
done
install -D -m 755 -t "$out/bench" bench/allreduce.sh
install -D -m 755 -t "$out/bench/peers" bench/peers/torch_symmetric_memory.py
ldd "$out/fewsync" | grep 'not found' && exit 1

cat <<MESSAGE
commit $FEWSYNC_COMMIT; copy the folder to a machine with an NVIDIA driver and this libc ($(ldd --version | sed -n 1p)), then:
  ./fewsync selftest                    every kernel against f64 arithmetic on the CPU
  ./fewsync bench decode-gemm           and the other kernels of ./fewsync bench --help
  FEWSYNC_REQUIRE_GPU=1 ./gpu_driver    the driver layer's tests
  FEWSYNC_REQUIRE_GPU=2 ./engine        the engine's tests, on two GPUs too
  FEWSYNC=./fewsync bench/allreduce.sh OUTDIR    all-reduce beside NCCL and torch
MESSAGE
