"""Registrations: that the committed weights are within the bounds of the circuits (PROTOCOL.md, section 7)."""

from __future__ import annotations

from .circuit import Circuit, Expr, Oracle, Slot, Term, linear
from .codec import Reader
from .commitment import Commitment, length_prefixed
from .errors import VerificationError, require
from .kernels import Values
from .model_circuit import RANGES, Axes, Axis, Builder, Matrix, Projection, Shape, Vector, form, model_slots, variables
from .segment import group, read_segment_proof, verify_segment
from .soundness import MIN_BITS, soundness_bits
from .statement import Card, read_card, read_container
from .transcript import Transcript
from .whir import read_opening_proof

REGISTRATION_MAGIC = b"MI-REGIS"
LABEL = b"mamba-integer-registration-1"
TAIL_LABEL = b"mamba-integer-registration-tail-1"

# Kinds of vectors and of the embedding: (index of the range, least value, whether only padding may be below it by one).
_SMALL = (20, -127, False)
_MULTIPLIER = (20, 1, True)
_DECAY = (18, 1, True)
_WIDE = (22, -32767, False)
_Kind = tuple[int, int, bool]


def build_registration(shape: Shape) -> Circuit:
    """The circuit of section 7.2."""
    circuit = Circuit(0)
    circuit.ranges = list(RANGES)
    weights, axes, b = model_slots(circuit, shape), Axes(shape), Builder(circuit)

    def paddings(rows: Axis, i: int, columns: Axis | None = None, j: int = 0) -> Expr | None:
        found: list[tuple[int, Expr]] = []
        for axis, block, first in ((rows, i, 0), (columns, j, rows.log)):
            if axis is not None and any(axis.padding(block)):
                found.append((1, b.public(Values(first, axis.padding(block)))))
        return linear(found) if found else None

    def begin(slot: Slot, rows: Axis, i: int, columns: Axis | None = None, j: int = 0) -> tuple[Expr, Expr | None]:
        b.new_table(slot.name, slot.num_vars)
        w = b.own(slot)
        padding = paddings(rows, i, columns, j)
        if padding is not None:
            b.zero(w * padding, name="padding")
        return w, padding

    def ranged(w: Expr, padding: Expr | None, kind: _Kind) -> None:
        index, least, strict = kind
        b.look(w - least + (padding if strict and padding is not None else 0), index, name="range")

    def vector(slots: Vector, axis: Axis, kind: _Kind = _SMALL) -> None:
        for i, slot in enumerate(slots):
            ranged(*begin(slot, axis, i), kind)

    def matrix(slots: Matrix, rows: Axis, columns: Axis) -> None:
        for i, row in enumerate(slots):
            for j, slot in enumerate(row):
                ranged(*begin(slot, rows, i, columns, j), _SMALL)

    def projection(p: Projection, columns: Axis, shift: int) -> None:
        magnitudes: list[list[Slot]] = []
        for i, row in enumerate(p.matrix):
            magnitudes.append([])
            for j, slot in enumerate(row):
                w, _ = begin(slot, p.rows, i, columns, j)
                a = b.commit("a", 0, 127)
                b.look(a, 7, name="a")
                b.zero(a * a - w * w, integer=False, name="a")
                magnitudes[-1].append(b.slot_of(a))
        most = ((1 << 29) - 1 - ((1 << shift) >> 1)) // 127
        for i, slot in enumerate(p.mul):
            w, padding = begin(slot, p.rows, i)
            ranged(w, padding, _MULTIPLIER)
            total = b.sum(
                "sum",
                0,
                127 * columns.blocks << columns.log,
                [
                    Term(1, columns.log, (form(a, [*variables("r", p.rows.log), *variables("x", columns.log)]),))
                    for a in magnitudes[i]
                ],
            )
            slack, low = b.commit("slack", 0, (1 << 23) - 1), b.commit("low", 0, (1 << 11) - 1)
            b.look(low, 11, name="low")
            b.look(slack - low, 12, 11, name="slack")
            b.zero(w * total + slack - most, name="row bound")

    matrix(weights.embedding, axes.v, axes.d)
    for i, layer in enumerate(weights.layers):
        vector(layer.norm1, axes.d)
        for p in layer.in_proj.values():
            projection(p, axes.d, shape.in_proj_shift[i])
        for name, convolution in layer.conv.items():
            axis = axes.inner if name == "x" else axes.n
            for tap in convolution.taps:
                vector(tap, axis)
            vector(convolution.bias, axis, _WIDE)
        vector(layer.A, axes.heads, _DECAY)
        vector(layer.base, axes.heads, _WIDE)
        vector(layer.skip, axes.heads)
        vector(layer.norm2, axes.inner)
        projection(layer.out, axes.inner, shape.out_proj_shift[i])
    vector(weights.norm_f, axes.d)
    return circuit


def verify_registration(data: bytes, commitment: str) -> Card:
    """Verify a registration file of the model with this commitment (hexadecimal). Raises VerificationError."""
    card_data, body = read_container(data, REGISTRATION_MAGIC, 2)
    card = read_card(card_data)
    require(card.commitment.hex() == commitment, "the registration is of another model than the one named")
    reader = Reader(body)
    proof, opening = read_segment_proof(reader), read_opening_proof(reader)
    reader.end()
    circuit = build_registration(card.shape)
    try:
        circuit.check()
    except ValueError as error:
        raise VerificationError(f"the circuit is not sound: {error}") from None
    model = Commitment(card.root, tuple(circuit.shape(Oracle.MODEL)))
    transcript = Transcript(LABEL)
    transcript.observe_bytes(length_prefixed(card.commitment))
    model.observe(transcript)
    reduced = verify_segment(circuit, proof, transcript)
    tail = Transcript(TAIL_LABEL)
    for element in reduced.end:
        tail.observe_base(element)
    batches = group(reduced.model)
    model.verify_opening(batches, opening, tail, "unique")
    bits = soundness_bits([circuit], model.shape, batches, (), ())
    require(bits >= MIN_BITS, f"only {bits:.1f} bits of soundness")
    return card
