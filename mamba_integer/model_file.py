"""The model file of spec/FORMAT.md: a strict reader that trusts nothing, and the canonical writer.

A file is read in the order identity → configuration → tensor list → layout → digest → values; nothing is used before it is checked, and nothing is
allocated by a size that the file merely claims. This module knows the container and its limits; the arithmetic is reference.py's.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from mamba_integer.config import ModelConfig
from mamba_integer.errors import ArgumentError, ModelFormatError
from mamba_integer.files import write_atomically

FORMAT_VERSION = 1
SPEC_VERSION = 1
ARCHITECTURE = "mamba_integer"

Tensor = npt.NDArray[np.signedinteger]
Pairs = dict[str, Any]  # key → int, bytes or list[int], as its GGUF type is u32, string or array of u32
Infos = dict[
    str, tuple[str, tuple[int, ...], int, bytes]
]  # tensor → dtype, shape, offset, its entry in the tensor list but for the offset

_U32, _STRING, _ARRAY = 4, 8, 9  # GGUF value types
_TENSOR_TYPES = {"<i1": 24, "<i2": 25, "<i4": 26}  # I8, I16, I32
_ALIGNMENT = 32

_ABOUT = ("description", "license", "source")
_DIMENSIONS = ("d_model", "n_layers", "n_heads", "head_dim", "d_state", "vocab_size", "context_length")
_WORDS = ("scan", "activation", "gate", "weights")
_KEYS = {  # FORMAT.md's table, in its order
    "general.architecture": _STRING,
    "general.name": _STRING,
    **{f"general.{name}": _STRING for name in _ABOUT},
    "mamba_integer.format_version": _U32,
    "mamba_integer.spec_version": _U32,
    **{f"mamba_integer.{name}": _U32 for name in _DIMENSIONS},
    **{f"mamba_integer.{name}": _STRING for name in ("scan", "activation", "gate")},
    "mamba_integer.norm_mantissa": _U32,
    "mamba_integer.rotation": _U32,
    "mamba_integer.weights": _STRING,
    "mamba_integer.embed_mul": _U32,
    "mamba_integer.logit_shift": _U32,
    "mamba_integer.in_proj_shift": _ARRAY,
    "mamba_integer.out_proj_shift": _ARRAY,
    "mamba_integer.tokenizer": _STRING,
    "mamba_integer.model_digest": _STRING,
}
_OPTIONAL = {f"general.{name}" for name in _ABOUT}
_DIGEST = "mamba_integer.model_digest"
_TYPE_NAMES = {_U32: "u32", _STRING: "a string", _ARRAY: "an array of u32", 24: "I8", 25: "I16", 26: "I32"}

_RANGES = {  # of values, by the last part of a tensor's name; [low, high]
    "weight": (-127, 127),
    "scale": (-127, 127),
    "mul": (1, 255),
    "bias": (-32767, 32767),
    "k": (8, 15),
    "A": (1, 1 << 19),
    "base": (-32767, 32767),
    "skip": (-127, 127),
}
MAX_SHIFT = 24
MAX_EMBED_MUL = 1023
MAX_LOGIT_SHIFT = 31


@dataclass(frozen=True)
class IntegerModel:
    """A model: everything that inference needs, as integers.

    tensors: by the names of FORMAT.md, int8, int16 or int32 in the shapes given there, ternary weights unpacked to int8 [rows, columns].
    about: any of description, license, source. embed_mul: m_e. in_proj_shift, out_proj_shift: s of each layer. tokenizer: the file inside.
    """

    config: ModelConfig
    name: str
    embed_mul: int
    logit_shift: int
    in_proj_shift: Sequence[int]
    out_proj_shift: Sequence[int]
    tensors: Mapping[str, Tensor]
    tokenizer: bytes = b""
    about: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over metadata and tensors (FORMAT.md), 64 hexadecimal digits."""
        return _digest(_pairs(self), [(name, *_stored(self, name)) for name in tensor_shapes(self.config)])


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name → (dtype, shape) of every tensor in the file, in the order of FORMAT.md's table, layer by layer; ternary weights packed."""
    c = config
    D, E, H = c.d_model, c.d_inner, c.n_heads

    def columns(n: int) -> int:
        return (n + 3) >> 2 if c.weights == "ternary" else n

    def scale(n: int) -> int:
        return 1 if c.norm_scale == "scalar" else n

    layer = {
        "norm1.scale": ("<i1", (scale(D),)),
        "in_proj.weight": ("<i1", (c.d_in_proj, columns(D))),
        "in_proj.mul": ("<i2", (c.d_in_proj,)),
        "conv.weight": ("<i1", (c.d_conv, 4)),
        "conv.bias": ("<i2", (c.d_conv,)),
        "scan.k": ("<i1", (H,)),
        "scan.A": ("<i4", (H,)),
        "scan.base": ("<i2", (H,)),
        "scan.skip": ("<i1", (H,)),
        "norm2.scale": ("<i1", (scale(E),)),
        "out_proj.weight": ("<i1", (D, columns(E))),
        "out_proj.mul": ("<i2", (D,)),
    }
    return {
        "token_embd.weight": ("<i1", (c.vocab_size, D)),
        "output_norm.scale": ("<i1", (scale(D),)),
        **{f"blk.{i}.{name}": spec for i in range(c.n_layers) for name, spec in layer.items()},
    }


