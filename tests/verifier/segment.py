"""One segment, the verifier's side (PROTOCOL.md, section 4)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .circuit import (
    Circuit,
    Coordinate,
    Coordinates,
    Form,
    Kernel,
    Oracle,
    Place,
    PublicColumn,
    SlotColumn,
    SumColumn,
    Table,
    Term,
    prefix_sums,
    suffix,
)
from .codec import Reader
from .commitment import Batch, Commitment
from .errors import require
from .field import ONE, ZERO, Ext, P, Point, eq_table, eval_eq, hypercube_point, powers
from .logup import FractionProof, read_fraction_proof, verify_fraction_sum
from .sumcheck import SumcheckProof, read_sumcheck_proof, verify_sumcheck
from .transcript import Transcript
from .whir import OpeningProof, read_opening_proof

SEED_LENGTH = 8


class SegmentProof(NamedTuple):
    """The messages of one segment."""

    trace_root: bytes
    lookups: FractionProof
    main: SumcheckProof
    first_values: list[Ext]
    sum_values: list[Ext]
    second: SumcheckProof
    second_values: list[Ext]
    trace_opening: OpeningProof


def read_segment_proof(r: Reader) -> SegmentProof:
    """Parse a segment of a proof's body."""
    return SegmentProof(
        r.digest(),
        read_fraction_proof(r),
        read_sumcheck_proof(r),
        r.vec(r.ext),
        r.vec(r.ext),
        read_sumcheck_proof(r),
        r.vec(r.ext),
        read_opening_proof(r),
    )


class Claim(NamedTuple):
    """A slot has this value at this point."""

    place: Place
    point: list[Ext]
    value: Ext


class Reduced(NamedTuple):
    """What a segment leaves open: values of the Model's and of the states' slots; and the elements that bind it."""

    model: list[Claim]
    states: list[Claim]
    end: list[int]


def group(claims: Iterable[Claim], first: int = 0) -> list[Batch]:
    """Batches by point, in the order in which the points first appear; each slot once.

    A slot's number in the commitment is `first` plus its index.
    """
    batches: dict[tuple[Coordinate, ...], Batch] = {}
    for place, point, value in claims:
        batch = batches.setdefault(place.point, Batch([], point, []))
        slot = first + place.slot.index
        if slot in batch.slots:
            require(batch.values[batch.slots.index(slot)] == value, "a slot has two values at one point")
        else:
            batch.slots.append(slot)
            batch.values.append(value)
    return list(batches.values())


