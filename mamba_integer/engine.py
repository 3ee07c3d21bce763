"""Models as users meet them: load one, generate text, get logits. The C++ engine computes; this module moves text, tokens and logits to and from it.

All that is computed here outside the engine are log-probabilities, in double precision from the engine's integer logits.
"""

from __future__ import annotations

import hashlib
import math
import operator
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mamba_integer import _native
from mamba_integer.errors import ArgumentError, DeviceError, TokenizerError
from mamba_integer.sampling import Sampling
from mamba_integer.tokenizer import END_OF_TEXT, StreamDecoder, Tokenizer

DEFAULT_MODEL = "tinystories"
MODEL_SUFFIX = ".gguf"

Logits = npt.NDArray[np.int32]
PART = 256  # tokens fed at a time: bounds what all logits of a long prompt take in memory
TraceCallback = Callable[[int, str, npt.NDArray[np.int32]], object]


def model_folders() -> list[Path]:
    """Where shipped models are looked for: the folders in MAMBA_INTEGER_MODELS, then the one that comes with the package."""
    named = [Path(p) for p in os.environ.get("MAMBA_INTEGER_MODELS", "").split(os.pathsep) if p]
    return [*named, Path(__file__).parent / "models"]


def shipped_models() -> dict[str, Path]:
    """Names of the shipped models and their files."""
    found: dict[str, Path] = {}
    for folder in model_folders():
        for path in sorted(folder.glob(f"*{MODEL_SUFFIX}")):
            found.setdefault(path.name.removesuffix(MODEL_SUFFIX), path)
    return found


def find_model(name_or_path: str | os.PathLike[str]) -> Path:
    """The file of a shipped model's name, or the path itself. Raises ArgumentError when there is no such model."""
    text = os.fspath(name_or_path)
    if text.endswith(MODEL_SUFFIX) or os.sep in text or (os.altsep and os.altsep in text):
        if not Path(text).is_file():
            raise ArgumentError(f"{text}: no such model file")
        return Path(text)
    shipped = shipped_models()
    if text in shipped:
        return shipped[text]
    if Path(text).is_file():
        return Path(text)
    names = ", ".join(shipped) or "none"
    raise ArgumentError(f"unknown model {text!r} (shipped models: {names}; a path names a file)")


@dataclass(frozen=True)
class Settings:
    """A model file's settings, each under its name there (spec/FORMAT.md). A logit stands for logit · embed_mul / 2^logit_shift."""

    d_model: int
    n_layers: int
    n_heads: int
    head_dim: int
    d_state: int
    vocab_size: int
    context_length: int
    scan: str
    activation: str
    gate: str
    norm_mantissa: int
    rotation: bool
    weights: str
    embed_mul: int
    logit_shift: int


@dataclass(frozen=True)
class Piece:
    """One generated token. `text` is what it adds to the text: "" while a character or a possible stop string is unfinished.

    `logprob` is the natural logarithm of the token's probability at temperature 1, or None unless asked for.
    """

    text: str
    token: int
    logprob: float | None = None


