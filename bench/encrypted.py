"""Client-aided encrypted inference (docs/ENCRYPTED.md): seconds and bytes of a token and layer, server and client apart, no network between.

`python bench/encrypted.py [--d-model 256 --d-inner 512]`: random int8 matrices of the shape, one thread each unless RAYON_NUM_THREADS says otherwise. Prints a
table, then one JSON line. Every product is compared with that on integers.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("RAYON_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from mamba_integer import arithmetic as ar
from mamba_integer.encrypted.native import BfvClient, BfvMatrix


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("d-model", 256), ("d-inner", 512), ("d-state", 16), ("heads", 16), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N")
    o = parser.parse_args()
    r = np.random.default_rng(1)
    client = BfvClient.generate()
    rows = 2 * o.d_inner + 2 * o.d_state + o.heads
    shapes = {"in_proj": (rows, o.d_model), "out_proj": (o.d_model, o.d_inner)}
    matrices = {name: r.integers(-127, 128, shape).astype(np.int8) for name, shape in shapes.items()}
    served = {name: BfvMatrix(W) for name, W in matrices.items()}
    cpu = {"encrypt": 0.0, "server": 0.0, "decrypt": 0.0}
    sizes = {"sent": 0, "received": 0}
    for _ in range(o.rounds):
        for name, W in matrices.items():
            x = r.integers(-127, 128, W.shape[1])
            marks = [time.process_time()]
            query = client.encrypt(x)
            marks.append(time.process_time())
            answer = served[name].apply(query)
            marks.append(time.process_time())
            found = client.decrypt(answer, *W.shape)
            marks.append(time.process_time())
            if (found != ar.matmul(x, W)).any():
                print(f"{name}: a product differs", file=sys.stderr)
                return 1
            for stage, began, ended in zip(cpu, marks, marks[1:], strict=False):
                cpu[stage] += (ended - began) / o.rounds
            sizes["sent"] += len(query) // o.rounds
            sizes["received"] += len(answer) // o.rounds
    print(f"d_model {o.d_model}, d_inner {o.d_inner}: a token and layer, CPU-seconds and bytes; all products exact")
    for name, value in cpu.items():
        print(f"{name:<9} {value:8.4f} s")
    for name, size in sizes.items():
        print(f"{name:<9} {size:10,} bytes")
    print(
        json.dumps({"d_model": o.d_model, "d_inner": o.d_inner, "cpu_seconds": cpu, "bytes": sizes, "round_trips": 2})
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
