"""Circuits as data: slots, tables, columns, constraints, lookups, sums, ranges (PROTOCOL.md, section 2)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, NamedTuple, TypeAlias

from .field import ONE, ZERO, Ext, P, Point

# -- slots --------------------------------------------------------------------------------------------------------


class Oracle(Enum):
    """The commitment that a slot belongs to."""

    MODEL = "model"
    STATE_IN = "state in"
    STATE_OUT = "state out"
    TRACE = "trace"


class Interval(NamedTuple):
    """The integers low … high."""

    low: int
    high: int

    def __add__(self, other: Interval) -> Interval:  # type: ignore[override]
        return Interval(self.low + other.low, self.high + other.high)

    def __mul__(self, other: Interval) -> Interval:  # type: ignore[override]
        corners = [a * b for a in self for b in other]
        return Interval(min(corners), max(corners))

    def scaled(self, c: int) -> Interval:
        """c times every member."""
        return self * Interval(c, c)


@dataclass(frozen=True)
class Slot:
    """One committed polynomial; `index` numbers the slots of its oracle."""

    oracle: Oracle
    index: int
    num_vars: int
    interval: Interval
    name: str = ""


# A point's coordinate: ("r", j) is the coordinate of the main sumcheck's point that has j others behind it; ("q", j)
# is one of the second sumcheck's point. So two points are the same exactly if these tuples are equal.
Coordinate: TypeAlias = tuple[Literal["r", "q"], int]


class Place(NamedTuple):
    """A slot at a point."""

    slot: Slot
    point: tuple[Coordinate, ...]


# -- expressions in the columns of a table ------------------------------------------------------------------------


class Expr(ABC):
    """A polynomial in the columns of a table. Ints mix in."""

    def __add__(self, other: Expr | int) -> Expr:
        return Combination(0, ((1, self), (1, other))) if isinstance(other, Expr) else Combination(other, ((1, self),))

    __radd__ = __add__

    def __neg__(self) -> Expr:
        return Combination(0, ((-1, self),))

    def __sub__(self, other: Expr | int) -> Expr:
        if isinstance(other, Expr):
            return Combination(0, ((1, self), (-1, other)))
        return Combination(-other, ((1, self),))

    def __rsub__(self, other: int) -> Expr:
        return Combination(other, ((-1, self),))

    def __mul__(self, other: Expr | int) -> Expr:
        return Product(self, other) if isinstance(other, Expr) else Combination(0, ((other, self),))

    __rmul__ = __mul__

    @abstractmethod
    def value(self, columns: Sequence[Ext]) -> Ext:
        """The value, given those of the table's columns."""

    @abstractmethod
    def interval(self, columns: Sequence[Interval]) -> Interval:
        """Where the integer value lies if the columns are in their intervals."""

    @property
    @abstractmethod
    def degree(self) -> int:
        """The degree, not reduced by cancellation."""


@dataclass(frozen=True)
class Col(Expr):
    """The column of this number in its table."""

    index: int

    def value(self, columns: Sequence[Ext]) -> Ext:
        return columns[self.index]

    def interval(self, columns: Sequence[Interval]) -> Interval:
        return columns[self.index]

    @property
    def degree(self) -> int:
        return 1


@dataclass(frozen=True)
class Combination(Expr):
    """constant + Σ coefficient · expression."""

    constant: int
    terms: tuple[tuple[int, Expr], ...] = ()

    def value(self, columns: Sequence[Ext]) -> Ext:
        total = Ext.of(self.constant)
        for c, term in self.terms:
            v = term.value(columns)
            total = total + v if c == 1 else total - v if c == -1 else total + v * c
        return total

    def interval(self, columns: Sequence[Interval]) -> Interval:
        total = Interval(self.constant, self.constant)
        for c, term in self.terms:
            total = total + term.interval(columns).scaled(c)
        return total

    @property
    def degree(self) -> int:
        return max((term.degree for _, term in self.terms), default=0)


