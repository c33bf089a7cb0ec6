"""Decode speed on the CPU, fewsync's reference back end and llama.cpp in turn, as CSV.

    cargo build --release
    python3 -m venv target/peers && target/peers/bin/pip install llama-cpp-python
    python3 bench/cpu_decode.py --peer-python target/peers/bin/python > bench/results/cpu-decode.csv

The programs alternate for --rounds rounds, so that a machine whose speed drifts drifts for all of them.
"""

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROMPT, DECODE = 32, 128


def run(command: list[str]) -> dict:
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def median(value: float | dict) -> float:
    return value["median"] if isinstance(value, dict) else value


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fewsync", default=str(ROOT / "target/release/fewsync"), help="the binary")
    parser.add_argument("--peer-python", help="a Python with llama-cpp-python; left out: no peer")
    parser.add_argument("--model", help="path of smollm2's GGUF file [default: where fewsync caches it]")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()

    cache = Path(os.environ.get("FEWSYNC_CACHE") or Path.home() / ".cache/fewsync")
    model = args.model or str(cache / "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    threads = os.cpu_count()
    workload = ["--prompt", str(PROMPT), "--decode", str(DECODE)]
    runs = {
        f"fewsync reference f32 --tp {tp}": [
            args.fewsync, "bench", "decode", "--device", "cpu", "--model", model, "--tp", str(tp), "--json", "--runs", "1", *workload
        ]
        for tp in (1, 2, 3)
    }
    if args.peer_python:
        script = str(ROOT / "bench/peers/llamacpp_decode.py")
        runs["llama.cpp Q4_1"] = [args.peer_python, script, model, "--threads", str(threads), *workload]

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    print(f"# {cpu_name()}, {threads} threads, {platform.system()} {platform.release()}, commit {commit.stdout.strip()}")
    print(f"# python3 bench/cpu_decode.py --rounds {args.rounds}; SmolLM2-135M Q4_1, {PROMPT} prompt + {DECODE} decoded tokens")
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(["round", "program", "tokens_per_s", "step_ms_median", "time_to_first_token_ms"])
    for round_ in range(args.rounds):
        for name, command in runs.items():
            result = run(command)
            times = result["measurements"][0]["times"] if "measurements" in result else result
            row = [times["tokens_per_s"], median(times["step_ms"]), median(times["time_to_first_token_ms"])]
            out.writerow([round_, name, *(f"{value:.2f}" for value in row)])
            sys.stdout.flush()


if __name__ == "__main__":
    main()
