"""What an observed forward pass says about a model's health: saturation, decay spectrum, norm shifts, dead channels; gradient norms; sample stories.

The observed pass is that of `nn.model`, whichever way training itself computes. Everything here only looks: no parameter, optimiser or random state changes.
`alerts` judges the figures, `monitor` draws them; both know them by the names that are made here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from mamba_integer.errors import MambaIntegerError
from mamba_integer.nn.model import FloatMamba, MambaInteger
from mamba_integer.nn.quant import norm_shift
from mamba_integer.tokenizer import Tokenizer

Figure = float | list[float] | list[list[float]]

SHIFTS = 16  # a norm's sum of squares has at most 44 bits, so its shift j is at most 14
SAMPLE_PROMPT = "Once upon a time"
SAMPLE_TOKENS = 80
_SATURATING = (
    "norm1", "in_proj", "conv", "x", "B", "C", "scan", "gate", "gated", "norm2", "out_proj", "residual"
)  # fmt: skip
_CHANNELS = ("x", "B", "C", "gated")
_KINDS = {
    "weights": ("embedding", "in_proj", "out_proj", "conv_weight"),
    "decays": ("log_a", "base"),
    "biases": ("conv_bias",),
    "scales": ("norm1", "norm2", "norm_f", "skip", "in_gain", "out_gain"),
}


@torch.no_grad()
def measure(model: MambaInteger | FloatMamba, tokens: Tensor, reset: Tensor) -> dict[str, Figure]:
    """Figures of one observed pass. tokens int64 [B, T], reset bool [B, T] as for the model.

    clip/SITE [L]: share of values at the limit of the site's quantiser; clip/norm_f and clip/embedding (of weights), one number.
    m_low, m_high [L][H]: share of tokens at which the head's state multiplier is at its lowest, highest possible value.
    tau_median, tau_std [L][H]: median and standard deviation over tokens of log2 τ, τ the head's time constant in tokens; 0 is a dead head.
    norm_shift/SITE [L][16] (norm_f: [1][16]): share of positions at which the norm shifts by j = 0 … 15.
    dead/SITE [L]: share of channels that have the same value at every position.
    zeros/MATRIX [L]: share of weights that are zero. The float baseline has tau_*, dead/x only.
    """
    sites: dict[str, tuple[Tensor, float]] = {}

    def keep(site: str, values: Tensor, limit: float) -> None:
        sites[site] = (values, limit)

    model(tokens, reset, keep)
    layers = range(len(model.blocks))

    def per_layer(site: str) -> list[tuple[Tensor, float]]:
        return [sites[f"{i}.{site}"] for i in layers]

    figures: dict[str, Figure] = {}
    if isinstance(model, FloatMamba):
        spectrum = [-torch.log2(rate) for rate, _ in per_layer("rate")]
        figures["dead/x"] = [_dead(v) for v, _ in per_layer("x")]
    else:
        for site in _SATURATING:
            figures[f"clip/{site}"] = [_share(v.abs() >= limit) for v, limit in per_layer(site)]
        for site in ("embedding", "norm_f"):
            v, limit = sites[site]
            figures[f"clip/{site}"] = _share(v.abs() >= limit)
        multipliers = [m for m, _ in per_layer("m")]
        spectrum = [block.shift - torch.log2(m) for block, m in zip(model.blocks, multipliers, strict=True)]  # type: ignore[operator]
        for name, dt, at in (("m_low", -1e6, torch.le), ("m_high", 1e6, torch.ge)):
            figures[name] = [
                at(m, block.decay(torch.full_like(m[0, 0], dt), block.log_a, block.base)).float().mean((0, 1)).tolist()  # type: ignore[operator]
                for block, m in zip(model.blocks, multipliers, strict=True)
            ]
        inputs = [sites["embedded"][0], *(v for v, _ in per_layer("residual"))]
        figures["norm_shift/norm1"] = [_shifts(r, 8) for r in inputs[:-1]]
        figures["norm_shift/norm2"] = [_shifts(o, 10) for o, _ in per_layer("gated")]
        figures["norm_shift/norm_f"] = [_shifts(inputs[-1], 8)]
        for site in _CHANNELS:
            figures[f"dead/{site}"] = [_dead(v) for v, _ in per_layer(site)]
        for matrix in ("in_proj", "out_proj"):
            figures[f"zeros/{matrix}"] = [_share(w == 0) for w, _ in per_layer(f"{matrix}.weight")]
    figures["tau_median"] = [s.flatten(0, 1).median(0).values.tolist() for s in spectrum]
    figures["tau_std"] = [s.flatten(0, 1).std(0, correction=0).tolist() for s in spectrum]
    return figures


def inspect(model: MambaInteger | FloatMamba, tokens: Tensor, tokenizer: Tokenizer) -> dict[str, Figure | str]:
    """`measure` and, of an integer model, a `sample`. tokens int64 [B, T], rows of which may hold several documents."""
    reset = tokens == tokenizer.eot
    reset[:, 0] = True
    story = {"sample": sample(model, tokenizer)} if isinstance(model, MambaInteger) else {}
    return {**measure(model, tokens, reset), **story}


def _share(which: Tensor) -> float:
    return float(which.float().mean())


def _dead(values: Tensor) -> float:
    """Share of channels (last axis) that never change."""
    channels = values.flatten(0, 1)
    return _share(channels.amax(0) == channels.amin(0))


def _shifts(x: Tensor, f: int) -> list[float]:
    """Share of positions at which the norm of x, on the grid of 2^-f, shifts by 0 … SHIFTS - 1."""
    _, j = norm_shift(x, f)
    counts = torch.bincount(j.nan_to_num().clamp(0, SHIFTS - 1).long().flatten(), minlength=SHIFTS)
    shares: list[float] = (counts / j.numel()).tolist()
    return shares


def gradient_norms(named: Iterable[tuple[str, torch.nn.Parameter]], scale: float = 1.0) -> dict[str, float]:
    """Euclidean norm of the gradient by kind of parameter, times `scale` (to undo clipping).

    grad/weights: what becomes int8 or ternary; grad/decays: rates and base; grad/biases: of the convolution; grad/scales: of norms and ternary rows, and skips.
    """
    squares = dict.fromkeys(_KINDS, 0.0)
    kinds = {name: kind for kind, names in _KINDS.items() for name in names}
    for name, p in named:
        if p.grad is not None:
            squares[kinds[name.rsplit(".", 1)[-1]]] += float(p.grad.square().sum(dtype=torch.float64))
    return {f"grad/{kind}": scale * math.sqrt(total) for kind, total in squares.items()}


def sample(model: MambaInteger, tokenizer: Tokenizer, prompt: str = SAMPLE_PROMPT, seed: int = 0) -> str:
    """A story by the integer engine from the parameters as they are: prompt and continuation, or in parentheses why there is none."""
    from mamba_integer.engine import Model
    from mamba_integer.export import export_state
    from mamba_integer.model_file import serialize

    state = {name: v.detach().cpu() for name, v in model.state_dict().items()}
    try:
        exported = export_state(state, model.config, tokenizer, "sample", {})
        story = Model.from_bytes(serialize(exported)).generate(prompt, max_tokens=SAMPLE_TOKENS, seed=seed)
        story.finish()
    except MambaIntegerError as error:  # weights that break a bound: the run may yet mend
        return f"({error})"
    return prompt + story.text
