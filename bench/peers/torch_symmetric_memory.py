#!/usr/bin/env python3
"""All-reduce of torch's symmetric memory, one-shot and two-shot, timed as `fewsync bench allreduce` times its own.

One process per GPU, started by this script. CSV with fewsync's columns goes to --csv (or stdout), for
`fewsync bench allreduce --join`. Multicast is off. Needs torch 2.9 or newer and two GPUs with peer access.
"""

import argparse
import csv
import os
import sys

# Before torch is imported, and inherited by the ranks.
os.environ["TORCH_SYMM_MEM_DISABLE_MULTICAST"] = "1"
os.environ["NCCL_NVLS_ENABLE"] = "0"

CALLS = 20
SAMPLES = 50
WARM_UPS = 5
UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
COLUMNS = "bench contender variant call launch dtype tp topology bytes hidden us_median us_p10 us_p90 gb_per_s".split()


def size(text):
    digits = len(text) - len(text.lstrip("0123456789"))
    return int(text[:digits]) * UNITS[text[digits:].strip()]


def sizes(text):
    """`8KiB,1MiB` or `1KiB..64MiB`, which doubles."""
    for part in text.split(","):
        first, _, last = part.partition("..")
        current = size(first)
        while current <= size(last or first):
            yield current
            current *= 2


def percentile(values, percent):
    """Nearest rank, as fewsync's."""
    ordered = sorted(values)
    return ordered[max(-(-len(ordered) * percent // 100), 1) - 1]


def rank_main(rank, args, results):
    import torch
    import torch.distributed as dist
    import torch.distributed._symmetric_memory as symm_mem

    torch.cuda.set_device(rank)
    device = torch.device("cuda", rank)
    dist.init_process_group(
        "nccl", init_method=f"tcp://127.0.0.1:{args.port}", rank=rank, world_size=args.tp, device_id=device
    )
    group = dist.group.WORLD.group_name
    dtype = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[args.dtype]

    def contribution(n, of):
        """Random multiples of 2^-15 whose sum is exact in every type."""
        generator = torch.Generator(device="cpu").manual_seed(of)
        largest = max(64 // args.tp, 1)
        units = torch.randint(-largest, largest + 1, (n,), generator=generator)
        return (units.double() / 32768).to(dtype).to(device)

    element = torch.empty((), dtype=dtype).element_size()
    largest = max(args.sizes) // element
    shared = symm_mem.empty(largest, dtype=dtype, device=device)
    symm_mem.rendezvous(shared, group)

    def measure(bytes_, variant, launch):
        n = bytes_ // element
        tensor, source, out = shared[:n], contribution(n, rank), torch.empty(n, dtype=dtype, device=device)

        def call():
            if variant == "one-shot":
                torch.ops.symm_mem.one_shot_all_reduce_out(tensor, "sum", group, out)
                return out
            torch.ops.symm_mem.two_shot_all_reduce_(tensor, "sum", group)
            return tensor

        tensor.copy_(source)
        expected = sum(contribution(n, of).double() for of in range(args.tp)).to(dtype)
        if not torch.equal(call(), expected):
            raise SystemExit(f"torch {variant}, {bytes_} bytes: the sum is wrong")
        torch.cuda.synchronize()
        run = lambda: [call() for _ in range(CALLS)]
        if launch == "graph":
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                run()
            run = graph.replay
        stream = torch.cuda.current_stream()
        events = []
        dist.barrier()
        for sample in range(WARM_UPS + SAMPLES):
            tensor.copy_(source)
            call()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record(stream)
            run()
            end.record(stream)
            if sample >= WARM_UPS:
                events.append((start, end))
        torch.cuda.synchronize()
        own = torch.tensor([start.elapsed_time(end) * 1e3 / CALLS for start, end in events], device=device)
        dist.all_reduce(own, op=dist.ReduceOp.MAX)
        return own.tolist()

    for launch in args.launch:
        for bytes_ in args.sizes:
            for variant in ("one-shot", "two-shot"):
                # Torch's kernels want 16-byte pieces, its two-shot one such piece for every rank.
                if bytes_ % (16 * args.tp) != 0:
                    continue
                us = measure(bytes_, variant, launch)
                if rank == 0:
                    median = percentile(us, 50)
                    results.append(
                        ["allreduce", "torch", variant, "plain", launch, args.dtype, args.tp, f"1x{args.tp}", bytes_, 0]
                        + [f"{v:.3f}" for v in (median, percentile(us, 10), percentile(us, 90))]
                        + [f"{bytes_ / median / 1e3:.2f}"]
                    )
                    print(f"torch {variant} {launch} {bytes_} B: {median:.2f} us", file=sys.stderr, flush=True)
    dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=lambda text: list(sizes(text)), default=list(sizes("1KiB..64MiB")))
    parser.add_argument("--dtype", choices=["bf16", "f16", "f32"], default="bf16")
    parser.add_argument("--tp", type=int, default=2)
    parser.add_argument("--launch", type=lambda text: text.split(","), default=["graph"])
    parser.add_argument("--port", type=int, default=29517)
    parser.add_argument("--csv", default="-")
    args = parser.parse_args()

    import torch
    import torch.multiprocessing as mp

    if torch.cuda.device_count() < args.tp:
        raise SystemExit(f"--tp {args.tp} needs {args.tp} GPUs, but torch sees {torch.cuda.device_count()}")
    with mp.Manager() as manager:
        results = manager.list()
        mp.spawn(rank_main, args=(args, results), nprocs=args.tp)
        lines = list(results)
    with sys.stdout if args.csv == "-" else open(args.csv, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        file.write(f"# torch {torch.__version__}, {torch.cuda.get_device_name(0)}, multicast off, {CALLS} calls a sample\n")
        writer.writerows(lines)


if __name__ == "__main__":
    main()