class Model:
    """A loaded model: immutable, may be shared by threads. `Model.load("tinystories")` or `Model.load("path/to/file.gguf")`."""

    def __init__(self, native: _native.Model, path: Path | None = None) -> None:
        self._native = native
        self._config = Settings(**native.config())
        self._tokenizer: Tokenizer | None = None
        self.path = path

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str] = DEFAULT_MODEL) -> Model:
        """Loads a shipped model by name or any model file by path.

        Raises ArgumentError for an unknown name, ModelFormatError for a file that breaks spec/FORMAT.md in any way.
        """
        path = find_model(name_or_path)
        return cls(_native.Model.load(path), path)

    @classmethod
    def from_bytes(cls, data: bytes) -> Model:
        """From the contents of a model file. Raises ModelFormatError."""
        return cls(_native.Model.from_bytes(data))

    @property
    def name(self) -> str:
        return self._native.name

    @property
    def digest(self) -> str:
        """SHA-256 over tensors and metadata (spec/FORMAT.md), 64 hexadecimal digits."""
        return self._native.digest

    @property
    def config(self) -> Settings:
        return self._config

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer inside the model file. Raises TokenizerError when it is broken or of another vocabulary size."""
        if self._tokenizer is None:
            tokenizer = Tokenizer.from_bytes(self._native.tokenizer_bytes())
            if tokenizer.vocab_size != self.config.vocab_size:
                raise TokenizerError(
                    f"the model's tokenizer has {tokenizer.vocab_size} tokens, the model {self.config.vocab_size}"
                )
            self._tokenizer = tokenizer
        return self._tokenizer

    def session(self, *, threads: int = 1, state: bytes | None = None, device: str = "cpu") -> Session:
        """A new sequence: at position 0, or where a `state` of this model was saved. `threads` compute it, or a GPU (device "cuda"); the bits are the same.

        Raises ArgumentError for threads outside 1 … 256 or another device, ModelFormatError for a state that is damaged or of another model,
        DeviceError where there is no GPU or no library for it (docs/CUDA.md).
        """
        session = Session(self._native.session(device), self.config.vocab_size)
        if threads != 1:
            session.set_threads(threads)
        if state is not None:
            session.restore(state)
        return session

    def logits(self, tokens: Sequence[int]) -> Logits:
        """Logits after each of T tokens fed from an empty state: int32 [T, V], to be read as logit · m_e / 2^logit_shift.

        A sequence begins with `tokenizer.eot`; `model.encode(text)` puts it there. Raises ArgumentError for a token outside the vocabulary.
        """
        return self.session().feed(tokens)

    def encode(self, text: str) -> list[int]:
        """The tokens of a document or prompt as the model wants them: the start token, then the text's."""
        return [self.tokenizer.eot, *self.tokenizer.encode(text)]

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = 200,
        temperature: str | float | Decimal = 0.8,
        top_k: int = 40,
        top_p: str | float | Decimal = 1,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        logprobs: bool = False,
        threads: int = 1,
        device: str = "cpu",
    ) -> Generation:
        """Continues a prompt; iterate over the result for its pieces as they come.

        prompt: text, or token ids that begin with the start token. temperature 0 is greedy; top_k 0 and top_p 1 are off; the same seed and
        parameters give the same tokens on every machine and device ("cpu", or "cuda" for a GPU). The end token, a stop string (which is left
        out of the text) or `max_tokens` ends it.
        Raises ArgumentError for an empty prompt or a parameter outside its range, TokenizerError for text that cannot be encoded.
        """
        sampling = Sampling.parse(temperature, top_k, top_p, seed)
        if isinstance(prompt, str):
            if not prompt:
                raise ArgumentError("the prompt is empty")
            prompt = self.encode(prompt)
        return Generation(self, prompt, max_tokens, sampling, stop, logprobs, threads, device)

    def __repr__(self) -> str:
        return f"Model({self.name!r}, digest={self.digest[:16]}…)"