def pack_ternary(W: Tensor) -> npt.NDArray[np.int8]:
    """int8 [O, ceil(K/4)] for W of −1, 0, 1 [O, K]: four weights a byte, the first in the lowest bits; codes 0, 1, 2 are 0, +1, −1."""
    codes = np.where(W < 0, 2, W).astype(np.uint8)
    codes = np.pad(codes, ((0, 0), (0, -W.shape[1] & 3))).reshape(W.shape[0], -1, 4)
    packed: npt.NDArray[np.uint8] = np.bitwise_or.reduce(codes << np.arange(0, 8, 2, dtype=np.uint8), axis=-1)
    return packed.view(np.int8)


def unpack_ternary(packed: Tensor, columns: int) -> npt.NDArray[np.int8]:
    """The inverse of `pack_ternary`. ModelFormatError for code 3 or padding that is not zero."""
    codes = packed.view(np.uint8)[..., None] >> np.arange(0, 8, 2, dtype=np.uint8) & 3
    codes = codes.reshape(packed.shape[0], -1)
    if (codes == 3).any():
        raise ModelFormatError("ternary code 3 stands for nothing")
    if codes[:, columns:].any():
        raise ModelFormatError("the padding of ternary rows is not zero")
    weights: npt.NDArray[np.int8] = np.array([0, 1, -1], np.int8)[codes[:, :columns]]
    return weights


# ---- Writing ---------------------------------------------------------------------------------------------------------


def write_model(path: str | os.PathLike[str], model: IntegerModel) -> None:
    """Writes the file whole or not at all (temporary file, fsync, rename). ModelFormatError if the model breaks a limit of FORMAT.md."""
    data = serialize(model)
    parse(data)
    write_atomically(path, data)


def serialize(model: IntegerModel) -> bytes:
    """The canonical bytes of a model file: keys and tensors in the order of FORMAT.md. Values are not checked here; `parse` does that."""
    pairs = {**_pairs(model), _DIGEST: model.digest.encode()}
    shapes = tensor_shapes(model.config)
    head = [b"GGUF", struct.pack("<IQQ", 3, len(shapes), len(pairs))]
    head += [_pair(key, pairs[key]) for key in _KEYS if key in pairs]
    body = []
    offset = 0
    for name in shapes:
        info, data = _stored(model, name)
        head += [info, struct.pack("<Q", offset)]
        body.append(_padded(data))
        offset += len(body[-1])
    return _padded(b"".join(head)) + b"".join(body)


def _pairs(model: IntegerModel) -> Pairs:
    """Every key but the digest, with its value."""
    c = asdict(model.config)
    about = {f"general.{key}": text.encode("utf-8", "surrogateescape") for key, text in model.about.items()}
    values: Pairs = {
        **{name: int(c[name]) for name in (*_DIMENSIONS, "norm_mantissa", "rotation")},
        **{name: c[name].encode() for name in _WORDS},
        "format_version": FORMAT_VERSION,
        "spec_version": SPEC_VERSION,
        "embed_mul": model.embed_mul,
        "logit_shift": model.logit_shift,
        "in_proj_shift": list(model.in_proj_shift),
        "out_proj_shift": list(model.out_proj_shift),
        "tokenizer": model.tokenizer,
    }
    pairs: Pairs = {
        "general.architecture": ARCHITECTURE.encode(),
        "general.name": model.name.encode(),
        **about,
    }
    pairs |= {f"mamba_integer.{key}": value for key, value in values.items()}
    if unknown := pairs.keys() - _KEYS.keys():
        raise ModelFormatError(f"unknown key {min(unknown)!r}")
    return pairs


