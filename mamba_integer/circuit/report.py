"""The integer block and the float block of one shape, side by side, as EZKL counts them. Random weights, of which the integer block's size depends a little,
by the bounds that follow from them.

A shape is (d_model, d_state, tokens): four heads, d_inner twice d_model, squareplus in the integer block as in the shipped models.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from mamba_integer.circuit import available, ezkl
from mamba_integer.circuit.baseline import float_block, random_weights
from mamba_integer.circuit.block import block
from mamba_integer.circuit.graph import Graph
from mamba_integer.config import ModelConfig
from mamba_integer.errors import ArgumentError, ProofError
from mamba_integer.files import write_atomically
from mamba_integer.model_file import IntegerModel
from mamba_integer.random_model import Stream, random_model

Shape = tuple[int, int, int]
CAP = 17
ROWS = (
    "rows",
    "assignments",
    "logrows",
    "logrows_capped",
    "advice_columns",
    "function_lookups",
    "range_checks",
    "dynamic_lookups",
)


def parse(text: str) -> Shape:
    """d_model,d_state,tokens. ArgumentError for anything else."""
    parts = text.split(",")
    if len(parts) != 3 or not all(p.isascii() and p.isdigit() and 0 < int(p) < 4096 for p in parts):
        raise ArgumentError(f"a shape is three numbers d_model,d_state,tokens, not {text!r}")
    return int(parts[0]), int(parts[1]), int(parts[2])


def config(shape: Shape, vocab_size: int = 257) -> ModelConfig:
    d_model, d_state, _ = shape
    if d_model & 1:
        raise ArgumentError(f"d_model must be even, not {d_model}")
    return ModelConfig(
        d_model=d_model,
        n_layers=1,
        n_heads=4,
        head_dim=d_model // 2,
        d_state=d_state,
        vocab_size=vocab_size,
        context_length=0,
        activation="squareplus",
        gate="squareplus",
    )


def integer_block(shape: Shape, table_bits: int, seed: int = 0) -> tuple[IntegerModel, Graph]:
    """A model of random weights and the circuit of its layer, on random residuals within ±8."""
    model = random_model(config(shape), seed)
    return model, block(model, 0, Stream(seed, 3).integers(-2048, 2047, (shape[2], shape[0])), table_bits)


def table_bits(shape: Shape) -> int:
    """Limbs as wide as logrows 17 admits for large shapes; 15 bits for those whose rows are few."""
    return 16 if shape[0] >= 64 else 15


def prepare(shape: Shape, arithmetic: str, folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Exports a block of a shape, integer or float, has it laid out with at most 2^17 rows, and gives what it consists of.

    EZKL's calibration fails for some float blocks (at scale 7 a number may leave what it can decompose). The first of four seeds is taken for which it does
    not; if it fails for all, the layout before calibration is what is counted, and `calibrated` is False: such a block has no proof here.
    """
    available("onnx", "ezkl")
    path = Path(folder)
    if arithmetic == "integer":
        model, graph = integer_block(shape, table_bits(shape))
        ezkl.export(graph, path, kind="block", model=model.name, model_digest=model.digest, layer=0, tokens=shape[2])
        values = ezkl.settings(path, ezkl.least_logrows(ezkl.settings(path, CAP), CAP))
        return {**sizes(values), "roundings": graph.roundings, "limbs": graph.limbs, "table_bits": graph.table_bits}
    path.mkdir(parents=True, exist_ok=True)
    c = config(shape)
    for seed in range(4):
        write_atomically(path / ezkl.ONNX, float_block(c, random_weights(c, seed), shape[2]).SerializeToString())
        r = np.random.default_rng(seed).standard_normal((shape[2], shape[0]))
        write_atomically(path / ezkl.INPUT, json.dumps({"input_data": [r.reshape(-1).tolist()]}).encode())
        ezkl.step(path, "settings", {"disable_freivalds": True})
        try:
            ezkl.step(path, "calibrate", {"scales": [7], "max_logrows": CAP})
        except ProofError:
            continue
        return sizes(ezkl.read_settings(path))
    ezkl.step(path, "settings", {"disable_freivalds": True, "logrows": CAP})
    return {**sizes(ezkl.read_settings(path)), "calibrated": False}


def sizes(values: dict[str, Any]) -> dict[str, Any]:
    """Figures from EZKL's settings. logrows: without a cap, as many as hold all cells in one block of columns."""
    arguments = values["run_args"]
    cells, inner, logrows = values["total_assignments"], arguments["num_inner_cols"], arguments["logrows"]
    blocks = cells // (inner * ((1 << logrows) - ezkl.BLINDING)) + 1
    return {
        "rows": values["num_rows"],
        "assignments": cells,
        "logrows": ezkl.least_logrows(values),
        "logrows_capped": logrows,
        "advice_columns": 3 * inner * blocks + 3 * (values["num_dynamic_lookups"] > 0),
        "function_lookups": [
            str(next(iter(op))) if isinstance(op, dict) else str(op) for op in values["required_lookups"]
        ],
        "range_checks": values["required_range_checks"],
        "dynamic_lookups": values["num_dynamic_lookups"],
    }


def side_by_side(shape: Shape, folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What `circuit report` prints: both blocks' figures and how many times fewer rows the integer block has."""
    both = {kind: prepare(shape, kind, Path(folder) / kind) for kind in ("integer", "float")}
    return {"shape": list(shape), **both, "rows_ratio": round(both["float"]["rows"] / both["integer"]["rows"], 3)}
