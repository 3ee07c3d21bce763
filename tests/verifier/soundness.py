"""The soundness error of a proof (PROTOCOL.md, section 8), in floating point: it decides nothing that is close."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .circuit import Circuit, Oracle
from .commitment import Batch
from .whir import FOLDING, STARTING_LOG_INV_RATE, Regime, list_size_bits, opening_error

MIN_BITS = 100.0
FIELD_BITS = 5 * math.log2(2**31 - 2**24 + 1)


def cells_vars(shape: Sequence[int]) -> int:
    """Number of variables of the stacked polynomial of a commitment."""
    cells = sum(1 << max(k, FOLDING) for k in shape)
    return max((cells - 1).bit_length(), FOLDING + 1)


def _opening(shape: Sequence[int], claims: int, regime: Regime) -> float:
    return opening_error(cells_vars(shape), claims, regime)


def soundness_bits(
    circuits: Sequence[Circuit],
    model_shape: Sequence[int],
    model_batches: Sequence[Batch],
    states_shape: Sequence[int],
    state_batches: Sequence[Batch],
) -> float:
    """−log2 of the sum of section 8's table."""
    field = 2.0**-FIELD_BITS
    # Those of the trace times those of the states.
    candidates = 2.0 ** (2.0 * list_size_bits(STARTING_LOG_INV_RATE, "johnson"))
    error = 2.0**-124 + 2.0**-128
    for circuit in circuits:
        n = (sum(1 << k for k, _ in circuit.leaf_blocks()) - 1).bit_length()
        K, M, m_max = circuit.max_table_vars, circuit.num_constraints, circuit.max_term_vars
        algebraic = 2 ** (n + 1) + sum(3 * i + 2 for i in range(n)) + (K + M + 1) + 4 * K + K
        algebraic += len(circuit.sums) + 3 * m_max
        error += candidates * algebraic * field
        places = {
            place for place in [*circuit.first_places(), *circuit.second_places()] if place.slot.oracle is Oracle.TRACE
        }
        error += _opening(circuit.shape(Oracle.TRACE), len(places), "johnson")
    error += _opening(model_shape, sum(len(batch.slots) for batch in model_batches), "unique")
    if states_shape:
        error += _opening(states_shape, sum(len(batch.slots) for batch in state_batches), "johnson")
    return -math.log2(error)
