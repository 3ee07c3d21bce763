"""Commitments to lists of slots, and their openings at points (PROTOCOL.md, section 10)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from . import whir
from .errors import require
from .field import ZERO, Ext
from .transcript import Transcript
from .whir import FOLDING, OpeningProof, Regime


def length_prefixed(data: bytes) -> bytes:
    """`bytes(b)` of section 3: the length, 8 bytes little-endian, and the bytes."""
    return len(data).to_bytes(8, "little") + data


class Batch(NamedTuple):
    """Slots of one height, by number, at one point; with the values that they are said to have there."""

    slots: list[int]
    point: list[Ext]
    values: list[Ext]


@dataclass(frozen=True)
class Commitment:
    """A root, and how many variables each of its slots has."""

    root: bytes
    shape: tuple[int, ...]

    def observe(self, transcript: Transcript) -> None:
        """Absorb the root with its shape."""
        transcript.observe_bytes(length_prefixed(b"mamba-integer commitment"))
        transcript.observe_bytes(length_prefixed(bytes(self.shape)))
        whir.observe_commitment(transcript, self.root)

    def verify_opening(
        self, batches: Sequence[Batch], proof: OpeningProof, transcript: Transcript, regime: Regime
    ) -> None:
        """Verify that the slots have the values said."""
        header = [b"mamba-integer opening", self.root, _u64(len(batches))]
        for batch in batches:
            # Section 10 does not say in which order: ascending.
            slots = sorted(batch.slots)
            header += [_u64(len(slots)), *map(_u64, slots), _u64(len(batch.point))]
        transcript.observe_bytes(length_prefixed(b"".join(header)))
        for batch in batches:
            transcript.observe_exts(batch.point)

        heights = [max(k, FOLDING) for k in self.shape]
        tables = sorted(set(heights), reverse=True)
        members = [[i for i, h in enumerate(heights) if h == height] for height in tables]
        shapes = [(height, len(slots)) for height, slots in zip(tables, members, strict=True)]
        if sum(width << height for height, width in shapes) <= 1 << FOLDING:
            shapes[0] = (FOLDING, shapes[0][1] + 1)
        num_variables = (sum(width << height for height, width in shapes) - 1).bit_length()

        columns: list[list[list[int]]] = [[] for _ in tables]
        points: list[list[list[Ext]]] = [[] for _ in tables]
        expected: list[list[list[Ext]]] = [[] for _ in tables]
        for batch in batches:
            (height,) = {heights[i] for i in batch.slots}
            (num_vars,) = {self.shape[i] for i in batch.slots}
            if num_vars != len(batch.point):
                raise ValueError("point of the wrong length")
            table = tables.index(height)
            ascending = sorted(zip(batch.slots, batch.values, strict=True), key=lambda pair: pair[0])
            columns[table].append([members[table].index(i) for i, _ in ascending])
            points[table].append([ZERO] * (height - num_vars) + batch.point)
            expected[table].append([value for _, value in ascending])
        opened = whir.verify_parsed_opening(
            num_variables,
            shapes,
            columns,
            [p for group in points for p in group],
            self.root,
            proof,
            transcript,
            regime=regime,
        )
        claims = [values for group in expected for values in group]
        require(
            all(evaluations.current == values for evaluations, values in zip(opened, claims, strict=True)),
            "the opening's values are not those that were sent",
        )


def _u64(value: int) -> bytes:
    return value.to_bytes(8, "little")
