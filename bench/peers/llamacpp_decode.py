"""Decode speed of llama.cpp (PyPI: llama-cpp-python) on a GGUF file, for a table beside `fewsync bench decode`.

    python3 bench/peers/llamacpp_decode.py MODEL.gguf --threads 2 --prompt 32 --decode 128

Greedy, batch 1, one step at a time; prints one JSON object with the median step.
"""

import argparse
import json
import statistics
import time

from llama_cpp import Llama, __version__


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="path of the GGUF file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=32, help="prompt tokens")
    parser.add_argument("--decode", type=int, default=128, help="decoded tokens")
    args = parser.parse_args()

    llm = Llama(args.model, n_ctx=args.prompt + args.decode + 16, n_threads=args.threads, verbose=False)
    prompt = [(i * 2654435761) % llm.n_vocab() for i in range(1, args.prompt + 1)]
    for measured in (False, True):  # a first pass warms caches and threads
        llm.reset()
        start = time.perf_counter()
        llm.eval(prompt)
        token = llm.sample(temp=0.0)
        first = time.perf_counter()
        steps = []
        for _ in range(args.decode if measured else 8):
            begin = time.perf_counter()
            llm.eval([token])
            token = llm.sample(temp=0.0)
            steps.append((time.perf_counter() - begin) * 1e3)
    step_ms = statistics.median(steps)
    print(json.dumps({
        "peer": f"llama-cpp-python {__version__}",
        "threads": args.threads,
        "time_to_first_token_ms": (first - start) * 1e3,
        "step_ms": step_ms,
        "tokens_per_s": 1e3 / step_ms,
    }))


if __name__ == "__main__":
    main()
