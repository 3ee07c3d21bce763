"""Prefill: a prompt fed at once, logits of its last token only. Real text to the shipped model, or models of a shape beside llama.cpp's."""

from __future__ import annotations

import argparse
from typing import Any

from bench.common import cpu_rate, result
from bench.shapes import compare
from mamba_integer import _native
from mamba_integer.cli import CHECKOUT
from mamba_integer.engine import Model
from mamba_integer.tokenizer import documents, read_text

LENGTHS = (32, 128, 512)


def run(options: argparse.Namespace) -> dict[str, Any]:
    if options.shape:
        return compare("prefill", options, feed_at_once=128, tokens=128)
    model = Model.load(options.model)
    text = "\n".join(documents(read_text(CHECKOUT / "data/tinystories_valid.txt"))[:20])
    tokens = model.encode(text)[: max(LENGTHS)]
    session = model.session(threads=options.threads)

    def work(length: int) -> int:
        session.reset()
        session.feed_last(tokens[:length])
        return length

    rates = {f"pp{n}": round(cpu_rate(lambda n=n: work(n), options.seconds / len(LENGTHS)), 1) for n in LENGTHS}
    return result(
        "prefill",
        "tokens per CPU-second",
        {"mamba-integer": rates},
        model_digest=model.digest,
        threads=options.threads,
        isa=_native.isa(),
    )
