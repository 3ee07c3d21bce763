"""Receipts: the plain statement of a generation, which anyone can compute again and compare bit for bit (spec/FORMAT.md, "Receipt").

    receipt = make(model, generation)   # of a generation that has ended
    write("story.json", receipt)
    replay(read("story.json"), model)   # Replay(valid=True, reason="")

A receipt says that this model, fed this prompt, chooses these tokens; not who made it or when, and not that the seed was the first one tried.
Nothing is computed here: the engine does that. A Receipt that exists is well formed; whether it is true, `replay` alone says.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from mamba_integer.card import card_of
from mamba_integer.engine import Generation, Model
from mamba_integer.errors import ArgumentError, ReceiptError, TokenizerError
from mamba_integer.files import write_atomically
from mamba_integer.model_file import SPEC_VERSION
from mamba_integer.sampling import Sampling

FORMAT = "mamba-integer-receipt"
FORMAT_VERSION = 1
DIGEST_PREFIX = b"mamba-integer-receipt-1"
MAX_BYTES = 1 << 26  # of a file
MAX_STOPS = 64
MAX_STOP_LENGTH = 1024  # characters of a stop string

# The receipt's word for each of Generation.stop_reason.
FINISH_REASONS = {"end": "end", "max_tokens": "limit", "stop": "stop"}
_SAMPLING = tuple(f.name for f in fields(Sampling))
_HEX_DIGEST = re.compile(r"[0-9a-f]{64}")
_BRIEF = 64  # characters of a value from a file that a message shows: a whole digest


@dataclass(frozen=True)
class Receipt:
    """The statement, under the names of spec/FORMAT.md. Raises ReceiptError for a value of the wrong type or outside its range.

    prompt_tokens begin with the start token; tokens are the chosen ones, a closing end token included; text is their text, a stop string and the end
    token left out; finish_reason is "end", "limit" or "stop". stated_digest is what the file that it was read from gives as its digest, None for one
    made here; `digest` is always computed.
    """

    model_name: str
    model_digest: str
    tokenizer_digest: str
    prompt: str
    prompt_tokens: tuple[int, ...]
    sampling: Sampling
    max_tokens: int
    stop: tuple[str, ...]
    tokens: tuple[int, ...]
    text: str
    finish_reason: str
    logits_digest: str
    model_commitment: str | None = None
    spec_version: int = SPEC_VERSION
    stated_digest: str | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        _check_version("spec_version", self.spec_version, SPEC_VERSION)
        for name in ("model_name", "prompt", "text"):
            _check_text(name, getattr(self, name))
        if self.model_commitment is not None:
            _check_text("model_commitment", self.model_commitment)
        for name in ("model_digest", "tokenizer_digest", "logits_digest"):
            _check_digest(name, getattr(self, name))
        if self.stated_digest is not None:
            _check_digest("digest", self.stated_digest)
        for name in ("prompt_tokens", "tokens"):
            tokens = getattr(self, name)
            if not tokens:
                raise ReceiptError(f"{name} is empty")
            for i, token in enumerate(tokens):
                _check_integer(f"{name}[{i}]", token, 0, 32)
        _check_integer("max_tokens", self.max_tokens, 1, 64)
        check_stop(self.stop)
        if self.finish_reason not in FINISH_REASONS.values():
            raise ReceiptError(f"finish_reason must be end, limit or stop, not {_brief(self.finish_reason)}")

    def statement(self) -> dict[str, Any]:
        """Every key of the file but `digest`."""
        values = {name: getattr(self, name) for name in _NAMES}
        return {"format": FORMAT, "format_version": FORMAT_VERSION, **values, "sampling": asdict(self.sampling)}

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the canonical bytes of the statement: 64 hexadecimal digits that name it."""
        return hashlib.sha256(DIGEST_PREFIX + _canonical(self.statement())).hexdigest()

    def to_bytes(self) -> bytes:
        """The file: canonical JSON and a newline."""
        return _canonical({**self.statement(), "digest": self.digest}) + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> Receipt:
        """From the contents of a file. Raises ReceiptError for anything that spec/FORMAT.md does not allow; a wrong digest is `replay`'s to find."""
        content = _parse(data)
        for name, version in (("format_version", FORMAT_VERSION), ("spec_version", SPEC_VERSION)):
            if name in content:
                _check_version(name, content[name], version)
        _check_keys("the receipt", content, ["format", "format_version", "digest", *_NAMES])
        _check_digest("digest", content["digest"])
        for name in ("prompt_tokens", "tokens", "stop"):
            if not isinstance(content[name], list):
                raise ReceiptError(f"{name} must be an array, not {_brief(content[name])}")
            content[name] = tuple(content[name])
        values = {name: content[name] for name in _NAMES}
        return cls(**{**values, "sampling": _sampling(content["sampling"])}, stated_digest=content["digest"])