def _pair(key: str, value: Any) -> bytes:
    """A key-value pair as it lies in the file."""
    head = struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", _KEYS[key])
    try:
        if isinstance(value, bytes):
            return head + struct.pack("<Q", len(value)) + value
        if isinstance(value, int):
            return head + struct.pack("<I", value)
        return head + struct.pack("<IQ", _U32, len(value)) + struct.pack(f"<{len(value)}I", *value)
    except struct.error:
        raise ModelFormatError(f"key {key!r}: {value!r} is not of its type") from None


def _stored(model: IntegerModel, name: str) -> tuple[bytes, bytes]:
    """(name, dimensions and type as they lie in the file, data) of a tensor."""
    dtype, shape = tensor_shapes(model.config)[name]
    if name not in model.tensors:
        raise ModelFormatError(f"tensor {name!r} is missing")
    tensor = model.tensors[name]
    if tensor.dtype != np.dtype(dtype):
        raise ModelFormatError(f"tensor {name!r} must be {np.dtype(dtype)}, not {tensor.dtype}")
    if model.config.weights == "ternary" and name.endswith("_proj.weight"):
        if tensor.size and (tensor.min() < -1 or tensor.max() > 1):
            raise ModelFormatError(f"tensor {name!r} is not ternary")
        tensor = pack_ternary(tensor)
    if tensor.shape == (1,) and name.endswith(".scale"):
        shape = (1,)
    if tensor.shape != shape:
        raise ModelFormatError(f"tensor {name!r} must have the shape {list(shape)}, not {list(tensor.shape)}")
    info = struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", len(shape))
    info += struct.pack(f"<{len(shape)}Q", *reversed(shape)) + struct.pack("<I", _TENSOR_TYPES[dtype])
    return info, tensor.astype(dtype, order="C", copy=False).tobytes()


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) & (_ALIGNMENT - 1))


def _digest(pairs: Pairs, tensors: Sequence[tuple[str, bytes, bytes]]) -> str:
    """model_digest of FORMAT.md, over the pairs and over (name, info, data) of the tensors."""
    sha = hashlib.sha256(b"mamba-integer-model-1")
    for key in sorted(pairs):
        sha.update(_pair(key, pairs[key]))
    for _, info, data in sorted(tensors):
        sha.update(info + struct.pack("<Q", len(data)) + data)
    return sha.hexdigest()


# ---- Reading ---------------------------------------------------------------------------------------------------------


