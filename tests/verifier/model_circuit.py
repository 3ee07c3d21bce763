"""The circuit of the model (PROTOCOL.md, section 5), operation by operation in its order and under its names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from .circuit import (
    Binding,
    Carry,
    Circuit,
    Col,
    Column,
    Constraint,
    Expr,
    Factor,
    Form,
    Interval,
    Lookup,
    Oracle,
    Part,
    Public,
    PublicColumn,
    Slot,
    SlotColumn,
    Sum,
    SumColumn,
    Table,
    Term,
    const,
    linear,
    log2_ceil,
)
from .field import P as MODULUS
from .kernels import (
    Below,
    Fed,
    Index,
    Lag,
    Last,
    TokenAtColumn,
    TokenBelow,
    TokenBelowColumn,
    Tokens,
    Values,
)

RANGES = [*(1 << i for i in range(18)), 1 << 19, 63, 255, 32767, 65535, (1 << 15) + (1 << 13)]
MAX_TEMPERATURE_VOCABULARY = 1 << 13


def bitlen(v: int) -> int:
    """The least b with v < 2^b, 0 for v < 0."""
    return max(v, 0).bit_length()


class Axis(NamedTuple):
    """A dimension of `size` indices, cut into blocks of 2^log places."""

    size: int
    blocks: int
    log: int
    log_inner: int = 0  # of the inner axis: variables of p; an index (head, p) lies at place head · 2^log_inner + p
    inner_size: int = 1

    @staticmethod
    def of(size: int) -> Axis:
        """1 to 8 blocks with the fewest places, and of those the fewest blocks."""
        choices = [(b << log2_ceil(-(-size // b)), b) for b in range(1, 9)]
        places, blocks = min(choices)
        return Axis(size, blocks, log2_ceil(places // blocks))

    def padding(self, block: int) -> tuple[int, ...]:
        """For every place of a block, 1 if no index has it."""
        flags = []
        for place in range(block << self.log, (block + 1) << self.log):
            outer, inner = place >> self.log_inner, place % (1 << self.log_inner)
            flags.append(int(outer >= self.size // self.inner_size or inner >= self.inner_size))
        return tuple(flags)


@dataclass(frozen=True)
class Shape:
    """The card's shape, under the letters of ARITHMETIC.md."""

    D: int
    H: int
    P: int
    N: int
    V: int
    L: int
    activation: str
    gate: str
    norm_mantissa: int
    embed_mul: int
    logit_shift: int
    in_proj_shift: tuple[int, ...]
    out_proj_shift: tuple[int, ...]
    k: tuple[tuple[int, ...], ...]

    @property
    def E(self) -> int:  # noqa: N802
        """d_inner."""
        return self.H * self.P


@dataclass(frozen=True)
class Sampling:
    """The sampling integers."""

    temperature: int
    top_k: int
    seed: int


@dataclass(frozen=True)
class SegmentFacts:
    """What a segment's circuit depends on besides the shape."""

    log_steps: int
    fed: Tokens
    chosen: Tokens
    before: bool
    after: bool
    sampler_index: int  # at the first step; may be negative, where nothing is chosen
    sampling: Sampling


class Axes:
    """The axes of a shape."""

    def __init__(self, shape: Shape) -> None:
        self.d = Axis.of(shape.D)
        self.v = Axis.of(shape.V)
        self.heads = Axis.of(shape.H)
        self.n = Axis(shape.N, 1, log2_ceil(shape.N))
        self.log_p = log2_ceil(shape.P)
        self.inner = Axis(shape.E, self.heads.blocks, self.heads.log + self.log_p, self.log_p, shape.P)


Vector: TypeAlias = list[Slot]
Matrix: TypeAlias = list[list[Slot]]  # blocks of rows, of columns


class Projection(NamedTuple):
    """A bitlinear's weights and multipliers."""

    matrix: Matrix
    mul: Vector
    rows: Axis


class Convolution(NamedTuple):
    """Four taps, oldest first, and the bias."""

    taps: list[Vector]
    bias: Vector


class Layer(NamedTuple):
    """A layer's weights."""

    norm1: Vector
    in_proj: dict[str, Projection]
    conv: dict[str, Convolution]
    A: Vector
    base: Vector
    skip: Vector
    norm2: Vector
    out: Projection


class Weights(NamedTuple):
    """The slots of the Model."""

    embedding: Matrix
    layers: list[Layer]
    norm_f: Vector


class LayerState(NamedTuple):
    """A layer's slots of the state: last[name][b − 1] is the vector b steps back; h by block of heads."""

    last: dict[str, list[Vector]]
    h: Vector


def model_slots(circuit: Circuit, shape: Shape) -> Weights:
    """The slots of the Model, in their order (5.1)."""
    axes = Axes(shape)

    def vector(axis: Axis, name: str, low: int = -127, high: int = 127) -> Vector:
        return [circuit.slot(Oracle.MODEL, axis.log, low, high, f"{name}.{i}") for i in range(axis.blocks)]

    def matrix(rows: Axis, columns: Axis, name: str) -> Matrix:
        return [
            [
                circuit.slot(Oracle.MODEL, rows.log + columns.log, -127, 127, f"{name}.{i}.{j}")
                for j in range(columns.blocks)
            ]
            for i in range(rows.blocks)
        ]

    def projection(rows: Axis, columns: Axis, name: str) -> Projection:
        return Projection(matrix(rows, columns, name), vector(rows, f"{name}.mul", 0, 255), rows)

    def convolution(axis: Axis, name: str) -> Convolution:
        return Convolution(
            [vector(axis, f"{name}.tap{k}") for k in range(4)], vector(axis, f"{name}.bias", -32767, 32767)
        )

    embedding = matrix(axes.v, axes.d, "embedding")

    def layer(i: int) -> Layer:
        in_proj = {"z": axes.inner, "x": axes.inner, "B": axes.n, "C": axes.n, "dt": axes.heads}
        conv = {"x": axes.inner, "B": axes.n, "C": axes.n}
        return Layer(
            vector(axes.d, f"{i}.norm1"),
            {name: projection(rows, axes.d, f"{i}.{name}") for name, rows in in_proj.items()},
            {name: convolution(rows, f"{i}.conv {name}") for name, rows in conv.items()},
            vector(axes.heads, f"{i}.A", 0, 1 << 19),
            vector(axes.heads, f"{i}.base", -32767, 32767),
            vector(axes.heads, f"{i}.skip"),
            vector(axes.inner, f"{i}.norm2"),
            projection(axes.d, axes.inner, f"{i}.out"),
        )

    return Weights(embedding, [layer(i) for i in range(shape.L)], vector(axes.d, "norm_f"))