class Session:
    """One sequence: its recurrent state and position. Belongs to one thread at a time."""

    def __init__(self, native: _native.Session, vocab_size: int) -> None:
        self._native = native
        self._vocab_size = vocab_size

    @property
    def position(self) -> int:
        """How many tokens were fed."""
        return self._native.position

    def reset(self) -> None:
        """Back to the empty state at position 0."""
        self._native.reset()

    def set_threads(self, threads: int) -> None:
        """How many threads compute what is fed, 1 … 256; the bits do not depend on it. Between feeds they sleep."""
        if not 1 <= threads <= 256:
            raise ArgumentError(f"threads must be from 1 to 256, not {threads}")
        self._native.set_threads(threads)

    def save(self) -> bytes:
        """The state as bytes (spec/FORMAT.md, "State"), the same length at every position: `model.session(state=…)` continues with the same bits."""
        return self._native.save()

    def restore(self, state: bytes) -> None:
        """To a state that was saved. Raises ModelFormatError if it is damaged or of another model, and changes nothing then."""
        self._native.restore(state)

    def feed(self, tokens: Sequence[int]) -> Logits:
        """Feeds T tokens; the logits after each, int32 [T, V]. Raises ArgumentError for a token outside the vocabulary, and feeds nothing then."""
        data = self._native.feed(_token_ids(tokens, self._vocab_size), all_logits=True)
        return self._rows(data or b"")

    def feed_parts(self, tokens: Sequence[int]) -> Iterator[Logits]:
        """As `feed`, at most PART tokens at a time, so that the memory needed does not grow with T: int32 [≤ PART, V], one after the other."""
        ids = _token_ids(tokens, self._vocab_size)
        for begin in range(0, len(ids), PART):
            yield self._rows(self._native.feed(ids[begin : begin + PART], all_logits=True) or b"")

    def feed_last(self, tokens: Sequence[int]) -> None:
        """As `feed`, computing the last token's logits only (see `logits`)."""
        self._native.feed(_token_ids(tokens, self._vocab_size))

    def feed_traced(self, tokens: Sequence[int], trace: TraceCallback) -> Logits:
        """As `feed`, calling `trace(position, site, values)` for every intermediate that engine/include/mamba_integer.h names."""
        ids = _token_ids(tokens, self._vocab_size)
        return self._rows(
            self._native.feed_traced(ids, lambda pos, site, raw: trace(pos, site, np.frombuffer(raw, "<i4")))
        )

    def logits(self) -> Logits:
        """Logits after the last token fed, int32 [V]. Raises ArgumentError before the first."""
        data = self._native.logits()
        if data is None:
            if self.position > 0:
                raise DeviceError("the device failed: its logits cannot be read")
            raise ArgumentError("no token was fed yet")
        return np.frombuffer(data, "<i4")

    def sample(self, sampling: Sampling, step: int) -> int:
        """Chooses a token from the last logits (ARITHMETIC section 11); `step` is 0 for the first generated token."""
        return self._native.sample(sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed, step)

    def _rows(self, data: bytes) -> Logits:
        return np.frombuffer(data, "<i4").reshape(-1, self._vocab_size)


def feed_many(sessions: Sequence[Session], tokens: Sequence[Sequence[int]]) -> None:
    """Feeds each of n sessions of one model its own tokens, all at once, so that the weights are read once for all; see `Session.logits` for each.

    The bits are those of one `feed_last` after another. The first session's threads compute. Raises ArgumentError for sessions of different models,
    one that is there twice, or a token outside the vocabulary, and feeds nothing then.
    """
    if len(sessions) != len(tokens):
        raise ArgumentError(f"{len(sessions)} sessions, but tokens for {len(tokens)}")
    ids = [_token_ids(t, s._vocab_size) for s, t in zip(sessions, tokens, strict=True)]
    _native.feed_many([s._native for s in sessions], ids)


