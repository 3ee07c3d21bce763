"""The trainable models: `MambaInteger`, whose forward pass is that of the integer model, and `FloatMamba`, the Mamba-2-style baseline of the same shape.

Glossary (paper symbol, spec name): residual stream r; u, the block's normalised input; z, the gate branch; x, B, C, dt as in Mamba-2
(Dao & Gu 2024, arXiv:2405.21060); n = 1 − m/2^k, the decay (paper: exp(ΔA)); m/2^k, the input gate (paper: Δ).
This module knows nothing of files, data or optimisers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mamba_integer.arithmetic import ROTATION_FREQUENCIES
from mamba_integer.config import ModelConfig
from mamba_integer.nn import cuda
from mamba_integer.nn.init import dyadic_hippo
from mamba_integer.nn.quant import (
    ACTIVATIONS,
    EIGHTEEN_BITS,
    FIFTEEN_BITS,
    INT8,
    INT16,
    SIX_BITS,
    BitShiftNorm,
    Gained,
    QuantEmbedding,
    QuantWeight,
    Round,
    RoundUnbounded,
    embedding_multiplier,
)
from mamba_integer.nn.scan import chunked_scan, decay, dyadic_scan, segments

EMBED_SCALE = 16.0  # the residual starts at 16 times the (tied) embedding; logit_shift of the spec is 12 + 5
CONV_WIDTH = 4

Crossings = list[tuple[Tensor, Tensor]]
Observe = Callable[[str, Tensor, float], None]
"""Is shown the values of a site as they pass, in real units: (name, values, the limit at which they saturate; inf where none exists)."""


def unobserved(site: str, values: Tensor, limit: float) -> None:
    """The observer of passes that nobody watches."""


def in_layer(observe: Observe, layer: int) -> Observe:
    """Puts the layer's number before a site's name: "norm1" becomes "0.norm1"."""
    if observe is unobserved:
        return unobserved
    return lambda site, values, limit: observe(f"{layer}.{site}", values, limit)


class CausalConv(Function):
    """Depthwise convolution over time that does not reach into an earlier document.

    p [B, T, C], weight [C, 4] (oldest tap first), bias [C]; crossings[i] = (batch, time) indices of the positions whose tap i + 1 back lies in another
    document: there the tap's product is taken out again, which is cheaper than masking every position.
    """

    @staticmethod
    def forward(ctx: Any, p: Tensor, weight: Tensor, bias: Tensor, crossings: Crossings) -> Tensor:
        ctx.save_for_backward(p, weight)
        ctx.crossings = crossings
        out = torch.addcmul(bias, p, weight[:, -1])
        for back, (row, t) in enumerate(crossings, 1):
            w = weight[:, -1 - back]
            out[:, back:].addcmul_(p[:, :-back], w)
            out[row, t] -= p[row, t - back] * w
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        p, weight = ctx.saved_tensors
        grad_p = grad * weight[:, -1]
        grad_w = [(grad * p).flatten(0, 1).sum(0)]
        for back, (row, t) in enumerate(ctx.crossings, 1):
            w = weight[:, -1 - back]
            grad_p[:, :-back].addcmul_(grad[:, back:], w)
            grad_p.index_put_((row, t - back), -grad[row, t] * w, accumulate=True)
            taken = (grad[row, t] * p[row, t - back]).sum(0)
            grad_w.append((grad[:, back:] * p[:, :-back]).flatten(0, 1).sum(0) - taken)
        return grad_p, torch.stack(grad_w[::-1], 1), grad.flatten(0, 1).sum(0), None


def document_index(reset: Tensor) -> Tensor:
    """Position of each token in its document, int64 [B, T]: 0 where `reset`, bool [B, T], is True."""
    index = torch.arange(reset.shape[1], device=reset.device).expand(reset.shape)
    return index - torch.cummax(torch.where(reset, index, torch.zeros_like(index)), 1).values


class Positions:
    """What the layers need to know of document boundaries. reset: bool [B, T], True where a document starts."""

    def __init__(self, reset: Tensor) -> None:
        self.seg = segments(reset)
        self.crossings: Crossings = []
        for back in range(1, CONV_WIDTH):
            row, t = torch.nonzero(self.seg[:, back:] != self.seg[:, :-back], as_tuple=True)
            self.crossings.append((row, t + back))
        self.index = document_index(reset)

    @functools.cached_property
    def starts(self) -> Tensor:
        """Where a row or a document begins among the B · T positions, int64 [S]."""
        first = torch.ones_like(self.seg, dtype=torch.bool)
        first[:, 1:] = self.seg[:, 1:] != self.seg[:, :-1]
        return torch.nonzero(first.flatten())[:, 0]


def bitlinear(x: Tensor, weight: Tensor, ternary: bool, matrix: cuda.Matrix | None) -> Tensor:
    """Section 5 of the spec: x [..., K] on the Q5 grid, weight [O, K] -> [..., O] on the Q8 grid. matrix: of the weight, where the CUDA kernels serve."""
    out: Tensor
    if matrix is not None:
        out = cuda.bitlinear(x, weight, *matrix)
    else:
        out = RoundUnbounded.apply(F.linear(x, QuantWeight.apply(weight, ternary)), 8, INT16)
    return out


class IntegerBlock(nn.Module):
    """One layer, section 8 of the spec. Parameters are the real numbers that the exported integers stand for."""

    shift: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.ternary = config.weights == "ternary"
        d, e, h, n = config.d_model, config.d_inner, config.n_heads, config.d_state
        channel = config.norm_scale == "channel"
        self.norm1 = nn.Parameter(torch.ones(d if channel else 1))
        self.in_proj = nn.Parameter(torch.randn(2 * e + 2 * n + h, d) * d**-0.5)
        self.conv_weight = nn.Parameter(torch.rand(e + 2 * n, CONV_WIDTH) - 0.5)
        self.conv_bias = nn.Parameter(torch.zeros(e + 2 * n))
        k, a = dyadic_hippo(h, config.scan)
        self.register_buffer("shift", k)
        self.log_a = nn.Parameter(a.log())
        self.base = nn.Parameter(torch.zeros(h))
        self.skip = nn.Parameter(torch.ones(h))
        self.norm2 = nn.Parameter(torch.ones(e if channel else 1))
        self.out_proj = nn.Parameter(torch.randn(d, e) * (e * config.n_layers) ** -0.5)
        if self.ternary:
            self.in_gain, self.out_gain = nn.Parameter(torch.ones(len(self.in_proj))), nn.Parameter(torch.ones(d))
        with torch.no_grad():
            self.in_proj[-h:] *= 0.5

    def matrices(self) -> tuple[Tensor, Tensor]:
        """in_proj and out_proj as real numbers: of a model with ternary weights, times the gains of their rows, which the exported multipliers hold."""
        if self.config.weights != "ternary":
            return self.in_proj, self.out_proj
        w_in, w_out = (
            Gained.apply(w, g, self.ternary) for w, g in ((self.in_proj, self.in_gain), (self.out_proj, self.out_gain))
        )
        return w_in, w_out

    def decay(self, dt: Tensor, log_a: Tensor, base: Tensor) -> Tensor:
        """m of the spec (section 7), dt [..., H] on the Q8 grid -> integers 1 … m_max as float [..., H]."""
        return decay(dt, *self.time_scales(log_a, base), self.shift, self.config.scan == "convex")

    def time_scales(self, log_a: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
        """A and base of the spec (section 7) as real numbers, each [H] on its grid."""
        a = Round.apply(log_a.exp() * torch.exp2(self.shift.to(log_a.dtype)), 4, 1 << 19)
        return a, Round.apply(base, 8, INT16)

    def forward(
        self,
        r: Tensor,
        pos: Positions,
        observe: Observe = unobserved,
        matrices: tuple[cuda.Matrix, cuda.Matrix] | None = None,
    ) -> Tensor:
        """r [B, T, D] on the Q8 grid -> the same after this layer. matrices: in_proj and out_proj, where the CUDA kernels serve."""
        c = self.config
        e, n, h = c.d_inner, c.d_state, c.n_heads
        act, gate = ACTIVATIONS[c.activation], ACTIVATIONS[c.gate]
        g1, g2, skip = (Round.apply(v, 6, INT8) for v in (self.norm1, self.norm2, self.skip))

        w_in, w_out = self.matrices()
        m_in, m_out = matrices or (None, None)
        if observe is not unobserved:
            observe("in_proj.weight", QuantWeight.apply(w_in, self.ternary), math.inf)
            observe("out_proj.weight", QuantWeight.apply(w_out, self.ternary), math.inf)

        u = BitShiftNorm.apply(r, g1, 8, c.norm_mantissa)
        observe("norm1", u, INT8 / 32)
        p = bitlinear(u, w_in, self.ternary, m_in)
        observe("in_proj", p, INT16 / 256)
        z, xbc, dt = torch.split(p, [e, e + 2 * n, h], -1)
        xbc = CausalConv.apply(
            xbc, Round.apply(self.conv_weight, 6, INT8), Round.apply(self.conv_bias, 8, INT16), pos.crossings
        )
        xbc = RoundUnbounded.apply(xbc, 8, INT16)
        observe("conv", xbc, INT16 / 256)
        x = act.apply(xbc[..., :e], 5, INT8)
        if c.rotation:
            b, cc = (self.rotate(act.apply(v, 8, INT16), pos) for v in xbc[..., e:].split(n, -1))
            b, cc = Round.apply(b, 3, SIX_BITS), Round.apply(cc, 3, SIX_BITS)
        else:
            b, cc = act.apply(xbc[..., e:], 3, SIX_BITS).split(n, -1)
        observe("x", x, INT8 / 32)
        observe("B", b, SIX_BITS / 8)
        observe("C", cc, SIX_BITS / 8)

        if observe is not unobserved:
            observe("m", self.decay(dt, self.log_a, self.base), math.inf)
        scanned = (x, b, cc, dt, *self.time_scales(self.log_a, self.base), skip, self.shift, pos.seg)
        convex = c.scan == "convex"
        y = dyadic_scan(*scanned, convex) if matrices is None else cuda.scan(*scanned, pos.starts, convex)
        observe("scan", y, INT16 / 256)

        g = gate.apply(z, 8, FIFTEEN_BITS)
        observe("gate", g, FIFTEEN_BITS / 256)
        o = Round.apply(y * g, 10, EIGHTEEN_BITS)
        observe("gated", o, EIGHTEEN_BITS / 1024)
        v = BitShiftNorm.apply(o, g2, 10, c.norm_mantissa)
        observe("norm2", v, INT8 / 32)
        out = bitlinear(v, w_out, self.ternary, m_out)
        observe("out_proj", out, INT16 / 256)
        r = r + out
        observe("residual", r, EIGHTEEN_BITS / 256)
        return r

    def rotate(self, v: Tensor, pos: Positions) -> Tensor:
        """Rotation of section 10 of the spec: pairs (i, i + N/2) by the angle 2π·f_i·position/1024."""
        half = v.shape[-1] // 2
        f = torch.tensor(ROTATION_FREQUENCIES[:half], device=v.device)
        angle = (pos.index[..., None] * f % 1024).to(v.dtype) * (2 * math.pi / 1024)
        a, b = v.chunk(2, -1)
        cos, sin = angle.cos(), angle.sin()
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class MambaInteger(nn.Module):
    """The integer model. forward: token ids int64 [B, T], reset bool [B, T] -> logits float32 [B, T, V] (natural-log units)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(torch.randn(config.vocab_size, config.d_model) * 0.03)
        self.blocks = nn.ModuleList([IntegerBlock(config) for _ in range(config.n_layers)])
        self.norm_f = nn.Parameter(torch.ones(config.d_model if config.norm_scale == "channel" else 1))

    def hold_at_int8(self, held: bool) -> None:
        """Whether weights that are to be ternary are int8 for the time being."""
        for block in self.blocks:
            assert isinstance(block, IntegerBlock)
            block.ternary = self.config.weights == "ternary" and not held

    def _matrices(self) -> list[tuple[cuda.Matrix, cuda.Matrix] | None]:
        """in_proj and out_proj of every layer for the CUDA kernels; None for each where those do not serve."""
        found = None
        if cuda.usable(self.embedding.device):
            blocks = [b for b in self.blocks if isinstance(b, IntegerBlock)]
            found = cuda.matrices((w, b.ternary) for b in blocks for w in b.matrices())
        return [None] * len(self.blocks) if found is None else list(zip(found[::2], found[1::2], strict=True))

    def forward(self, tokens: Tensor, reset: Tensor, observe: Observe = unobserved) -> Tensor:
        """`observe` is shown the sites of a layer i as "i.site", and "embedding" (the table), "embedded" and "norm_f"."""
        pos = Positions(reset)
        embedding = QuantEmbedding.apply(self.embedding)
        r = F.embedding(tokens, embedding) * EMBED_SCALE
        observe("embedding", embedding, float(embedding_multiplier(self.embedding.detach())) * INT8 / 4096)
        observe("embedded", r, math.inf)
        matrices = self._matrices()
        for i, block in enumerate(self.blocks):
            r = block(r, pos, in_layer(observe, i), matrices[i])
        u = BitShiftNorm.apply(r, Round.apply(self.norm_f, 6, INT8), 8, self.config.norm_mantissa)
        observe("norm_f", u, INT8 / 32)
        return F.linear(u, embedding)


