"""Tokenizer: training 1,024 tokens, encoding and decoding the validation text, one thread."""

from __future__ import annotations

import argparse
from typing import Any

from bench.common import cpu_rate, result
from mamba_integer.cli import CHECKOUT
from mamba_integer.engine import Model
from mamba_integer.tokenizer import Tokenizer, documents, read_text

VOCABULARY = 1024


def run(options: argparse.Namespace) -> dict[str, Any]:
    sample = documents(read_text(CHECKOUT / "data/tinystories_sample.txt"))
    texts = documents(read_text(CHECKOUT / "data/tinystories_valid.txt"))
    size = sum(len(t.encode()) for t in texts)
    tokenizer = Model.load(options.model).tokenizer
    encoded = tokenizer.encode_batch(texts)

    def train() -> int:
        Tokenizer.train(sample, VOCABULARY)
        return sum(len(t.encode()) for t in sample)

    def encode() -> int:
        tokenizer.encode_batch(texts)
        return size

    def decode() -> int:
        for ids in encoded:
            tokenizer.decode_bytes(ids)
        return size

    rates = {f.__name__: round(cpu_rate(f, options.seconds / 3) / 1e6, 3) for f in (train, encode, decode)}
    return result(
        "tokenizer",
        "MB per CPU-second",
        {"mamba-integer": rates},
        vocab_size=tokenizer.vocab_size,
        train_vocab_size=VOCABULARY,
    )
