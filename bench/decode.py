"""Decode: tokens one at a time, each chosen greedily from the logits before it, one thread."""

from __future__ import annotations

import argparse
from typing import Any

from bench.common import cpu_rate, result
from mamba_integer.engine import Model
from mamba_integer.sampling import Sampling

TOKENS = 64


def run(options: argparse.Namespace) -> dict[str, Any]:
    model = Model.load(options.model)
    session = model.session()

    def work() -> int:
        session.reset()
        token = model.tokenizer.eot
        for step in range(TOKENS):
            session.feed_last([token])
            token = session.sample(Sampling(), step)
        return TOKENS

    rate = round(cpu_rate(work, options.seconds), 1)
    return result(
        "decode",
        "tokens per CPU-second",
        {"mamba-integer": {"decode": rate}},
        model_digest=model.digest,
        tokens=TOKENS,
        threads=1,
    )
