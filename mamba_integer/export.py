"""From a training checkpoint to the model file: every parameter becomes the integer that training rounded it to (spec/FORMAT.md).

This is the last place where a float is seen. Knows the training modules' parameters and the file; the engine knows neither.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mamba_integer import bounds
from mamba_integer.config import ModelConfig
from mamba_integer.errors import CheckpointError
from mamba_integer.model_file import IntegerModel, read_model, write_model
from mamba_integer.nn import build_model
from mamba_integer.nn.init import dyadic_hippo
from mamba_integer.nn.quant import INT8, INT16, embedding_multiplier, row_multipliers
from mamba_integer.tokenizer import Tokenizer
from mamba_integer.train.checkpoint import CHECKPOINT, load_checkpoint, restore

LOGIT_SHIFT = 17  # a logit is Σ e·u: e in units of m_e·2^-12, u in units of 2^-5


def to_int(x: Tensor, f: int, limit: int, dtype: type[np.signedinteger]) -> npt.NDArray[np.signedinteger]:
    """Nearest multiple of 2^-f, halves up, clamped to ±limit, as `grid` in training."""
    return torch.floor(x.double() * 2.0**f + 0.5).clamp(-limit, limit).to(torch.int64).numpy().astype(dtype)


def quantise_linear(weight: Tensor, ternary: bool) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int16], int]:
    """(W int8 [O, K], m int16 [O], s) of the spec's bitlinear. If a row breaks the prover's rule (2^29; see `bounds`), m loses bits until none does."""
    m, t = row_multipliers(weight, ternary)
    limit = 1 if ternary else INT8
    while True:
        w = torch.round(weight / (m * torch.exp2(-t))).clamp(-limit, limit).to(torch.int64)
        shift = int(t) - 3
        worst = 127 * w.abs().sum(1) * m[:, 0].to(torch.int64) + (1 << shift >> 1)
        if int(worst.max()) < 1 << 29:
            return w.numpy().astype(np.int8), m[:, 0].numpy().astype(np.int16), shift
        t = t - 1
        m = torch.ceil(m / 2).clamp(1, 255)


def export_state(
    state: dict[str, Tensor], config: ModelConfig, tokenizer: Tokenizer, name: str, about: dict[str, str]
) -> IntegerModel:
    """The integer model of a MambaInteger state dict. Raises ModelFormatError if the result breaks a bound."""
    ternary = config.weights == "ternary"
    me = embedding_multiplier(state["embedding"])
    tensors: dict[str, npt.NDArray[np.signedinteger]] = {
        "token_embd.weight": torch.round(state["embedding"] / (me * 2.0**-12))
        .clamp(-INT8, INT8)
        .numpy()
        .astype(np.int8),
        "output_norm.scale": to_int(state["norm_f"], 6, INT8, np.int8),
    }
    k, _ = dyadic_hippo(config.n_heads, config.scan)
    in_shift, out_shift = [], []
    for i in range(config.n_layers):
        p = {key.removeprefix(f"blocks.{i}."): v for key, v in state.items() if key.startswith(f"blocks.{i}.")}
        if ternary:
            p["in_proj"], p["out_proj"] = p["in_proj"] * p["in_gain"][:, None], p["out_proj"] * p["out_gain"][:, None]
        w_in, m_in, s_in = quantise_linear(p["in_proj"], ternary)
        w_out, m_out, s_out = quantise_linear(p["out_proj"], ternary)
        in_shift.append(s_in)
        out_shift.append(s_out)
        tensors |= {
            f"blk.{i}.norm1.scale": to_int(p["norm1"], 6, INT8, np.int8),
            f"blk.{i}.in_proj.weight": w_in,
            f"blk.{i}.in_proj.mul": m_in,
            f"blk.{i}.conv.weight": to_int(p["conv_weight"], 6, INT8, np.int8),
            f"blk.{i}.conv.bias": to_int(p["conv_bias"], 8, INT16, np.int16),
            f"blk.{i}.scan.k": k.numpy().astype(np.int8),
            f"blk.{i}.scan.A": np.maximum(to_int(p["log_a"].exp() * torch.exp2(k.float()), 4, 1 << 19, np.int32), 1),
            f"blk.{i}.scan.base": to_int(p["base"], 8, INT16, np.int16),
            f"blk.{i}.scan.skip": to_int(p["skip"], 6, INT8, np.int8),
            f"blk.{i}.norm2.scale": to_int(p["norm2"], 6, INT8, np.int8),
            f"blk.{i}.out_proj.weight": w_out,
            f"blk.{i}.out_proj.mul": m_out,
        }
    model = IntegerModel(
        config=config,
        name=name,
        about=about,
        embed_mul=int(me),
        logit_shift=LOGIT_SHIFT,
        in_proj_shift=in_shift,
        out_proj_shift=out_shift,
        tensors=tensors,
        tokenizer=tokenizer.to_bytes(),
    )
    bounds.check(model)
    return model


def _embedding(e: Tensor, m: int) -> Tensor:
    """The table [V, D] that int8 values and their multiplier m stand for, such that `embedding_multiplier` gives m again.

    Export clips outliers, and a clipped table has less spread, from which would follow a finer grid that clips more. So values at the limit are put beyond
    it, where they had come from, as far as the spread needs.
    """
    table = e.double() * (m * 2.0**-12)
    limit = e.abs() == INT8
    if int(embedding_multiplier(table)) < m and limit.any():
        spread = (m * (INT8 / 4096) * (1 - 2.0**-10) / 6) ** 2 * table.numel()
        grow = ((spread - table[~limit].square().sum()) / table[limit].square().sum()).sqrt()
        table = torch.where(limit, table * grow, table)
    return table.float()


def _ternary_gain(w: Tensor) -> Tensor:
    """Gains [O] of rows w·m·2^-t, w [O, K] of -1, 0 and 1, such that the gain times the mean magnitude is m·2^-t again; a hair less, lest 255 round up."""
    return (1 - 2.0**-20) / w.abs().mean(1).clamp_min(1 / w.shape[1])


def import_state(model: IntegerModel) -> dict[str, Tensor]:
    """The MambaInteger state dict that a model file stands for, float32: what to tune when there is no checkpoint.

    Every parameter lies on its grid, so the forward pass is that of the file. What training knew below a grid's step is lost, and rows of int8 whose
    largest weight had become less than 127 may get another multiplier when exported again.
    """
    t = {name: torch.from_numpy(np.asarray(value).astype(np.float32)) for name, value in model.tensors.items()}
    state = {
        "embedding": _embedding(t["token_embd.weight"], model.embed_mul),
        "norm_f": t["output_norm.scale"] * 2.0**-6,
    }
    for i in range(model.config.n_layers):
        p = {name.removeprefix(f"blk.{i}."): value for name, value in t.items() if name.startswith(f"blk.{i}.")}
        layer = {
            "norm1": p["norm1.scale"] * 2.0**-6,
            "in_proj": p["in_proj.weight"] * p["in_proj.mul"][:, None] * 2.0 ** -(model.in_proj_shift[i] + 3),
            "conv_weight": p["conv.weight"] * 2.0**-6,
            "conv_bias": p["conv.bias"] * 2.0**-8,
            "shift": p["scan.k"].long(),
            "log_a": (p["scan.A"] * torch.exp2(-4.0 - p["scan.k"])).log(),
            "base": p["scan.base"] * 2.0**-8,
            "skip": p["scan.skip"] * 2.0**-6,
            "norm2": p["norm2.scale"] * 2.0**-6,
            "out_proj": p["out_proj.weight"] * p["out_proj.mul"][:, None] * 2.0 ** -(model.out_proj_shift[i] + 3),
        }
        if model.config.weights == "ternary":
            layer |= {f"{side}_gain": _ternary_gain(p[f"{side}_proj.weight"]) for side in ("in", "out")}
        state |= {f"blocks.{i}.{name}": value for name, value in layer.items()}
    return state


def export(
    run: Path, out: Path, name: str, tokenizer: Path | None = None, about: dict[str, str] | None = None
) -> IntegerModel:
    """Writes the model file of a run (a directory or a checkpoint file) and returns it as read back.

    Raises CheckpointError for a damaged, foreign or float checkpoint, ModelFormatError if a bound is broken.
    """
    path = run / CHECKPOINT if run.is_dir() else run
    tensors, meta = load_checkpoint(path)
    if meta["train"]["arithmetic"] != "integer":
        raise CheckpointError(f"{path} is a float baseline; only integer models can be exported")
    config = ModelConfig(**meta["model"])
    model = build_model(config)
    restore(tensors, model)
    vocabulary = Tokenizer.load(tokenizer or meta["train"]["tokenizer"])
    write_model(out, export_state(model.state_dict(), config, vocabulary, name, about or {}))
    return read_model(out)


def main(argv: list[str] | None = None) -> int:
    """`mamba-integer export`. Raises MambaIntegerError for users' mistakes."""
    p = argparse.ArgumentParser(
        prog="mamba-integer export",
        description="Turn a training run into an integer model file.",
        epilog="example: mamba-integer export runs/mine -o mine.gguf --name mine",
    )
    p.add_argument(
        "run",
        type=Path,
        nargs="?",
        default=Path("runs/tinystories"),
        help="run directory or checkpoint file (default: %(default)s)",
    )
    p.add_argument("-o", "--output", type=Path, help="model file to write (default: NAME.gguf)")
    p.add_argument("--name", help="name of the model (default: that of the run)")
    p.add_argument("--tokenizer", type=Path, help="tokenizer file (default: the run's)")
    p.add_argument("--description", default="", help="a sentence for people")
    p.add_argument("--license", default="", help="licence of model and data")
    p.add_argument("--source", default="", help="where the data came from")
    p.add_argument("--json", action="store_true", help="print a summary as JSON")
    a = p.parse_args(argv)
    name = a.name or a.run.resolve().name
    out = a.output or Path(f"{name}.gguf")
    about = {k: getattr(a, k) for k in ("description", "license", "source") if getattr(a, k)}
    model = export(a.run, out, name, a.tokenizer, about)
    summary = {"model": str(out), "name": name, "bytes": out.stat().st_size, "model_digest": model.digest}
    print(json.dumps(summary) if a.json else f"{out}: {summary['bytes']:,} bytes, digest {model.digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