@dataclass(frozen=True)
class Product(Expr):
    """The product of two expressions."""

    left: Expr
    right: Expr

    def value(self, columns: Sequence[Ext]) -> Ext:
        return self.left.value(columns) * self.right.value(columns)

    def interval(self, columns: Sequence[Interval]) -> Interval:
        a = self.left.interval(columns)
        if self.left == self.right:  # a square
            ends = [a.low * a.low, a.high * a.high]
            return Interval(0 if a.low <= 0 <= a.high else min(ends), max(ends))
        return a * self.right.interval(columns)

    @property
    def degree(self) -> int:
        return self.left.degree + self.right.degree


def const(value: int) -> Expr:
    """A constant."""
    return Combination(value)


def linear(terms: Iterable[tuple[int, Expr]], constant: int = 0) -> Expr:
    """constant + Σ coefficient · expression."""
    return Combination(constant, tuple(terms))


# -- columns ------------------------------------------------------------------------------------------------------


class Public(ABC):
    """A polynomial that the verifier evaluates."""

    @abstractmethod
    def value(self, point: Point) -> Ext:
        """The value at the table's point."""

    @property
    @abstractmethod
    def interval(self) -> Interval:
        """Where the values on the hypercube lie."""


@dataclass(frozen=True)
class SlotColumn:
    """Variable i of the slot is variable vars[i] of the table."""

    slot: Slot
    vars: tuple[int, ...]

    def place(self, table_vars: int) -> Place:
        """The slot at the point of the table."""
        return Place(self.slot, tuple(("r", table_vars - 1 - v) for v in self.vars))


@dataclass(frozen=True)
class PublicColumn:
    """A column that the verifier evaluates."""

    public: Public


@dataclass(frozen=True)
class SumColumn:
    """The sum of this number."""

    sum: int
    interval: Interval


Column: TypeAlias = SlotColumn | PublicColumn | SumColumn


class Constraint(NamedTuple):
    """A polynomial that is zero in every row.

    If it stands for an identity of integers, its integer value lies in `bounds`, or, where that is None, in what its
    columns' intervals say; `integer` is False if it means no more than the equation in the field.
    """

    expr: Expr
    integer: bool = True
    bounds: Interval | None = None
    name: str = ""


class Lookup(NamedTuple):
    """`numerator` / 2^shift (in the field) lies in the range of index `range`, in the rows that the selector selects:
    where the product of these columns is 1."""

    numerator: Expr
    range: Expr
    shift: int = 0
    selector: tuple[int, ...] = ()
    name: str = ""

    def value(self, columns: Sequence[Ext]) -> Ext:
        """What is looked up."""
        return self.numerator.value(columns) * pow(2, -self.shift, P)


@dataclass
class Table:
    """2^num_vars rows."""

    name: str
    num_vars: int
    columns: list[Column] = field(default_factory=list)
    constraints: list[Constraint] = field(default_factory=list)
    lookups: list[Lookup] = field(default_factory=list)


# -- sums ---------------------------------------------------------------------------------------------------------

# What a variable of a slot in a sum is bound to: coordinate i of the table's point, or variable i of the summation.
Binding: TypeAlias = tuple[Literal["r", "x"], int]


class Kernel(ABC):
    """A public polynomial in the time coordinates of the table's point and in the variables of the summation."""

    @abstractmethod
    def value(self, r_time: Point, x: Point) -> Ext:
        """Its value."""


class Part(NamedTuple):
    """coefficient · slot(bound variables)."""

    coefficient: int
    slot: Slot
    bindings: tuple[Binding, ...]


class Form(NamedTuple):
    """constant + Σ parts."""

    parts: tuple[Part, ...]
    constant: int = 0


Factor: TypeAlias = Form | Kernel


class Term(NamedTuple):
    """coefficient · Σ_{x ∈ {0,1}^num_vars} Π factors(x)."""

    coefficient: int
    num_vars: int
    factors: tuple[Factor, ...]


class Carry(NamedTuple):
    """coefficient · w(r) · slot(r restricted); w is 1 (step None) or eq(r_time, step)."""

    coefficient: int
    slot: Slot
    vars: tuple[int, ...]
    step: int | None = None


