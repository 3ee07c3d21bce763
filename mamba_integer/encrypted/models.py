"""Which models there are for encrypted inference, and what of them the client is told. Knows files; knows no sockets and no ciphertexts.

The outline of an int8 model is all but its matrices: configuration, shifts, norm scales, convolution, decays, multipliers and the tokenizer. The client
needs it for the steps between the matrix products. A client is told nothing of a micro model.
"""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np

from mamba_integer.config import ModelConfig
from mamba_integer.encrypted.micro import MicroModel
from mamba_integer.engine import find_model, model_folders
from mamba_integer.errors import ArgumentError, EncryptedError, ModelFormatError
from mamba_integer.model_file import (
    MAX_EMBED_MUL,
    MAX_LOGIT_SHIFT,
    MAX_SHIFT,
    IntegerModel,
    Tensor,
    read_model,
    tensor_shapes,
)

Model = IntegerModel | MicroModel

MAX_OUTLINE = 1 << 24
_SUFFIX = ".json"
_LOWEST = {"mul": 1, "k": 8, "A": 1}
_HIGHEST = {"mul": 255, "k": 15, "A": 1 << 19}


def load(name_or_path: str) -> Model:
    """A shipped model by name, or any by path: a micro model (.json) or a model file. Raises ArgumentError, ModelFormatError."""
    for folder in model_folders():
        if (path := folder / f"{name_or_path}{_SUFFIX}").is_file():
            return MicroModel.load(path)
    if name_or_path.endswith(_SUFFIX):
        return MicroModel.load(name_or_path)
    return read_model(find_model(name_or_path))


def is_matrix(name: str) -> bool:
    """Whether a tensor stays at the server."""
    return name.endswith("weight") and ".conv." not in name


def outline(model: IntegerModel) -> bytes:
    """What the client is told of a model: length of a JSON header (4 bytes), header, vectors in the order of FORMAT.md, tokenizer."""
    header = {
        "config": asdict(model.config),
        "name": model.name,
        "embed_mul": model.embed_mul,
        "logit_shift": model.logit_shift,
        "in_proj_shift": list(model.in_proj_shift),
        "out_proj_shift": list(model.out_proj_shift),
    }
    text = json.dumps(header).encode()
    shapes = tensor_shapes(model.config)
    vectors = [model.tensors[name].astype(shapes[name][0]).tobytes() for name in shapes if not is_matrix(name)]
    return len(text).to_bytes(4, "little") + text + b"".join(vectors) + model.tokenizer


def read_outline(data: bytes) -> IntegerModel:
    """The model without matrices that an outline describes. EncryptedError for anything that is not one: it comes from the server."""
    try:
        return _read_outline(data)
    except (ValueError, TypeError, KeyError, RecursionError, ArgumentError, ModelFormatError):
        raise EncryptedError("the server's outline of the model is damaged") from None


def _read_outline(data: bytes) -> IntegerModel:
    at = 4 + int.from_bytes(data[:4], "little")
    header = json.loads(data[4:at])
    config = ModelConfig.from_dict(header["config"])
    ranges = {"embed_mul": (1, MAX_EMBED_MUL), "logit_shift": (0, MAX_LOGIT_SHIFT)}
    shifts = {key: header[key] for key in ("in_proj_shift", "out_proj_shift")}
    numbers = [(header[key], *ranges[key]) for key in ranges] + [
        (s, 0, MAX_SHIFT) for part in shifts.values() for s in part
    ]
    if any(type(v) is not int or not low <= v <= high for v, low, high in numbers):
        raise ValueError
    if any(len(part) != config.n_layers for part in shifts.values()) or not isinstance(header["name"], str):
        raise ValueError
    tensors: dict[str, Tensor] = {}
    for name, (dtype, shape) in tensor_shapes(config).items():
        if is_matrix(name):
            continue
        count = int(np.prod(shape))
        tensor = np.frombuffer(data, dtype, count, at).reshape(shape)
        at += tensor.nbytes
        last = name.rsplit(".", 1)[1]
        limit = 127 if dtype == "<i1" else 32767
        if int(tensor.min()) < _LOWEST.get(last, -limit) or int(tensor.max()) > _HIGHEST.get(last, limit):
            raise ValueError
        tensors[name] = tensor
    return IntegerModel(
        config,
        header["name"],
        header["embed_mul"],
        header["logit_shift"],
        **shifts,
        tensors=tensors,
        tokenizer=data[at:],
    )
