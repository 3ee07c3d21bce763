"""What a run writes down as it goes: one JSON line an event in `metrics.jsonl`, and the same numbers as TensorBoard events beside it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from mamba_integer.nn.model import MambaInteger


class Metrics:
    """Appends to RUN/metrics.jsonl and RUN/events.*; a resumed run drops what it had logged after the checkpoint it resumes from."""

    def __init__(self, run: Path, step: int) -> None:
        path = run / "metrics.jsonl"
        kept = []
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line)
                except (json.JSONDecodeError, KeyError):
                    continue  # a line cut short when the run was killed
        path.write_text("".join(line + "\n" for line in kept))
        self._file = path.open("a")
        self._board = SummaryWriter(str(run), purge_step=step + 1)

    def log(self, step: int, **values: float | list[float]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, list):
                for i, v in enumerate(value):
                    self._board.add_scalar(f"{name}/{i}", v, step)
            else:
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


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