@dataclass(frozen=True)
class Sum:
    """A function of the point of a table of `table_vars` variables. A link is zero there."""

    table_vars: int
    terms: tuple[Term, ...]
    carries: tuple[Carry, ...] = ()
    link: bool = False
    name: str = ""

    def carry_place(self, carry: Carry) -> Place:
        """The slot of a carry at its point."""
        return Place(carry.slot, tuple(("r", self.table_vars - 1 - v) for v in carry.vars))

    def part_place(self, term: Term, part: Part) -> Place:
        """The slot of a part at its point."""
        point: list[Coordinate] = []
        for kind, i in part.bindings:
            point.append(("r", self.table_vars - 1 - i) if kind == "r" else ("q", term.num_vars - 1 - i))
        return Place(part.slot, tuple(point))


# -- circuits -----------------------------------------------------------------------------------------------------


def log2_ceil(n: int) -> int:
    """The least k with 2^k ≥ n."""
    return max(n - 1, 0).bit_length()


@dataclass
class Circuit:
    """What prover and verifier both build from public facts. `time_vars` is t: a segment has 2^t steps."""

    time_vars: int
    slots: dict[Oracle, list[Slot]] = field(default_factory=lambda: {oracle: [] for oracle in Oracle})
    tables: list[Table] = field(default_factory=list)
    sums: list[Sum] = field(default_factory=list)
    ranges: list[int] = field(default_factory=list)

    def slot(self, oracle: Oracle, num_vars: int, low: int, high: int, name: str = "") -> Slot:
        """A new slot, the next of its oracle."""
        slots = self.slots[oracle]
        slots.append(Slot(oracle, len(slots), num_vars, Interval(low, high), name))
        return slots[-1]

    def range(self, size: int) -> int:
        """The index of the range 0 … size − 1, which is added if there is none of this size yet."""
        if size not in self.ranges:
            self.ranges.append(size)
        return self.ranges.index(size)

    @property
    def log_ranges(self) -> int:
        """Number of variables of the multiplicities."""
        return log2_ceil(sum(self.ranges))

    @property
    def multiplicities(self) -> Slot:
        """The last slot of the trace."""
        return Slot(Oracle.TRACE, len(self.slots[Oracle.TRACE]), self.log_ranges, Interval(0, P - 1), "multiplicities")

    def shape(self, oracle: Oracle) -> list[int]:
        """Numbers of variables of an oracle's slots; the trace ends with the multiplicities."""
        sizes = [slot.num_vars for slot in self.slots[oracle]]
        return [*sizes, self.log_ranges] if oracle is Oracle.TRACE else sizes

    @property
    def max_table_vars(self) -> int:
        """K of the main sumcheck."""
        return max(self.log_ranges, *(table.num_vars for table in self.tables))

    @property
    def max_term_vars(self) -> int:
        """m_max of the second sumcheck."""
        return max((term.num_vars for s in self.sums for term in s.terms), default=0)

    @property
    def num_constraints(self) -> int:
        """M."""
        return sum(len(table.constraints) for table in self.tables)

    def first_places(self) -> list[Place]:
        """The slot values of step 6a, in order."""
        places: dict[Place, None] = {}
        for table in self.tables:
            for column in table.columns:
                if isinstance(column, SlotColumn):
                    places.setdefault(column.place(table.num_vars))
        for s in self.sums:
            for carry in s.carries:
                places.setdefault(s.carry_place(carry))
        places.setdefault(
            Place(self.multiplicities, tuple(("r", self.log_ranges - 1 - i) for i in range(self.log_ranges)))
        )
        return list(places)

    def column_sums(self) -> list[int]:
        """The sums of step 6b: those that are columns, in order of the sums."""
        return [i for i, s in enumerate(self.sums) if not s.link]

    def second_places(self) -> list[Place]:
        """The slot values of step 8, in order."""
        places: dict[Place, None] = {}
        for s in self.sums:
            for term in s.terms:
                for factor in term.factors:
                    if isinstance(factor, Form):
                        for part in factor.parts:
                            places.setdefault(s.part_place(term, part))
        return list(places)

    def leaf_blocks(self) -> list[tuple[int, tuple[Table, Lookup] | None]]:
        """(log2 of the length, lookup or None for the ranges), longest first; lookups in order, the ranges last."""
        blocks: list[tuple[int, tuple[Table, Lookup] | None]] = [
            (table.num_vars, (table, lookup)) for table in self.tables for lookup in table.lookups
        ]
        blocks.append((self.log_ranges, None))
        return sorted(blocks, key=lambda block: -block[0])

    def check(self) -> None:
        """What makes field equations mean integer equations (section 2). ValueError for a circuit that is not sound."""
        used: set[int] = set()
        for table in self.tables:
            bounds = list(self.column_intervals(table))
            for constraint in table.constraints:
                where = f"{table.name}: {constraint.name}"
                if constraint.expr.degree > 3:
                    raise ValueError(f"{where}: degree above 3")
                low, high = constraint.bounds or constraint.expr.interval(bounds)
                if constraint.integer and not -P < low <= high < P:
                    raise ValueError(f"{where}: {low} … {high} wraps")
            for lookup in table.lookups:
                where = f"{table.name}: {lookup.name}"
                if max(lookup.numerator.degree, lookup.range.degree) > 1:
                    raise ValueError(f"{where}: a lookup is a linear form")
                if not all(isinstance(table.columns[i], PublicColumn) for i in lookup.selector):
                    raise ValueError(f"{where}: selectors are public")
                index = lookup.range.interval(bounds)
                if not 0 <= index.low <= index.high < len(self.ranges):
                    raise ValueError(f"{where}: no such range")
                low, high = lookup.numerator.interval(bounds)
                size = max(self.ranges[index.low : index.high + 1]) << lookup.shift
                if not (size < P and low > size - P and high < P):
                    raise ValueError(f"{where}: {low} … {high} wraps around a range of {size}")
            for column in table.columns:
                if isinstance(column, SumColumn):
                    used.add(column.sum)
                    if self.sums[column.sum].link or self.sums[column.sum].table_vars != table.num_vars:
                        raise ValueError(f"{table.name}: not a sum for this table")
        if used != set(self.column_sums()):
            raise ValueError("a sum that is no link is the column of a table")
        for s in self.sums:
            if any(len(term.factors) > 3 for term in s.terms):
                raise ValueError(f"{s.name}: more than three factors")

    def column_intervals(self, table: Table) -> Iterator[Interval]:
        """The interval of every column of a table."""
        for column in table.columns:
            match column:
                case SlotColumn():
                    if len(column.vars) != column.slot.num_vars or any(
                        not 0 <= v < table.num_vars for v in column.vars
                    ):
                        raise ValueError(f"{table.name}: {column.slot.name} is bound wrongly")
                    yield column.slot.interval
                case PublicColumn():
                    yield column.public.interval
                case SumColumn():
                    yield column.interval