_NAMES = tuple(f.name for f in fields(Receipt) if f.name != "stated_digest")  # keys of the file that a Receipt keeps


@dataclass(frozen=True)
class Replay:
    """What `replay` found: every bit the same, or the first thing that is not. `reason` is "" for a valid receipt."""

    valid: bool
    reason: str


def make(model: Model, generation: Generation) -> Receipt:
    """The receipt of a generation that has ended. It names the model's commitment if its card lies beside the model file.

    Raises ArgumentError for one that has not, that another model made, or whose prompt was given as tokens that no text stands for; ReceiptError
    for one that a receipt cannot hold.
    """
    if generation.model is not model:
        raise ArgumentError("the generation is another model's")
    if generation.stop_reason is None:
        raise ArgumentError("the generation has not ended")
    # Text → tokens → text loses nothing, so a prompt's text need not have been kept.
    prompt = model.tokenizer.decode(generation.prompt_tokens[1:])
    if _prompt_difference(model, prompt, generation.prompt_tokens):
        raise ArgumentError("the prompt's tokens are not what a text is encoded to")
    card = card_of(model)
    return Receipt(
        model_name=model.name,
        model_digest=model.digest,
        tokenizer_digest=model.tokenizer.digest,
        prompt=prompt,
        prompt_tokens=tuple(generation.prompt_tokens),
        sampling=generation.sampling,
        max_tokens=generation.max_tokens,
        stop=generation.stop,
        tokens=tuple(generation.tokens),
        text=generation.text,
        finish_reason=FINISH_REASONS[generation.stop_reason],
        logits_digest=generation.logits_digest,
        model_commitment=None if card is None else card.commitment,
    )


def write(path: str | os.PathLike[str], receipt: Receipt) -> None:
    """Writes the file; it appears complete or not at all. Raises ArgumentError when it cannot be written."""
    data = receipt.to_bytes()
    if len(data) > MAX_BYTES:
        raise ArgumentError(f"{os.fspath(path)}: the receipt would have {len(data)} bytes, more than {MAX_BYTES}")
    try:
        write_atomically(path, data)
    except OSError as error:
        raise ArgumentError(f"{os.fspath(path)}: {error.strerror or error}") from None