def state_slots(circuit: Circuit, shape: Shape, oracle: Oracle) -> list[LayerState]:
    """The slots of the states, in their order (5.1)."""
    axes = Axes(shape)
    states = []
    for i in range(shape.L):
        last = {
            name: [
                [
                    circuit.slot(oracle, axis.log, -32767, 32767, f"{i}.{name}.last{back}.{b}")
                    for b in range(axis.blocks)
                ]
                for back in (1, 2, 3)
            ]
            for name, axis in (("x", axes.inner), ("B", axes.n), ("C", axes.n))
        }
        states.append(
            LayerState(
                last,
                [
                    circuit.slot(oracle, axes.heads.log + axes.log_p + axes.n.log, -(1 << 18), 1 << 18, f"{i}.h.{b}")
                    for b in range(axes.heads.blocks)
                ],
            )
        )
    return states


class Builder:
    """Section 5.2: every operation works on the current table, whose last variables are the time."""

    def __init__(self, circuit: Circuit) -> None:
        self.circuit = circuit
        self.t = circuit.time_vars
        self.table = Table("", 0)

    def new_table(self, name: str, num_vars: int) -> Table:
        """The next table, of this many variables before the time; it is the current one from now on."""
        self.table = Table(name, num_vars + self.t)
        self.circuit.tables.append(self.table)
        return self.table

    # -- columns --------------------------------------------------------------------------------------------------

    def _column(self, column: Column) -> Col:
        self.table.columns.append(column)
        return Col(len(self.table.columns) - 1)

    def slot_of(self, column: Expr) -> Slot:
        """The slot of a column of the current table."""
        if not isinstance(column, Col):
            raise ValueError("not a column")
        found = self.table.columns[column.index]
        if not isinstance(found, SlotColumn):
            raise ValueError("not a slot")
        return found.slot

    def bound(self, slot: Slot, variables: Iterable[int]) -> Col:
        """A column: the slot, with its variables those of the table."""
        return self._column(SlotColumn(slot, tuple(variables)))

    def own(self, slot: Slot) -> Col:
        """A slot with all variables of the table."""
        if slot.num_vars != self.table.num_vars:
            raise ValueError(f"{slot.name} has other variables than {self.table.name}")
        return self.bound(slot, range(slot.num_vars))

    def const(self, slot: Slot) -> Col:
        """A slot with the first variables of the table."""
        return self.bound(slot, range(slot.num_vars))

    def time(self, slot: Slot) -> Col:
        """A slot with the time alone."""
        return self.bound(slot, range(self.table.num_vars - self.t, self.table.num_vars))

    def public(self, public: Public) -> Col:
        """A public column."""
        return self._column(PublicColumn(public))

    def commit(self, name: str, low: int, high: int) -> Col:
        """A new slot of the trace."""
        return self.own(self.circuit.slot(Oracle.TRACE, self.table.num_vars, low, high, f"{self.table.name}: {name}"))

    def sum(self, name: str, low: int, high: int, terms: Iterable[Term], carries: Iterable[Carry] = ()) -> Col:
        """A new sum, and it as a column."""
        self.circuit.sums.append(
            Sum(self.table.num_vars, tuple(terms), tuple(carries), False, f"{self.table.name}: {name}")
        )
        return self._column(SumColumn(len(self.circuit.sums) - 1, Interval(low, high)))

    def link(self, name: str, terms: Iterable[Term], carries: Iterable[Carry]) -> None:
        """A new link."""
        self.circuit.sums.append(
            Sum(self.table.num_vars, tuple(terms), tuple(carries), True, f"{self.table.name}: {name}")
        )

    # -- constraints and lookups ----------------------------------------------------------------------------------

    def interval(self, expr: Expr) -> Interval:
        """Where an expression's integer value lies, by the intervals of the columns."""
        return expr.interval(list(self.circuit.column_intervals(self.table)))

    def zero(self, expr: Expr, *, integer: bool = True, bounds: Interval | None = None, name: str = "") -> None:
        """expr = 0."""
        self.table.constraints.append(Constraint(expr, integer, bounds, name))

    def bool(self, x: Expr) -> None:
        """x is 0 or 1."""
        self.zero(x * x - x, integer=False, name="bool")

    def look(
        self, value: Expr, index: Expr | int, shift: int = 0, selector: Sequence[Col] = (), name: str = ""
    ) -> None:
        """value / 2^shift in #index."""
        self.table.lookups.append(
            Lookup(
                value, const(index) if isinstance(index, int) else index, shift, tuple(c.index for c in selector), name
            )
        )

    def bits(self, e: Expr, w: int, where: Sequence[Col] = (), name: str = "") -> None:
        """0 ≤ e < 2^w."""
        if w <= 17:
            self.look(e, w, 0, where, name)
        elif w == 19:
            self.look(e, 18, 0, where, name)
        elif w <= 30:
            l = w >> 1
            low = self.commit(f"low of {name}", 0, (1 << l) - 1)
            self.look(low, l, 0, (), name)
            self.look(e - low, w - l, l, where, name)
        else:
            raise ValueError(f"{w} bits")

    def committed_bits(self, name: str, w: int) -> Col:
        """commit x: 0 … 2^w − 1; bits(x, w)."""
        x = self.commit(name, 0, (1 << w) - 1)
        self.bits(x, w, name=name)
        return x

    def committed_bool(self, name: str) -> Col:
        """commit x: 0 … 1; bool x."""
        x = self.commit(name, 0, 1)
        self.bool(x)
        return x

    def derive(self, name: str, low: int, high: int, e: Expr) -> Col:
        """commit x: low … high; zero e − x."""
        x = self.commit(name, low, high)
        self.zero(e - x, name=name)
        return x

    def between(self, x: Expr, low: int, high: int, name: str = "") -> None:
        """low ≤ x ≤ high."""
        w = bitlen(high - low)
        self.bits(x - low, w, name=name)
        self.bits(high - x, w, name=name)

    def symmetric(self, x: Expr, limit: int, name: str = "") -> None:
        """−limit ≤ x ≤ limit."""
        if 2 * limit + 1 in self.circuit.ranges:
            self.look(x + limit, self.circuit.ranges.index(2 * limit + 1), name=name)
            return
        i = next((i for i in range(18) if 1 << i > 2 * limit), 18)
        self.look(x + limit, i, name=name)
        self.look(limit - x, i, name=name)

    def round_saturate(self, name: str, pre: Expr, s: int, L: int, R: int, pre_bounds: Interval | None = None) -> Slot:
        """u = min(max(pre >> s, −L), L), where |pre >> s| ≤ R."""
        if bitlen(R - L) == 18:
            R = L + (1 << 18)
        limit = min(L, R)
        u = self.commit(name, -limit, limit)
        self.symmetric(u, limit, name)
        rest = pre
        bounds = pre_bounds or self.interval(pre)
        if s > 0:
            r = self.committed_bits(f"{name}: rest", s)
            rest = rest - r
            bounds = bounds + Interval(1 - (1 << s), 0)
        rest = rest - u * (1 << s)
        bounds = bounds + Interval(-limit << s, limit << s)
        if R <= L:
            self.zero(rest, bounds=bounds, name=name)
            return self.slot_of(u)
        w = bitlen(R - L)
        a = self.committed_bits(f"{name}: overflow", w)
        reach = ((1 << w) - 1) << s
        self.zero(rest * L - (1 << s) * (a * u), bounds=bounds + Interval(-reach, reach), name=name)
        self.zero(a * (u * u) - (L * L) * a, integer=False, name=f"{name}: overflow")
        return self.slot_of(u)

    # -- terms of sums --------------------------------------------------------------------------------------------

    def past(self, lag: int, slot: Slot) -> list[Term]:
        """The slot `lag` steps before."""
        return [self._over_time(Lag(lag), slot)]

    def last(self, back: int, slot: Slot) -> list[Term]:
        """The slot at the step `back` before the last."""
        return [self._over_time(Last(back), slot)]

    def _over_time(self, kernel: Factor, slot: Slot) -> Term:
        k = slot.num_vars - self.t
        return Term(1, self.t, (kernel, form(slot, [*variables("r", k), *variables("x", self.t)])))

    def product(self, rows: Sequence[Slot], u: Sequence[Slot]) -> list[Term]:
        """A row block of a matrix times a tensor."""
        terms = []
        for w, v in zip(rows, u, strict=True):
            k = v.num_vars - self.t
            terms.append(
                Term(
                    1,
                    k + self.t,
                    (
                        Lag(0),
                        form(w, [*variables("r", w.num_vars - k), *variables("x", k)]),
                        form(v, variables("x", k + self.t)),
                    ),
                )
            )
        return terms


