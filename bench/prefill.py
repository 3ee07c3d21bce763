"""Prefill: a prompt of real text fed at once, logits of its last token only, one thread."""

from __future__ import annotations

import argparse
from typing import Any

from bench.common import cpu_rate, result
from mamba_integer.cli import CHECKOUT
from mamba_integer.engine import Model
from mamba_integer.tokenizer import documents, read_text

LENGTHS = (32, 128, 512)


def run(options: argparse.Namespace) -> dict[str, Any]:
    model = Model.load(options.model)
    text = "\n".join(documents(read_text(CHECKOUT / "data/tinystories_valid.txt"))[:20])
    tokens = model.encode(text)[: max(LENGTHS)]
    session = model.session()

    def work(length: int) -> int:
        session.reset()
        session.feed_last(tokens[:length])
        return length

    rates = {f"pp{n}": round(cpu_rate(lambda n=n: work(n), options.seconds / len(LENGTHS)), 1) for n in LENGTHS}
    return result("prefill", "tokens per CPU-second", {"mamba-integer": rates}, model_digest=model.digest, threads=1)
