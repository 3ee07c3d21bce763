"""The kernels of sums and the public columns of tables (PROTOCOL.md, section 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from .circuit import Interval, Kernel, Public, low_index, prefix_sums
from .field import ONE, ZERO, Ext, Point, eq_table, eval_eq, eval_multilinear, hypercube_point

# A token for every step of a segment, None at a step without one.
Tokens: TypeAlias = tuple[int | None, ...]


def _split(x: Point, time_vars: int) -> tuple[Point, Point]:
    """(x_v, x_time): the time is last."""
    return x[: len(x) - time_vars], x[len(x) - time_vars :]


def _token_at(tokens: Tokens, base: int, over_steps: list[Ext], x_v: Point) -> Ext:
    """Σ_s over_steps[s] · eq(x_v, token_s − base), over the steps with the token in the block."""
    total = ZERO
    for token, weight in zip(tokens, over_steps, strict=True):
        if token is not None and 0 <= token - base < 1 << len(x_v):
            total = total + weight * eval_eq(hypercube_point(token - base, len(x_v)), x_v)
    return total


def _token_below(tokens: Tokens, base: int, over_steps: list[Ext], x_v: Point) -> Ext:
    """Σ_s over_steps[s] · ext[v < token_s − base](x_v), over the steps with a token."""
    total = ZERO
    for token, weight in zip(tokens, over_steps, strict=True):
        if token is not None:
            total = total + weight * prefix_sums(x_v, min(max(token - base, 0), 1 << len(x_v)))[0]
    return total


@dataclass(frozen=True)
class Lag(Kernel):
    """Σ_{s ≥ steps} eq(r, s) · eq(x_time, s − steps)."""

    steps: int

    def value(self, r_time: Point, x: Point) -> Ext:
        at_r, at_x = eq_table(r_time), eq_table(_split(x, len(r_time))[1])
        total = ZERO
        for s in range(self.steps, len(at_r)):
            total = total + at_r[s] * at_x[s - self.steps]
        return total


@dataclass(frozen=True)
class Last(Kernel):
    """eq(x_time, T − 1 − back)."""

    back: int

    def value(self, r_time: Point, x: Point) -> Ext:
        t = len(r_time)
        return eval_eq(hypercube_point((1 << t) - 1 - self.back, t), _split(x, t)[1])


@dataclass(frozen=True)
class Fed(Kernel):
    """Σ_s eq(r, s) · eq(x, fed_s − base)."""

    tokens: Tokens
    base: int

    def value(self, r_time: Point, x: Point) -> Ext:
        return _token_at(self.tokens, self.base, eq_table(r_time), x)


@dataclass(frozen=True)
class TokenBelow(Kernel):
    """Σ_s eq(x_time, s) · ext[v < token_s − base](x_v)."""

    tokens: Tokens
    base: int

    def value(self, r_time: Point, x: Point) -> Ext:
        x_v, x_time = _split(x, len(r_time))
        return _token_below(self.tokens, self.base, eq_table(x_time), x_v)


@dataclass(frozen=True)
class TokenAtColumn(Public):
    """1 where the row's channel is the step's token."""

    tokens: Tokens
    base: int
    time_vars: int

    def value(self, point: Point) -> Ext:
        x_v, x_time = _split(point, self.time_vars)
        return _token_at(self.tokens, self.base, eq_table(x_time), x_v)

    @property
    def interval(self) -> Interval:
        return Interval(0, 1)


@dataclass(frozen=True)
class TokenBelowColumn(Public):
    """1 where the row's channel is below the step's token."""

    tokens: Tokens
    base: int
    time_vars: int

    def value(self, point: Point) -> Ext:
        x_v, x_time = _split(point, self.time_vars)
        return _token_below(self.tokens, self.base, eq_table(x_time), x_v)

    @property
    def interval(self) -> Interval:
        return Interval(0, 1)


@dataclass(frozen=True)
class Values(Public):
    """A function of some consecutive variables of the table, from `first` on, by its values."""

    first: int
    values: tuple[int, ...]

    def value(self, point: Point) -> Ext:
        k = len(self.values).bit_length() - 1
        return eval_multilinear(self.values, point[self.first : self.first + k])

    @property
    def interval(self) -> Interval:
        return Interval(min(self.values), max(self.values))


@dataclass(frozen=True)
class Below(Public):
    """1 where the number made of the first `num_vars` variables is below the bound, else 0."""

    num_vars: int
    bound: int

    def value(self, point: Point) -> Ext:
        return prefix_sums(point[: self.num_vars], self.bound)[0]

    @property
    def interval(self) -> Interval:
        return Interval(0, 1)


@dataclass(frozen=True)
class Index(Public):
    """base + the number made of the first `num_vars` variables."""

    num_vars: int
    base: int

    def value(self, point: Point) -> Ext:
        return ONE * self.base + low_index(point[: self.num_vars])

    @property
    def interval(self) -> Interval:
        return Interval(self.base, self.base + (1 << self.num_vars) - 1)
