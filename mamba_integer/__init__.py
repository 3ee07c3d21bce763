"""Mamba-Integer: a Mamba-style language model whose inference is integers only, the same bits on every machine.

    from mamba_integer import Model
    model = Model.load("tinystories")
    for piece in model.generate("Once upon a time", seed=1):
        print(piece.text, end="", flush=True)

The names below are loaded when first used, so that `mamba_integer.arithmetic`, the executable spec, can be imported without the compiled engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mamba_integer.engine import Generation, Model, Piece, Session, Settings, shipped_models
    from mamba_integer.errors import (
        ArgumentError,
        DeviceError,
        MambaIntegerError,
        ModelFormatError,
        ProofError,
        ReceiptError,
        TokenizerError,
    )
    from mamba_integer.sampling import Sampling
    from mamba_integer.tokenizer import Tokenizer

_HOME = {
    "Generation": "engine",
    "Model": "engine",
    "Piece": "engine",
    "Session": "engine",
    "Settings": "engine",
    "shipped_models": "engine",
    "ArgumentError": "errors",
    "DeviceError": "errors",
    "MambaIntegerError": "errors",
    "ModelFormatError": "errors",
    "ProofError": "errors",
    "ReceiptError": "errors",
    "TokenizerError": "errors",
    "Sampling": "sampling",
    "Tokenizer": "tokenizer",
}

__all__ = [
    "ArgumentError",
    "DeviceError",
    "Generation",
    "MambaIntegerError",
    "Model",
    "ModelFormatError",
    "Piece",
    "ProofError",
    "ReceiptError",
    "Sampling",
    "Session",
    "Settings",
    "Tokenizer",
    "TokenizerError",
    "shipped_models",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "__version__":
        return import_module("mamba_integer._native").__version__
    if name in _HOME:
        return getattr(import_module(f"mamba_integer.{_HOME[name]}"), name)
    raise AttributeError(f"module 'mamba_integer' has no attribute {name!r}")