def read_model(path: str | os.PathLike[str]) -> IntegerModel:
    """Reads a model file. ModelFormatError, which names file and cause, if it breaks FORMAT.md in any way or cannot be read."""
    try:
        with Path(path).open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ModelFormatError("not a regular file")
            data = file.read(status.st_size)
        return parse(data)
    except (OSError, ModelFormatError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ModelFormatError(f"{os.fspath(path)}: {reason}") from None


def parse(data: bytes) -> IntegerModel:
    """The model in the bytes of a model file. ModelFormatError, which names the cause, if they break FORMAT.md in any way."""
    return _Reader(data).read()


def _fail(message: str) -> NoReturn:
    raise ModelFormatError(message)


def _quoted(name: bytes) -> str:
    text = "".join(chr(b) if 32 <= b < 127 else "?" for b in name[:60])
    return f"'{text}{'…' if len(name) > 60 else ''}'"


class _Reader:
    """One pass over the bytes of a file; every step is compared with what is left."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, n: int, what: str) -> bytes:
        if n > len(self.data) - self.at:
            _fail(f"truncated or damaged file: it ends inside {what}")
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self, size: int, what: str) -> int:
        return int.from_bytes(self.take(size, what), "little")

    def string(self, what: str) -> bytes:
        return self.take(self.number(8, what), what)

    def read(self) -> IntegerModel:
        n_tensors, n_pairs = self.header()
        pairs = self.pairs(n_pairs)
        config = self.config(pairs)
        infos = self.tensor_list(config, n_tensors)
        contents = self.layout(infos)
        claimed = pairs.pop(_DIGEST)
        digest = _digest(pairs, [(name, info[3], contents[name]) for name, info in infos.items()])
        if claimed != digest.encode():
            _fail(f"damaged or altered file: its contents have the digest {digest}, not {_quoted(claimed)} as it says")
        scales = {shape for name, (_, shape, *_) in infos.items() if name.endswith(".scale")}
        if scales == {(1,)}:
            config = ModelConfig(**{**asdict(config), "norm_scale": "scalar"})
        return self.model(config, pairs, infos, contents)

    def header(self) -> tuple[int, int]:
        if self.take(4, "the header") != b"GGUF":
            _fail("not a GGUF file")
        version = self.number(4, "the header")
        if version != 3:
            _fail(f"GGUF version {version}; this release reads version 3, little-endian")
        return self.number(8, "the header"), self.number(8, "the header")

    def pairs(self, count: int) -> Pairs:
        """Each pair is one of the table and appears once, so a claimed count cannot make this long."""
        what = "the key-value pairs"
        pairs: Pairs = {}
        for _ in range(count):
            raw = self.string(what)
            key = raw.decode("ascii", "replace")
            if key not in _KEYS:
                _fail(f"unknown key {_quoted(raw)}")
            if key in pairs:
                _fail(f"key {key!r} appears twice")
            kind = self.number(4, what)
            if kind != _KEYS[key] or (kind == _ARRAY and self.number(4, what) != _U32):
                _fail(f"key {key!r} must be {_TYPE_NAMES[_KEYS[key]]}")
            if kind == _U32:
                pairs[key] = self.number(4, what)
            elif kind == _STRING:
                pairs[key] = self.string(what)
            else:
                pairs[key] = np.frombuffer(self.take(4 * self.number(8, what), what), "<u4").tolist()
            self.identity(key, pairs[key])
        if missing := [key for key in _KEYS if key not in pairs and key not in _OPTIONAL]:
            _fail(f"key {missing[0]!r} is missing")
        return pairs

    @staticmethod
    def identity(key: str, value: Any) -> None:
        """Whose file this is and of which version, said before a key that this release does not know can hide it."""
        if key == "general.architecture" and value != ARCHITECTURE.encode():
            _fail(f"the file holds a model of architecture {_quoted(value)}; this release runs '{ARCHITECTURE}'")
        for name, known in (("format", FORMAT_VERSION), ("spec", SPEC_VERSION)):
            if key == f"mamba_integer.{name}_version" and value != known:
                _fail(f"{name} version {value}; this release reads {name} version {known}")

    @staticmethod
    def config(pairs: Pairs) -> ModelConfig:
        values = {key.removeprefix("mamba_integer."): value for key, value in pairs.items()}
        words = {key: values[key].decode("ascii", "replace") for key in _WORDS}
        if values["rotation"] not in (0, 1):
            _fail(f"rotation must be 0 or 1, not {values['rotation']}")
        fields = {key: values[key] for key in (*_DIMENSIONS, "norm_mantissa")}
        try:
            config = ModelConfig.from_dict({**fields, **words, "rotation": values["rotation"] == 1})
        except ArgumentError as error:
            raise ModelFormatError(str(error)) from None
        for key, low, high in (("embed_mul", 1, MAX_EMBED_MUL), ("logit_shift", 0, MAX_LOGIT_SHIFT)):
            if not low <= values[key] <= high:
                _fail(f"{key} must be from {low} to {high}, not {values[key]}")
        for key in ("in_proj_shift", "out_proj_shift"):
            if len(values[key]) != config.n_layers or max(values[key]) > MAX_SHIFT:
                _fail(f"{key} must have a shift of 0 … {MAX_SHIFT} for each of {config.n_layers} layers")
        return config

    def tensor_list(self, config: ModelConfig, count: int) -> Infos:
        """Name → (dtype, shape, offset, info as it lies in the file), in the file's order; the shapes are those that the configuration calls for."""
        what = "the tensor list"
        expected = tensor_shapes(config)
        if count != len(expected):
            _fail(f"the file has {count} tensors; a model of {config.n_layers} layers has {len(expected)}")
        infos: Infos = {}
        for _ in range(count):
            start = self.at
            raw = self.string(what)
            name = raw.decode("ascii", "replace")
            if name not in expected:
                _fail(f"unknown tensor {_quoted(raw)}")
            if name in infos:
                _fail(f"tensor {name!r} appears twice")
            dtype, shape = expected[name]
            if (dimensions := self.number(4, what)) != len(shape):
                _fail(f"tensor {name!r} must have {len(shape)} dimensions, not {dimensions}")
            found = tuple(self.number(8, what) for _ in shape)[::-1]
            if found != shape and not (name.endswith(".scale") and found == (1,)):
                _fail(f"tensor {name!r} must have the shape {list(shape)}, not {list(found)}")
            if (kind := self.number(4, what)) != _TENSOR_TYPES[dtype]:
                _fail(
                    f"tensor {name!r} must be of type {_TYPE_NAMES[_TENSOR_TYPES[dtype]]}, not {_TYPE_NAMES.get(kind, kind)}"
                )
            info = self.data[start : self.at]
            infos[name] = (dtype, found, self.number(8, what), info)
        return infos

    def layout(self, infos: Infos) -> dict[str, bytes]:
        """Name → bytes of each tensor: aligned, in order, with zeros between them and nothing after the last."""
        self.zeros()
        start, contents = self.at, {}
        for name, (dtype, shape, offset, _) in infos.items():
            if offset != self.at - start:
                _fail(f"tensor {name!r} lies at offset {offset}; it must lie at {self.at - start}")
            size = np.dtype(dtype).itemsize
            for n in shape:
                size *= n
            contents[name] = self.take(size, f"tensor {name!r}")
            self.zeros()
        if self.at != len(self.data):
            _fail(
                f"the file goes on after its last tensor: it has {len(self.data)} bytes; its tensors end at {self.at}"
            )
        return contents

    def zeros(self) -> None:
        if any(self.take(-self.at & (_ALIGNMENT - 1), "padding")):
            _fail(f"padding before byte {self.at} is not zero")

    @staticmethod
    def model(
        config: ModelConfig,
        pairs: Pairs,
        infos: Infos,
        contents: dict[str, bytes],
    ) -> IntegerModel:
        """The model, its values checked one by one whatever the digest says."""
        tensors: dict[str, Tensor] = {}
        for name, (dtype, shape, *_) in infos.items():
            tensor: Tensor = np.frombuffer(contents[name], dtype).reshape(shape)
            if config.weights == "ternary" and name.endswith("_proj.weight"):
                try:
                    tensor = unpack_ternary(tensor, config.d_model if "in_proj" in name else config.d_inner)
                except ModelFormatError as error:
                    _fail(f"tensor {name!r}: {error}")
            low, high = _RANGES[name.rsplit(".", 1)[1]]
            if tensor.min() < low or tensor.max() > high:
                _fail(f"tensor {name!r}: {tensor.min()} … {tensor.max()} is outside {low} … {high}")
            tensors[name] = tensor
        values = {key.split(".")[1]: value for key, value in pairs.items()}
        model = IntegerModel(
            config=config,
            name=_text(values["name"]),
            tensors=tensors,
            about={
                key: v.decode("utf-8", "surrogateescape") for key in _ABOUT if isinstance(v := values.get(key), bytes)
            },
            **{
                key: values[key] for key in ("embed_mul", "logit_shift", "in_proj_shift", "out_proj_shift", "tokenizer")
            },
        )
        check_rows(model)
        return model


def _text(name: bytes) -> str:
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        _fail("general.name is not UTF-8 text")
    if "\0" in text:
        _fail("general.name holds a zero character")
    return text


def check_rows(model: IntegerModel) -> None:
    """The row bounds of ARITHMETIC §5 and of the logits; ModelFormatError names the row that breaks one."""

    def absolute_sums(name: str) -> npt.NDArray[np.int64]:
        sums: npt.NDArray[np.int64] = np.abs(model.tensors[name].astype(np.int64)).sum(1)
        return sums

    worst = {"token_embd.weight": 127 * absolute_sums("token_embd.weight")}
    for kind, shifts in (("in_proj", model.in_proj_shift), ("out_proj", model.out_proj_shift)):
        for i, s in enumerate(shifts):
            name = f"blk.{i}.{kind}"
            worst[f"{name}.weight"] = 127 * absolute_sums(f"{name}.weight") * model.tensors[f"{name}.mul"] + (
                1 << s >> 1
            )
    for name, rows in worst.items():
        if int(rows.max()) >= 1 << 30:
            _fail(f"tensor {name!r}, row {int(rows.argmax())}: its sum may reach {int(rows.max())}, beyond 2^30")
