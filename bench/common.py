"""What the benches share: a clock, the machine's description and the shape of a result."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    return {"cpu": cpu, "cores": os.cpu_count(), "system": platform.platform(terse=True)}


def cpu_rate(work: Callable[[], int], seconds: float) -> float:
    """Units of work per CPU-second: `work` does some and says how much. Median of at least three runs over about `seconds`."""
    work()
    rates = []
    end = time.monotonic() + seconds
    while len(rates) < 3 or time.monotonic() < end:
        began = time.process_time()
        done = work()
        rates.append(done / (time.process_time() - began))
    return statistics.median(rates)


def result(name: str, unit: str, peers: dict[str, dict[str, float]], **measured: Any) -> dict[str, Any]:
    """One object: what was measured, per peer, and every peer's ratio to ours (how many times as fast as the peer we are)."""
    ours = peers["mamba-integer"]
    ratios = {
        p: {k: round(ours[k] / v, 3) for k, v in values.items() if k in ours}
        for p, values in peers.items()
        if p != "mamba-integer"
    }
    return {"bench": name, "unit": unit, **measured, "peers": peers, "ratios": ratios, "machine": machine()}
