"""Proofs that a registered model chose exactly these tokens: succinct, checked without the weights in well under a second (spec/PROTOCOL.md).

    card = commit("my-model.gguf")                       # once; publish it
    proof = prove("my-model.gguf", "Once upon a time", max_tokens=32)
    Path("story.proof").write_bytes(proof.data)
    verify("story.proof", model=card)                    # Verification(valid=True, …)

A proof says what a receipt says, but for the digest of the logits and the stop strings, to people who do not have the model; it is not zero-knowledge.
Whoever chose the seed may have tried many. The Rust crate in `prover/` proves and verifies; this module moves models, statements and proofs to and from it.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

from mamba_integer import _native
from mamba_integer.card import REGISTRATION_SUFFIX, Card, card_of, find_commitment, find_named
from mamba_integer.engine import Generation, Model
from mamba_integer.errors import ArgumentError, ModelFormatError, ProofError
from mamba_integer.files import write_atomically
from mamba_integer.model_file import IntegerModel, read_model
from mamba_integer.receipt import Receipt, replay
from mamba_integer.sampling import Q16, Sampling

MAGIC = b"MI-PROOF"
MAX_BYTES = 1 << 26  # of a proof
PROTOCOL = 1
SEGMENT_STEPS = (8, 16, 32, 64, 128, 256, 512)
MAX_TOP_K = 1 << 17
# Of `Prover.estimate`, as measured on the shipped and on a tiny model: time in units of one cell's commitment, then bytes.
CELL_COST = 7.0
LEAF_COST = 5.5
CELL_BYTES = 105  # of memory
BASE_BYTES = 1 << 27  # of memory
SEGMENT_BYTES, DOUBLING_BYTES = 287_000, 11_000  # a segment of 2^22 cells, and what each doubling adds
OPENING_BYTES = 26_500  # of the model, for each doubling of its weights beyond 2^11
STATES_BYTES = 65_000  # if there are more segments than one
STAGES = ("witness", "commit", "lookups", "main", "second", "open")  # where a segment's time goes


@dataclass(frozen=True)
class Statement:
    """What a proof claims, under the names of PROTOCOL.md.

    prompt_tokens begin with the start token; tokens are the chosen ones, a closing end token included; text is theirs without it. finish is "end" or
    "limit". segments: log2 of the steps of each. commitment: the model's.
    """

    commitment: str
    prompt: str
    prompt_tokens: tuple[int, ...]
    sampling: Sampling
    tokens: tuple[int, ...]
    text: str
    finish: str
    segments: tuple[int, ...]
    protocol: int = PROTOCOL
    spec: int = 1

    @property
    def steps(self) -> int:
        """Tokens fed: all but the last."""
        return len(self.prompt_tokens) + len(self.tokens) - 1

    def to_bytes(self) -> bytes:
        """Canonical JSON: keys sorted, no white space."""
        s = self.sampling
        content = {**vars(self), "sampling": {"temperature": s.temperature, "top_k": s.top_k, "seed": s.seed}}
        return json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Statement:
        """From canonical JSON that the Rust side has checked."""
        content = json.loads(data)
        for name in ("prompt_tokens", "tokens", "segments"):
            content[name] = tuple(content[name])
        return cls(**{**content, "sampling": Sampling(**content["sampling"])})


@dataclass(frozen=True)
class Proof:
    """A proof file, unverified; `data` is the file, byte for byte. Raises ProofError if it is none, or of another version.

    report: for a proof made here, where the time went (seconds by stage) and what it took; empty for one that was read.
    """

    data: bytes = field(repr=False)
    report: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        _ = self.statement

    @cached_property
    def _claimed(self) -> tuple[Statement, Card]:
        if len(self.data) > MAX_BYTES:
            raise ProofError(f"proof: longer than {MAX_BYTES} bytes")
        statement, card = _native.read_proof(self.data)
        return Statement.from_bytes(statement), Card(card)

    @property
    def statement(self) -> Statement:
        """What it claims."""
        return self._claimed[0]

    @property
    def card(self) -> Card:
        """The card of the model that it claims to be about."""
        return self._claimed[1]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Proof:
        """Reads a file. Raises ProofError, which names it, when it cannot be read or is no proof."""
        try:
            with Path(path).open("rb") as file:
                return cls(file.read(MAX_BYTES + 1))
        except OSError as error:
            reason = error.strerror or str(error)
        except ProofError as error:
            reason = str(error)
        raise ProofError(f"{os.fspath(path)}: {reason}")

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the file; it appears complete or not at all. Raises ArgumentError when it cannot be written."""
        try:
            write_atomically(path, self.data)
        except OSError as error:
            raise ArgumentError(f"{os.fspath(path)}: {error.strerror or error}") from None


