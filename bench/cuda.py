"""Decode and prefill on a GPU beside the time that memory alone would take: `python -m bench.cuda`. Prints a table, then one JSON line.

Needs libmamba_integer_cuda.so (scripts/build_cuda.sh) and a GPU. What a token must read and write is counted from the model's shape: every weight
once, the scan's state once each way. The GPU's bandwidth is its maker's figure, or --bandwidth.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from typing import Any

from mamba_integer.engine import DEFAULT_MODEL, Model, Settings, feed_many
from mamba_integer.errors import MambaIntegerError
from mamba_integer.sampling import Sampling

MANY = 64  # sequences at once
PASS = 256  # tokens of a prompt that go through the model together (engine/cuda/session.cu)
# GB/s, from the makers' data sheets.
BANDWIDTH = {
    "L4": 300,
    "A100-SXM4-80GB": 2039,
    "A100-PCIE-40GB": 1555,
    "H100 PCIe": 2000,
    "H100 80GB HBM3": 3350,
    "H200": 4800,
}


def weight_bytes(c: Settings) -> int:
    """The projections of all layers."""
    inner = c.n_heads * c.head_dim
    weights = c.n_layers * c.d_model * (2 * inner + 2 * c.d_state + c.n_heads + inner)
    return weights // (4 if c.weights == "ternary" else 1)


def state_bytes(c: Settings) -> int:
    """The state of one sequence, there and back."""
    inner = c.n_heads * c.head_dim
    return c.n_layers * (inner * c.d_state * 4 * 2 + (inner + 2 * c.d_state) * 2 * 6)


def bytes_per_token(c: Settings) -> dict[str, int]:
    """What a token makes the device's memory move, at the least. Tokens of one pass share the weights; those of one sequence the state, too."""
    weights, state, logits = weight_bytes(c), state_bytes(c), c.vocab_size * c.d_model
    return {
        "decode": weights + logits + state,
        f"decode of {MANY}": (weights + logits) // MANY + state,
        "prefill": (weights + state) // PASS,
    }


def median_seconds(work: Any, rounds: int = 5) -> float:
    work()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def gpu_name() -> str:
    if shutil.which("nvidia-smi") is None:
        return "no GPU"
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout else "no GPU"


def measure(model: Model, tokens: int) -> dict[str, float]:
    """Tokens a second: generation of one sequence, of many at once, and a prompt."""
    greedy = Sampling.parse("0", 0, "1", 0)
    one = model.session(device="cuda")
    one.feed_last([0])

    def decode() -> None:
        for step in range(tokens):
            one.feed_last([one.sample(greedy, step)])
        one.logits()

    many = [model.session(device="cuda") for _ in range(MANY)]

    def decode_many() -> None:
        for _ in range(max(1, tokens // 16)):
            feed_many(many, [[1]] * len(many))
        many[0].logits()

    prompt = [i % model.config.vocab_size for i in range(4 * tokens)]

    def prefill() -> None:
        one.feed_last(prompt)
        one.logits()

    return {
        "decode": tokens / median_seconds(decode),
        f"decode of {MANY}": max(1, tokens // 16) * len(many) / median_seconds(decode_many),
        "prefill": len(prompt) / median_seconds(prefill),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.cuda", description="Speed on a GPU beside the limit of its memory."
    )
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--tokens", type=int, default=512, help="tokens to generate (default: %(default)s)")
    parser.add_argument("--bandwidth", type=float, metavar="GB/S", help="of the GPU's memory (default: by its name)")
    options = parser.parse_args()
    try:
        model = Model.load(options.model)
        rates = measure(model, options.tokens)
    except MambaIntegerError as error:
        print(f"bench.cuda: error: {error}", file=sys.stderr)
        return 2
    gpu = gpu_name()
    bandwidth = options.bandwidth or next((b for name, b in BANDWIDTH.items() if gpu.endswith(name)), None)
    moved = bytes_per_token(model.config)
    print(f"{gpu}; {bandwidth or 'unknown'} GB/s; model {model.name}")
    print(f"{'':<14} {'tokens/s':>12} {'bytes/token':>12} {'limit/s':>14} {'of limit':>9}")
    limits = {name: 1e9 * bandwidth / moved[name] if bandwidth else None for name in rates}
    for name, rate in rates.items():
        limit = limits[name]
        print(
            f"{name:<14} {rate:>12.0f} {moved[name]:>12} "
            + (f"{limit:>14.0f} {rate / limit:>9.1%}" if limit else f"{'-':>14} {'-':>9}")
        )
    print(json.dumps({"bench": "cuda", "gpu": gpu, "bandwidth": bandwidth, "model_digest": model.digest, "tokens_per_second": rates,
                      "bytes_per_token": moved, "limit": limits}))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
