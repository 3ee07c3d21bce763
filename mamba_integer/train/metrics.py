"""What a run writes down as it goes: one JSON line an event in `metrics.jsonl`, and the same numbers as TensorBoard events beside it.

Numbers that JSON does not know are the strings "NaN", "Infinity" and "-Infinity". `monitor` shows the file, `alerts` judges it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from mamba_integer.nn.model import MambaInteger
from mamba_integer.train.alerts import Watch
from mamba_integer.train.instruments import Figure


class Metrics:
    """Appends to RUN/metrics.jsonl and RUN/events.*, and reports the alerts that a record brings.

    A resumed run drops what it had logged after the checkpoint it resumes from.
    """

    def __init__(self, run: Path, step: int, report: Callable[[str], None] | None = None) -> None:
        path = run / "metrics.jsonl"
        kept, history = [], []
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    record = json.loads(line)
                    if record["step"] <= step:
                        kept.append(line)
                        history.append(record)
                except (json.JSONDecodeError, KeyError):
                    continue  # a line cut short when the run was killed
        path.write_text("".join(line + "\n" for line in kept))
        self._file = path.open("a")
        self._board = SummaryWriter(str(run), purge_step=step + 1)
        self._watch = Watch(history)
        self._report = report

    def log(self, step: int, **values: Figure | str) -> None:
        record = {"step": step, **{name: _plain(value) for name, value in values.items()}}
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, str):
                self._board.add_text(name, value, step)
            elif isinstance(value, list):
                for i, v in enumerate(value):
                    # a matrix has its row means on the board, all of it in the file
                    self._board.add_scalar(f"{name}/{i}", sum(v) / len(v) if isinstance(v, list) else v, step)
            else:
                self._board.add_scalar(name, value, step)
        for alert in self._watch.see(record):
            if self._report:
                self._report(str(alert))

    def close(self) -> None:
        self._file.close()
        self._board.close()


def _plain(value: Any) -> Any:
    """As JSON can hold it, floats to seven digits."""
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        special = {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
        return float(f"{value:.7g}") if math.isfinite(value) else special
    return value


def time_scales(model: torch.nn.Module) -> dict[str, list[float]]:
    """log2 of each head's time constant at dt = 0 (tokens), per layer: {"log2_tau/layer0": [H values], …}. Empty for the float baseline."""
    if not isinstance(model, MambaInteger):
        return {}
    with torch.no_grad():
        return {
            f"log2_tau/layer{i}": [
                -math.log2(a * min(max(1.0 + b, 0.125), 4.0))
                for a, b in zip(block.log_a.exp().tolist(), block.base.tolist(), strict=True)  # type: ignore[operator]
            ]
            for i, block in enumerate(model.blocks)
        }
