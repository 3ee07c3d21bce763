"""The model file: what is written is read back, standard tools open it, and every damaged or hostile file is refused with its cause."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from mamba_integer import model_file as mf
from mamba_integer.config import ModelConfig
from mamba_integer.errors import ArgumentError, ModelFormatError
from mamba_integer.random_model import random_config, random_model

TINY = ModelConfig(5, 1, 2, 1, 2, 3, 16)
TOKENIZER = b"any bytes \x00\xff"


def tiny(**changes: str) -> mf.IntegerModel:
    config = dataclasses.replace(TINY, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(
        random_model(config, 1, tokenizer=TOKENIZER), name="tiny ∂", about={"license": "none", "source": "a seed"}
    )


def with_tensor(model: mf.IntegerModel, name: str, change: Callable[[np.ndarray], object]) -> mf.IntegerModel:
    tensor = model.tensors[name].copy()
    change(tensor)
    return dataclasses.replace(model, tensors={**model.tensors, name: tensor})


def refused(data: bytes, match: str) -> None:
    with pytest.raises(ModelFormatError, match=match):
        mf.parse(data)


# ---- Round trips


@pytest.mark.parametrize("seed", range(12))
def test_round_trip(seed: int, tmp_path: Path) -> None:
    model = random_model(random_config(seed), seed, hostile=seed % 2 == 0, tokenizer=TOKENIZER)
    path = tmp_path / "m.gguf"
    mf.write_model(path, model)
    back = mf.read_model(path)
    assert back.config == model.config or model.config.d_model == model.config.d_inner == 1
    assert mf.serialize(back) == path.read_bytes() == mf.serialize(model)
    assert back.digest == model.digest
    assert list(back.tensors) == list(mf.tensor_shapes(model.config))
    for name, tensor in model.tensors.items():
        assert back.tensors[name].dtype == tensor.dtype
        assert (back.tensors[name] == tensor).all()
    for field in ("name", "embed_mul", "logit_shift", "tokenizer", "about"):
        assert getattr(back, field) == getattr(model, field)
    assert (list(back.in_proj_shift), list(back.out_proj_shift)) == (
        list(model.in_proj_shift),
        list(model.out_proj_shift),
    )


@pytest.mark.parametrize("weights", ["int8", "ternary"])
def test_the_gguf_package_opens_it(weights: str, tmp_path: Path) -> None:
    model = tiny(weights=weights)
    mf.write_model(tmp_path / "m.gguf", model)
    reader = GGUFReader(tmp_path / "m.gguf")
    assert reader.fields["general.architecture"].contents() == "mamba_integer"
    assert reader.fields["general.name"].contents() == "tiny ∂"
    assert reader.fields["mamba_integer.in_proj_shift"].contents() == list(model.in_proj_shift)
    assert reader.fields["mamba_integer.model_digest"].contents() == model.digest
    assert [t.name for t in reader.tensors] == list(model.tensors)
    for t in reader.tensors:
        stored = model.tensors[t.name]
        if weights == "ternary" and t.name.endswith("proj.weight"):
            stored = mf.pack_ternary(stored)
        assert t.data.dtype == stored.dtype
        assert tuple(reversed(t.shape.tolist())) == stored.shape
        assert (np.array(t.data).reshape(stored.shape) == stored).all()


def test_digest_by_the_words_of_the_format() -> None:
    """Computed from the file's bytes as the gguf package finds them, in file order sorted by name."""
    model = tiny()
    text = mf.serialize(model)
    sha = hashlib.sha256(b"mamba-integer-model-1")
    pairs = {
        key: text[text.index(struct.pack("<Q", len(key)) + key.encode()) :] for key in mf._KEYS if key.encode() in text
    }
    for key in sorted(pairs):
        if key == "mamba_integer.model_digest":
            continue
        start = 8 + len(key) + 4
        kind = struct.unpack_from("<I", pairs[key], start - 4)[0]
        if kind == 4:
            end = start + 4
        elif kind == 8:
            end = start + 8 + struct.unpack_from("<Q", pairs[key], start)[0]
        else:
            end = start + 12 + 4 * struct.unpack_from("<Q", pairs[key], start + 4)[0]
        sha.update(pairs[key][:end])
    for name in sorted(model.tensors):
        tensor = model.tensors[name]
        dims = tensor.shape[::-1]
        kind = {1: 24, 2: 25, 4: 26}[tensor.itemsize]
        sha.update(
            struct.pack("<Q", len(name)) + name.encode() + struct.pack(f"<I{len(dims)}QI", len(dims), *dims, kind)
        )
        sha.update(struct.pack("<Q", tensor.nbytes) + tensor.tobytes())
    assert sha.hexdigest() == model.digest


