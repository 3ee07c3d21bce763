"""Generic-degree sumcheck: p3_sumcheck::generic_degree (GenericDegreeProof::verify)."""

from __future__ import annotations

from typing import NamedTuple

from .codec import Reader
from .errors import require
from .field import Ext, interpolate_at
from .transcript import Pattern, Transcript, enter


class SumcheckProof(NamedTuple):
    """GenericDegreeProof: per round h(0), h(2), ..., h(degree)."""

    claimed_sum: Ext
    round_polys: list[list[Ext]]
    pow_witnesses: list[int]


def read_sumcheck_proof(r: Reader) -> SumcheckProof:
    """Parse a postcard GenericDegreeProof at the cursor."""
    return SumcheckProof(r.ext(), r.vec(lambda: r.vec(r.ext)), r.vec(r.base))


def next_claim(evaluations: list[Ext], claim: Ext, r: Ext) -> Ext:
    """h(r), with h(0), h(2), .. given and h(1) = claim - h(0)."""
    return interpolate_at([evaluations[0], claim - evaluations[0], *evaluations[1:]], r)


def verify_sumcheck(
    transcript: Transcript, proof: SumcheckProof | bytes, rounds: int, degree: int, pow_bits: int
) -> tuple[list[Ext], Ext, Ext]:
    """Returns (point, final sum, claimed sum). The claimed sum comes from the proof: the CALLER must compare it with
    the expected one, and the final sum with the summand at the point."""
    if degree < 1:
        raise ValueError("degree must be positive")
    if isinstance(proof, (bytes, bytearray)):
        reader = Reader(proof)
        proof = read_sumcheck_proof(reader)
        reader.end()
    require(len(proof.round_polys) == rounds, "wrong number of sumcheck rounds")
    require(all(len(h) == degree for h in proof.round_polys), "round polynomial of the wrong length")
    require(len(proof.pow_witnesses) == (rounds if pow_bits else 0), "wrong number of sumcheck witnesses")
    pattern = Pattern().message_ext("claimed_sum")
    for _ in range(rounds):
        pattern.message_ext("round_poly", degree).pow("round_pow", pow_bits).challenge_ext("round_challenge")
    enter(transcript, 1, b"p3-sumcheck-generic-degree", pattern)
    transcript.observe_ext(proof.claimed_sum)
    claim = proof.claimed_sum
    point = []
    for i, evaluations in enumerate(proof.round_polys):
        transcript.observe_exts(evaluations)
        if pow_bits:
            transcript.require_witness(pow_bits, proof.pow_witnesses[i])
        r = transcript.sample_ext()
        claim = next_claim(evaluations, claim, r)
        point.append(r)
    return point, claim, proof.claimed_sum
