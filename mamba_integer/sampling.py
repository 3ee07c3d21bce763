"""Sampling parameters as people write them, turned once into the integers of ARITHMETIC section 11.

A decimal such as 0.8 becomes a Q16 integer by exact decimal arithmetic, halves rounded up; a float counts as the shortest decimal that names it, so that
0.8, "0.8" and the standalone engine's `--temperature 0.8` are the same integer. Choosing tokens is the engine's (or the reference's) work.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Context, Decimal

from mamba_integer.errors import ArgumentError

Q16 = 1 << 16
MAX_TEMPERATURE = 1 << 22  # 64 in Q16
MAX_SEED = (1 << 64) - 1
_DECIMAL = re.compile(r"(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})")
_EXACT = Context(prec=200, rounding=ROUND_HALF_UP)


@dataclass(frozen=True)
class Sampling:
    """The sampling integers.

    temperature: Q16, 0 is greedy, at most 2^22. top_k: 0 is off. top_p: Q16, 1 … 65536, 65536 is off. seed: 64 bits, unsigned.
    """

    temperature: int = 0
    top_k: int = 0
    top_p: int = Q16
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0, MAX_TEMPERATURE),
            ("top_k", 0, (1 << 32) - 1),
            ("top_p", 1, Q16),
            ("seed", 0, MAX_SEED),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise ArgumentError(f"{name} must be an integer from {low} to {high}, not {value!r}")

    @classmethod
    def parse(
        cls,
        temperature: str | float | Decimal = 0,
        top_k: int = 0,
        top_p: str | float | Decimal = 1,
        seed: int = 0,
    ) -> Sampling:
        """From real numbers: temperature 0 … 64, top_p above 0 and at most 1. Raises ArgumentError."""
        return cls(
            parse_q16("temperature", temperature, 0, MAX_TEMPERATURE), top_k, parse_q16("top_p", top_p, 1, Q16), seed
        )


def parse_q16(name: str, value: str | float | Decimal, low: int, high: int) -> int:
    """floor(value · 2^16 + 1/2) in exact decimal arithmetic; ArgumentError unless the result is within low … high (Q16)."""
    if isinstance(value, str):
        number = Decimal(value) if _DECIMAL.fullmatch(value) else None
    elif isinstance(value, bool):
        number = None
    else:
        number = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
        number = number if number.is_finite() else None
    if number is None or not -1 < number < 1 << 20:
        raise ArgumentError(f"{name} must be a decimal number such as 0.8, not {value!r}")
    scaled = int(_EXACT.multiply(number, Decimal(Q16)).to_integral_value(rounding=ROUND_HALF_UP, context=_EXACT))
    if number < 0 or not low <= scaled <= high:
        raise ArgumentError(f"{name} must be from {low / Q16:g} to {high / Q16:g}, not {value}")
    return scaled
