"""Proofs of generation: head, segments, tail (PROTOCOL.md, sections 3 and 6)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

from .circuit import Circuit, Oracle
from .codec import Reader
from .commitment import Commitment, length_prefixed
from .errors import VerificationError, present, require
from .model_circuit import Shape, build, model_slots, state_slots
from .segment import SEED_LENGTH, Reduced, SegmentProof, group, read_segment_proof, verify_segment
from .soundness import MIN_BITS, soundness_bits
from .statement import PROOF_MAGIC, Card, Statement, read_card, read_container, read_statement
from .transcript import Transcript
from .whir import OpeningProof, read_opening_proof

HEAD_LABEL = b"mamba-integer-proof-1"
SEGMENT_LABEL = b"mamba-integer-segment-1"
TAIL_LABEL = b"mamba-integer-tail-1"


class Body(NamedTuple):
    """The third part of a proof file."""

    states_root: bytes | None
    segments: list[SegmentProof]
    model_opening: OpeningProof
    states_opening: OpeningProof | None


def read_body(data: bytes) -> Body:
    """Parse the body; every byte is used."""
    r = Reader(data)
    body = Body(
        r.option(r.digest),
        r.vec(lambda: read_segment_proof(r)),
        read_opening_proof(r),
        r.option(lambda: read_opening_proof(r)),
    )
    r.end()
    return body


@dataclass(frozen=True)
class Report:
    """What an accepted proof shows."""

    card: Card
    statement: Statement
    soundness_bits: float


def model_shape(shape: Shape) -> tuple[int, ...]:
    """Numbers of variables of the Model's slots."""
    circuit = Circuit(0)
    model_slots(circuit, shape)
    return tuple(circuit.shape(Oracle.MODEL))


def states_shape(shape: Shape) -> tuple[int, ...]:
    """Numbers of variables of the slots of one state."""
    circuit = Circuit(0)
    state_slots(circuit, shape, Oracle.STATE_IN)
    return tuple(circuit.shape(Oracle.STATE_IN))


def verify(proof: bytes, commitment: str) -> Report:
    """Verify a proof file about the model with this commitment (hexadecimal). Raises VerificationError."""
    statement_data, card_data, body_data = read_container(proof, PROOF_MAGIC, 3)
    card = read_card(card_data)
    require(card.commitment.hex() == commitment, "the proof is about another model than the one named")
    statement = read_statement(statement_data, card)
    body = read_body(body_data)
    count = len(statement.segments)
    require(len(body.segments) == count, "wrong number of segments")
    require(
        (body.states_root is not None) == (count > 1) == (body.states_opening is not None),
        "states are committed exactly if there is more than one segment",
    )

    model = Commitment(card.root, model_shape(card.shape))
    # PROTOCOL.md does not say it: the states between segments are one commitment, boundary after boundary.
    per_state = states_shape(card.shape)
    states = None if body.states_root is None else Commitment(body.states_root, per_state * (count - 1))

    head = Transcript(HEAD_LABEL)
    head.observe_bytes(length_prefixed(hashlib.sha256(statement_data).digest()))
    model.observe(head)
    if states is not None:
        states.observe(head)
    seed = [head.sample_base() for _ in range(SEED_LENGTH)]

    facts = [statement.segment(i) for i in range(count)]
    circuits = [build(card.shape, fact) for fact in facts]
    reduced = [_segment(i, circuits[i], body.segments[i], seed) for i in range(count)]

    tail = Transcript(TAIL_LABEL)
    for element in [*seed, *(e for segment in reduced for e in segment.end)]:
        tail.observe_base(element)
    model_batches = [batch for segment in reduced for batch in group(segment.model)]
    model.verify_opening(model_batches, body.model_opening, tail, "unique")
    # Nor does it say that the claims on StateIn are grouped by themselves and come before those on StateOut.
    state_batches = []
    for i, segment in enumerate(reduced):
        for oracle, boundary in ((Oracle.STATE_IN, i - 1), (Oracle.STATE_OUT, i)):
            claims = [claim for claim in segment.states if claim.place.slot.oracle is oracle]
            state_batches += group(claims, boundary * len(per_state))
    if states is not None:
        states.verify_opening(state_batches, present(body.states_opening, "the states are not opened"), tail, "johnson")

    bits = soundness_bits(circuits, model.shape, model_batches, () if states is None else states.shape, state_batches)
    require(bits >= MIN_BITS, f"only {bits:.1f} bits of soundness")
    return Report(card, statement, bits)


def _segment(index: int, circuit: Circuit, proof: SegmentProof, seed: list[int]) -> Reduced:
    try:
        circuit.check()
    except ValueError as error:
        raise VerificationError(f"segment {index}: the circuit is not sound: {error}") from None
    transcript = Transcript(SEGMENT_LABEL)
    for element in [*seed, index]:
        transcript.observe_base(element)
    try:
        return verify_segment(circuit, proof, transcript)
    except VerificationError as error:
        raise VerificationError(f"segment {index}: {error}") from None


__all__ = ["Report", "verify"]