def test_ternary_packing() -> None:
    W = np.array([[1, -1, 0, 1, 1], [0, 0, 0, 0, -1]], np.int8)
    packed = mf.pack_ternary(W)
    assert packed.view(np.uint8).tolist() == [[0b01_00_10_01, 0b01], [0, 0b10]]
    assert (mf.unpack_ternary(packed, 5) == W).all()
    with pytest.raises(ModelFormatError, match="code 3"):
        mf.unpack_ternary(np.array([[3]], np.int8), 4)
    with pytest.raises(ModelFormatError, match="padding"):
        mf.unpack_ternary(packed, 4)


def test_scales_may_be_mixed() -> None:
    model = tiny()
    mixed = dataclasses.replace(model, tensors={**model.tensors, "blk.0.norm1.scale": np.array([7], np.int8)})
    assert mf.parse(mf.serialize(mixed)).config.norm_scale == "channel"
    assert mf.parse(mf.serialize(tiny(norm_scale="scalar"))).config.norm_scale == "scalar"


# ---- Damage


def test_every_truncation_is_refused() -> None:
    data = mf.serialize(tiny())
    for length in [*range(0, len(data), 7), *range(len(data) - 40, len(data))]:
        refused(data[:length], "truncated|not a GGUF|goes on")
    refused(data + bytes(32), "goes on after its last tensor")
    refused(data + b"\0", "goes on after its last tensor")


@pytest.mark.parametrize("weights", ["int8", "ternary"])
def test_every_flipped_byte_is_refused(weights: str) -> None:
    data = mf.serialize(tiny(weights=weights))
    assert len(data) < 4096
    mf.parse(data)
    for at in range(len(data)):
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[at] ^= flip
            with pytest.raises(ModelFormatError):
                mf.parse(bytes(damaged))


def test_random_bytes_are_refused() -> None:
    r = np.random.default_rng(0)
    for size in (0, 1, 3, 4, 24, 1000):
        refused(r.bytes(size), "GGUF|truncated")
    for _ in range(50):
        with pytest.raises(ModelFormatError):
            mf.parse(b"GGUF" + struct.pack("<IQQ", 3, *r.integers(0, 1 << 62, 2)) + r.bytes(300))


# ---- Hostile files with a right digest


class Edited:
    """A serialiser whose pieces can be replaced; the digest is made to match what results."""

    def __init__(self) -> None:
        model = tiny()
        self.version = 3
        self.pairs = [
            (key, mf._KEYS[key], mf._pair(key, value)[12 + len(key) :]) for key, value in mf._pairs(model).items()
        ]
        self.tensors = [[name, *mf._stored(model, name)] for name in mf.tensor_shapes(model.config)]
        self.shift_offset = 0

    def set(self, key: str, value: bytes, kind: int | None = None) -> None:
        full = key if key.startswith("general") else f"mamba_integer.{key}"
        self.pairs = [(k, kind or t, value) if k == full else (k, t, v) for k, t, v in self.pairs]

    def bytes(self) -> bytes:
        def pair(key: str, kind: int, value: bytes) -> bytes:
            return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + value

        sha = hashlib.sha256(b"mamba-integer-model-1")
        for p in sorted(self.pairs):
            sha.update(pair(*p))
        for _, info, data in sorted(self.tensors):
            sha.update(info + struct.pack("<Q", len(data)) + data)
        digest = sha.hexdigest().encode()
        pairs = [*self.pairs, ("mamba_integer.model_digest", 8, struct.pack("<Q", 64) + digest)]
        head = (
            b"GGUF"
            + struct.pack("<IQQ", self.version, len(self.tensors), len(pairs))
            + b"".join(pair(*p) for p in pairs)
        )
        body, offset = b"", 0
        for _, info, data in self.tensors:
            head += info + struct.pack("<Q", offset + self.shift_offset)
            body += mf._padded(data)
            offset = len(body)
        return mf._padded(head) + body


def u32(n: int) -> bytes:
    return struct.pack("<I", n)


def text(s: str) -> bytes:
    return struct.pack("<Q", len(s)) + s.encode()