@dataclass(frozen=True)
class Verification:
    """What `verify` found. reason is "" for a proof that holds; statement, model (its name) and security_bits are None for one that does not.

    commitment: the one it was checked against. registration: the model's registration was checked too, and holds; without one, the proof is worth as much as
    whoever gave the card is trusted to have registered its weights. seconds: those of both.
    """

    valid: bool
    reason: str
    commitment: str
    statement: Statement | None
    model: str | None
    security_bits: float | None
    registration: bool
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The keys of `mamba-integer verify --json`."""
        s = self.statement
        return {
            "valid": self.valid,
            "reason": self.reason,
            "commitment": self.commitment,
            "model": self.model,
            "text": s.text if s else None,
            "tokens": list(s.tokens) if s else None,
            "prompt": s.prompt if s else None,
            "security_bits": self.security_bits,
            "registration": "checked" if self.registration else "not checked",
            "seconds": round(self.seconds, 6),
        }


def verify_registration(registration: bytes, model: str | os.PathLike[str] | Card = "tinystories") -> None:
    """Checks that the weights behind a model's commitment are within their bounds. Raises ProofError, which says why, if the registration does not hold."""
    _native.verify_registration(registration, model.commitment if isinstance(model, Card) else find_commitment(model))


def verify(
    proof: str | os.PathLike[str] | bytes | Proof,
    model: str | os.PathLike[str] | Card = "tinystories",
    registration: str | os.PathLike[str] | bytes | None = None,
) -> Verification:
    """Checks a proof against the model that the caller names: a shipped model's name, a card (or its file), or a commitment of 64 hexadecimal digits.

    registration: a file, or its bytes; by default the one beside the card's file (NAME.registration), if there is one. One that does not hold fails the
    verification. Needs no weights. Raises ProofError for what is no proof at all, ArgumentError for an unknown model or a registration that cannot be read.
    """
    commitment, card = (model.commitment, None) if isinstance(model, Card) else find_named(model)
    if registration is None and card is not None:
        beside = card.with_suffix(REGISTRATION_SUFFIX)
        registration = beside if beside.is_file() else None
    what = "registration"
    if isinstance(registration, (str, os.PathLike)):
        what = f"registration {os.fspath(registration)}"
        registration = _registration_file(registration)
    if isinstance(proof, (bytes, bytearray, memoryview)):
        proof = Proof(bytes(proof))
    elif not isinstance(proof, Proof):
        proof = Proof.read(proof)
    began = time.perf_counter()
    reason, bits, registered = "", None, False
    try:
        if registration is not None:
            _native.verify_registration(bytes(registration), commitment)
            registered = True
    except ProofError as error:
        reason = f"{what}: {error}"
    if not reason:
        try:
            bits = int(_native.verify_proof(proof.data, commitment) * 100) / 100
        except ProofError as error:
            reason = str(error)
    seconds = time.perf_counter() - began
    statement, name = (proof.statement, proof.card.name) if not reason else (None, None)
    return Verification(not reason, reason, commitment, statement, name, bits, registered, seconds)


def _registration_file(path: str | os.PathLike[str]) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ArgumentError(f"{os.fspath(path)}: {error.strerror or error}") from None


# ---- proving ---------------------------------------------------------------------------------------------------------

