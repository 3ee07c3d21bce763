"""LogUp by GKR over fractions: p3_multi_stark::fractional_gkr (verify_fractional_gkr)."""

from __future__ import annotations

from typing import NamedTuple

from .codec import Reader
from .errors import require
from .field import ZERO, Ext, eval_eq
from .sumcheck import next_claim
from .transcript import Pattern, Transcript, enter


class Layer(NamedTuple):
    """Cubic round polynomials h(0), h(2), h(3) and the four values n0, d0, n1, d1 of one layer."""

    round_polys: list[list[Ext]]
    claims: tuple[Ext, Ext, Ext, Ext]


class FractionProof(NamedTuple):
    """FractionGkrProof."""

    root_denominator: Ext
    layers: list[Layer]


class FractionClaims(NamedTuple):
    """What is left to check: the multilinear numerator and denominator tables take these values at the point."""

    point: list[Ext]
    numerator: Ext
    denominator: Ext


def read_fraction_proof(r: Reader) -> FractionProof:
    """Parse a postcard FractionGkrProof at the cursor."""

    def layer() -> Layer:
        return Layer(r.vec(lambda: [r.ext() for _ in range(3)]), (r.ext(), r.ext(), r.ext(), r.ext()))

    return FractionProof(r.ext(), r.vec(layer))


def verify_fraction_sum(transcript: Transcript, proof: FractionProof | bytes, num_variables: int) -> FractionClaims:
    """Verify that the sum of 2^num_variables fractions is zero, given the returned claims about the leaves.

    Layer i halves the table along its most significant variable: n = n0 d1 + n1 d0, d = d0 d1.
    """
    if num_variables < 1:
        raise ValueError("at least one variable is needed")
    if isinstance(proof, (bytes, bytearray)):
        reader = Reader(proof)
        proof = read_fraction_proof(reader)
        reader.end()
    require(len(proof.layers) == num_variables, "wrong number of layers")
    require(all(len(layer.round_polys) == i for i, layer in enumerate(proof.layers)), "wrong number of rounds")
    require(proof.root_denominator != 0, "root denominator is zero")
    pattern = Pattern().message_ext("root_denominator")
    for i in range(num_variables):
        pattern.begin("layer").challenge_ext("batching")
        for _ in range(i):
            pattern.message_ext("round_poly", 3).challenge_ext("round_challenge", 1)
        pattern.message_ext("claims", 4).challenge_ext("branch", 1).end("layer")
    enter(transcript, 2, b"p3-multi-stark-fraction-gkr", pattern)
    transcript.observe_ext(proof.root_denominator)
    point: list[Ext] = []
    numerator, denominator = ZERO, proof.root_denominator
    for layer in proof.layers:
        batching = transcript.sample_ext()
        claim = numerator + batching * denominator
        round_point = []
        for evaluations in layer.round_polys:
            transcript.observe_exts(evaluations)
            r = transcript.sample_nonzero_ext()
            claim = next_claim(evaluations, claim, r)
            round_point.append(r)
        n0, d0, n1, d1 = layer.claims
        gate = d1 * n0 + d0 * n1 + batching * d0 * d1
        require(claim == eval_eq(point, round_point) * gate, "layer fails its gate check")
        transcript.observe_exts(layer.claims)
        branch = transcript.sample_nonzero_ext()
        numerator = n0 + branch * (n1 - n0)
        denominator = d0 + branch * (d1 - d0)
        point = [branch, *round_point]
    return FractionClaims(point, numerator, denominator)
