"""Models of two shapes with random weights, ours and llama.cpp's, for comparing speed: what they say is noise, what they cost is not.

llama.cpp has Mamba-1 blocks (state-spaces/mamba-130m is `130m`), ours are of Mamba-2's kind: the same d_model, d_inner, d_state, layers and vocabulary, so
nearly the same number of weights. Files are made once and kept in build/bench.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.common import by_turns, read_bandwidth, result
from mamba_integer import _native
from mamba_integer.cli import CHECKOUT
from mamba_integer.config import ModelConfig
from mamba_integer.engine import Model
from mamba_integer.errors import ArgumentError
from mamba_integer.files import write_atomically
from mamba_integer.model_file import IntegerModel, Tensor, serialize, tensor_shapes

FOLDER = CHECKOUT / "build/bench"


@dataclass(frozen=True)
class Shape:
    d_model: int
    n_layers: int
    vocab_size: int
    d_state: int = 16
    head_dim: int = 64

    @property
    def d_inner(self) -> int:
        return 2 * self.d_model


# Ours by how its weights are stored, and the types of llama.cpp of about as many bits a weight.
RIVALS = {"int8": ("Q8_0",), "ternary": ("TQ2_0", "TQ1_0")}
SHAPES = {"small": Shape(256, 6, 4096), "130m": Shape(768, 24, 50280)}


def our_file(name: str, weights: str) -> Path:
    """A valid model file; `weights` int8 or ternary."""
    path = FOLDER / f"{name}-{weights}.gguf"
    if path.exists():
        return path
    s = SHAPES[name]
    config = ModelConfig(
        d_model=s.d_model,
        n_layers=s.n_layers,
        n_heads=s.d_inner // s.head_dim,
        head_dim=s.head_dim,
        d_state=s.d_state,
        vocab_size=s.vocab_size,
        context_length=1024,
        weights=weights,
    )
    rng = np.random.default_rng(1)
    limits = {"bias": 500, "base": 100, "skip": 64, "scale": 90}
    tensors: dict[str, Tensor] = {}
    for tensor, (dtype, shape) in tensor_shapes(config).items():
        kind = tensor.split(".")[-1]
        low, high = {"mul": (60, 60), "k": (10, 14), "A": (64, 2048)}.get(
            kind, (-limits.get(kind, 127), limits.get(kind, 127))
        )
        if "_proj.weight" in tensor and weights == "ternary":
            shape, low, high = (shape[0], config.d_model if "in_proj" in tensor else config.d_inner), -1, 1
        tensors[tensor] = rng.integers(low, high + 1, shape, dtype=dtype)
    shift = 14 if weights == "int8" else 8
    model = IntegerModel(
        config=config,
        name=path.stem,
        embed_mul=8,
        logit_shift=20,
        in_proj_shift=[shift] * s.n_layers,
        out_proj_shift=[shift] * s.n_layers,
        tensors=tensors,
        tokenizer=b"",
    )
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_atomically(path, serialize(model))
    return path


def _llama() -> Any:
    try:
        import gguf  # noqa: F401
        import llama_cpp
    except ImportError as error:
        raise ArgumentError(f"--peers needs the packages llama-cpp-python and gguf: {error}") from None
    return llama_cpp


def llama_file(name: str, quantisation: str) -> Path:
    """llama.cpp's Mamba of that shape; `quantisation` as its file types are called: F16, Q8_0, Q4_0, TQ2_0, …"""
    path = FOLDER / f"{name}-llama-{quantisation}.gguf"
    if path.exists():
        return path
    FOLDER.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".part")
    if quantisation == "F16":
        _write_llama(SHAPES[name], scratch)
    else:
        llama = _llama()
        parameters = llama.llama_model_quantize_default_params()
        parameters.ftype = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{quantisation}")
        parameters.nthread = 1
        source = os.fsencode(llama_file(name, "F16"))
        if llama.llama_model_quantize(source, os.fsencode(scratch), ctypes.byref(parameters)) != 0:
            raise ArgumentError(f"llama.cpp cannot quantise to {quantisation}")
    os.replace(scratch, path)
    return path