Progress = Callable[[dict[str, Any] | None], object]


class Prover:
    """A model that proves what it writes. Making one commits to its weights, which takes a second or so a million of them.

    model: a shipped model's name, a model file, or a Model that was loaded from one. threads: 0 is as many as there are cores. published: a card
    beside the model file must be of the same commitment. Raises ProofError, which says why, for a model that cannot be proven.
    """

    def __init__(
        self, model: str | os.PathLike[str] | Model = "tinystories", *, threads: int = 0, published: bool = True
    ) -> None:
        self.model = model if isinstance(model, Model) else Model.load(model)
        self._threads = threads
        began = time.perf_counter()
        weights = _weights(self.model)
        self._parameters = sum(tensor.size for tensor in weights.tensors.values())
        self._native = _native.Prover(
            _shape(weights), _tensors(weights), weights.name, weights.digest, _tokenizer(self.model, weights), threads
        )
        self.card = Card(self._native.card())
        self.seconds = time.perf_counter() - began
        beside = card_of(self.model) if published else None
        if beside is not None and beside != self.card:
            raise ProofError(
                f"the card beside {self.model.path} has the commitment {beside.commitment}, these weights {self.card.commitment}"
            )

    def statement(self, generation: Generation, segment_steps: int = 64) -> Statement:
        """What a proof of a generation that has ended will claim. Raises ProofError for one that cannot be proven."""
        if generation.model is not self.model:
            raise ArgumentError("the generation is another model's")
        return _statement(generation, segment_steps, self.card.commitment)

    def register(self) -> bytes:
        """The registration: the proof that the weights are within the bounds that every circuit takes for granted (PROTOCOL.md, section 7)."""
        return self._native.register(self._threads)

    def estimate(self, generation: Generation, segment_steps: int = 64) -> dict[str, Any]:
        """What `prove` would take, from the size of the circuits and the speed of this machine now (measured in half a second): segments (log2 of their
        steps), seconds, memory_bytes, proof_bytes, security_bits. Time, memory and size are estimates, within a third on a quiet machine."""
        statement = self.statement(generation, segment_steps)
        sizes, bits = _native.proof_size(self.card.data, statement.to_bytes())
        # Against a commitment to 2^22 cells: what a cell and a leaf, both as padded, take in all.
        unit = statistics.median(_native.commit_seconds(22, self._threads) for _ in range(3)) / 2**22
        padded = [(1 << (cells - 1).bit_length(), leaves) for cells, leaves in sizes]
        size = sum(SEGMENT_BYTES + DOUBLING_BYTES * (cells.bit_length() - 23) for cells, _ in padded)
        size += OPENING_BYTES * max(1, self._parameters.bit_length() - 11) + STATES_BYTES * (len(sizes) > 1)
        seconds = sum(CELL_COST * cells + LEAF_COST * leaves for cells, leaves in padded) * unit
        return {
            "segments": list(statement.segments),
            "seconds": round(seconds + self.seconds, 2),
            "memory_bytes": max(CELL_BYTES * max(cells, leaves) for cells, leaves in padded) + BASE_BYTES,
            "proof_bytes": len(self.card.data) + len(statement.to_bytes()) + size,
            "security_bits": int(bits * 100) / 100,
        }

    def prove(
        self,
        generation: Generation,
        *,
        segment_steps: int = 64,
        parts: str | os.PathLike[str] | None = None,
        progress: Progress | None = None,
    ) -> Proof:
        """Proves a generation that has ended, and verifies the proof.

        segment_steps: how many steps are proven at a time, a power of two from 8 to 512: memory grows with it, the size of the proof falls. parts: a
        folder, made if needed, where finished segments are kept and, after an interruption, taken up again; `remove_parts` removes it. progress is
        called with a dict after each segment and with None every now and then; an exception in it, or KeyboardInterrupt, ends the call.
        """
        statement = self.statement(generation, segment_steps)
        if parts is not None:
            Path(parts).mkdir(exist_ok=True)
        began = time.perf_counter()
        stages = dict.fromkeys(STAGES, 0.0)
        resumed = 0
        first, last = None, began

        def report(text: str | None) -> None:
            nonlocal first, last, resumed
            event = None if text is None else json.loads(text)
            if event is not None:
                last = time.perf_counter()
                times = event["times"]
                first = first or last - sum((times or {}).get(name, 0) for name in STAGES)
                resumed += times is None
                for name in STAGES:
                    stages[name] += times[name] if times else 0
            if progress is not None:
                progress(event)

        data = self._native.prove(
            statement.to_bytes(), None if parts is None else os.fspath(parts), self._threads, report
        )
        proven = time.perf_counter()
        proof = Proof(data)
        checked = verify(proof, self.card)
        if not checked.valid:
            raise ProofError(f"the proof just made does not hold: {checked.reason} (please report this)")
        seconds = {
            "generate": generation.seconds,
            "register": self.seconds,
            "states": (first or proven) - began,
            **stages,
            "model": proven - last,
            "verify": checked.seconds,
        }
        seconds["total"] = generation.seconds + self.seconds + time.perf_counter() - began
        return Proof(
            data,
            {
                "segments_resumed": resumed,
                "seconds": {name: round(value, 4) for name, value in seconds.items()},
                "seconds_per_token": round(seconds["total"] / len(statement.tokens), 4),
                "memory_peak_bytes": memory_peak(),
                "security_bits": checked.security_bits,
            },
        )


