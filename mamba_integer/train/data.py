"""Training text as token streams.

A text file holds documents separated by a line `<|endoftext|>`. Its stream is `<|endoftext|>` document `<|endoftext|>` document … `<|endoftext|>`: the
token that ends a document starts the next, and the model's state is reset where it stands as an input. Streams are cached beside each other as
uint16 or uint32 arrays under a name made of the digests of text and tokenizer, so a changed file is never mistaken for its old stream.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mamba_integer.errors import ArgumentError
from mamba_integer.tokenizer import Tokenizer, documents, read_text

Tokens = npt.NDArray[np.unsignedinteger]

# Token ids int64 [B, T + 1], of which [:, :-1] are inputs and [:, 1:] targets, and the targets' weights float32 [B, T].
Batch = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Document:
    """Token ids without the end-of-text tokens around them; the first `prompt` of them are given, not asked for.

    wanted: which of the others (indices into `tokens`) a request asked for by name.
    """

    tokens: list[int]
    prompt: int = 0
    wanted: tuple[int, ...] = ()


def token_stream(path: Path, tokenizer: Tokenizer, cache: Path) -> Tokens:
    """The stream of a text file, int [n], from the cache directory if it is there, else encoded and written to it (atomically)."""
    text = read_text(path)
    key = hashlib.sha256(
        hashlib.sha256(text.encode()).digest() + hashlib.sha256(tokenizer.to_bytes()).digest()
    ).hexdigest()
    target = cache / f"{path.stem}-{key[:16]}.npy"
    if target.exists():
        stream: Tokens = np.load(target, mmap_mode="r")
        return stream
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    encoded = tokenizer.encode_batch(documents(text))
    pieces = [np.array([tokenizer.eot], dtype), *(np.array([*ids, tokenizer.eot], dtype) for ids in encoded)]
    cache.mkdir(parents=True, exist_ok=True)
    scratch = target.with_suffix(f".{os.getpid()}.tmp")
    with scratch.open("wb") as f:
        np.save(f, np.concatenate(pieces))
        f.flush()
        os.fsync(f.fileno())
    os.replace(scratch, target)
    return token_stream(path, tokenizer, cache)


class StreamBatches:
    """Batches of a stream in an order that is a function of (seed, step) alone, so a resumed run sees what an uninterrupted one would have.

    Each epoch cuts the stream at another offset into rows of `length` + 1 tokens (the last of a row is only a target) and shuffles them.
    """

    def __init__(self, stream: Tokens, batch: int, length: int, seed: int) -> None:
        self.stream, self.batch, self.length, self.seed = stream, batch, length, seed
        self.rows = (len(stream) - 1) // length - 1  # one row is given to the offset
        if self.rows < 1:
            raise ArgumentError(
                f"the text has {len(stream)} tokens, too few for rows of {length}: give more text or a configuration with a shorter context_length"
            )
        self._epoch = -1
        self._starts = np.zeros(0, np.int64)

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step; every target weighs 1."""
        tokens = np.stack([self._row(step * self.batch + i) for i in range(self.batch)])
        return tokens, np.ones((self.batch, self.length), np.float32)

    def _row(self, index: int) -> npt.NDArray[np.int64]:
        epoch, i = divmod(index, self.rows)
        if epoch != self._epoch:
            rng = np.random.default_rng((self.seed, epoch))
            self._starts = int(rng.integers(self.length)) + rng.permutation(self.rows) * self.length
            self._epoch = epoch
        start = int(self._starts[i])
        return self.stream[start : start + self.length + 1].astype(np.int64)


def padded_documents(items: list[Document], eot: int, budget: int) -> Iterator[Batch]:
    """Whole documents in batches of at most about `budget` positions, longest first.

    Row: `eot`, the document, `eot`; a prompt at its beginning and what comes after it weigh 0.
    """
    order = sorted(range(len(items)), key=lambda i: len(items[i].tokens))
    while order:
        group = [order.pop()]
        width = len(items[group[0]].tokens) + 2
        while order and (len(group) + 1) * width <= budget:
            group.append(order.pop())
        tokens = np.full((len(group), width), eot, np.int64)
        weights = np.zeros((len(group), width - 1), np.float32)
        for row, i in enumerate(group):
            ids = items[i].tokens
            tokens[row, 1 : len(ids) + 1] = ids
            weights[row, items[i].prompt : len(ids) + 1] = 1.0
        yield tokens, weights
