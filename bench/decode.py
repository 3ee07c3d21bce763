"""Decode: tokens one at a time, each after the logits before it. The shipped model, or models of a shape beside llama.cpp's."""

from __future__ import annotations

import argparse
from typing import Any

from bench.common import cpu_rate, result
from bench.shapes import compare
from mamba_integer import _native
from mamba_integer.engine import Model
from mamba_integer.sampling import Sampling

TOKENS = 64


def run(options: argparse.Namespace) -> dict[str, Any]:
    if options.shape:
        return compare("decode", options, feed_at_once=1, tokens=TOKENS)
    model = Model.load(options.model)
    session = model.session(threads=options.threads)

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
        threads=options.threads,
        isa=_native.isa(),
    )
