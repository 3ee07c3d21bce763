"""Cards, statements and proof files (PROTOCOL.md, section 6): everything that is checked before any cryptography."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from mamba_integer import Tokenizer, TokenizerError

from .errors import VerificationError, require
from .model_circuit import MAX_TEMPERATURE_VOCABULARY, Axes, Sampling, SegmentFacts, Shape, bitlen

PROTOCOL_VERSION = 1
SPEC_VERSION = 1
PROOF_MAGIC = b"MI-PROOF"
FILE_VERSION = 1
COMMITMENT_PREFIX = b"mamba-integer-commitment-1"
MIN_LOG_STEPS, MAX_LOG_STEPS = 3, 9
MAX_TOKENS = 1 << 15
MAX_SEGMENTS = 64
MAX_TOP_K = 1 << 17

_HEX_DIGEST = re.compile(r"[0-9a-f]{64}")
_CARD_KEYS = {"protocol", "spec", "name", "model_digest", "tokenizer", "root", "shape"}
_SHAPE_KEYS = {
    "activation",
    "d_model",
    "d_state",
    "embed_mul",
    "gate",
    "head_dim",
    "in_proj_shift",
    "k",
    "logit_shift",
    "n_heads",
    "n_layers",
    "norm_mantissa",
    "out_proj_shift",
    "vocab_size",
}
_STATEMENT_KEYS = {
    "protocol",
    "spec",
    "commitment",
    "prompt",
    "prompt_tokens",
    "sampling",
    "tokens",
    "text",
    "finish",
    "segments",
}


def canonical(value: object) -> bytes:
    """Canonical JSON (FORMAT.md): sorted keys, no white space, the shortest escapes, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def parse_canonical(data: bytes, what: str) -> dict[str, Any]:
    """A JSON object in its one encoding."""
    try:
        value = json.loads(data.decode("utf-8"))
        same = isinstance(value, dict) and canonical(value) == data
    except (ValueError, RecursionError):
        raise VerificationError(f"the {what} is not JSON") from None
    require(same, f"the {what} is not canonical JSON")
    result: dict[str, Any] = value
    return result


def _keys(value: object, keys: set[str], what: str) -> dict[str, Any]:
    require(isinstance(value, dict) and set(value) == keys, f"{what}: wrong keys")
    result: dict[str, Any] = value  # type: ignore[assignment]
    return result