def variables(kind: str, count: int, start: int = 0) -> list[Binding]:
    """r_start … or x_start …"""
    return [("r" if kind == "r" else "x", i) for i in range(start, start + count)]


def form(slot: Slot, bindings: Iterable[Binding]) -> Form:
    """A factor that is one slot."""
    return Form((Part(1, slot, tuple(bindings)),))


def carry(slot: Slot, step: int) -> Carry:
    """eq(r_time, step) · slot."""
    return Carry(1, slot, tuple(range(slot.num_vars)), step)


def minus(slot: Slot) -> Carry:
    """−slot."""
    return Carry(-1, slot, tuple(range(slot.num_vars)))


def build(shape: Shape, facts: SegmentFacts) -> Circuit:
    """The circuit of one segment."""
    return _ModelCircuit(shape, facts).run()


class _ModelCircuit:
    """Sections 5.3 to 5.8."""

    def __init__(self, shape: Shape, facts: SegmentFacts) -> None:
        self.shape, self.facts, self.axes = shape, facts, Axes(shape)
        self.circuit = Circuit(facts.log_steps)
        self.circuit.ranges = list(RANGES)
        self.weights = model_slots(self.circuit, shape)
        self.before = state_slots(self.circuit, shape, Oracle.STATE_IN) if facts.before else None
        self.after = state_slots(self.circuit, shape, Oracle.STATE_OUT) if facts.after else None
        self.b = Builder(self.circuit)
        self.t = facts.log_steps

    def run(self) -> Circuit:
        """5.3, the sequence."""
        shape, axes = self.shape, self.axes
        r = self.embed()
        for i, layer in enumerate(self.weights.layers):
            u = self.norm(f"{i}.norm1", r, layer.norm1, axes.d)
            p = {
                name: self.linear(f"{i}.{name}", u, projection, shape.in_proj_shift[i])
                for name, projection in layer.in_proj.items()
            }
            c = {name: self.conv(f"{i}.conv {name}", i, name, p[name]) for name in ("x", "B", "C")}
            x = self.activation(f"{i}.act x", c["x"], axes.inner, shape.activation, 5, 127)
            B = self.activation(f"{i}.act B", c["B"], axes.n, shape.activation, 3, 31)
            C = self.activation(f"{i}.act C", c["C"], axes.n, shape.activation, 3, 31)
            m = self.modulation(f"{i}.modulation", i, p["dt"])
            h = self.state(f"{i}.state", i, m, x, B[0])
            y = self.output(f"{i}.output", i, h, C[0], x)
            g = self.activation(f"{i}.gate act", p["z"], axes.inner, shape.gate, 8, (1 << 14) - 1)
            o = self.gate(f"{i}.gate", y, g)
            v = self.norm(f"{i}.norm2", o, layer.norm2, axes.inner)
            w = self.linear(f"{i}.out", v, layer.out, shape.out_proj_shift[i])
            r = self.residual(f"{i}.residual", r, w)
        u = self.norm("norm_f", r, self.weights.norm_f, axes.d)
        if any(token is not None for token in self.facts.chosen):
            self.choice(u)
        return self.circuit

    # -- 5.3 ------------------------------------------------------------------------------------------------------

    def embed(self) -> Vector:
        b, axes, mul = self.b, self.axes, self.shape.embed_mul
        out = []
        for j in range(axes.d.blocks):
            b.new_table(f"embed.{j}", axes.d.log)
            e = b.sum(
                "e",
                -127,
                127,
                [
                    Term(
                        1,
                        axes.v.log,
                        (
                            Fed(self.facts.fed, i << axes.v.log),
                            form(block[j], [*variables("x", axes.v.log), *variables("r", axes.d.log)]),
                        ),
                    )
                    for i, block in enumerate(self.weights.embedding)
                ],
            )
            out.append(b.slot_of(b.derive("r", -127 * mul, 127 * mul, mul * e)))
        return out

    def linear(self, name: str, u: Vector, projection: Projection, s: int) -> Vector:
        b = self.b
        half = (1 << s) >> 1
        limit = (1 << 29) - half - 1
        out = []
        for i in range(projection.rows.blocks):
            b.new_table(f"{name}.{i}", projection.rows.log)
            acc = b.sum("acc", -limit, limit, b.product(projection.matrix[i], u))
            m = b.const(projection.mul[i])
            out.append(
                b.round_saturate(
                    "out", m * acc + half, s, 32767, ((1 << 29) - 1) >> s, Interval(half - limit, half + limit)
                )
            )
        return out

    def residual(self, name: str, r: Vector, w: Vector) -> Vector:
        b = self.b
        out = []
        for i, (r_i, w_i) in enumerate(zip(r, w, strict=True)):
            b.new_table(f"{name}.{i}", self.axes.d.log)
            pre = b.own(r_i) + b.own(w_i)
            out.append(b.round_saturate("r", pre, 0, (1 << 17) - 1, (1 << 17) - 1 + 32767))
        return out

    def gate(self, name: str, y: Vector, g: Vector) -> Vector:
        b = self.b
        out = []
        for i, (y_i, g_i) in enumerate(zip(y, g, strict=True)):
            b.new_table(f"{name}.{i}", self.axes.inner.log)
            pre = b.own(y_i) * b.own(g_i) + 32
            out.append(b.round_saturate("o", pre, 6, (1 << 17) - 1, (32767 * ((1 << 14) - 1) + 32) >> 6))
        return out

    # -- 5.4 ------------------------------------------------------------------------------------------------------

    def norm(self, name: str, x: Vector, g: Vector, axis: Axis) -> Vector:
        b, t, size = self.b, self.t, axis.size
        mantissa = self.shape.norm_mantissa == 8
        c = axis.blocks << axis.log
        lows = []
        for i, x_i in enumerate(x):
            b.new_table(f"{name} limbs.{i}", axis.log)
            whole = b.own(x_i)
            lo = b.committed_bits("lo", 9)
            b.look(whole + (1 << 17) - lo, 9, 9, name="hi")
            lows.append(b.slot_of(lo))

        b.new_table(f"{name} scale", 0)
        everything = tuple(variables("x", axis.log + t))
        inverse = pow(2, -9, MODULUS)
        lo_forms = [Form((Part(1, lo, everything),)) for lo in lows]
        hi_forms = [
            Form((Part(inverse, x_i, everything), Part(MODULUS - inverse, lo, everything)))
            for x_i, lo in zip(x, lows, strict=True)
        ]

        def squares(left: list[Form], right: list[Form]) -> list[Term]:
            return [Term(1, axis.log + t, (Lag(0), f, f2)) for f, f2 in zip(left, right, strict=True)]

        p0 = b.sum("P0", 0, 511 * 511 * c, squares(lo_forms, lo_forms))
        p1 = b.sum("P1", -511 * 256 * c, 511 * 255 * c, squares(lo_forms, hi_forms))
        p2 = b.sum("P2", 0, c << 16, squares(hi_forms, hi_forms))
        alpha = bitlen((511 * 511 * c) >> 10)
        a0, a1 = b.commit("a0", 0, 1023), b.commit("a1", 0, (1 << alpha) - 1)
        b.bits(a0, 10, name="a0")
        b.bits(a1, alpha, name="a1")
        b.zero(p0 - a0 - 1024 * a1, name="P0")
        beta = bitlen(((511 * 256 * c) >> 6) + 1)
        b0, b1 = b.commit("b0", 0, 63), b.commit("b1", -(1 << beta), (1 << beta) - 1)
        b.bits(b0, 6, name="b0")
        b.bits(b1 + (1 << beta), beta + 1, name="b1")
        b.zero(a1 + p1 + 16 - b0 - 64 * b1, name="P1")

        top = (bitlen((1 << 14) + c * 131071 * 131071) - 15) >> 1

        def cut_of(j: int) -> int:
            return min(2 * j, 16)

        def deep_of(j: int) -> int:
            return 2 * j - cut_of(j)

        e = [b.committed_bool(f"e{j}") for j in range(top + 1)]

        def chosen(value: list[int]) -> Expr:
            return linear(zip(value, e, strict=True))

        levels = range(top + 1)
        b.zero(chosen([1] * (top + 1)) - 1, name="one shift")
        cut = b.derive("cut", 0, cut_of(top), chosen([cut_of(j) for j in levels]))
        deep = b.derive("deep", 0, deep_of(top), chosen([deep_of(j) for j in levels]))
        x0 = b.commit("x0", 0, (1 << cut_of(top)) - 1)
        b.look(x0, cut, name="x0")
        x1 = b.commit("x1", 0, (1 << 16) - 1)
        b.look(x1, 16 - cut, name="x1")
        y0 = b.commit("y0", 0, (1 << deep_of(top)) - 1)
        b.look(y0, deep, name="y0")
        y1 = b.commit("y1", 0, (1 << cut_of(top)) - 1)
        b.look(y1, cut, name="y1")
        s = b.commit("s", 1 << 14, (1 << 16) - 1)
        b.between(s, 1 << 14, (1 << 16) - 1, "s")
        # At most one e_j · limb is not zero, and it is below 2^(cut + (16 − cut)), 2^(deep + cut) or 2^16.
        b.zero(
            a0 + 1024 * b0 - x0 - chosen([1 << cut_of(j) for j in levels]) * x1,
            bounds=Interval(-(1 << 17), 1 << 16),
            name="low",
        )
        q = self.b.interval(4 * p2 + b1)
        b.zero(
            4 * p2 + b1 - y0 - chosen([1 << deep_of(j) for j in levels]) * y1,
            bounds=q + Interval(-(1 << (2 * top)), 0),
            name="high",
        )
        b.zero(
            s - x1 - chosen([1 << (16 - cut_of(j)) for j in levels]) * y1,
            bounds=Interval(-(1 << 17), 1 << 16),
            name="s",
        )
        power = b.derive("pow", 1, 1 << top, chosen([1 << j for j in levels]))
        half = b.derive("half", 0, (1 << top) >> 1, chosen([(1 << j) >> 1 for j in levels]))
        j_column = b.derive("j", 0, top, chosen(list(levels)))
        mu: Col | None = None
        if mantissa:
            mu = b.committed_bits("mu", 9)
            w0, w1 = b.committed_bits("w0", 12), b.committed_bits("w1", 13)
            b.zero(mu * s - w0 - 4096 * w1, name="mu s")
            c0, c1 = b.committed_bits("c0", 12), b.committed_bits("c1", 9)
            b.zero(mu * w0 - c0 - 4096 * c1, name="mu w0")
            r0, r1 = b.committed_bits("R0", 12), b.committed_bits("R1", 14)
            over = b.committed_bool("carry")
            b.zero(c0 + r0 - 4096 * over, name="low limbs")
            b.zero(mu * w1 + c1 + r1 + over - (1 << 18), name="high limbs")
            b.bits(2 * w0 + (1 << 13) * w1 + s - r0 - 4096 * r1 - 1, 26, name="mu is greatest")
        scale = [None if column is None else b.slot_of(column) for column in (power, half, j_column, mu)]

        shift = 20 - (bitlen(size) >> 1)
        kappa = 1 << (shift - 1)
        out = []
        for i, x_i in enumerate(x):
            b.new_table(f"{name}.{i}", axis.log)
            whole, g_i = b.own(x_i), b.const(g[i])
            power, half, j_column = (b.time(slot) for slot in scale[:3] if slot is not None)
            n = b.commit("n", -(1 << 13), (1 << 13) - 1)
            b.bits(n + (1 << 13), 14, name="n")
            rem = b.commit("rem", 0, (1 << top) - 1)
            b.look(rem, j_column, name="rem")
            b.zero(16 * whole + half - power * n - rem, name="n")
            factor: Expr = n * 128
            if scale[3] is not None:
                factor = n * b.time(scale[3])
            out.append(
                b.round_saturate(
                    "out", factor * g_i + kappa, shift, 127, (((1 << 12) + 1) * 256 * 127 + kappa) >> shift
                )
            )
        return out

    # -- 5.5, 5.6 -------------------------------------------------------------------------------------------------

    def conv(self, name: str, layer: int, which: str, p: Vector) -> Vector:
        b = self.b
        weights = self.weights.layers[layer].conv[which]
        axis = self.axes.inner if which == "x" else self.axes.n
        out = []
        for i, p_i in enumerate(p):
            b.new_table(f"{name}.{i}", axis.log)
            total: Expr = const(0)
            for k in range(3):
                carries = []
                if self.before is not None:
                    last = self.before[layer].last[which]
                    carries = [carry(last[3 - k - q - 1][i], q) for q in range(3 - k)]
                lag = b.sum(f"lag{3 - k}", -32767, 32767, b.past(3 - k, p_i), carries)
                total = total + b.const(weights.taps[k][i]) * lag
            now = b.own(p_i)
            total = total + b.const(weights.taps[3][i]) * now
            total = total + 64 * b.const(weights.bias[i]) + 32
            if self.after is not None:
                for back in range(3):
                    b.link(f"last{back + 1}", b.last(back, p_i), [minus(self.after[layer].last[which][back][i])])
            out.append(b.round_saturate("c", total, 6, 32767, (4 * 127 * 32767 + 64 * 32767 + 32) >> 6))
        return out

    def activation(self, name: str, c: Vector, axis: Axis, kind: str, f: int, limit: int) -> Vector:
        b = self.b
        out = []
        for i, c_i in enumerate(c):
            b.new_table(f"{name}.{i}", axis.log)
            x = b.own(c_i)
            s = b.commit("s", 0, (1 << 15) + (1 << 13) - 1)
            b.look(s, 23, name="s")
            rest = b.committed_bits("rest", 17)
            b.bits(2 * s - rest, 17, name="s is greatest")
            b.zero(x * x + (1 << 18) - s * s - rest, name="s")
            if kind == "silu":
                q = b.committed_bits("q", 12)
                rest2 = b.committed_bits("rest'", 17)
                b.bits(2 * s - rest2 - 1, 17, name="q is greatest")
                b.zero(4096 * s + 4096 * x - 2 * (q * s) - rest2, name="q")
                half = 1 << (19 - f)
                out.append(b.round_saturate("out", x * q + half, 20 - f, limit, ((1 << 27) + half) >> (20 - f)))
            else:
                eta = 0 if f == 8 else 1 << (8 - f)
                out.append(b.round_saturate("out", x + s + (eta - 512), 9 - f, limit, (1 << 17) >> (9 - f)))
        return out

    # -- 5.7 ------------------------------------------------------------------------------------------------------

    def modulation(self, name: str, layer: int, dt: Vector) -> Vector:
        b, weights = self.b, self.weights.layers[layer]
        out = []
        for i, dt_i in enumerate(dt):
            b.new_table(f"{name}.{i}", self.axes.heads.log)
            d, A, base = b.own(dt_i), b.const(weights.A[i]), b.const(weights.base[i])
            mod = b.commit("mod", 32, 1024)
            above, below = b.commit("above", 0, (1 << 17) - 1), b.commit("below", 0, (1 << 17) - 1)
            b.bits(above, 17, name="above")
            b.bits(below, 17, name="below")
            b.between(mod, 32, 1024, "mod")
            b.zero(1024 * above - above * mod, name="above")
            b.zero(below * mod - 32 * below, name="below")
            b.zero(256 + d + base - mod - above + below, name="mod")
            m = b.commit("m", 1, 255)
            above, below = b.commit("above'", 0, (1 << 17) - 1), b.commit("below'", 0, 1)
            r = b.commit("r", 0, 4095)
            b.bits(above, 17, name="above'")
            b.bool(below)
            b.bits(r, 12, name="r")
            b.between(m, 1, 255, "m")
            b.zero(255 * above - above * m, name="above'")
            b.zero(below * m - below, name="below'")
            b.zero(mod * A + 2048 - 4096 * m - 4096 * above + 4096 * below - r, name="m")
            out.append(b.slot_of(m))
        return out

    def state(self, name: str, layer: int, m: Vector, x: Vector, B: Slot) -> Vector:
        b, t = self.b, self.t
        heads, log_p, log_n = self.axes.heads, self.axes.log_p, self.axes.n.log
        limit = 1 << 18
        out = []
        for i, m_i in enumerate(m):
            first = i << heads.log
            K = list(self.shape.k[layer][first : first + (1 << heads.log)])
            K += [K[0]] * ((1 << heads.log) - len(K))
            top = max(K)
            b.new_table(f"{name}.{i}", heads.log + log_p + log_n)
            head = range(heads.log)
            p = range(heads.log, heads.log + log_p)
            state = range(heads.log + log_p, heads.log + log_p + log_n)
            time = range(heads.log + log_p + log_n, heads.log + log_p + log_n + t)
            m_c = b.bound(m_i, [*head, *time])
            x_c = b.bound(x[i], [*head, *p, *time])
            B_c = b.bound(B, [*state, *time])

            def by_head(values: Iterable[int]) -> Col:
                return b.public(Values(0, tuple(values)))

            scale = by_head(1 << k for k in K)
            half = by_head(1 << (k - 1) for k in K)
            k_c = by_head(K)
            h = b.commit("h", -limit, limit)
            slot = b.slot_of(h)
            carries = [] if self.before is None else [carry(self.before[layer].h[i], 0)]
            before = b.sum("before", -limit, limit, b.past(1, slot), carries)
            if self.after is not None:
                b.link("h", b.last(0, slot), [minus(self.after[layer].h[i])])
            r = b.commit("r", 0, (1 << top) - 1)
            b.look(r, k_c, name="r")
            value_heads = [top <= 11 or k == 8 for k in K]
            mixed = any(value_heads) and not all(value_heads)
            if any(value_heads):
                selector = [by_head(map(int, value_heads))] if mixed else []
                b.look(h + limit, 18, selector=selector, name="h by value")
            if not all(value_heads):
                offset = by_head(
                    0 if v else 1 << (18 if k <= 10 else 27 - k) for k, v in zip(K, value_heads, strict=True)
                )
                index = by_head(0 if v else 18 if k <= 10 else 28 - k for k, v in zip(K, value_heads, strict=True))
                selector = [by_head(int(not v) for v in value_heads)] if mixed else []
                b.look(h - before + offset, index, selector=selector, name="h by change")
            # m · (64 x B − before) is below 2^27, and 2^k · (h − before) within 2^30 (5.7).
            reach = (1 << 30) + (1 << 27) + (1 << top)
            b.zero(
                64 * (m_c * (x_c * B_c)) - m_c * before + half - r - scale * h + scale * before,
                bounds=Interval(-reach, reach),
                name="h",
            )
            out.append(slot)
        return out

    def output(self, name: str, layer: int, h: Vector, C: Slot, x: Vector) -> Vector:
        b, t = self.b, self.t
        n, K = self.axes.n.log, self.axes.inner.log
        limit = (31 << 18) << n
        out = []
        for i, (h_i, x_i) in enumerate(zip(h, x, strict=True)):
            b.new_table(f"{name}.{i}", K)
            read = b.sum(
                "read",
                -limit,
                limit,
                [
                    Term(
                        1,
                        n + t,
                        (
                            Lag(0),
                            form(C, variables("x", n + t)),
                            form(h_i, [*variables("r", K), *variables("x", n + t)]),
                        ),
                    )
                ],
            )
            x_c, skip = b.own(x_i), b.const(self.weights.layers[layer].skip[i])
            out.append(
                b.round_saturate("y", read + 64 * (skip * x_c) + 256, 9, 32767, (limit + 64 * 127 * 127 + 256) >> 9)
            )
        return out

    # -- 5.8 ------------------------------------------------------------------------------------------------------

    def choice(self, u: Vector) -> None:
        b, axes, V = self.b, self.axes, self.shape.V
        chosen = self.facts.chosen
        blocks = []
        limit = 127 * 127 * self.shape.D
        for i, rows in enumerate(self.weights.embedding):
            base = i << axes.v.log
            table = b.new_table(f"head.{i}", axes.v.log)
            logit = b.sum("logit", -limit, limit, b.product(rows, u))
            real = b.public(Below(axes.v.log, min(max(V - base, 0), 1 << axes.v.log)))
            at = b.public(TokenAtColumn(chosen, base, self.t))
            blocks.append(_Head(table, base, logit, real, at, base + (1 << axes.v.log) > V))
        steps = b.new_table("steps", 0)
        if self.facts.sampling.temperature == 0:
            self.greedy(steps, blocks, limit)
        else:
            self.sampled(steps, blocks, limit)

    def level(self, name: str, limit: int) -> Slot:
        """commit x: −2^b … 2^b − 1; bits(x + 2^b, b + 1), for b = bitlen(limit)."""
        size = bitlen(limit)
        x = self.b.commit(name, -(1 << size), (1 << size) - 1)
        self.b.bits(x + (1 << size), size + 1, name=name)
        return self.b.slot_of(x)

    def claimed(self) -> Col:
        """1 at the steps with a token chosen."""
        return self.b.public(
            Values(self.b.table.num_vars - self.t, tuple(int(token is not None) for token in self.facts.chosen))
        )

    def greedy(self, steps: Table, blocks: list[_Head], limit: int) -> None:
        b = self.b
        b.table = steps
        top_slot = self.level("top", limit)
        for block in blocks:
            b.table = block.table
            below = b.public(TokenBelowColumn(self.facts.chosen, block.base, self.t))
            claimed = self.claimed()
            top = b.time(top_slot)
            b.zero(block.at * top - block.at * block.logit, name="top")
            b.bits(top - block.logit - below, bitlen(2 * limit), [*block.where, claimed], "order")

    def sampled(self, steps: Table, blocks: list[_Head], limit: int) -> None:
        b, shape, sampling, t, log_v = self.b, self.shape, self.facts.sampling, self.t, self.axes.v.log
        V = shape.V
        if V > MAX_TEMPERATURE_VOCABULARY or sampling.temperature > 1 << 22:
            raise ValueError("no circuit for this vocabulary and temperature")
        C = min((1 << 32) - 1, shape.embed_mul * 94548 * 65536 // sampling.temperature)
        far = min(((17 << (16 + shape.logit_shift)) - 1) // C, 2 * limit)
        with_top_k = 0 < sampling.top_k < V
        b.table = steps
        M_slot = self.level("M", limit)
        theta_slot, beta_slot = None, None
        if with_top_k:
            theta_slot = self.level("theta", limit)
            beta_slot = b.slot_of(b.committed_bits("beta", 17))
        maxima, candidates, weights = [], [], []
        for block in blocks:
            b.table = block.table
            M = b.time(M_slot)
            maxima.append(self.maximum(block, M))
            c: Col | None = None
            if theta_slot is not None and beta_slot is not None:
                c = self.candidate(block, b.time(theta_slot), b.time(beta_slot), limit)
                candidates.append(b.slot_of(c))
            d, z = self.distance(block, M, far, bitlen(2 * limit))
            bit, I, H, f = self.exponent(d, C, far, shape.logit_shift)
            power = self.power(bit, H)
            J = self.pow2neg(f)
            kept: Expr = 1 - z if c is None else c * (1 - z)
            w = b.commit("w", 0, (1 << 17) - 1)
            rest = b.commit("rest", 0, (1 << 17) - 1)
            b.look(w, 17 - I, name="w")
            b.look(rest, 1 + I, name="rest")
            # w < 2^(17 − I) and P = 2^I, so 2 P w < 2^18.
            b.zero(
                2 * (power * w) + rest - kept * ((1 << 17) + 1 - J - f),
                bounds=Interval(-(5 << 15), (1 << 18) + (1 << 17)),
                name="w",
            )
            weights.append(b.slot_of(w))

        def total(slots: Vector) -> list[Term]:
            return [Term(1, log_v, (form(s, [*variables("x", log_v), *variables("r", t)]),)) for s in slots]

        b.table = steps
        b.zero(b.sum("maxima", 0, V, total(maxima)) - 1, name="maxima")
        if with_top_k:
            b.zero(b.sum("candidates", 0, V, total(candidates)) - sampling.top_k, name="candidates")
        self.choose(steps, blocks, weights, total(weights))

    def maximum(self, block: _Head, M: Col) -> Slot:
        b = self.b
        h = b.committed_bool("h")
        b.zero(h * M - h * block.logit, name="maximum")
        if block.padded:
            b.zero(h - h * block.real, name="h is real")
        return b.slot_of(h)

    def candidate(self, block: _Head, theta: Col, beta: Col, limit: int) -> Col:
        b = self.b
        v = b.public(Index(self.axes.v.log, block.base))
        c = b.committed_bool("c")
        if block.padded:
            b.zero(c - c * block.real, name="c is real")
        tie = b.committed_bool("tie")
        b.zero(tie * block.logit - tie * theta, name="tie")
        sign = 2 * c - 1
        reach = 4 * limit + (1 << 18)
        margin = b.derive("margin", -reach, reach, sign * (block.logit - theta) - 1 + tie * (sign * (beta - v) + c))
        b.bits(margin, max(bitlen(2 * limit), 17), block.where, "margin")
        return c

    def distance(self, block: _Head, M: Col, far: int, n_b: int) -> tuple[Col, Col]:
        b = self.b
        d = b.committed_bits("d", bitlen(far))
        z = b.committed_bool("z")
        b.zero((1 - z) * (M - block.logit - d), name="near")
        b.zero(z * (d - far), name="far")
        if block.padded:
            b.zero((1 - block.real) * (1 - z), name="padding is far")
        b.bits(M - block.logit - d - z, n_b, block.where, "no logit is larger")
        return d, z

    def exponent(self, d: Col, C: int, far: int, logit_shift: int) -> tuple[list[Col], Col, Expr, Col]:
        b = self.b
        nd = bitlen(far)
        c, s = (C if far else 0), logit_shift
        while s > 0 and c % 2 == 0:
            c, s = c // 2, s - 1
        carried: Expr = const(0)
        tau = 0
        while s > 8 or c << nd > 1 << 29:
            m = min(29 - nd, 17, s)
            if m <= 0:
                raise ValueError("the exponent has no limbs")
            low = c % (1 << m)
            tau = (low * ((1 << nd) - 1) + tau) >> m
            c, s = c >> m, s - m
            w = bitlen(tau)
            Y = b.committed_bits("Y", w)
            b.bits(low * d + carried - (1 << m) * Y, m, name="Y")
            carried, tau = Y, (1 << w) - 1
        bit = [b.committed_bool(f"bit{i}") for i in range(4)]
        I = b.commit("I", 0, 16)
        S = linear((1 << i, bit[i]) for i in range(4))
        H = I - S
        b.zero(H * H - 16 * H, name="H")
        b.zero(H * S, name="H S")
        f = b.commit("f", -(1 << 15), (1 << 15) - 1)
        b.look(f + (1 << 15), 16, name="f")
        g = c * d + carried - (1 << (16 + s)) * I - (1 << s) * f - (1 << (15 + s))
        if s == 0:
            b.zero(g, name="exponent")
        else:
            b.bits(g, s, name="exponent")
        return bit, I, H, f

    def power(self, bit: list[Col], H: Expr) -> Col:
        b = self.b
        Q = b.commit("Q", 1, 1 << 16)
        b.zero(16 * ((1 + 15 * bit[2]) * (1 + 255 * bit[3])) + 65535 * H - 16 * Q, name="Q")
        return b.derive("P", 1, 1 << 16, (1 + bit[0]) * (1 + 3 * bit[1]) * Q)

    def pow2neg(self, f: Col) -> Col:
        b = self.b

        def limb(name: str, low: int, w: int) -> Col:
            x = b.commit(name, low, low + (1 << w) - 1)
            b.look(x - low, w, name=name)
            return x

        S1, S0 = limb("S1", 0, 14), limb("S0", 0, 16)
        b.zero(f * f + f - (1 << 16) * S1 - S0, name="S")
        k = limb("k", -2048, 13)
        b.bits((1 << 13) * k - 327 * S0 + 327 * f, 13, name="k")
        U1, U0 = limb("U1", -(1 << 16), 17), limb("U0", 0, 13)
        b.zero(f * S1 - (1 << 13) * U1 - U0, name="U")
        c, c2 = limb("c", -20480, 15), limb("c'", 0, 16)
        # The sum without c and c' lies between −1.24 · 10^9 and 0.44 · 10^9 (5.8, (6)).
        b.zero(
            2616 * U0 + f * k + (1 << 15) * k - 12572 * S0 + 12572 * f - (1 << 16) * c - c2,
            bounds=Interval(-1_240_000_000 - ((32768 - 20480) << 16), 440_000_000 + (20480 << 16)),
            name="c",
        )
        J = limb("J", 1 << 15, 13)
        b.bits((76802 << 14) - 653 * f - 11264 * S1 + 327 * U1 + c - (1 << 15) * J, 15, name="J")
        return J

    def choose(self, steps: Table, blocks: list[_Head], weights: Vector, total: list[Term]) -> None:
        """(9), and W of it; `steps` is the current table."""
        b, t, log_v, V = self.b, self.t, self.axes.v.log, self.shape.V
        most = V << 16
        W = b.sum("W", 0, most, total)
        before = b.sum(
            "before",
            0,
            most,
            [
                Term(
                    1,
                    log_v + t,
                    (Lag(0), TokenBelow(self.facts.chosen, block.base), form(w, variables("x", log_v + t))),
                )
                for block, w in zip(blocks, weights, strict=True)
            ],
        )
        own = b.committed_bits("own", 17)
        own_slot = b.slot_of(own)
        for block, w in zip(blocks, weights, strict=True):
            b.table = block.table
            own_here = b.time(own_slot)
            w_here = Col(
                next(
                    i
                    for i, column in enumerate(block.table.columns)
                    if isinstance(column, SlotColumn) and column.slot == w
                )
            )
            b.zero(block.at * own_here - block.at * w_here, name="own")
        b.table = steps
        R = [
            0 if token is None else random_word(self.facts.sampling.seed, self.facts.sampler_index + q) >> 2
            for q, token in enumerate(self.facts.chosen)
        ]
        R0 = b.public(Values(0, tuple(word % 1024 for word in R)))
        R1 = b.public(Values(0, tuple((word >> 10) % 1024 for word in R)))
        R2 = b.public(Values(0, tuple(word >> 20 for word in R)))
        W0, W1 = b.committed_bits("W0", 10), b.committed_bits("W1", 10)
        W2 = b.commit("W2", 0, 512)
        b.between(W2, 0, 512, "W2")
        b.zero(W - W0 - 1024 * W1 - (1 << 20) * W2, name="W")
        t1, s0 = b.committed_bits("t1", 10), b.committed_bits("s0", 10)
        b.zero(R0 * W0 - 1024 * t1 - s0, name="t1")
        t2, s1 = b.committed_bits("t2", 11), b.committed_bits("s1", 10)
        b.zero(t1 + R0 * W1 + R1 * W0 - 1024 * t2 - s1, name="t2")
        t3, s2 = b.committed_bits("t3", 12), b.committed_bits("s2", 10)
        b.zero(t2 + R0 * W2 + R1 * W1 + R2 * W0 - 1024 * t3 - s2, name="t3")
        target = b.derive("target", 0, (1 << 29) + (1 << 21), t3 + R1 * W2 + R2 * W1 + 1024 * (R2 * W2))
        claimed = self.claimed()
        b.bits(target - before, bitlen(most), [claimed], "not before")
        b.bits(before + own - 1 - target, bitlen(most), [claimed], "not after")


class _Head(NamedTuple):
    """A block of the vocabulary: its table and the columns that it starts with."""

    table: Table
    base: int
    logit: Col
    real: Col
    at: Col
    padded: bool

    @property
    def where(self) -> list[Col]:
        """The selector `real?`."""
        return [self.real] if self.padded else []


def random_word(seed: int, index: int) -> int:
    """The first output word of Philox4x32-10 with the key `seed` and the counter `index`."""
    mask = (1 << 32) - 1
    counter = [index & mask, index >> 32 & mask, 0, 0]
    key = [seed & mask, seed >> 32 & mask]
    for _ in range(10):
        a, b = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [b >> 32 ^ counter[1] ^ key[0], b & mask, a >> 32 ^ counter[3] ^ key[1], a & mask]
        key = [(key[0] + 0x9E3779B9) & mask, (key[1] + 0xBB67AE85) & mask]
    return counter[0]


__all__ = ["Sampling", "SegmentFacts", "Shape", "build", "model_slots", "random_word", "state_slots"]