class FloatBlock(nn.Module):
    """A Mamba-2 block in floating point: RMSNorm, softplus step sizes, SiLU, gated RMSNorm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        d, e, h, n = config.d_model, config.d_inner, config.n_heads, config.d_state
        self.norm1 = nn.Parameter(torch.ones(d))
        self.in_proj = nn.Parameter(torch.randn(2 * e + 2 * n + h, d) * d**-0.5)
        self.conv_weight = nn.Parameter(torch.rand(e + 2 * n, CONV_WIDTH) - 0.5)
        self.conv_bias = nn.Parameter(torch.zeros(e + 2 * n))
        _, a = dyadic_hippo(h, "literal")  # the same time constants to start from
        step = torch.logspace(-1, -3, h)
        self.log_a = nn.Parameter((a / step).log())
        self.base = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # softplus(base) = step
        self.skip = nn.Parameter(torch.ones(h))
        self.norm2 = nn.Parameter(torch.ones(e))
        self.out_proj = nn.Parameter(torch.randn(d, e) * (e * config.n_layers) ** -0.5)
        with torch.no_grad():
            self.in_proj[-h:] *= 0.5

    def matrices(self) -> tuple[Tensor, Tensor]:
        """in_proj and out_proj."""
        return self.in_proj, self.out_proj

    def decay(self, dt: Tensor, log_a: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
        """(share of the state that is kept, input gate), each [..., H]: exp(-a·Δ) and Δ = softplus(dt + base)."""
        step = F.softplus(dt + base)
        return torch.exp(-log_a.exp() * step), step

    def forward(self, r: Tensor, pos: Positions, observe: Observe = unobserved) -> Tensor:
        c = self.config
        e, n, h = c.d_inner, c.d_state, c.n_heads
        batch, length, _ = r.shape
        p = F.linear(F.rms_norm(r, (c.d_model,), self.norm1, 1e-5), self.in_proj)
        z, xbc, dt = torch.split(p, [e, e + 2 * n, h], -1)
        xbc = F.silu(CausalConv.apply(xbc, self.conv_weight, self.conv_bias, pos.crossings))
        x, b, cc = torch.split(xbc, [e, n, n], -1)
        step = F.softplus(dt + self.base)
        rate = self.log_a.exp() * step
        observe("x", x, math.inf)
        observe("rate", rate, math.inf)
        heads = x.view(batch, length, h, -1)
        y = chunked_scan(heads * step[..., None], -rate, b, cc, pos.seg) + heads * self.skip[:, None]
        o = F.rms_norm(y.reshape(batch, length, e) * F.silu(z), (e,), self.norm2, 1e-5)
        return r + F.linear(o, self.out_proj)


class FloatMamba(nn.Module):
    """The float baseline of the same shape; same interface as MambaInteger."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(torch.randn(config.vocab_size, config.d_model) * 0.03)
        self.blocks = nn.ModuleList([FloatBlock(config) for _ in range(config.n_layers)])
        self.norm_f = nn.Parameter(torch.ones(config.d_model))

    def forward(self, tokens: Tensor, reset: Tensor, observe: Observe = unobserved) -> Tensor:
        pos = Positions(reset)
        r = F.embedding(tokens, self.embedding) * EMBED_SCALE
        for i, block in enumerate(self.blocks):
            r = block(r, pos, in_layer(observe, i))
        return F.linear(F.rms_norm(r, (self.config.d_model,), self.norm_f, 1e-5), self.embedding)


def build_model(config: ModelConfig, arithmetic: str = "integer") -> MambaInteger | FloatMamba:
    """`arithmetic`: "integer" or "float". Raises ValueError otherwise."""
    if arithmetic == "integer":
        return MambaInteger(config)
    if arithmetic == "float":
        return FloatMamba(config)
    raise ValueError(f"arithmetic must be 'integer' or 'float', not {arithmetic!r}")
