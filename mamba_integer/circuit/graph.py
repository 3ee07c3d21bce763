"""Integer ONNX graphs that prove what they compute: a quotient is a witness, an input that the prover supplies, and inequalities make it the only one.

Everything is int64. A graph is built together with its values for one input; its structure depends on shapes, weights and bounds alone, so that the same
graph serves every input. Three devices take the place of shifts, clamps and comparisons:

- `nonnegative(x)`: 0 ≤ x. Numbers that are to be checked are split into limbs of `table_bits`; all limbs of a graph together index one table of the numbers
  0 … 2^table_bits − 1, in one Gather. A proof that the index lies within the table is the range check, one cell a limb.
- `floor(x, s)`: the q with 0 ≤ x − q·2^s < 2^s, both sides checked, so that q is unique: as an element of EZKL's field (254 bits) as well, because q itself
  is checked to be small and no value comes near the field's size.
- `clamp`: x = y + over − under with over, under ≥ 0 and low ≤ y ≤ high, over·(high − y) = 0, under·(y − low) = 0. The products of all clamps are non-negative,
  so one sum of them that is 0 shows that each is. That sum is in the public output `checks`: whoever verifies must see that it is 0.

Free of cells in EZKL are reshaping, concatenation and Gather with constant indices (copies); a dot product costs a cell a term, rounded up to even.
Knows onnx and arithmetic's integers; knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from mamba_integer.arithmetic import Ints
from mamba_integer.circuit import available
from mamba_integer.errors import ArgumentError

OPSET, IR_VERSION = 17, 8
SOUND = (0, 0, 0, 1)  # what the public output `checks` must be
EXACT = (
    1 << 24
)  # EZKL reads constants as float32; integers up to here survive, larger ones only if they are such a number times a power of two


@dataclass(frozen=True)
class Wire:
    """A tensor of a graph: its name, its value for the input at hand, and bounds that hold for every input."""

    name: str
    value: Ints
    low: int
    high: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def magnitude(self) -> int:
        return max(abs(self.low), abs(self.high))


Term = tuple["Wire | int", "Wire | int"]


def _ends(x: Wire | int) -> tuple[int, int]:
    return (x, x) if isinstance(x, int) else (x.low, x.high)


def survives(values: Ints) -> bool:
    """Whether integers stay what they are when they are read as float32."""
    return bool((values.astype(np.float32).astype(object) == values.astype(object)).all())


class Graph:
    """An ONNX graph under construction. table_bits: width of a limb, 8 … 16; EZKL needs logrows > table_bits."""

    def __init__(self, table_bits: int = 15) -> None:
        if not 8 <= table_bits <= 16:
            raise ArgumentError(f"table bits must be from 8 to 16, not {table_bits}")
        available("onnx")
        self.table_bits = table_bits
        self.inputs: dict[str, Ints] = {}  # in the order in which EZKL takes them
        self.outputs: dict[str, Ints] = {}
        self.roundings = 0
        self.limbs = 0
        self._nodes: list[Any] = []
        self._known: dict[str, Ints] = {}  # magnitudes of constant tensors
        self._pool: dict[int, int] = {}  # scalar constant → its place in the pool
        self._large: dict[int, Wire] = {}
        self._one = self.input("one", np.ones(1, np.int64), 1, 1)
        self._limbs: list[Wire] = []
        self._products: list[tuple[Wire, Wire]] = []

    # ---- tensors ------------------------------------------------------------------------------------------------------

    def input(self, name: str, value: Ints, low: int, high: int) -> Wire:
        """An input of the statement. Nothing is proven of its range here."""
        self.inputs[name] = value
        return Wire(name, value, low, high)

    def witness(self, value: Ints, low: int, high: int) -> Wire:
        """An input that the prover supplies. Bounds are what honest values obey; whoever asks for a witness proves them."""
        return self.input(f"w{len(self.inputs)}", value, low, high)

    def constant(self, value: Ints) -> Wire:
        """A constant tensor, to be used once: EZKL lets a constant that is used once pass free of cells. Refuses what float32 does not hold."""
        array = np.asarray(value, np.int64)
        if not survives(array):
            raise ArgumentError("a constant tensor has a number that float32 does not hold")
        wire = self._bare_constant(array)
        self._known[wire.name] = np.abs(array)
        return wire

    def scalars(self, values: Sequence[int]) -> Wire:
        """[n]: constants as copies from one pool of all scalars of the graph, times the input `one`, so that no importer can fold or rewrite them.

        A scalar that float32 does not hold is made from two that it does, by a sum.
        """
        if len(set(values)) == 1 and not survives(np.array(values[:1])):
            value = values[0]
            if value not in self._large:
                high, low = divmod(value, EXACT)
                top = self.mul(self.scalars([high, high]), self.scalars([EXACT, EXACT]))
                self._large[value] = self.add(top, self.scalars([low, low]))
            return self.take(self._large[value], [0] * len(values))
        if not survives(np.array(values)):
            raise ArgumentError("a list of constants has a number that float32 does not hold")
        slots = [self._pool.setdefault(value, len(self._pool)) for value in values]
        pool = Wire("pool", np.array(list(self._pool), np.int64), min(values), max(values))
        return self.take(pool, slots)

    def _bare_constant(self, array: Ints) -> Wire:
        from onnx import numpy_helper

        name = f"c{len(self._nodes)}"
        self._nodes.append(numpy_helper.from_array(np.ascontiguousarray(array, np.int64), name))
        return Wire(name, array, int(array.min()), int(array.max()))

    def output(self, name: str, wire: Wire) -> None:
        """A public output. EZKL copies it, inputs of the statement too, which it keeps private."""
        self._node("Reshape", [wire, self._bare_constant(np.array(wire.shape))], wire.value, wire.low, wire.high, name)
        self.outputs[name] = wire.value

    # ---- operations ---------------------------------------------------------------------------------------------------

    def _node(
        self, op: str, inputs: Sequence[Wire], value: Ints, low: int, high: int, name: str = "", **attributes: Any
    ) -> Wire:
        from onnx import helper

        name = name or f"t{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, [w.name for w in inputs], [name], **attributes))
        return Wire(name, np.asarray(value, np.int64), low, high)

    def _both(self, a: Wire | int, b: Wire | int) -> tuple[Wire, Wire]:
        """Operands as wires; a number takes the other's shape, as copies of it are free while a Slice of the pool is not."""
        if isinstance(a, int):
            a, b = self._both(b, a)[::-1]
        assert isinstance(a, Wire)
        return a, b if isinstance(b, Wire) else self.reshape(self.scalars([b] * a.value.size), *a.shape)

    def add(self, a: Wire | int, b: Wire | int) -> Wire:
        a, b = self._both(a, b)
        return self._node("Add", [a, b], a.value + b.value, a.low + b.low, a.high + b.high)

    def sub(self, a: Wire | int, b: Wire | int) -> Wire:
        a, b = self._both(a, b)
        return self._node("Sub", [a, b], a.value - b.value, a.low - b.high, a.high - b.low)

    def mul(self, a: Wire | int, b: Wire | int) -> Wire:
        a, b = self._both(a, b)
        corners = [x * y for x in (a.low, a.high) for y in (b.low, b.high)]
        return self._node("Mul", [a, b], a.value * b.value, min(corners), max(corners))

    def reshape(self, x: Wire, *shape: int) -> Wire:
        if x.shape == shape:
            return x
        value = x.value.reshape(shape)
        return self._node("Reshape", [x, self._bare_constant(np.array(shape))], value, x.low, x.high)

    def concatenate(self, parts: Sequence[Wire], axis: int = 0) -> Wire:
        if len(parts) == 1:
            return parts[0]
        value = np.concatenate([p.value for p in parts], axis)
        return self._node("Concat", parts, value, min(p.low for p in parts), max(p.high for p in parts), axis=axis)

    def take(self, x: Wire, indices: Sequence[int] | Ints, axis: int = 0) -> Wire:
        """Elements at constant indices: free copies."""
        inputs = [x, self._bare_constant(np.asarray(indices, np.int64))]
        return self._node("Gather", inputs, np.take(x.value, indices, axis), x.low, x.high, axis=axis)

    def look_up(self, table: Wire, index: Wire) -> Wire:
        """Numbers of a constant table [n] at indices [m] that are data. Costs a cell an index, and proves that it lies within the table."""
        return self._node("GatherElements", [table, index], table.value[index.value], table.low, table.high, axis=0)

    def einsum(self, equation: str, a: Wire, b: Wire) -> Wire:
        """Σ a·b over the indices that the result lacks. The bound takes constants for what they are, by the sum of their magnitudes."""
        inputs, result = equation.split("->")
        letters = inputs.split(",")
        summed = set("".join(letters)) - set(result)
        bound = prod(a.shape[letters[0].index(c)] for c in summed) * a.magnitude * b.magnitude
        for one, other, own in ((a, b, letters[0]), (b, a, letters[1])):
            if one.name in self._known:
                axes = tuple(i for i, c in enumerate(own) if c in summed)
                bound = min(bound, int(self._known[one.name].sum(axes).max()) * other.magnitude)
        value = np.einsum(equation, a.value, b.value)
        return self._node("Einsum", [a, b], value, -bound, bound, equation=equation)

    def total(self, x: Wire) -> Wire:
        """Σ over the last axis."""
        n = x.shape[-1]
        axes = self._bare_constant(np.array([len(x.shape) - 1]))
        return self._node("ReduceSum", [x, axes], x.value.sum(-1), n * x.low, n * x.high, keepdims=0)

    def sum_of(self, terms: Sequence[Term], constant: int | Wire = 0) -> Wire:
        """Σ a·b + constant, element by element, all broadcast together: one dot product of copies."""
        terms = list(terms)
        nothing = isinstance(constant, int) and constant == 0
        if len(terms) & 1 and len(terms) > 1 and not nothing:
            terms, nothing = [*terms, (constant, 1)], True
        if len(terms) == 1:
            out = self.mul(*terms[0])
        else:
            shape = np.broadcast_shapes(*(x.shape for pair in terms for x in pair if isinstance(x, Wire)))
            sides = [self._stack(side, shape) for side in zip(*terms, strict=True)]
            corners = [[x * y for x in _ends(a) for y in _ends(b)] for a, b in terms]
            low, high = sum(map(min, corners)), sum(map(max, corners))
            value = (sides[0].value * sides[1].value).sum(1)
            out = self.reshape(self._node("Einsum", sides, value, low, high, equation="ab,ab->a"), *shape)
        return out if nothing else self.add(out, constant)

    def _stack(self, columns: Sequence[Wire | int], shape: tuple[int, ...]) -> Wire:
        """[n, count]: wires and numbers broadcast to a shape of n elements, side by side, as copies from one vector."""
        columns = [x if isinstance(x, Wire) or survives(np.array([x])) else self.scalars([x]) for x in columns]
        numbers = [x for x in columns if isinstance(x, int)]
        sources = list({x.name: x for x in columns if isinstance(x, Wire)}.values())
        starts = dict(zip([w.name for w in sources], np.cumsum([0, *(w.value.size for w in sources)]), strict=False))
        end = sum(w.value.size for w in sources)
        flat = [self.reshape(w, w.value.size) for w in sources]
        if numbers:
            flat.append(self.scalars(numbers))
        places = []
        for x in columns:
            if isinstance(x, Wire):
                places.append(
                    np.broadcast_to(np.arange(x.value.size).reshape(x.shape), shape).reshape(-1) + starts[x.name]
                )
            else:
                places.append(np.full(prod(shape), end))
                end += 1
        return self.reshape(
            self.take(self.concatenate(flat), np.stack(places, 1).reshape(-1)), prod(shape), len(columns)
        )

    # ---- inequalities -------------------------------------------------------------------------------------------------

    def nonnegative(self, x: Wire, high: int | None = None) -> None:
        """Proves that x is an integer, 0 ≤ x < 2^(w·table_bits), with the least w that admits `high` (or x's own bound). No use rests on the upper end."""
        bits = (x.high if high is None else high).bit_length()
        self.below(x, max(self.table_bits, bits + -bits % self.table_bits))

    def below(self, x: Wire, bits: int) -> None:
        """Proves that x is an integer, 0 ≤ x < 2^bits exactly.

        A width below table_bits takes two checks: that of a multiple of x alone would admit fractions, which a field has.
        """
        t = self.table_bits
        if bits > t:
            rest = self.witness(x.value >> t, 0, (1 << (bits - t)) - 1)
            self.below(rest, bits - t)
            x = self.sum_of([(1, x), (-(1 << t), rest)])
        elif bits < t:
            self._limbs.append(self.mul(x, 1 << (t - bits)))
        self._limbs.append(x)

    def zero(self, x: Wire) -> None:
        """Proves that x, a sum of integers, is 0: 0 ≤ 2^table_bits · x < 2^table_bits."""
        self._limbs.append(self.mul(x, 1 << self.table_bits))

    def close(self, slack: Wire, room: Wire, high: int) -> None:
        """Proves that room ≥ 0 and that slack, proven non-negative already, is 0 wherever room is not."""
        self.nonnegative(room, high)
        self._products.append((slack, room))

    def scale(self, shift: int) -> int:
        """What the terms of a sum of `floor` are to be multiplied by, for remainders below 2^shift to be below 2^table_bits."""
        return 1 << max(self.table_bits - shift, 0) if shift else 1

    def clamped(
        self,
        terms: Sequence[Term],
        constant: int | Wire,
        shift: int,
        bounds: tuple[int, int],
        limits: tuple[int, int],
        exact: Ints,
    ) -> Wire:
        """min(max(floor((Σ terms + constant) / 2^shift), low), high) for limits (low, high), terms and constant already multiplied by `scale(shift)`.

        bounds: of the floor, for every input. exact: its value. Where bounds are within the limits, nothing is clamped and nothing is paid.
        """
        self.roundings += exact.size if shift else 0
        low, high = max(bounds[0], limits[0]), min(bounds[1], limits[1])
        value = np.clip(exact, *limits)
        over: Wire | None = None
        under: Wire | None = None
        if bounds[1] > limits[1]:
            over = self.witness(np.maximum(exact - limits[1], 0), 0, bounds[1] - limits[1])
            self.nonnegative(over)
        if bounds[0] < limits[0]:
            under = self.witness(np.maximum(limits[0] - exact, 0), 0, limits[0] - bounds[0])
            self.nonnegative(under)
        unit = self.scale(shift) << shift
        parts: list[tuple[int, Wire]] = []
        parts += [(-unit, over)] if over else []
        parts += [(unit, under)] if under else []
        if shift == 0:
            out = self.sum_of([*terms, *((a // unit, b) for a, b in parts)], constant)
            out = Wire(out.name, out.value, low, high)
        else:
            out = self.witness(value, low, high)
            remainder = self.sum_of([*terms, (-unit, out), *parts], constant)
            remainder = Wire(remainder.name, remainder.value, 0, unit - 1)
            self.below(remainder, max(shift, self.table_bits))
        if over is not None:
            self.close(over, self.sub(limits[1], out), high - low)
        if under is not None:
            self.close(under, self.sub(out, limits[0]), high - low)
        if over is None and under is None and shift:
            self.nonnegative(self.sub(out, low) if low else out, high - low)
        return out

    # ---- the whole ----------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Adds the range check of all limbs and the output `checks`, which must be `SOUND`: the clamps' products in sum, a limb that is 0, it again, `one`."""
        t = self.table_bits
        limbs = self.concatenate([*(self.reshape(x, x.value.size) for x in self._limbs), self.scalars([0, 0])])
        if limbs.value.min() < 0 or limbs.value.max() >> t:
            raise AssertionError("a limb is out of its range: the encoding is wrong")
        self.limbs = limbs.value.size
        limbs = self._node("Identity", [limbs], limbs.value, 0, (1 << t) - 1, "limbs")
        checked = self.look_up(self.constant(np.arange(1 << t)), limbs)
        last = self.take(checked, [limbs.value.size - 1] * 2)
        if self._products:
            slacks, rooms = (
                self.concatenate([self.reshape(w, w.value.size) for w in side])
                for side in zip(*self._products, strict=True)
            )
            n = slacks.value.size
            total = self.reshape(self.einsum("ab,ab->a", self.reshape(slacks, 1, n), self.reshape(rooms, 1, n)), 1)
        else:
            total = self.scalars([0])
        self.output("checks", self.concatenate([total, last, self._one]))

    def model(self, name: str = "mamba_integer") -> Any:
        """The ONNX model, checked by onnx. `finish` comes first."""
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        def info(values: dict[str, Ints]) -> list[Any]:
            return [helper.make_tensor_value_info(k, TensorProto.INT64, v.shape) for k, v in values.items()]

        nodes = [helper.make_node("Mul", ["scalars", "one"], ["pool"])]
        nodes += [n for n in self._nodes if isinstance(n, onnx.NodeProto)]
        constants = [numpy_helper.from_array(np.array(list(self._pool), np.int64), "scalars")]
        constants += [n for n in self._nodes if not isinstance(n, onnx.NodeProto)]
        graph = helper.make_graph(nodes, name, info(self.inputs), info(self.outputs), constants)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="mamba-integer"
        )
        onnx.checker.check_model(model)
        return model