def _integer(value: object, low: int, high: int, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise VerificationError(f"{what} is not an integer of {low} … {high}")
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise VerificationError(f"{what} is not a text")
    return value


def _digest(value: object, what: str) -> bytes:
    text = _text(value, what)
    require(_HEX_DIGEST.fullmatch(text) is not None, f"{what} is not 64 hexadecimal digits")
    return bytes.fromhex(text)


def _integers(value: object, low: int, high: int, what: str, count: int | None = None) -> tuple[int, ...]:
    if not isinstance(value, list) or (count is not None and len(value) != count):
        raise VerificationError(f"{what} is not a list of the right length")
    return tuple(_integer(v, low, high, what) for v in value)


@dataclass(frozen=True)
class Card:
    """A registered model. `data` is the card itself."""

    data: bytes
    name: str
    model_digest: str
    tokenizer: str
    root: bytes
    shape: Shape

    @property
    def commitment(self) -> bytes:
        """What the model is known by."""
        return hashlib.sha256(COMMITMENT_PREFIX + self.data).digest()


def read_card(data: bytes) -> Card:
    """Parse a card and check the limits of section 5."""
    card = _keys(parse_canonical(data, "card"), _CARD_KEYS, "the card")
    require(card["protocol"] == PROTOCOL_VERSION and card["spec"] == SPEC_VERSION, "the card is of another version")
    _digest(card["model_digest"], "the card's model_digest")
    return Card(
        data,
        _text(card["name"], "the card's name"),
        card["model_digest"],
        _text(card["tokenizer"], "the card's tokenizer"),
        _digest(card["root"], "the card's root"),
        _read_shape(_keys(card["shape"], _SHAPE_KEYS, "the card's shape")),
    )


def _read_shape(shape: dict[str, Any]) -> Shape:
    def integer(key: str, low: int, high: int) -> int:
        return _integer(shape[key], low, high, f"the shape's {key}")

    layers, heads = integer("n_layers", 1, 128), integer("n_heads", 1, 1024)
    for key in ("activation", "gate"):
        require(shape[key] in ("silu", "squareplus"), f"the shape's {key} is unknown")
    rows = shape["k"]
    if not isinstance(rows, list) or len(rows) != layers:
        raise VerificationError("the shape's k is not a list of the right length")
    result = Shape(
        D=integer("d_model", 1, 4096),
        H=heads,
        P=integer("head_dim", 1, 256),
        N=integer("d_state", 2, 64),
        V=integer("vocab_size", 1, 1 << 17),
        L=layers,
        activation=shape["activation"],
        gate=shape["gate"],
        norm_mantissa=integer("norm_mantissa", 0, 8),
        embed_mul=integer("embed_mul", 1, 1023),
        logit_shift=integer("logit_shift", 0, 31),
        in_proj_shift=_integers(shape["in_proj_shift"], 0, 24, "the shape's in_proj_shift", layers),
        out_proj_shift=_integers(shape["out_proj_shift"], 0, 24, "the shape's out_proj_shift", layers),
        k=tuple(_integers(row, 8, 15, "the shape's k", heads) for row in rows),
    )
    require(result.norm_mantissa in (0, 8), "the shape's norm_mantissa is neither 0 nor 8")
    require(result.N % 2 == 0, "the shape's d_state is odd")
    require(result.E <= 8192, "the shape's E is too large")
    axes = Axes(result)
    require(
        max(axes.d.blocks << axes.d.log, axes.inner.blocks << axes.inner.log) <= 4096, "too many channels with padding"
    )
    return result


@dataclass(frozen=True)
class Statement:
    """What a proof says. `data` is the statement itself."""

    data: bytes
    commitment: bytes
    prompt: str
    prompt_tokens: tuple[int, ...]
    sampling: Sampling
    tokens: tuple[int, ...]
    text: str
    finish: str
    segments: tuple[int, ...]

    @property
    def steps(self) -> int:
        """How many tokens are fed."""
        return len(self.prompt_tokens) + len(self.tokens) - 1

    def segment(self, index: int) -> SegmentFacts:
        """What the circuit of one segment depends on."""
        first = sum(1 << t for t in self.segments[:index])
        numbers = range(first, first + (1 << self.segments[index]))
        fed = (*self.prompt_tokens, *self.tokens[:-1])
        lead = len(self.prompt_tokens) - 1
        return SegmentFacts(
            self.segments[index],
            tuple(fed[s] if s < len(fed) else None for s in numbers),
            tuple(self.tokens[s - lead] if 0 <= s - lead < len(self.tokens) else None for s in numbers),
            index > 0,
            index < len(self.segments) - 1,
            first - lead,
            self.sampling,
        )


def read_statement(data: bytes, card: Card) -> Statement:
    """Parse a statement and check it against the card: all that section 6 lists but the commitment the user names."""
    value = _keys(parse_canonical(data, "statement"), _STATEMENT_KEYS, "the statement")
    require(
        value["protocol"] == PROTOCOL_VERSION and value["spec"] == SPEC_VERSION, "the statement is of another version"
    )
    sampling = _keys(value["sampling"], {"temperature", "top_k", "seed"}, "the statement's sampling")
    V = card.shape.V
    result = Statement(
        data,
        _digest(value["commitment"], "the statement's commitment"),
        _text(value["prompt"], "the prompt"),
        _integers(value["prompt_tokens"], 0, V - 1, "prompt_tokens"),
        Sampling(
            _integer(sampling["temperature"], 0, 1 << 22, "temperature"),
            _integer(sampling["top_k"], 0, MAX_TOP_K, "top_k"),
            _integer(sampling["seed"], 0, (1 << 64) - 1, "seed"),
        ),
        _integers(value["tokens"], 0, V - 1, "tokens"),
        _text(value["text"], "the text"),
        _text(value["finish"], "finish"),
        _integers(value["segments"], MIN_LOG_STEPS, MAX_LOG_STEPS, "segments"),
    )
    require(result.commitment == card.commitment, "the statement is about another model than the card")
    require(len(result.prompt_tokens) > 0 and len(result.tokens) > 0, "no prompt, or nothing was chosen")
    # "At most 2^15 tokens" (section 6) is read as: of the prompt and chosen together.
    require(len(result.prompt_tokens) + len(result.tokens) <= MAX_TOKENS, "too many tokens")
    end = V - 1
    require(result.prompt_tokens[0] == end, "the prompt does not begin with <|endoftext|>")
    require(result.finish in ("end", "limit"), "finish is neither end nor limit")
    require(end not in result.tokens[:-1], "<|endoftext|> was chosen before the end")
    require((result.tokens[-1] == end) == (result.finish == "end"), "finish does not fit the last token")
    require(len(result.segments) <= MAX_SEGMENTS, "too many segments")
    lengths = [1 << t for t in result.segments]
    require(bool(lengths) and sum(lengths[:-1]) < result.steps <= sum(lengths), "the segments do not cover the steps")
    require(
        result.sampling.temperature == 0 or bitlen(V - 1) <= bitlen(MAX_TEMPERATURE_VOCABULARY - 1),
        "no circuit for this vocabulary and temperature",
    )
    try:
        tokenizer = Tokenizer.from_bytes(card.tokenizer.encode("utf-8"))
        require(tokenizer.vocab_size == V, "the tokenizer has another vocabulary")
        require(tuple(tokenizer.encode(result.prompt)) == result.prompt_tokens[1:], "the prompt has other tokens")
        shown = result.tokens[:-1] if result.finish == "end" else result.tokens
        require(tokenizer.decode(shown) == result.text, "the tokens have another text")
    except TokenizerError as error:
        raise VerificationError(f"tokenizer: {error}") from None
    return result


def read_container(data: bytes, magic: bytes, parts: int) -> list[bytes]:
    """The parts of a proof file: magic, u32 version, u64 lengths, the parts, and nothing after."""
    head = len(magic) + 4
    start = head + 8 * parts
    require(data[: len(magic)] == magic and len(data) >= start, "not a proof file")
    require(int.from_bytes(data[len(magic) : head], "little") == FILE_VERSION, "a proof file of another version")
    lengths = [int.from_bytes(data[head + 8 * i : head + 8 * i + 8], "little") for i in range(parts)]
    require(start + sum(lengths) == len(data), "the proof file has another length than it says")
    found = []
    for length in lengths:
        found.append(data[start : start + length])
        start += length
    return found
