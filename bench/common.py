"""What the benches share: a clock, the machine's description and the shape of a result."""

from __future__ import annotations

import ctypes
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
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


def by_turns(
    works: Mapping[str, Callable[[], int]], seconds: float, clock: Callable[[], float]
) -> tuple[dict[str, float], dict[str, float]]:
    """Units a second by `clock` of several works, done in turn (A B C A B C …) for about `seconds` each, so that what slows the machine slows all.

    Gives each one's median rate, and the median over the rounds of the first one's rate by each other's in the same round.
    """
    names = list(works)
    for work in works.values():
        work()
    rounds: list[list[float]] = []
    end = time.monotonic() + seconds * len(names)
    while len(rounds) < 5 or time.monotonic() < end:
        rates = []
        for work in works.values():
            began = clock()
            done = work()
            rates.append(done / (clock() - began))
        rounds.append(rates)
    medians = {name: statistics.median(r[i] for r in rounds) for i, name in enumerate(names)}
    ratios = {name: statistics.median(r[0] / r[i] for r in rounds) for i, name in enumerate(names) if i > 0}
    return medians, ratios


def read_bandwidth(size: int = 1 << 27) -> Callable[[], int]:
    """Work that reads `size` bytes of memory once, as fast as the C library's memchr does: what decoding is held against."""
    memchr = ctypes.CDLL(None).memchr
    memchr.argtypes, memchr.restype = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], ctypes.c_void_p
    buffer = (ctypes.c_char * size)()
    ctypes.memset(buffer, 1, size)

    def work() -> int:
        assert memchr(buffer, 0, size) is None
        return size

    return work


def result(name: str, unit: str, peers: dict[str, dict[str, float]], **measured: Any) -> dict[str, Any]:
    """One object: what was measured, per peer, and every peer's ratio to ours (how many times as fast as the peer we are)."""
    ours = peers["mamba-integer"]
    ratios = {
        p: {k: round(ours[k] / v, 3) for k, v in values.items() if k in ours}
        for p, values in peers.items()
        if p != "mamba-integer"
    }
    return {"bench": name, "unit": unit, "peers": peers, "ratios": ratios, **measured, "machine": machine()}
