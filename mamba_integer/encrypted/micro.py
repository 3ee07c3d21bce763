"""The low-bit profile, ARITHMETIC section 12: a character-level integer Mamba of which every nonlinear step is a table of 32 entries.

`MicroModel.step` is the plain integer model in the words of the spec. `MicroModel.circuit` says the same as a list of cells, each a table applied to a
small integer combination of earlier values: that is what the server evaluates on ciphertexts. Knows NumPy; knows no cryptography and no PyTorch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mamba_integer import arithmetic as ar
from mamba_integer.errors import ArgumentError, ModelFormatError
from mamba_integer.files import write_atomically

Ints = npt.NDArray[np.int64]

ALPHABET = "\n abcdefghijklmnopqrstuvwxyz.,'?"  # the first begins and ends every text
TAPS = 4  # of the convolution
ENTRIES = 32  # of a table, for −16 … 15
REACH = 15  # what a table's input may come to
RESIDUAL = (-2, 2)
HISTORY = (-3, 3)  # what the convolution sees
SIGNAL = (-4, 3)  # three bits, packed with a share
SHARE = (0, 3)  # two bits: B, C and the gate, in thirds
WRITE = (-4, 4)
STATE = (-11, 11)
OUTPUT = (-1, 1)
OUT_UNITS = 13  # of a row of out_proj: with the residual 2 + 13 = 15
FINAL = (-4, 4)  # what the head reads: the residual and the last layer's outputs
HEAD = (-6, 6)
BIAS = (-127, 127)
LOGIT_SHIFT = 4  # a logit l stands for l / 16
LOGIT_LIMIT = 1 << 11  # (16 + 64) · 4 · 6 + 127 < 2^11
LOGIT_NORM = 32  # the most that the 2-norm of a row of the head may be

FORMAT = "mamba-integer-micro-1"
MAX_BYTES = 1 << 22
_DIMENSIONS = {"d_model": (8, 16), "n_layers": (1, 2), "n_heads": (1, 64), "d_inner": (8, 64), "vocab_size": (32, 32)}


def units(digits: tuple[int, int]) -> int:
    """What the magnitudes of a row's weights may sum to if its inputs are `digits`."""
    return REACH // max(-digits[0], digits[1])


