"""Sampling parameters to integers, by exact decimal arithmetic."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamba_integer.errors import ArgumentError
from mamba_integer.sampling import MAX_TEMPERATURE, Q16, Sampling, parse_q16


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("1", 65536),
        ("0.8", 52429),  # 52428.8
        (".5", 32768),
        ("2.", 131072),
        ("64", MAX_TEMPERATURE),
        ("0.00000762939453125", 1),  # exactly half a unit: up
        ("0.0000076293945312499999999999999999999999", 0),
        ("0.000022888183593750", 2),  # exactly one and a half
    ],
)
def test_temperature_rounds_half_up(text: str, expected: int) -> None:
    assert Sampling.parse(temperature=text).temperature == expected


@given(st.integers(0, 64 * 10**12), st.integers(0, 12))
def test_decimals_are_exact(digits: int, places: int) -> None:
    value = Fraction(digits, 10**places)
    expected = (value * Q16 * 2 + 1) // 2
    if expected > MAX_TEMPERATURE:
        return
    text = f"{Decimal(digits).scaleb(-places):f}"
    assert parse_q16("temperature", text, 0, MAX_TEMPERATURE) == expected


@given(st.floats(0, 64, allow_nan=False))
def test_a_float_is_its_shortest_decimal(value: float) -> None:
    text = f"{Decimal(repr(value)):f}"
    assert Sampling.parse(temperature=value).temperature == Sampling.parse(temperature=Decimal(text)).temperature


@pytest.mark.parametrize(
    "text", ["", "-1", "+1", "1e3", "nan", "inf", "0x1", "1_0", "0,8", "65", "64.00001", "9" * 60, "٣"]
)
def test_bad_temperatures(text: str) -> None:
    with pytest.raises(ArgumentError, match="temperature"):
        Sampling.parse(temperature=text)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5, True, Decimal("NaN"), Decimal("1e400")])
def test_bad_temperature_values(value: float | Decimal) -> None:
    with pytest.raises(ArgumentError, match="temperature"):
        Sampling.parse(temperature=value)


@pytest.mark.parametrize("text", ["0", "0.000001", "1.1"])
def test_bad_top_p(text: str) -> None:
    with pytest.raises(ArgumentError, match="top_p"):
        Sampling.parse(top_p=text)


@pytest.mark.parametrize(
    ("name", "value"), [("top_k", -1), ("top_k", 1.5), ("seed", -1), ("seed", 1 << 64), ("seed", "1")]
)
def test_bad_integers(name: str, value: object) -> None:
    with pytest.raises(ArgumentError, match=name):
        Sampling(**{name: value})  # type: ignore[arg-type]


def test_defaults_are_greedy_and_off() -> None:
    assert Sampling.parse() == Sampling(temperature=0, top_k=0, top_p=Q16, seed=0)