def read(path: str | os.PathLike[str]) -> Receipt:
    """Reads a file. Raises ReceiptError, which names the file, when it cannot be read or spec/FORMAT.md does not allow what it holds."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        return Receipt.from_bytes(data)
    except OSError as error:
        reason = error.strerror or str(error)
    except ReceiptError as error:
        reason = str(error)
    raise ReceiptError(f"{os.fspath(path)}: {reason}")


def replay(receipt: Receipt, model: Model) -> Replay:
    """Computes the receipt's generation again and compares everything. `model` is the caller's choice, never the receipt's.

    The work is bounded by the receipt's length, not by its max_tokens. Raises TokenizerError only when the model's own tokenizer is broken.
    """
    reason = _difference(receipt, model)
    return Replay(not reason, reason)


# ---- replay ----------------------------------------------------------------------------------------------------------


def _difference(receipt: Receipt, model: Model) -> str:
    """The first thing of the receipt that is not so, beginning with its key; "" if all is."""
    for name, stated, actual in (
        ("model_digest", receipt.model_digest, model.digest),
        ("tokenizer_digest", receipt.tokenizer_digest, model.tokenizer.digest),
        ("model_name", receipt.model_name, model.name),
    ):
        if stated != actual:
            return f"{name}: the receipt has {_brief(stated)}, the model {_brief(model.name)} has {_brief(actual)}"
    reason = _commitment_difference(receipt, model)
    if reason:
        return reason
    reason = _prompt_difference(model, receipt.prompt, receipt.prompt_tokens)
    if reason:
        return reason
    for i, token in enumerate(receipt.tokens):
        if token >= model.config.vocab_size:
            return f"tokens: token {i} is {token}, outside the vocabulary of {model.config.vocab_size}"
    count = len(receipt.tokens)
    if count > receipt.max_tokens:
        return f"max_tokens: it is {receipt.max_tokens}, but there are {count} tokens"
    if receipt.finish_reason == "limit" and count < receipt.max_tokens:
        return f"finish_reason: limit, but max_tokens is {receipt.max_tokens} and there are {count} tokens"
    return _generation_difference(receipt, model) or _digest_difference(
        "digest", receipt.stated_digest or receipt.digest, receipt.digest, "its contents have"
    )


def _commitment_difference(receipt: Receipt, model: Model) -> str:
    if receipt.model_commitment is None:
        return ""
    card = card_of(model)
    if card is None:
        return (
            "model_commitment: there is no card of this model to compare it with (mamba-integer commit-model makes one)"
        )
    return _digest_difference(
        "model_commitment", _brief(receipt.model_commitment), _brief(card.commitment), "the model's card has"
    )


def _prompt_difference(model: Model, prompt: str, prompt_tokens: Sequence[int]) -> str:
    try:
        expected = model.encode(prompt)
    except TokenizerError as error:
        return f"prompt: {error}"
    at = _first_difference(prompt_tokens, expected)
    if at is None:
        return ""
    ours, theirs = (tokens[at] if at < len(tokens) else "absent" for tokens in (expected, prompt_tokens))
    return f"prompt: its token {at} is {ours}, in prompt_tokens it is {theirs}"


def _generation_difference(receipt: Receipt, model: Model) -> str:
    generation = Generation(
        model, receipt.prompt_tokens, receipt.max_tokens, receipt.sampling, receipt.stop, logprobs=False
    )
    count = len(receipt.tokens)
    for i, token in enumerate(receipt.tokens):
        if next(generation, None) is None:
            if generation.stop_reason == "stop":
                return f"stop: a stop string ends generation after {i} tokens, the receipt has {count}"
            return f"tokens: token {i - 1} ends generation, but the receipt has {count} tokens"
        if generation.tokens[i] != token:
            return _choice_difference(receipt, model, i, generation.tokens[i])
    if generation.stop_reason is None:
        return f"finish_reason: {receipt.finish_reason}, but generation does not end after the receipt's {count} tokens"
    finish_reason = FINISH_REASONS[generation.stop_reason]
    if receipt.finish_reason != finish_reason:
        return f"finish_reason: the receipt has {receipt.finish_reason}, generation ends by {finish_reason}"
    at = _first_difference(receipt.text, generation.text)
    if at is not None:
        stated, actual = receipt.text[at : at + _BRIEF], generation.text[at : at + _BRIEF]
        return f"text: from character {at} the receipt has {_brief(stated)}, tokens and stop give {_brief(actual)}"
    return _digest_difference("logits_digest", receipt.logits_digest, generation.logits_digest, "the engine has")


def _choice_difference(receipt: Receipt, model: Model, at: int, chosen: int) -> str:
    """Says that the engine chooses another token, and whether the receipt's logits are those of its tokens: if they are, its choices were not made by its
    sampling parameters. (The last token is in no logit.)"""
    stated = receipt.tokens[at]
    ours, theirs = (f"{t} ({_brief(model.tokenizer.decode([t]))})" for t in (chosen, stated))
    said = f"token {at} is {theirs} in the receipt, the engine chooses {ours}"
    logits = hashlib.sha256()
    for part in model.session().feed_parts([*receipt.prompt_tokens, *receipt.tokens[:-1]]):
        logits.update(part.astype("<i4", copy=False).tobytes())
    if logits.hexdigest() != receipt.logits_digest:
        return f"tokens: {said}"
    if at == len(receipt.tokens) - 1:
        return f"tokens: {said}; all logits are right, so this last token or seed, temperature, top_k or top_p is wrong"
    return (
        f"sampling: {said}; the logits of the receipt's tokens are right, so seed, temperature, top_k or top_p is wrong"
    )


def _digest_difference(name: str, stated: str, actual: str, who: str) -> str:
    return "" if stated == actual else f"{name}: the receipt has {stated}, {who} {actual}"


def _first_difference(a: Sequence[object], b: Sequence[object]) -> int | None:
    """Where two sequences first differ; the length of the shorter one where one begins the other; None where they are equal."""
    shorter = min(len(a), len(b))
    at = next((i for i in range(shorter) if a[i] != b[i]), shorter)
    return None if at == len(a) == len(b) else at


# ---- canonical JSON, and reading without trust ------------------------------------------------------------------------


def _canonical(content: dict[str, Any]) -> bytes:
    """One text for one value: keys sorted, nothing between the parts, escapes only where JSON demands them, UTF-8."""
    return json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


class _Number(str):
    """The text of a JSON number that no receipt holds: with a fraction, an exponent or too many digits. It is kept as text to be named, never computed with."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _parse(data: bytes) -> dict[str, Any]:
    """The object in a file whose `format` is ours. No float is made, and no number of more than 20 digits converted."""
    if len(data) > MAX_BYTES:
        raise ReceiptError(f"longer than {MAX_BYTES} bytes")

    def integer(text: str) -> int | _Number:
        return int(text) if len(text) <= 20 and text != "-0" else _Number(text)

    try:
        content = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_int=integer,
            parse_float=_Number,
            parse_constant=_Number,
        )
    except UnicodeDecodeError as error:
        raise ReceiptError(f"not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise ReceiptError(f"not JSON: {error.msg} (line {error.lineno}, column {error.colno})") from None
    except ValueError as error:  # the json module's own reader in Python lets some through where the one in C does not
        raise ReceiptError(f"not JSON: {error}") from None
    except RecursionError:
        raise ReceiptError("not a receipt: nested too deeply") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ReceiptError(f'not a receipt: an object with "format": "{FORMAT}" was expected')
    return content


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name, value in pairs:
        if name in content:
            raise ReceiptError(f"key {_brief(name)} stands twice")
        content[name] = value
    return content


def _sampling(content: object) -> Sampling:
    if not isinstance(content, dict):
        raise ReceiptError(f"sampling must be an object, not {_brief(content)}")
    _check_keys("sampling", content, _SAMPLING)
    for name in _SAMPLING:
        _check_integer(f"sampling.{name}", content[name], 0, 64)
    try:
        return Sampling(**content)
    except ArgumentError as error:
        raise ReceiptError(f"sampling.{error}") from None


def _check_keys(what: str, content: dict[str, Any], names: Collection[str]) -> None:
    for name in content:
        if name not in names:
            raise ReceiptError(f"{what} has the unknown key {_brief(name)}")
    for name in names:
        if name not in content:
            raise ReceiptError(f"{what} lacks the key {name!r}")


def _check_version(name: str, value: object, version: int) -> None:
    if type(value) is not int or value != version:
        raise ReceiptError(f"{name} is {_brief(value)}; this release reads {version}")


def _check_integer(name: str, value: object, low: int, bits: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value < 1 << bits:
        raise ReceiptError(f"{name} must be an integer from {low} to 2^{bits} - 1, not {_brief(value)}")


def _check_text(name: str, value: object) -> None:
    if type(value) is not str:
        raise ReceiptError(f"{name} must be a string, not {_brief(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ReceiptError(
            f"{name} is not valid Unicode (character {error.start} is half of a surrogate pair)"
        ) from None


def _check_digest(name: str, value: object) -> None:
    if type(value) is not str or not _HEX_DIGEST.fullmatch(value):
        raise ReceiptError(f"{name} must be 64 lowercase hexadecimal digits, not {_brief(value)}")


def check_stop(stop: Sequence[object]) -> None:
    """ReceiptError for stop strings that a receipt cannot hold: more than MAX_STOPS, longer than MAX_STOP_LENGTH, empty, or not valid Unicode."""
    if len(stop) > MAX_STOPS:
        raise ReceiptError(f"stop has {len(stop)} strings, more than {MAX_STOPS}")
    for i, text in enumerate(stop):
        _check_text(f"stop[{i}]", text)
        if not 0 < len(str(text)) <= MAX_STOP_LENGTH:
            raise ReceiptError(f"stop[{i}] must have 1 to {MAX_STOP_LENGTH} characters, not {len(str(text))}")


def _brief(value: object) -> str:
    """A value in a message: on one line, without control characters, and short."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "an array"
    if isinstance(value, int) and value.bit_length() > 128:
        return f"one of {value.bit_length()} bits"
    text = value if isinstance(value, str) else repr(value)
    cut, more = text[:_BRIEF], "…" * (len(text) > _BRIEF)
    return f"{repr(cut) if type(value) is str else cut}{more}"