class Generation(Iterator[Piece]):
    """A generation under way: an iterator of pieces that also keeps what has been generated so far.

    prompt_tokens: what was fed first. tokens: the tokens chosen, the end token included. text: their text, a stop string and the end token left out.
    stop_reason: None while it runs, then "max_tokens", "end" (the end token) or "stop" (a stop string).
    seconds: time spent on prompt and tokens. model, sampling (integers), max_tokens, stop: what was asked for.
    """

    def __init__(
        self,
        model: Model,
        prompt: Sequence[int],
        max_tokens: int,
        sampling: Sampling,
        stop: str | Sequence[str],
        logprobs: bool,
        threads: int = 1,
        device: str = "cpu",
    ) -> None:
        if max_tokens < 1:
            raise ArgumentError(f"max_tokens must be at least 1, not {max_tokens}")
        self.model = model
        self.sampling = sampling
        self.max_tokens = max_tokens
        self.stop = (stop,) if isinstance(stop, str) else tuple(stop)
        self.prompt_tokens = _token_ids(prompt, model.config.vocab_size)
        if not self.prompt_tokens:
            raise ArgumentError("the prompt is empty")
        self.tokens: list[int] = []
        self.text = ""
        self.stop_reason: str | None = None
        self.seconds = 0.0
        self._config = model.config
        self._eot = model.tokenizer.eot
        self._session = model.session(threads=threads, device=device)
        self._decoder = StreamDecoder(model.tokenizer)
        self._stops = StopStrings(self.stop)
        self._logprobs = logprobs
        self._hash = hashlib.sha256()

    def __next__(self) -> Piece:
        if self.stop_reason is not None:
            raise StopIteration
        began = time.perf_counter()
        for logits in self._session.feed_parts(self.tokens[-1:] or self.prompt_tokens):
            self._hash.update(logits.astype("<i4", copy=False).tobytes())
        token = self._session.sample(self.sampling, len(self.tokens))
        self.tokens.append(token)
        text = "" if token == self._eot else self._decoder.push(token)
        if token == self._eot:
            self.stop_reason = "end"
        elif len(self.tokens) == self.max_tokens:
            self.stop_reason = "max_tokens"
        if self.stop_reason is not None:
            text += self._decoder.finish()
        text, stopped = self._stops.push(text, final=self.stop_reason is not None)
        if stopped:
            self.stop_reason = "stop"
        self.text += text
        logprob = float(log_softmax(logits[-1], self._config)[token]) if self._logprobs else None
        self.seconds += time.perf_counter() - began
        return Piece(text, token, logprob)

    def finish(self) -> str:
        """Runs to the end and gives the whole generated text."""
        for _ in self:
            pass
        return self.text

    @property
    def logits_digest(self) -> str:
        """SHA-256 over the logits (int32, little-endian) of every position computed so far, the prompt's included, in order."""
        return self._hash.hexdigest()

    @property
    def tokens_per_second(self) -> float:
        """Prompt and generated tokens by the time spent on them."""
        return (len(self.prompt_tokens) + len(self.tokens)) / self.seconds if self.seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """The keys of `mamba-integer generate --json`, the model's digest excepted."""
        return {
            "text": self.text,
            "tokens": self.tokens,
            "prompt_tokens": self.prompt_tokens,
            "logits_digest": self.logits_digest,
            "stop_reason": self.stop_reason,
            "tokens_per_second": round(self.tokens_per_second, 2),
        }


class StopStrings:
    """Cuts a stream of text at the first stop string. Text that may be the beginning of one is held back until that is decided."""

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(isinstance(s, str) and s for s in stops):
            raise ArgumentError("a stop string must be a non-empty string")
        self._stops = list(stops)
        self._held = ""

    def push(self, text: str, *, final: bool = False) -> tuple[str, bool]:
        """Text that may be passed on, and whether a stop string was found (nothing may be pushed after that)."""
        self._held += text
        found = [at for at in (self._held.find(s) for s in self._stops) if at >= 0]
        if found:
            return self._held[: min(found)], True
        keep = 0 if final else max((_overlap(self._held, s) for s in self._stops), default=0)
        ready = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return ready, False


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop` and is shorter than it."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


def log_softmax(logits: Logits, config: Settings) -> npt.NDArray[np.float64]:
    """Natural log-probabilities at temperature 1 of integer logits [..., V], float64 of the same shape."""
    real = logits.astype(np.float64) * math.ldexp(config.embed_mul, -config.logit_shift)
    real -= real.max(axis=-1, keepdims=True)
    out: npt.NDArray[np.float64] = real - np.log(np.exp(real).sum(axis=-1, keepdims=True))
    return out


def _token_ids(tokens: Sequence[int], vocab_size: int) -> list[int]:
    try:
        ids = [operator.index(t) for t in tokens]
    except TypeError:
        raise ArgumentError("tokens must be integers") from None
    for t in ids:
        if not 0 <= t < vocab_size:
            raise ArgumentError(f"token {t} is outside the vocabulary of {vocab_size}")
    return ids


__all__ = [
    "DEFAULT_MODEL",
    "END_OF_TEXT",
    "Generation",
    "Model",
    "Piece",
    "Session",
    "Settings",
    "feed_many",
    "find_model",
    "log_softmax",
    "shipped_models",
]
