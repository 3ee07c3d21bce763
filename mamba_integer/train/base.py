"""A trained model that a run starts from or learns from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from mamba_integer.config import ModelConfig
from mamba_integer.errors import CheckpointError
from mamba_integer.export import import_state
from mamba_integer.model_file import read_model
from mamba_integer.nn import FloatMamba, MambaInteger, build_model
from mamba_integer.tokenizer import Tokenizer
from mamba_integer.train.checkpoint import CHECKPOINT, load_checkpoint, restore


@dataclasses.dataclass(frozen=True)
class Base:
    """A trained model. state: tensors named as in a checkpoint."""

    config: ModelConfig
    arithmetic: str
    state: dict[str, torch.Tensor]
    tokenizer: Tokenizer

    def model(self) -> MambaInteger | FloatMamba:
        """The model itself. Raises CheckpointError if the tensors do not fit its configuration."""
        model = build_model(self.config, self.arithmetic)
        restore(self.state, model)
        return model


def load_base(path: Path, tokenizer: str = "") -> Base:
    """From a run, a checkpoint, or a model file (whose weights are known only as rounded). Raises MambaIntegerError for what is none of them."""
    if path.suffix == ".gguf":
        model = read_model(path)
        state = {f"model.{name}": tensor for name, tensor in import_state(model).items()}
        own = Tokenizer.load(tokenizer) if tokenizer else Tokenizer.from_bytes(model.tokenizer)
        return Base(model.config, "integer", state, own)
    tensors, meta = load_checkpoint(path / CHECKPOINT if path.is_dir() else path)
    try:
        config, arithmetic = ModelConfig.from_dict(meta["model"]), meta["train"]["arithmetic"]
        own = Tokenizer.load(tokenizer or meta["train"]["tokenizer"])
    except (KeyError, TypeError):
        raise CheckpointError(f"{path} is no checkpoint of a training run") from None
    return Base(config, arithmetic, {k: v for k, v in tensors.items() if k.startswith("model.")}, own)
