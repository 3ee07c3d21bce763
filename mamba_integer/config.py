"""The shape of a model and its choices of arithmetic: the configuration of spec/FORMAT.md, without anything that training finds.

Letters of the spec: D d_model, L n_layers, H n_heads, P head_dim, N d_state, V vocab_size, E = H·P d_inner.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mamba_integer.errors import ArgumentError

_RANGES = {
    "d_model": (1, 4096),
    "n_layers": (1, 128),
    "n_heads": (1, 1024),
    "head_dim": (1, 256),
    "d_state": (2, 64),
    "vocab_size": (1, 1 << 17),
    "context_length": (0, (1 << 32) - 1),
}
_CHOICES = {
    "scan": ("convex", "literal"),
    "activation": ("silu", "squareplus"),
    "gate": ("silu", "squareplus"),
    "norm_mantissa": (8, 0),
    "norm_scale": ("channel", "scalar"),
    "rotation": (False, True),
    "weights": ("int8", "ternary"),
}
MAX_D_INNER = 8192


@dataclass(frozen=True)
class ModelConfig:
    """A valid configuration; making an invalid one raises ArgumentError with the field's name and what it may be.

    context_length: tokens a training sequence has (0: unknown); the state is constant in length, so this limits nothing.
    scan: ARITHMETIC §7. activation (after the convolution), gate: §3. norm_mantissa: §4. rotation: B and C rotated by position, §10.
    norm_scale: a norm has one scale a channel, or one for all. weights: how in_proj and out_proj are stored.
    """

    d_model: int
    n_layers: int
    n_heads: int
    head_dim: int
    d_state: int
    vocab_size: int
    context_length: int
    scan: str = "convex"
    activation: str = "silu"
    gate: str = "silu"
    norm_mantissa: int = 8
    norm_scale: str = "channel"
    rotation: bool = False
    weights: str = "int8"

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ArgumentError(f"{name} must be an integer from {low} to {high}, not {value!r}")
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if type(value) is not type(allowed[0]) or value not in allowed:
                raise ArgumentError(f"{name} must be {' or '.join(map(repr, allowed))}, not {value!r}")
        if self.d_inner > MAX_D_INNER:
            raise ArgumentError(f"n_heads · head_dim is {self.d_inner}; it must be at most {MAX_D_INNER}")
        if self.d_state & 1:
            raise ArgumentError(f"d_state must be even, not {self.d_state}")

    @property
    def d_inner(self) -> int:
        """E, channels of the scan."""
        return self.n_heads * self.head_dim

    @property
    def d_conv(self) -> int:
        """E + 2N, channels of the convolution: x | B | C."""
        return self.d_inner + 2 * self.d_state

    @property
    def d_in_proj(self) -> int:
        """2E + 2N + H, rows of the input projection: z | x | B | C | dt."""
        return self.d_inner + self.d_conv + self.n_heads

    @property
    def parameters(self) -> int:
        """How many integers training finds: weights, multipliers, scales and biases."""
        d, e, h, scalar = self.d_model, self.d_inner, self.n_heads, self.norm_scale == "scalar"
        linear = self.d_in_proj * (d + 1) + d * (e + 1)
        layer = linear + self.d_conv * 5 + 4 * h + (2 if scalar else d + e)
        return self.vocab_size * d + self.n_layers * layer + (1 if scalar else d)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Raises ArgumentError for a field that is missing, unknown or out of range."""
        fields = {f.name: f.default is dataclasses.MISSING for f in dataclasses.fields(cls)}
        unknown = sorted(set(values) - set(fields))
        missing = [name for name, required in fields.items() if required and name not in values]
        if unknown or missing:
            wrong = [f"unknown: {', '.join(unknown)}"] * bool(unknown) + [f"missing: {', '.join(missing)}"] * bool(
                missing
            )
            raise ArgumentError(f"configuration fields {'; '.join(wrong)}")
        return cls(**values)

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """From a JSON object of fields; those with a default may be left out. Raises ArgumentError."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ArgumentError(f"the configuration is not JSON: {error}") from None
        if not isinstance(values, dict):
            raise ArgumentError("the configuration must be a JSON object")
        return cls.from_dict(values)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ModelConfig:
        """From a JSON file. Raises ArgumentError, which names the file."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ArgumentError) as error:
            raise ArgumentError(f"{os.fspath(path)}: {error}") from None