class Coordinates:
    """The points of a segment: coordinates by their distance from the end."""

    def __init__(self, r: Point, q: Point = ()) -> None:
        self._points: Mapping[str, Point] = {"r": r, "q": q}

    def at(self, coordinate: Coordinate) -> Ext:
        """One coordinate."""
        which, back = coordinate
        point = self._points[which]
        return point[len(point) - 1 - back]

    def resolve(self, point: Iterable[Coordinate]) -> list[Ext]:
        """A point in full."""
        return [self.at(c) for c in point]


def suffix(point: Point, k: int) -> Point:
    """The last k coordinates."""
    if k > len(point):
        raise ValueError("the point is too short")
    return point[len(point) - k :]


def prefix_sums(point: Point, bound: int) -> tuple[Ext, Ext]:
    """(Σ_{i < bound} eq(point, i), Σ_{i < bound} i · eq(point, i)), by the binary digits of the bound."""
    n = len(point)
    if not 0 <= bound <= 1 << n:
        raise ValueError("bound out of range")
    if bound == 1 << n:
        return ONE, low_index(point)
    weight, index = ZERO, ZERO
    head = ONE  # eq on the leading coordinates, with the digits of the bound
    for i, x in enumerate(point):
        digit = bound >> (n - 1 - i) & 1
        if digit:
            here = head * (1 - x)  # all i that share the digits before and have 0 here
            start = bound >> (n - i) << (n - i)
            weight = weight + here
            index = index + here * (low_index(point[i + 1 :]) + start)
            head = head * x
        else:
            head = head * (1 - x)
    return weight, index


def low_index(point: Point) -> Ext:
    """Σ_i i · eq(point, i): the number whose binary digits are the coordinates."""
    total = ZERO
    for x in point:
        total = total * 2 + x
    return total
