"""How well a model predicts a text: nats per token, perplexity and bits per byte from the engine's integer logits.

Conventions: the state starts empty at each document, the start token `<|endoftext|>` is fed first, and every token of the document and the closing
`<|endoftext|>` are scored. Bytes are the UTF-8 bytes of the documents without separators. Logarithms are taken in double precision, outside the engine.
"""

from __future__ import annotations

import math
import os
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any, TextIO

import numpy as np

from mamba_integer.engine import Model, log_softmax
from mamba_integer.errors import ArgumentError
from mamba_integer.tokenizer import documents, read_text

_CHUNK = 256  # tokens fed at a time: bounds the memory that logits take


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`. tokens: how many were scored; bytes: of the documents' text."""

    nats_per_token: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    bytes: int
    documents: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def document_nats(model: Model, tokens: list[int]) -> float:
    """Sum over a document's tokens and its closing `<|endoftext|>` of −ln p, the state starting empty."""
    sequence = [model.tokenizer.eot, *tokens, model.tokenizer.eot]
    session = model.session()
    total = 0.0
    for at in range(0, len(sequence) - 1, _CHUNK):
        inputs = sequence[at : at + _CHUNK][: len(sequence) - 1 - at]
        targets = sequence[at + 1 : at + 1 + len(inputs)]
        logprobs = log_softmax(session.feed(inputs), model.config)
        total -= float(logprobs[np.arange(len(targets)), targets].sum())
    return total


def evaluate(
    model: Model,
    path: str | os.PathLike[str],
    *,
    max_documents: int | None = None,
    progress: TextIO | None = sys.stderr,
) -> Evaluation:
    """Scores a UTF-8 text file of documents separated by lines `<|endoftext|>`; only the first `max_documents` of them if given.

    Raises ArgumentError if the file cannot be read, is not UTF-8 or holds no document.
    """
    texts = documents(read_text(path))[:max_documents]
    if not texts:
        raise ArgumentError(f"{os.fspath(path)}: holds no document")
    encoded = model.tokenizer.encode_batch(texts)
    tokens = sum(len(ids) + 1 for ids in encoded)
    nats: list[float] = []
    bar = ProgressBar("eval", tokens, progress)
    for ids in encoded:
        nats.append(document_nats(model, ids))
        bar.advance(len(ids) + 1)
    bar.close()
    total = math.fsum(nats)
    size = sum(len(text.encode()) for text in texts)
    return Evaluation(
        nats_per_token=total / tokens,
        perplexity=math.exp(total / tokens),
        bits_per_byte=total / math.log(2) / size,
        tokens=tokens,
        bytes=size,
        documents=len(texts),
    )


class ProgressBar:
    """One line that is written over itself, on a terminal only; elsewhere nothing is printed."""

    def __init__(self, title: str, total: int, stream: TextIO | None) -> None:
        self._title, self._total, self._done, self._shown = title, total, 0, 0.0
        self._stream = stream if stream is not None and stream.isatty() else None
        self._began = time.monotonic()

    def advance(self, amount: int) -> None:
        self._done += amount
        now = time.monotonic()
        if self._stream is not None and now - self._shown > 0.1:
            self._shown = now
            share = self._done / self._total
            rate = self._done / max(now - self._began, 1e-9)
            filled = "#" * round(30 * share)
            left = (self._total - self._done) / rate
            self._stream.write(
                f"\r{self._title} [{filled:<30}] {share:4.0%}  {rate:,.0f} tokens/s  {left:.0f} s left \033[K"
            )
            self._stream.flush()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.write("\r\033[K")
            self._stream.flush()