def _write_llama(s: Shape, path: Path) -> None:
    import gguf

    rng = np.random.default_rng(1)
    rank = (s.d_model + 15) // 16

    def normal(*shape: int) -> Any:
        return (rng.standard_normal(shape, np.float32) * 0.02).astype(np.float16)

    writer = gguf.GGUFWriter(os.fspath(path), "mamba")
    writer.add_context_length(1 << 20)
    writer.add_embedding_length(s.d_model)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(s.n_layers)
    writer.add_ssm_conv_kernel(4)
    writer.add_ssm_inner_size(s.d_inner)
    writer.add_ssm_state_size(s.d_state)
    writer.add_ssm_time_step_rank(rank)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(s.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tensor("token_embd.weight", normal(s.vocab_size, s.d_model))
    writer.add_tensor("output_norm.weight", np.ones(s.d_model, np.float32))
    for i in range(s.n_layers):
        b = f"blk.{i}."
        writer.add_tensor(b + "attn_norm.weight", np.ones(s.d_model, np.float32))
        writer.add_tensor(b + "ssm_in.weight", normal(2 * s.d_inner, s.d_model))
        writer.add_tensor(b + "ssm_conv1d.weight", rng.standard_normal((s.d_inner, 4), np.float32) * 0.1)
        writer.add_tensor(b + "ssm_conv1d.bias", np.zeros(s.d_inner, np.float32))
        writer.add_tensor(b + "ssm_x.weight", normal(rank + 2 * s.d_state, s.d_inner))
        writer.add_tensor(b + "ssm_dt.weight", rng.standard_normal((s.d_inner, rank), np.float32) * 0.02)
        writer.add_tensor(b + "ssm_dt.bias", np.full(s.d_inner, -4, np.float32))
        writer.add_tensor(b + "ssm_a", -np.tile(np.arange(1, s.d_state + 1, dtype=np.float32), (s.d_inner, 1)))
        writer.add_tensor(b + "ssm_d", np.ones(s.d_inner, np.float32))
        writer.add_tensor(b + "ssm_out.weight", normal(s.d_model, s.d_inner))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Llama:
    """A model of llama.cpp and one sequence of it, through its C interface."""

    def __init__(self, path: Path, threads: int) -> None:
        self._lib = lib = _llama()
        self._log = lib.llama_log_callback(lambda *_: None)  # it would tell of every tensor; kept alive with self
        lib.llama_log_set(self._log, ctypes.c_void_p(0))
        lib.llama_backend_init()
        parameters = lib.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self._model = lib.llama_load_model_from_file(os.fsencode(path), parameters)
        if not self._model:
            raise ArgumentError(f"llama.cpp cannot load {path}")
        context = lib.llama_context_default_params()
        context.n_ctx, context.n_batch, context.n_ubatch = 2048, 512, 512
        context.n_threads = context.n_threads_batch = threads
        self._context = lib.llama_new_context_with_model(self._model, context)
        self.reset()

    def reset(self) -> None:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)

    def feed(self, tokens: list[int]) -> None:
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        status = self._lib.llama_decode(self._context, self._lib.llama_batch_get_one(array, len(tokens)))
        if status != 0:
            raise ArgumentError(f"llama.cpp: llama_decode returned {status}")

    def close(self) -> None:
        self._lib.llama_free(self._context)
        self._lib.llama_free_model(self._model)


def compare(bench: str, options: argparse.Namespace, *, feed_at_once: int, tokens: int) -> dict[str, Any]:
    """Ours and, with --peers, llama.cpp's in turn; one thread by CPU time, several by the clock. Decoding also beside the memory's bandwidth."""
    name, threads = options.shape, options.threads
    if (
        threads > 1
    ):  # few, because llama.cpp's threads wait for each other awake, which takes long where others want the cores
        tokens = max(feed_at_once, tokens >> 3)
    clock = time.process_time if threads == 1 else time.perf_counter
    peers: dict[str, dict[str, float]] = {"mamba-integer": {}}
    ratios: dict[str, dict[str, float]] = {}
    extra: dict[str, Any] = {}
    for weights, types in RIVALS.items():
        path = our_file(name, weights)
        began = time.perf_counter()
        model = Model.load(path)
        load_ms = 1000 * (time.perf_counter() - began)
        session = model.session(threads=threads)
        works: dict[str, Callable[[], int]] = {
            "mamba-integer": lambda session=session: _feed(session.feed_last, name, feed_at_once, tokens)
        }
        rivals = {f"llama.cpp {t}": Llama(llama_file(name, t), threads) for t in types} if options.peers else {}
        for rival, llama in rivals.items():
            works[rival] = lambda llama=llama: _feed(llama.feed, name, feed_at_once, tokens)
        if bench == "decode":
            works["memory"] = read_bandwidth()
        rates, ours_by = by_turns(works, options.seconds, clock)
        for rival, llama in rivals.items():
            llama.close()
            peers.setdefault(rival, {})[weights] = round(rates[rival], 1)
            ratios.setdefault(rival, {})[weights] = round(ours_by[rival], 2)
        peers["mamba-integer"][weights] = round(rates["mamba-integer"], 1)
        extra[f"{weights}_bytes"], extra[f"{weights}_load_ms"] = path.stat().st_size, round(load_ms, 1)
        if bench == "decode":
            # A token reads every weight once; the file is hardly more than its weights.
            extra[f"{weights}_share_of_bandwidth"] = round(ours_by["memory"] * path.stat().st_size, 3)
            extra["memory_GB_per_second"] = round(rates["memory"] / 1e9, 1)
    unit = "tokens per CPU-second" if threads == 1 else "tokens per second"
    measured = {"shape": name, "threads": threads, "isa": _native.isa(), **extra}
    return {**result(bench, unit, peers, **measured), "ratios": ratios}


def _feed(feed: Callable[[list[int]], None], name: str, at_once: int, tokens: int) -> int:
    vocab_size = SHAPES[name].vocab_size
    ids = [(7919 * i + 1) % vocab_size for i in range(tokens)]
    for begin in range(0, tokens, at_once):
        feed(ids[begin : begin + at_once])
    return tokens
