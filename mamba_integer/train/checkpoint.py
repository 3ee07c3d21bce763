"""Crash-safe checkpoints: one safetensors file that holds parameters, optimiser state and, as JSON in its header, everything else.

A checkpoint is written beside its target, flushed to disk and renamed over it, so a reader finds the old one or the new one, never half of one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mamba_integer.errors import CheckpointError
from mamba_integer.files import write_atomically

VERSION = "1"
CHECKPOINT = "checkpoint.safetensors"  # in the directory of a run


class HasState(Protocol):
    """Of an optimiser: what it keeps for each parameter."""

    @property
    def state(self) -> Any: ...


def save_checkpoint(path: Path, model: nn.Module, optimizer: HasState, meta: dict[str, Any]) -> None:
    """`meta` must survive JSON. Raises CheckpointError if the file cannot be written (the last good one stays in place)."""
    tensors: dict[str, Tensor] = {f"model.{k}": v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    names = {id(p): name for name, p in model.named_parameters()}
    for p, state in optimizer.state.items():
        for k, v in state.items():
            tensors[f"optimizer.{k}.{names[id(p)]}"] = torch.as_tensor(v).detach().cpu().contiguous()
    header = {"format": "mamba-integer-checkpoint", "version": VERSION, "meta": json.dumps(meta)}
    try:
        write_atomically(path, save(tensors, header))
    except OSError as e:
        raise CheckpointError(f"cannot write the checkpoint {path}: {e.strerror}; the last one is still there") from e


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(all tensors, meta). Raises CheckpointError naming what is wrong."""
    try:
        with safe_open(path, framework="pt") as f:
            header = f.metadata() or {}
            if header.get("format") != "mamba-integer-checkpoint":
                raise CheckpointError(f"{path} is not a Mamba-Integer checkpoint")
            if header.get("version") != VERSION:
                raise CheckpointError(
                    f"{path} has checkpoint version {header.get('version')}; this release reads {VERSION}"
                )
            meta = json.loads(header.get("meta", ""))
            return {name: f.get_tensor(name) for name in sorted(f.keys())}, meta
    except OSError as e:
        raise CheckpointError(f"cannot read the checkpoint {path}: {e.strerror or e}") from e
    except (SafetensorError, json.JSONDecodeError) as e:
        raise CheckpointError(f"the checkpoint {path} is damaged: {e}") from e


def restore(tensors: dict[str, Tensor], model: nn.Module, optimizer: HasState | None = None) -> None:
    """Puts a checkpoint's tensors into model and optimiser. Raises CheckpointError if they do not fit."""
    try:
        model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    except RuntimeError as e:
        raise CheckpointError(f"the checkpoint does not fit the model: {e}") from e
    if optimizer is None:
        return
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, kind, name = key.split(".", 2)
            if name not in parameters or (kind != "step" and value.shape != parameters[name].shape):
                raise CheckpointError(f"the checkpoint's optimiser state {key} does not fit the model")
            p = parameters[name]
            optimizer.state[p][kind] = value if kind == "step" else value.to(p.device)
