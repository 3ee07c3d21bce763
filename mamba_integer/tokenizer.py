"""The byte-level BPE tokenizer: a thin, typed face of the Rust crate in `tokenizer/`; and how text files hold documents. It knows nothing of models."""

from __future__ import annotations

import codecs
import operator
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from mamba_integer import _native
from mamba_integer.errors import ArgumentError, TokenizerError

END_OF_TEXT = "<|endoftext|>"


def read_text(path: str | os.PathLike[str]) -> str:
    """UTF-8 text of a file, newlines as they are. Raises ArgumentError if it cannot be read, is not UTF-8 or holds no text."""
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except OSError as error:
        raise ArgumentError(f"{os.fspath(path)}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{os.fspath(path)}: not UTF-8 text (byte {error.start})") from None
    if not text.strip():
        raise ArgumentError(f"{os.fspath(path)}: holds no text")
    return text


def documents(text: str) -> list[str]:
    """The documents of a text: what stands between lines `<|endoftext|>`, without the newlines around it; empty ones are left out."""
    return _native.documents(_valid(text))


class Tokenizer:
    """Text to token ids and back, losslessly for any bytes.

    Get one by `Tokenizer.load(path)`, `Tokenizer.from_bytes(data)`, `Tokenizer.train(text, vocab_size)` or `model.tokenizer`.
    """

    def __init__(self, native: _native.Tokenizer) -> None:
        self._native = native

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Reads a tokenizer file. Raises TokenizerError when it cannot be read or is not one."""
        return cls(_native.Tokenizer.load(path))

    @classmethod
    def from_bytes(cls, data: bytes) -> Tokenizer:
        """From the contents of a tokenizer file, such as the one inside a model file. Raises TokenizerError."""
        return cls(_native.Tokenizer.from_bytes(data))

    @classmethod
    def train(cls, text: str | Iterable[str], vocab_size: int) -> Tokenizer:
        """Learns merges from a text with `<|endoftext|>` lines, or from documents; no token reaches across the end of a document.

        `vocab_size` counts the 256 bytes and `<|endoftext|>`; the result is smaller when the text does not yield as many merges. Raises TokenizerError
        when it is out of range.
        """
        texts = documents(text) if isinstance(text, str) else text
        return cls(_native.Tokenizer.train([_valid(t) for t in texts], vocab_size))

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Token ids of a text. `<|endoftext|>` in the text raises TokenizerError unless `allow_special`."""
        return self._native.encode(_valid(text), allow_special)

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """`encode` of each text."""
        return [self.encode(text) for text in texts]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; bytes that are not valid UTF-8 (a cut character) become U+FFFD. Raises TokenizerError for an unknown id."""
        return self.decode_bytes(tokens).decode("utf-8", errors="replace")

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        """The exact bytes of tokens."""
        return self._native.decode_bytes(_ids(tokens))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the tokenizer file; it appears complete or not at all. Raises TokenizerError."""
        self._native.save(path)

    def to_bytes(self) -> bytes:
        """The contents of the tokenizer file."""
        return self._native.to_bytes()

    @property
    def digest(self) -> str:
        """SHA-256 of the tokenizer file, 64 hexadecimal digits."""
        return _native.sha256(self.to_bytes()).hex()

    @property
    def vocab_size(self) -> int:
        """Number of token ids, the special token included."""
        return self._native.vocab_size

    @property
    def eot(self) -> int:
        """Id of `<|endoftext|>`, which begins every document and ends generation."""
        return self._native.eot

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size})"


class StreamDecoder:
    """Turns tokens into text piece by piece and never splits a character: bytes of an unfinished one wait for the next token."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._tokenizer.decode_bytes([token]))

    def finish(self) -> str:
        """What is left: U+FFFD if the text ended within a character."""
        return self._decoder.decode(b"", final=True)


def _valid(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"the text is not valid Unicode (character {error.start} is half of a surrogate pair)"
        ) from None
    return text


def _ids(tokens: Sequence[int]) -> list[int]:
    ids = [operator.index(t) for t in tokens]
    for t in ids:
        if not 0 <= t < 1 << 32:
            raise TokenizerError(f"token {t} is not in the vocabulary")
    return ids
