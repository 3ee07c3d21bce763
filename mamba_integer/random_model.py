"""Random valid models for differential tests and vectors: any configuration, weights from a seed, the same bits with every version of NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mamba_integer import arithmetic as ar
from mamba_integer.config import ModelConfig
from mamba_integer.model_file import MAX_LOGIT_SHIFT, MAX_SHIFT, IntegerModel, Tensor, tensor_shapes


class Stream:
    """Random integers: the words of Philox4x32-10 with key (seed, stream) and counter 0, 1, 2 …"""

    def __init__(self, seed: int, stream: int = 0) -> None:
        self.key = [seed & 0xFFFFFFFF, stream]
        self.used = 0

    def integers(self, low: int, high: int, shape: Sequence[int] = ()) -> ar.Ints:
        """int64 of `shape`, near enough uniform over low … high; high − low < 2^31."""
        n = 1
        for size in shape:
            n *= size
        blocks = (n + 3) >> 2
        counter = np.zeros((blocks, 4), np.int64)
        counter[:, 0] = np.arange(self.used, self.used + blocks)
        self.used += blocks
        words = ar.philox4x32(counter, np.broadcast_to(self.key, (blocks, 2))).reshape(-1)[:n]
        return low + ((words * (high - low + 1)) >> 32).reshape(shape)

    def choice(self, options: Sequence[str | int | bool]) -> str | int | bool:
        return options[int(self.integers(0, len(options) - 1))]


def random_config(seed: int, **fixed: int | str | bool) -> ModelConfig:
    """A small configuration with odd sizes and any of the modes; `fixed` fields are as given."""
    r = Stream(seed, 1)
    sizes = {"d_model": 37, "n_layers": 3, "n_heads": 5, "head_dim": 9, "vocab_size": 60, "context_length": 64}
    values: dict[str, int | str | bool] = {name: int(r.integers(1, high)) for name, high in sizes.items()}
    values |= {
        "d_state": 2 * int(r.integers(1, 10)),
        "norm_mantissa": r.choice([8, 8, 0]),
        "rotation": r.choice([False, True]),
    }
    values |= {name: r.choice(["silu", "squareplus"]) for name in ("activation", "gate")}
    values |= {"scan": r.choice(["convex", "literal"]), "weights": r.choice(["int8", "ternary"])}
    values |= {"norm_scale": r.choice(["channel", "scalar"])}
    return ModelConfig.from_dict({**values, **fixed})


def random_model(config: ModelConfig, seed: int, *, hostile: bool = False, tokenizer: bytes = b"") -> IntegerModel:
    """A valid model. `hostile` weights lie at the ends of their ranges wherever they may; others keep activations in the middle of theirs.

    Shifts of projections are chosen such that outputs are of int16's size and the row bound holds.
    """
    r = Stream(seed, 2)

    def spread(limit: int, shape: tuple[int, ...]) -> ar.Ints:
        if hostile:
            return r.integers(0, 1, shape) * 2 * limit - limit
        return (r.integers(-limit, limit, shape) + r.integers(-limit, limit, shape)) >> 1

    tensors: dict[str, Tensor] = {}
    shifts: dict[str, list[int]] = {"in_proj": [], "out_proj": []}
    for name, (dtype, shape) in tensor_shapes(config).items():
        part, kind = name.split(".")[-2:]
        if part in shifts and kind == "weight":
            shape = (shape[0], config.d_model if part == "in_proj" else config.d_inner)
            values = spread(1 if config.weights == "ternary" else 127, shape)
        elif kind == "mul":
            sums = np.abs(tensors[name.replace("mul", "weight")].astype(np.int64)).sum(1)
            limit = (1 << (30 if hostile else 29)) - (
                1 << 24
            )  # of the row bound; below 2^29 the prover's rule holds too
            top = np.minimum(255, [limit // (127 * int(v) + 1) for v in sums])
            values = top if hostile else 1 + ((top - 1) * r.integers(0, 256, shape) >> 8)
            worst = int((127 * sums * values).max())
            shift = worst.bit_length() - int(r.integers(13, 16))
            shifts[part].append(min(max(shift, 0), MAX_SHIFT))
        elif kind == "k":
            values = r.integers(8, 15, shape)
        elif kind == "A":
            values = r.integers(0, 1, shape) * ((1 << 19) - 1) + 1 if hostile else 1 << r.integers(0, 12, shape)
        else:
            limit = {"bias": 2000, "base": 300, "skip": 90, "scale": 90}.get(kind, 127)
            values = spread({"bias": 32767, "base": 32767}.get(kind, 127) if hostile else limit, shape)
        tensors[name] = values.astype(dtype)
    return IntegerModel(
        config=config,
        name=f"random-{seed}",
        embed_mul=1023 if hostile else int(r.integers(1, 60)),
        logit_shift=int(r.integers(8, MAX_LOGIT_SHIFT)),
        in_proj_shift=shifts["in_proj"],
        out_proj_shift=shifts["out_proj"],
        tensors=tensors,
        tokenizer=tokenizer,
    )