def commit(model: str | os.PathLike[str] | Model = "tinystories", *, threads: int = 0) -> Card:
    """The card of a model, with the commitment to its weights. Raises ProofError, which says why, for a model that cannot be proven."""
    return Prover(model, threads=threads).card


def prove(
    model: str | os.PathLike[str] | Model = "tinystories",
    prompt: str | Generation | Receipt = "Once upon a time",
    *,
    max_tokens: int = 64,
    temperature: str | float | Decimal = 0.8,
    top_k: int = 40,
    seed: int = 0,
    segment_steps: int = 64,
    threads: int = 0,
    parts: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Proof:
    """Generates, proves, verifies the proof, and gives it. `prompt` may be a generation of this model, or a receipt, in place of text; then the four
    parameters after it are not used. The other parameters are those of `Prover.prove`."""
    loaded = model if isinstance(model, Model) else Model.load(model)
    generation = generate(loaded, prompt, max_tokens=max_tokens, temperature=temperature, top_k=top_k, seed=seed)
    provable(generation)
    return Prover(loaded, threads=threads).prove(
        generation, segment_steps=segment_steps, parts=parts, progress=progress
    )


def generate(
    model: Model,
    prompt: str | Generation | Receipt,
    *,
    max_tokens: int = 64,
    temperature: str | float | Decimal = 0.8,
    top_k: int = 40,
    seed: int = 0,
) -> Generation:
    """The generation to be proven, at its end: of a text, of a receipt (which is replayed), or the one given."""
    if isinstance(prompt, Receipt):
        return _replayed(prompt, model)
    if not isinstance(prompt, Generation):
        prompt = model.generate(prompt, max_tokens=max_tokens, temperature=temperature, top_k=top_k, seed=seed)
    prompt.finish()
    return prompt


def provable(generation: Generation) -> None:
    """ProofError, which says why, for a generation that no proof can be made of."""
    if generation.sampling.top_p != Q16:
        raise ProofError("top_p cannot be proven in this version: only 1 (off); use temperature and top_k")
    if generation.sampling.top_k > MAX_TOP_K:
        raise ProofError(f"top_k {generation.sampling.top_k} cannot be proven: at most {MAX_TOP_K}, or 0 (off)")
    if generation.stop_reason is None:
        raise ArgumentError("the generation has not ended")
    if generation.stop_reason == "stop":
        raise ProofError(
            "a stop string ended this generation and cut its text, which cannot be proven: a proof's text is that of all its tokens"
        )


def remove_parts(parts: str | os.PathLike[str]) -> None:
    """Removes the segments that `prove` kept in a folder, and the folder if nothing else is in it."""
    folder = Path(parts)
    for pattern in ("segment-*.part", "segment-*.tmp"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _replayed(receipt: Receipt, model: Model) -> Generation:
    if receipt.sampling.top_p != Q16:
        raise ProofError("the receipt's top_p cannot be proven in this version: only 1 (off)")
    if receipt.finish_reason == "stop":
        raise ProofError(
            "the receipt's stop strings ended its generation and cut its text, which cannot be proven: a proof's text is that of all its tokens"
        )
    result = replay(receipt, model)
    if not result.valid:
        raise ProofError(f"the receipt is not valid: {result.reason}")
    # As many tokens as were chosen: the limit itself is not part of what is proven.
    generation = Generation(
        model, receipt.prompt_tokens, len(receipt.tokens), receipt.sampling, stop=(), logprobs=False
    )
    generation.finish()
    return generation


def _statement(generation: Generation, segment_steps: int, commitment: str) -> Statement:
    provable(generation)
    if segment_steps not in SEGMENT_STEPS:
        raise ArgumentError(f"segment_steps must be one of {', '.join(map(str, SEGMENT_STEPS))}, not {segment_steps}")
    tokenizer = generation.model.tokenizer
    prompt = tokenizer.decode(generation.prompt_tokens[1:])
    if generation.model.encode(prompt) != generation.prompt_tokens:
        raise ArgumentError("the prompt's tokens are not what a text is encoded to")
    ended = generation.stop_reason == "end"
    steps = len(generation.prompt_tokens) + len(generation.tokens) - 1
    return Statement(
        commitment=commitment,
        prompt=prompt,
        prompt_tokens=tuple(generation.prompt_tokens),
        sampling=generation.sampling,
        tokens=tuple(generation.tokens),
        text=tokenizer.decode(generation.tokens[: -1 if ended else None]),
        finish="end" if ended else "limit",
        segments=tuple(_native.plan_segments(steps, segment_steps.bit_length() - 1)),
    )


def _weights(model: Model) -> IntegerModel:
    """The model's weights from its file; ProofError for a kind of model that no circuit exists for."""
    if model.path is None:
        raise ArgumentError("a model that was loaded from a file is needed")
    weights = read_model(model.path)
    if weights.digest != model.digest:
        raise ModelFormatError(f"{model.path}: changed while it was read")
    if weights.config.scan != "convex":
        raise ProofError(
            f"the model {weights.name!r} cannot be proven: its scan is {weights.config.scan}, only convex can be"
        )
    if weights.config.rotation:
        raise ProofError(f"the model {weights.name!r} cannot be proven: it rotates B and C by position (rotation)")
    return weights


def _shape(weights: IntegerModel) -> str:
    c = weights.config
    shape: dict[str, Any] = {
        name: getattr(c, name)
        for name in ("d_model", "n_layers", "n_heads", "head_dim", "d_state", "vocab_size", "activation", "gate")
    }
    shape |= {
        "norm_mantissa": c.norm_mantissa,
        "embed_mul": weights.embed_mul,
        "logit_shift": weights.logit_shift,
        "in_proj_shift": list(weights.in_proj_shift),
        "out_proj_shift": list(weights.out_proj_shift),
        "k": [weights.tensors[f"blk.{i}.scan.k"].tolist() for i in range(c.n_layers)],
    }
    return json.dumps(shape)


def _tensors(weights: IntegerModel) -> dict[str, bytes]:
    """Each as int32, little-endian, row by row."""
    return {
        name: tensor.astype("<i4", order="C").tobytes()
        for name, tensor in weights.tensors.items()
        if not name.endswith("scan.k")
    }


def _tokenizer(model: Model, weights: IntegerModel) -> str:
    """The tokenizer file in the model, which `model.tokenizer` has found to be a whole one."""
    _ = model.tokenizer
    return weights.tokenizer.decode("utf-8")


def memory_peak() -> int | None:
    """Bytes of memory that this process has used at most; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