def test_the_editor_makes_valid_files() -> None:
    assert mf.parse(Edited().bytes()).digest == tiny().digest


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("general.architecture", text("llama"), "architecture 'llama'"),
        ("format_version", u32(2), "format version 2; this release reads format version 1"),
        ("spec_version", u32(0), "spec version 0; this release reads spec version 1"),
        ("d_model", u32(4097), "d_model must be an integer from 1 to 4096"),
        ("d_model", u32(0), "d_model"),
        ("n_layers", u32(129), "n_layers"),
        ("n_heads", u32(0xFFFFFFFF), "n_heads"),
        ("head_dim", u32(257), "head_dim"),
        ("d_state", u32(3), "d_state must be even"),
        ("vocab_size", u32((1 << 17) + 1), "vocab_size"),
        ("vocab_size", u32(1 << 17), r"'token_embd.weight' must have the shape \[131072, 5\], not \[3, 5\]"),
        ("d_model", u32(4096), "'token_embd.weight' must have the shape"),
        ("n_layers", u32(128), "in_proj_shift must have a shift"),
        ("scan", text("other"), "scan must be 'convex' or 'literal', not 'other'"),
        ("activation", text("relu"), "activation must be"),
        ("gate", text(""), "gate must be"),
        ("norm_mantissa", u32(4), "norm_mantissa must be 8 or 0"),
        ("rotation", u32(2), "rotation must be 0 or 1"),
        ("weights", text("int4"), "weights must be"),
        ("embed_mul", u32(0), "embed_mul must be from 1 to 1023"),
        ("embed_mul", u32(1024), "embed_mul"),
        ("logit_shift", u32(32), "logit_shift must be from 0 to 31"),
        ("in_proj_shift", u32(4) + struct.pack("<Q", 1) + u32(25), "in_proj_shift must have a shift of 0 … 24"),
        ("in_proj_shift", u32(4) + struct.pack("<Q", 0), "in_proj_shift"),
        ("out_proj_shift", u32(4) + struct.pack("<Q", 2) + u32(1) + u32(1), "out_proj_shift"),
        ("out_proj_shift", u32(5) + struct.pack("<Q", 1) + u32(1), "must be an array of u32"),
        ("out_proj_shift", u32(4) + struct.pack("<Q", 1 << 61) + u32(1), "truncated"),
        ("tokenizer", struct.pack("<Q", (1 << 64) - 1), "truncated"),
        ("general.name", struct.pack("<Q", 1) + b"\xff", "not UTF-8"),
        ("general.name", struct.pack("<Q", 1) + b"\0", "zero character"),
    ],
)
def test_hostile_values(key: str, value: bytes, match: str) -> None:
    edited = Edited()
    edited.set(key, value)
    refused(edited.bytes(), match)


def test_hostile_keys() -> None:
    for change, match in (
        (lambda e: e.set("d_model", u32(5), kind=5), "'mamba_integer.d_model' must be u32"),
        (lambda e: e.pairs.append(("general.alignment", 4, u32(32))), "unknown key 'general.alignment'"),
        (lambda e: e.pairs.append(("a\nb" * 99, 4, u32(32))), r"unknown key 'a\?b.*…'"),
        (lambda e: e.pairs.append(e.pairs[3]), "appears twice"),
        (lambda e: e.pairs.pop(1), "key 'general.name' is missing"),
        (lambda e: setattr(e, "version", 2), "GGUF version 2"),
        (lambda e: setattr(e, "version", 3 << 24), "GGUF version"),
    ):
        edited = Edited()
        change(edited)
        refused(edited.bytes(), match)


def info(name: str, dims: tuple[int, ...], kind: int = 24) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack(f"<I{len(dims)}QI", len(dims), *dims, kind)


def test_hostile_tensors() -> None:
    def replace(e: Edited, name: str, dims: tuple[int, ...], kind: int = 24) -> None:
        e.tensors[1][:2] = [name, info(name, dims, kind)]

    for change, match in (
        (lambda e: e.tensors.pop(), "the file has 13 tensors; a model of 1 layers has 14"),
        (lambda e: replace(e, "other", (5,)), "unknown tensor 'other'"),
        (lambda e: e.tensors.__setitem__(1, e.tensors[0]), "tensor 'token_embd.weight' appears twice"),
        (lambda e: replace(e, "output_norm.scale", (4,)), r"must have the shape \[5\], not \[4\]"),
        (lambda e: replace(e, "output_norm.scale", (1 << 63,)), r"must have the shape \[5\]"),
        (lambda e: replace(e, "output_norm.scale", (5, 1)), "must have 1 dimensions, not 2"),
        (lambda e: replace(e, "output_norm.scale", (), 0), "must have 1 dimensions, not 0"),
        (lambda e: replace(e, "output_norm.scale", (5,), 0), "must be of type I8, not 0"),
        (lambda e: replace(e, "output_norm.scale", (5,), 25), "must be of type I8, not I16"),
        (lambda e: setattr(e, "shift_offset", 32), "lies at offset 32; it must lie at 0"),
        (lambda e: setattr(e, "shift_offset", 1), "lies at offset 1"),
    ):
        edited = Edited()
        change(edited)
        refused(edited.bytes(), match)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("token_embd.weight", -128),
        ("output_norm.scale", -128),
        ("blk.0.norm1.scale", -128),
        ("blk.0.in_proj.weight", -128),
        ("blk.0.in_proj.mul", 0),
        ("blk.0.in_proj.mul", 256),
        ("blk.0.in_proj.mul", -1),
        ("blk.0.conv.weight", -128),
        ("blk.0.conv.bias", -32768),
        ("blk.0.scan.k", 7),
        ("blk.0.scan.k", 16),
        ("blk.0.scan.A", 0),
        ("blk.0.scan.A", (1 << 19) + 1),
        ("blk.0.scan.base", -32768),
        ("blk.0.scan.skip", -128),
    ],
)
def test_values_out_of_range(name: str, value: int, tmp_path: Path) -> None:
    model = with_tensor(tiny(), name, lambda t: t.reshape(-1).__setitem__(1, value))
    refused(mf.serialize(model), f"tensor '{name}': .* is outside")
    with pytest.raises(ModelFormatError):
        mf.write_model(tmp_path / "m.gguf", model)
    assert list(tmp_path.iterdir()) == []