def verify_segment(circuit: Circuit, proof: SegmentProof, transcript: Transcript) -> Reduced:
    """Verify everything but the openings of the Model and of the states. The transcript is at the start of section 4."""
    # 1. The trace.
    trace = Commitment(proof.trace_root, tuple(circuit.shape(Oracle.TRACE)))
    trace.observe(transcript)

    # 2, 3. Lookups.
    alpha, beta = transcript.sample_ext(), transcript.sample_ext()
    blocks = circuit.leaf_blocks()
    total = sum(1 << k for k, _ in blocks)
    n = (total - 1).bit_length()
    rho, numerator, denominator = verify_fraction_sum(transcript, proof.lookups, n)
    weights: dict[int, Ext] = {}  # by id of the lookup
    ranges_weight, weight_sum, selected = ZERO, ZERO, ZERO
    offset = 0
    publics = PublicValues()
    for k, entry in blocks:
        w = eval_eq(hypercube_point(offset >> k, n - k), rho[: n - k])
        offset += 1 << k
        if entry is None:
            ranges_weight = w
        else:
            table, lookup = entry
            weights[id(lookup)] = w
            weight_sum = weight_sum + w
            point = suffix(rho, k)
            for i in lookup.selector:
                w = w * publics.column(table, i, point)
            selected = selected + w
    range_point = suffix(rho, circuit.log_ranges)
    range_value = _range_value(circuit.ranges, range_point, beta)
    c_d = weight_sum * alpha + ranges_weight * (alpha - range_value) + (1 - weight_sum - ranges_weight) - denominator
    c_n = selected - numerator

    # 4, 5. Main sumcheck.
    eta = transcript.sample_ext()
    num_vars = circuit.max_table_vars
    if num_vars > n:
        raise ValueError("fewer leaves than rows of the largest table")
    m = circuit.num_constraints
    eta_powers = [p for p, _ in zip(powers(eta), range(m + 2), strict=False)]
    tau = suffix(rho, num_vars)
    r, end, claimed = verify_sumcheck(transcript, proof.main, num_vars, 4, 0)
    require(claimed == eta_powers[m] * c_d + eta_powers[m + 1] * c_n, "the main sumcheck is for another sum")

    # 6. First values.
    first_places = circuit.first_places()
    column_sums = circuit.column_sums()
    require(len(proof.first_values) == len(first_places), "wrong number of first values")
    require(len(proof.sum_values) == len(column_sums), "wrong number of values of sums")
    transcript.observe_exts(proof.first_values)
    transcript.observe_exts(proof.sum_values)
    first = dict(zip(first_places, proof.first_values, strict=True))
    sums = dict(zip(column_sums, proof.sum_values, strict=True))
    publics = PublicValues()
    combined = eta_powers[m + 1] * ranges_weight * proof.first_values[-1]
    constraint_powers = iter(eta_powers)
    for table in circuit.tables:
        point = suffix(r, table.num_vars)
        columns: list[Ext] = []
        for i, column in enumerate(table.columns):
            match column:
                case SlotColumn():
                    columns.append(first[column.place(table.num_vars)])
                case SumColumn():
                    columns.append(sums[column.sum])
                case PublicColumn():
                    columns.append(publics.column(table, i, point))
        for constraint in table.constraints:
            combined = combined + next(constraint_powers) * constraint.expr.value(columns)
        looked_up = ZERO
        for lookup in table.lookups:
            looked_up = looked_up + weights[id(lookup)] * (lookup.value(columns) + beta * lookup.range.value(columns))
        combined = combined + eta_powers[m] * looked_up
    require(end == eval_eq(tau, r) * combined, "the main sumcheck ends wrongly")

    # 7. Second sumcheck.
    gamma = transcript.sample_ext()
    m_max = circuit.max_term_vars
    time_point = suffix(r, circuit.time_vars)
    target = ZERO
    gammas = [p for p, _ in zip(powers(gamma), circuit.sums, strict=False)]
    step_weights = eq_table(time_point)
    for i, s in enumerate(circuit.sums):
        y = sums.get(i, ZERO)
        for carry in s.carries:
            w = ONE if carry.step is None else step_weights[carry.step]
            y = y - w * first[s.carry_place(carry)] * carry.coefficient
        target = target + gammas[i] * y
    q, end, claimed = verify_sumcheck(transcript, proof.second, m_max, 3, 0)
    require(claimed == target, "the second sumcheck is for another sum")

    # 8. Second values.
    second_places = circuit.second_places()
    require(len(proof.second_values) == len(second_places), "wrong number of second values")
    transcript.observe_exts(proof.second_values)
    second = dict(zip(second_places, proof.second_values, strict=True))
    kernels: dict[tuple[Kernel, int], Ext] = {}

    def term_value(table_sum: int, term: Term) -> Ext:
        value = Ext.of(term.coefficient * pow(2, -(m_max - term.num_vars), P))
        for factor in term.factors:
            if isinstance(factor, Form):
                form = Ext.of(factor.constant)
                for part in factor.parts:
                    form = form + second[circuit.sums[table_sum].part_place(term, part)] * part.coefficient
                value = value * form
            else:
                key = (factor, term.num_vars)
                if key not in kernels:
                    kernels[key] = factor.value(time_point, suffix(q, term.num_vars))
                value = value * kernels[key]
        return value

    reached = ZERO
    for i, s in enumerate(circuit.sums):
        inner = ZERO
        for term in s.terms:
            inner = inner + term_value(i, term)
        reached = reached + gammas[i] * inner
    require(end == reached, "the second sumcheck ends wrongly")
    bound = [transcript.sample_base() for _ in range(SEED_LENGTH)]

    # 9. Opening of the trace.
    coordinates = Coordinates(r, q)
    claims = [
        Claim(place, coordinates.resolve(place.point), value)
        for places, values in ((first_places, proof.first_values), (second_places, proof.second_values))
        for place, value in zip(places, values, strict=True)
    ]
    of_trace = [claim for claim in claims if claim.place.slot.oracle is Oracle.TRACE]
    trace.verify_opening(group(of_trace), proof.trace_opening, transcript, "johnson")
    return Reduced(
        [claim for claim in claims if claim.place.slot.oracle is Oracle.MODEL],
        [claim for claim in claims if claim.place.slot.oracle in (Oracle.STATE_IN, Oracle.STATE_OUT)],
        bound,
    )


class PublicValues:
    """Public columns at one point of each table, each computed once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], Ext] = {}

    def column(self, table: Table, index: int, point: Point) -> Ext:
        """The value of a public column of a table at the point, which is always the same for a table."""
        key = (id(table), index)
        if key not in self._known:
            column = table.columns[index]
            if not isinstance(column, PublicColumn):
                raise ValueError("not a public column")
            self._known[key] = column.public.value(point)
        return self._known[key]


def _range_value(sizes: Sequence[int], point: Point, beta: Ext) -> Ext:
    """Σ over the rows i of the ranges, of eq(point, i) · (v + β · j): row i is the value v of range j."""
    total = ZERO
    start = 0
    weight, index = ZERO, ZERO
    for j, size in enumerate(sizes):
        weight_after, index_after = prefix_sums(point, start + size)
        here = weight_after - weight
        total = total + (index_after - index) - here * start + beta * j * here
        start += size
        weight, index = weight_after, index_after
    return total