@dataclass(frozen=True)
class MicroConfig:
    """Shape of a micro model: D d_model, E d_inner, H n_heads that share B and C. ArgumentError for a field out of range."""

    d_model: int
    n_layers: int
    n_heads: int
    d_inner: int
    vocab_size: int = len(ALPHABET)

    def __post_init__(self) -> None:
        for name, (low, high) in _DIMENSIONS.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ArgumentError(f"{name} must be an integer from {low} to {high}, not {value!r}")
        if self.d_inner % self.n_heads:
            raise ArgumentError(f"d_inner {self.d_inner} must be a multiple of n_heads {self.n_heads}")

    @classmethod
    def from_dict(cls, values: object) -> MicroConfig:
        """From the fields of a JSON object. Raises ArgumentError."""
        names = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(values, dict) or not names >= set(values) >= names - {"vocab_size"}:
            raise ArgumentError(f"a micro model's configuration has the fields {', '.join(sorted(names))}")
        return cls(**values)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> MicroConfig:
        """From a JSON file. Raises ArgumentError, which names the file."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ArgumentError(f"{os.fspath(path)}: {error}") from None

    def tensors(self) -> dict[str, tuple[tuple[int, ...], tuple[int, int]]]:
        """Name → shape and range of every tensor. Tables are [channels, 32], the entry for −16 first."""
        D, E, H, V = self.d_model, self.d_inner, self.n_heads, self.vocab_size
        free = (-REACH, REACH)
        found: dict[str, tuple[tuple[int, ...], tuple[int, int]]] = {
            "embedding": ((V, D), RESIDUAL),
            "front": ((V, E + 2 * H), HISTORY),
            "front_gate": ((V, E), SHARE),
            "final": ((D, ENTRIES), FINAL),
            "head": ((V, D + E), HEAD),
            "bias": ((V,), BIAS),
        }
        for i in range(self.n_layers):
            if i:
                found[f"{i}.in_proj"] = ((2 * E + 2 * H, D), free)
                found[f"{i}.project"] = ((E + 2 * H, ENTRIES), HISTORY)
                found[f"{i}.gate"] = ((E, ENTRIES), SHARE)
            found[f"{i}.conv"] = ((E + 2 * H, TAPS), free)
            found[f"{i}.act"] = ((E, ENTRIES), SIGNAL)
            found[f"{i}.share"] = ((2 * H, ENTRIES), SHARE)
            found[f"{i}.write"] = ((E, ENTRIES), WRITE)
            found[f"{i}.decay"] = ((E, ENTRIES), STATE)
            found[f"{i}.read"] = ((E, ENTRIES), SIGNAL)
            found[f"{i}.out"] = ((E, ENTRIES), SIGNAL)
            last = i + 1 == self.n_layers
            found[f"{i}.gated"] = ((E, ENTRIES), FINAL if last else OUTPUT)
            if not last:
                found[f"{i}.out_proj"] = ((D, E), free)
                found[f"{i}.residual"] = ((D, ENTRIES), RESIDUAL)
        return found


@dataclass
class Circuit:
    """One step as cells over values that are numbered in this order: state, token forms, cells.

    initial: the state before the first character. forms: [F][V], functions of the character alone. cells: (terms, table), the terms [(value, weight)] of
    values before it. fine: which cells are read by the logits alone. state: the value that each state becomes. logits: (terms, bias) for each character.
    """

    initial: list[int]
    forms: list[list[int]]
    cells: list[tuple[list[tuple[int, int]], list[int]]]
    fine: list[int]
    state: list[int]
    logits: list[tuple[list[tuple[int, int]], int]]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"))

    def step(self, state: list[int], token: int) -> tuple[list[int], list[int]]:
        """(logits, next state) on plain integers: what the server computes on ciphertexts."""
        values = [*state, *(form[token] for form in self.forms)]
        for terms, table in self.cells:
            values.append(table[sum(values[v] * w for v, w in terms) + 16])
        logits = [sum(values[v] * w for v, w in terms) + bias for terms, bias in self.logits]
        return logits, [values[v] for v in self.state]


@dataclass
class LayerState:
    """conv: the last three digits of every channel of the convolution [..., E + 2H, 3], oldest first. h: [..., E]."""

    conv: Ints
    h: Ints


class MicroModel:
    """A valid micro model: ModelFormatError for a tensor that is missing, of another shape, or out of range, or a row that spends too much."""

    def __init__(self, config: MicroConfig, name: str, about: str, tensors: dict[str, Ints]) -> None:
        self.config, self.name, self.about = config, name, about
        self.tensors: dict[str, Ints] = {}
        expected = config.tensors()
        if unknown := tensors.keys() - expected.keys():
            raise ModelFormatError(f"unknown tensor {min(unknown)!r}")
        for key, (shape, (low, high)) in expected.items():
            if key not in tensors:
                raise ModelFormatError(f"tensor {key!r} is missing")
            tensor = tensors[key]
            if tensor.shape != shape or tensor.dtype != np.int64:
                raise ModelFormatError(f"tensor {key!r} must be integers of the shape {list(shape)}")
            if tensor.min() < low or tensor.max() > high:
                raise ModelFormatError(f"tensor {key!r}: {tensor.min()} … {tensor.max()} is outside {low} … {high}")
            limit = {"conv": units(HISTORY), "in_proj": units(RESIDUAL), "out_proj": OUT_UNITS}.get(key.split(".")[-1])
            if limit is not None and int(np.abs(tensor).sum(-1).max()) > limit:
                raise ModelFormatError(f"tensor {key!r}: a row's magnitudes sum to more than {limit}")
            self.tensors[key] = tensor
        if int((self.tensors["head"] ** 2).sum(-1).max()) > LOGIT_NORM**2:
            raise ModelFormatError(f"tensor 'head': the 2-norm of a row is more than {LOGIT_NORM}")
        self.reset()

    # ---- the plain model ---------------------------------------------------------------------------------------------

    def reset(self, batch: tuple[int, ...] = ()) -> None:
        """Back to the zero state, for one sequence or a batch of them."""
        c = self.config
        self.state = [
            LayerState(
                np.zeros((*batch, c.d_inner + 2 * c.n_heads, TAPS - 1), np.int64),
                np.zeros((*batch, c.d_inner), np.int64),
            )
            for _ in range(c.n_layers)
        ]

    def step(self, token: npt.ArrayLike) -> Ints:
        """Feeds one character, or one for each sequence [...]: logits [..., V]."""
        t = self.tensors
        token = ar.within("token", token, 0, self.config.vocab_size - 1)
        r, history, gate = t["embedding"][token], t["front"][token], t["front_gate"][token]
        for i in range(self.config.n_layers):
            if i:
                p = r @ t[f"{i}.in_proj"].T
                E = self.config.d_inner
                history, gate = look_up(t[f"{i}.project"], p[..., E:]), look_up(t[f"{i}.gate"], p[..., :E])
            o = self._scan(i, history, gate)
            if i + 1 < self.config.n_layers:
                r = look_up(t[f"{i}.residual"], r + o @ t[f"{i}.out_proj"].T)
        logits: Ints = np.concatenate([look_up(t["final"], r), o], axis=-1) @ t["head"].T + t["bias"]
        return logits

    def _scan(self, i: int, history: Ints, gate: Ints) -> Ints:
        """The layer between its projections: digits [..., E + 2H] and gate [..., E] to outputs [..., E]."""
        c, state = self.config, self.state[i]
        E = c.d_inner

        def table(part: str, s: Ints) -> Ints:
            return look_up(self.tensors[f"{i}.{part}"], s)

        taps = np.concatenate([state.conv, history[..., None]], axis=-1)
        state.conv = taps[..., 1:]
        conv = (taps * self.tensors[f"{i}.conv"]).sum(-1)
        x, shares = table("act", conv[..., :E]), table("share", conv[..., E:])
        B, C = np.split(np.repeat(shares, E // c.n_heads, axis=-1), 2, axis=-1)
        s = state.h + table("write", 4 * x + B)
        state.h = table("decay", s)
        y = table("out", 4 * table("read", s) + C)
        return table("gated", 4 * y + gate)

    def logits(self, tokens: npt.ArrayLike) -> Ints:
        """Logits [..., T, V] after each of tokens [..., T], from the zero state."""
        tokens = ar.ints(tokens)
        self.reset(tokens.shape[:-1])
        return np.stack([self.step(tokens[..., t]) for t in range(tokens.shape[-1])], axis=-2)

    # ---- the same as cells -------------------------------------------------------------------------------------------

    @property
    def tables(self) -> int:
        """Tables, that is bootstraps, a character."""
        return len(self.circuit().cells)

    def circuit(self) -> Circuit:
        c, t = self.config, self.tensors
        D, E, H, V = c.d_model, c.d_inner, c.n_heads, c.vocab_size
        channels = E + 2 * H
        per_layer = channels * (TAPS - 1) + E
        n_state = c.n_layers * per_layer
        forms = [*t["embedding"].T.tolist(), *t["front"].T.tolist(), *t["front_gate"].T.tolist()]
        out = Circuit([0] * n_state, forms, [], [], [], [])
        r, history, gate = (
            range(n_state, n_state + D),
            range(n_state + D, n_state + D + channels),
            range(n_state + D + channels, n_state + D + channels + E),
        )

        def row(weights: Ints, values: Any) -> list[tuple[int, int]]:
            return [(v, int(w)) for v, w in zip(values, weights, strict=True) if w]

        def cells(table: Ints, inputs: list[list[tuple[int, int]]]) -> range:
            first = n_state + len(forms) + len(out.cells)
            out.cells += zip(inputs, table.tolist(), strict=True)
            return range(first, first + len(inputs))

        for i in range(c.n_layers):

            def part(name: str, inputs: list[list[tuple[int, int]]], layer: int = i) -> range:
                return cells(t[f"{layer}.{name}"], inputs)

            if i:
                rows = [row(w, r) for w in t[f"{i}.in_proj"]]
                gate, history = part("gate", rows[:E]), part("project", rows[E:])
            base = i * per_layer
            past = [[base + 3 * n + k for k in range(TAPS - 1)] for n in range(channels)]
            h = range(base + 3 * channels, base + per_layer)
            for n in range(channels):
                out.state += [past[n][1], past[n][2], history[n]]
            conv = [row(w, [*past[n], history[n]]) for n, w in enumerate(t[f"{i}.conv"])]
            x, shares = part("act", conv[:E]), part("share", conv[E:])
            head = [n * H // E for n in range(E)]
            v = part("write", [[(x[n], 4), (shares[head[n]], 1)] for n in range(E)])
            s = [[(h[n], 1), (v[n], 1)] for n in range(E)]
            out.state += part("decay", s)
            q = part("read", s)
            y = part("out", [[(q[n], 4), (shares[H + head[n]], 1)] for n in range(E)])
            o = part("gated", [[(y[n], 4), (gate[n], 1)] for n in range(E)])
            if i + 1 < c.n_layers:
                r = part("residual", [[(r[d], 1), *row(w, o)] for d, w in enumerate(t[f"{i}.out_proj"])])
        read = [*cells(t["final"], [[(v, 1)] for v in r]), *o]
        out.fine = [v - n_state - len(forms) for v in read]
        out.logits = [(row(t["head"][v], read), int(t["bias"][v])) for v in range(V)]
        return out

    # ---- the file ----------------------------------------------------------------------------------------------------

    @property
    def digest(self) -> str:
        """SHA-256 over configuration and tensors, 64 hexadecimal digits."""
        sha = hashlib.sha256(FORMAT.encode() + json.dumps(dataclasses.asdict(self.config), sort_keys=True).encode())
        for key in sorted(self.tensors):
            sha.update(key.encode() + b"\0" + self.tensors[key].astype("<i8").tobytes())
        return sha.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        tensors = {key: t.tolist() for key, t in self.tensors.items()}
        head = {"format": FORMAT, "name": self.name, "about": self.about, "digest": self.digest}
        data = json.dumps(
            {**head, "config": dataclasses.asdict(self.config), "tensors": tensors}, separators=(",", ":")
        )
        write_atomically(path, data.encode() + b"\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> MicroModel:
        """Reads a micro model. ModelFormatError, which names file and cause, for anything that is not one."""
        try:
            with Path(path).open("rb") as file:
                return cls.parse(file.read(MAX_BYTES + 1))
        except (OSError, ModelFormatError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ModelFormatError(f"{os.fspath(path)}: {reason}") from None

    @classmethod
    def parse(cls, data: bytes) -> MicroModel:
        if len(data) > MAX_BYTES:
            raise ModelFormatError("too large for a micro model")
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            raise ModelFormatError("not a micro model: not JSON") from None
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ModelFormatError(f"not a micro model of the format {FORMAT}")
        name, about, tensors = found.get("name"), found.get("about"), found.get("tensors")
        if not isinstance(name, str) or not isinstance(about, str) or not isinstance(tensors, dict):
            raise ModelFormatError("name, about or tensors are missing")
        try:
            config = MicroConfig.from_dict(found.get("config"))
        except ArgumentError as error:
            raise ModelFormatError(str(error)) from None
        model = cls(config, name, about, {key: _array(key, value) for key, value in tensors.items()})
        if found.get("digest") != model.digest:
            raise ModelFormatError(f"damaged or altered: its contents have the digest {model.digest}")
        return model


def look_up(table: Ints, s: Ints) -> Ints:
    """Entry s of each channel's table: table [channels, 32], s [..., channels], −16 ≤ s ≤ 15."""
    s = ar.within("a table's input", s, -16, 15)
    out: Ints = table[np.arange(table.shape[0]), s + 16]
    return out


def _array(key: str, value: object) -> Ints:
    try:
        array = np.array(value)
    except ValueError:
        array = np.zeros(0)
    if array.dtype != np.int64:
        raise ModelFormatError(f"tensor {key!r} is not an array of integers")
    return array


def encode(text: str) -> list[int]:
    """Characters to numbers. ArgumentError for a character outside the alphabet."""
    at = {character: i for i, character in enumerate(ALPHABET)}
    for character in text:
        if character not in at:
            raise ArgumentError(f"the micro model has no character {character!r}; it has a-z, space, newline and .,'?")
    return [at[character] for character in text]