def test_row_bound() -> None:
    config = dataclasses.replace(TINY, d_model=300)
    model = random_model(config, 2)
    full = with_tensor(model, "blk.0.in_proj.weight", lambda t: t.__setitem__(3, 127))
    full = with_tensor(full, "blk.0.in_proj.mul", lambda t: t.__setitem__(3, 255))
    refused(mf.serialize(full), "'blk.0.in_proj.weight', row 3: its sum may reach 1233[0-9]{6}, beyond 2")


def test_models_that_cannot_be_written(tmp_path: Path) -> None:
    model = tiny(weights="ternary")
    for broken, match in (
        (with_tensor(model, "blk.0.in_proj.weight", lambda t: t.fill(2)), "is not ternary"),
        (dataclasses.replace(model, tensors={}), "is missing"),
        (dataclasses.replace(model, about={"author": "x"}), "unknown key 'general.author'"),
        (dataclasses.replace(model, embed_mul=-1), "is not of its type"),
        (
            dataclasses.replace(model, tensors={n: t.astype(np.int64) for n, t in model.tensors.items()}),
            "must be int8, not int64",
        ),
        (
            dataclasses.replace(model, tensors={n: t.reshape(-1, 1) for n, t in model.tensors.items()}),
            "must have the shape",
        ),
    ):
        with pytest.raises(ModelFormatError, match=match):
            mf.write_model(tmp_path / "m.gguf", broken)
    assert list(tmp_path.iterdir()) == []


# ---- Files


def test_reading_names_the_file(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.gguf", tmp_path):
        with pytest.raises(ModelFormatError, match=str(path)):
            mf.read_model(path)
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelFormatError, match=r"bad\.gguf: truncated"):
        mf.read_model(tmp_path / "bad.gguf")
    if Path("/dev/zero").exists():
        with pytest.raises(ModelFormatError, match="not a regular file"):
            mf.read_model("/dev/zero")


def test_writing_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.gguf"
    mf.write_model(path, tiny())
    before = path.read_bytes()

    def killed(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        mf.write_model(path, tiny(scan="literal"))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# ---- Configuration


def test_config_json_round_trip(tmp_path: Path) -> None:
    for seed in range(20):
        config = random_config(seed)
        assert ModelConfig.from_json(config.to_json()) == config
        assert config.parameters == sum(t.size for t in random_model(config, 0).tensors.values())
    (tmp_path / "c.json").write_text(TINY.to_json())
    assert ModelConfig.load(tmp_path / "c.json") == TINY


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"d_model": 0}, "d_model must be an integer from 1 to 4096, not 0"),
        ({"d_model": True}, "d_model"),
        ({"d_model": 5.0}, "d_model"),
        ({"d_state": 7}, "even"),
        ({"n_heads": 1024, "head_dim": 9}, "n_heads · head_dim is 9216"),
        ({"rotation": 1}, "rotation must be False or True"),
        ({"norm_mantissa": False}, "norm_mantissa must be 8 or 0"),
        ({"scan": "x"}, "scan must be"),
        ({"extra": 1}, "unknown: extra"),
    ],
)
def test_bad_configs(change: dict[str, object], match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        ModelConfig.from_dict({**dataclasses.asdict(TINY), **change})


@pytest.mark.parametrize("bad", ["", "[]", "{", '{"d_model": 5}'])
def test_bad_config_files(bad: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(bad)
    with pytest.raises(ArgumentError, match=r"c\.json: "):
        ModelConfig.load(tmp_path / "c.json")
