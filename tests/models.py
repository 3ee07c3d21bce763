"""Models that tests share: a tiny random one with a real tokenizer, the shipped one, and files whose settings were changed under a right digest."""

from __future__ import annotations

import dataclasses
import functools
import struct
from pathlib import Path

from mamba_integer.config import ModelConfig
from mamba_integer.engine import find_model
from mamba_integer.model_file import IntegerModel, serialize
from mamba_integer.random_model import random_model
from mamba_integer.tokenizer import Tokenizer, documents, read_text

ROOT = Path(__file__).resolve().parents[1]
VALID = ROOT / "data/tinystories_valid.txt"
SAMPLE = ROOT / "data/tinystories_sample.txt"

TINY_TOKENIZER = Tokenizer.train(documents(read_text(SAMPLE))[:40], 320)
TINY_CONFIG = ModelConfig(
    d_model=24, n_layers=2, n_heads=3, head_dim=8, d_state=4, vocab_size=TINY_TOKENIZER.vocab_size, context_length=64
)


@functools.cache
def tiny_model() -> IntegerModel:
    weights = random_model(TINY_CONFIG, 5, tokenizer=TINY_TOKENIZER.to_bytes())
    return dataclasses.replace(weights, embed_mul=30, logit_shift=18)  # logits that differ by a few units


@functools.cache
def tiny_model_bytes() -> bytes:
    return serialize(tiny_model())


def shipped_model() -> Path:
    """The file of the model that the project ships."""
    return find_model("tinystories")


def with_u32(data: bytes, key: str, value: int) -> bytes:
    """A model file with another u32 under `key`. The digest is left as it was: what the key says must be refused before that is looked at."""
    field = struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", 4)
    at = data.index(field) + len(field)
    return data[:at] + struct.pack("<I", value) + data[at + 4 :]
