"""The byte-level BPE tokenizer: a thin, typed face of the Rust crate in `tokenizer/`; and how text files hold documents. It knows nothing of models."""

from __future__ import annotations

import codecs
import operator
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mamba_integer import _native
from mamba_integer.errors import ArgumentError, TokenizerError

END_OF_TEXT = "<|endoftext|>"

Names = Collection[str]
"""Names of special tokens, or "all"."""


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
    return _native.documents(text)


class Tokenizer:
    """Text to token ids and back, losslessly for any bytes.

    Get one by `Tokenizer.load(path)`, `Tokenizer.from_bytes(data)`, `Tokenizer.train(text, vocab_size)` or `model.tokenizer`; one of another maker by
    `Tokenizer.from_tiktoken(file)` or `Tokenizer.from_huggingface(file)`. Threads may share it.

    **Special tokens in text.** A special token's name in a text to be encoded is refused (TokenizerError), so that text from outside cannot end a
    document unnoticed, unless the caller says otherwise: `allow_special=True` makes all of them special tokens; `allowed_special`, a collection of names
    or "all", makes these special tokens; `disallowed_special`, a collection of names or "all", is what is refused of the rest, and names in neither are
    text like any other. So `disallowed_special=()` takes all names as text.
    """

    def __init__(self, native: _native.Tokenizer) -> None:
        self._native = native
        self._special: dict[str, int] = dict(native.special)
        self._refuse = bytes(len(self._special))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Reads a tokenizer file. Raises TokenizerError when it cannot be read or is not one."""
        return cls(_native.Tokenizer.load(path))

    @classmethod
    def from_bytes(cls, data: bytes) -> Tokenizer:
        """From the contents of a tokenizer file, such as the one inside a model file. Raises TokenizerError."""
        return cls(_native.Tokenizer.from_bytes(data))

    @classmethod
    def from_tiktoken(
        cls, file: str | os.PathLike[str] | bytes, special_tokens: Mapping[str, int] | None = None
    ) -> Tokenizer:
        """From a `.tiktoken` file (path or contents): lines of a token in base 64 and its rank. Raises TokenizerError.

        Such a file says nothing of special tokens: `special_tokens` gives names and ids. Nor does it say how text is split; it is taken to be split by
        the pattern of `cl100k_base`.
        """
        special = [(name, _id(token)) for name, token in (special_tokens or {}).items()]
        return cls(_native.Tokenizer.from_tiktoken(_contents(file), special))

    @classmethod
    def from_huggingface(cls, file: str | os.PathLike[str] | bytes) -> Tokenizer:
        """From a `tokenizer.json` (path or contents) of a byte-level BPE that splits by the pattern of GPT-4. Raises TokenizerError for any other.

        Source: the format of the Python package tokenizers, as its `Tokenizer.save` writes it.
        """
        return cls(_native.Tokenizer.from_huggingface(_contents(file)))

    @classmethod
    def train(cls, text: str | Iterable[str], vocab_size: int, *, threads: int = 0) -> Tokenizer:
        """Learns merges from a text with `<|endoftext|>` lines, or from documents; no token reaches across the end of a document.

        `vocab_size` counts the 256 bytes and `<|endoftext|>`; the result is smaller when the text does not yield as many merges. Documents may come from
        a generator: of those seen, only distinct words and their counts are kept. `threads`, 0 for all cores, changes nothing but the time. Raises
        TokenizerError when the size is out of range.
        """
        texts = documents(text) if isinstance(text, str) else text
        return cls(_native.Tokenizer.train(texts, vocab_size, _threads(threads)))

    @classmethod
    def train_files(cls, paths: Iterable[str | os.PathLike[str]], vocab_size: int, *, threads: int = 0) -> Tokenizer:
        """As `train`, from UTF-8 files with `<|endoftext|>` lines. They are read in parts and may be larger than memory."""
        return cls(_native.Tokenizer.train_files(list(paths), vocab_size, _threads(threads)))

    def encode(
        self,
        text: str | bytes,
        *,
        allow_special: bool = False,
        allowed_special: Names = (),
        disallowed_special: Names = "all",
    ) -> list[int]:
        """Token ids of a text. Raises TokenizerError for a special token's name in it that is neither allowed nor text."""
        return self._native.encode(text, self._policy(allow_special, allowed_special, disallowed_special))

    def encode_to_numpy(
        self,
        text: str | bytes,
        *,
        allow_special: bool = False,
        allowed_special: Names = (),
        disallowed_special: Names = "all",
    ) -> npt.NDArray[np.uint32]:
        """`encode` as an array, uint32 [tokens]; for long texts some ten times as fast as a list."""
        numbers = self._native.encode_numbers(text, self._policy(allow_special, allowed_special, disallowed_special))
        return np.asarray(numbers)

    def encode_with_offsets(
        self,
        text: str | bytes,
        *,
        allow_special: bool = False,
        allowed_special: Names = (),
        disallowed_special: Names = "all",
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """`encode`, and for each token where its characters begin and end in the text. A token that has a part of a character has all of it."""
        policy = self._policy(allow_special, allowed_special, disallowed_special)
        return self._native.encode_offsets(text, policy)

    def encode_batch(
        self,
        texts: Iterable[str | bytes],
        *,
        allow_special: bool = False,
        allowed_special: Names = (),
        disallowed_special: Names = "all",
        threads: int = 0,
    ) -> list[list[int]]:
        """`encode` of each text, by `threads` threads (0: one for each core) where there is enough to do."""
        policy = self._policy(allow_special, allowed_special, disallowed_special)
        return self._native.encode_batch(_listed(texts), policy, _threads(threads))

    def encode_batch_to_numpy(
        self,
        texts: Iterable[str | bytes],
        *,
        allow_special: bool = False,
        allowed_special: Names = (),
        disallowed_special: Names = "all",
        threads: int = 0,
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """`encode_batch` as the tokens of all texts, uint32 [tokens], and where each text's begin and end in them, int64 [texts + 1]."""
        policy = self._policy(allow_special, allowed_special, disallowed_special)
        tokens, ends = self._native.encode_batch_numbers(_listed(texts), policy, _threads(threads))
        return np.asarray(tokens), np.asarray(ends)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; bytes that are not valid UTF-8 (a cut character) become U+FFFD. Raises TokenizerError for an unknown id."""
        return self.decode_bytes(tokens).decode("utf-8", errors="replace")

    def decode_batch(self, batch: Iterable[Sequence[int]]) -> list[str]:
        """`decode` of each."""
        return [self.decode(tokens) for tokens in batch]

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        """The exact bytes of tokens."""
        return self._native.decode_bytes(_ids(tokens))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the tokenizer file; it appears complete or not at all. Raises TokenizerError, also if the tokens are numbered in another maker's way."""
        self._native.save(path)

    def to_bytes(self) -> bytes:
        """The contents of the tokenizer file."""
        return self._native.to_bytes()

    def to_tiktoken(self) -> bytes:
        """The contents of a `.tiktoken` file. Raises TokenizerError if tiktoken would not give the same ids."""
        return self._native.to_tiktoken()

    def to_huggingface(self) -> bytes:
        """The contents of a `tokenizer.json`, which the packages tokenizers and transformers (`PreTrainedTokenizerFast(tokenizer_file=…)`) read.

        Raises TokenizerError if a special token is named as another token is in such a file.
        """
        return self._native.to_huggingface()

    @property
    def digest(self) -> str:
        """SHA-256 of the tokenizer file, 64 hexadecimal digits."""
        return _native.sha256(self.to_bytes()).hex()

    @property
    def vocab_size(self) -> int:
        """Number of token ids, the special tokens included: one more than the largest."""
        return self._native.vocab_size

    @property
    def special_tokens(self) -> dict[str, int]:
        """Names and ids of the special tokens."""
        return dict(self._special)

    @property
    def eot(self) -> int:
        """Id of `<|endoftext|>`, which begins every document and ends generation. Raises TokenizerError if another maker's tokenizer has none."""
        if END_OF_TEXT not in self._special:
            raise TokenizerError(f"this tokenizer has no {END_OF_TEXT}")
        return self._native.eot

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size})"

    def _policy(self, allow_special: bool, allowed: Names, disallowed: Names) -> bytes:
        """For each special token: 0 to refuse it, 1 to make it, 2 to take its name as text."""
        if not allow_special and not allowed and disallowed == "all":
            return self._refuse
        for names in (allowed, disallowed):
            if isinstance(names, str) and names != "all":
                raise TokenizerError(f'special tokens are given as a collection of names or "all", not {names!r}')
            for name in () if isinstance(names, str) else names:
                if name not in self._special:
                    raise TokenizerError(f"{name!r} is no special token of this tokenizer")

        def rule(name: str) -> int:
            if allow_special or allowed == "all" or name in allowed:
                return 1
            return 0 if disallowed == "all" or name in disallowed else 2

        return bytes(map(rule, self._special))


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


def _contents(file: str | os.PathLike[str] | bytes) -> bytes:
    if isinstance(file, bytes):
        return file
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise TokenizerError(f"{os.fspath(file)}: {error.strerror or error}") from None


def _listed(texts: Iterable[str | bytes]) -> list[str | bytes]:
    if isinstance(texts, (str, bytes)):
        raise TokenizerError("a batch is a list of texts, not one text")
    return texts if isinstance(texts, list) else list(texts)


def _threads(threads: int) -> int:
    return threads if threads > 0 else os.cpu_count() or 1


def _id(token: int) -> int:
    token = operator.index(token)
    if not 0 <= token < 1 << 32:
        raise TokenizerError(f"token {token} is not in the vocabulary")
    return token


def _ids(tokens: Sequence[int]) -> list[int]:
    return [_id(token) for token in tokens]
