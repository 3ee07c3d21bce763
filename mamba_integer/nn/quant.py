"""Fake-quantised forms of the primitives of spec/ARITHMETIC.md, with straight-through gradients (Bengio et al. 2013, arXiv:1308.3432).

Values are float32 tensors that hold real numbers on the fixed-point grid of the spec (an int8 Q5 tensor holds multiples of 1/32). Up to 24 bits such
values are exact in float32, so what training sees is what the integers compute; sums of more bits (norm, requantisation) differ in rare last-bit ties.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

INT8 = 127
INT16 = 32767
FIFTEEN_BITS = 16383
SIX_BITS = 31
EIGHTEEN_BITS = (1 << 17) - 1


def grid(x: Tensor, f: int, limit: int) -> Tensor:
    """sat(rshift) of the spec: nearest multiple of 2^-f, halves up, clamped to ±limit units. No gradient of its own."""
    return torch.floor(x * 2.0**f + 0.5).clamp_(-limit, limit).mul_(2.0**-f)


def through(grad: Tensor, value: Tensor, bound: float) -> Tensor:
    """The gradient of a value that was clamped to ±bound: it passes inside, and outside only if a step against it would bring the value back."""
    return grad * ((value.abs() <= bound) | (grad * value > 0))


class Round(Function):
    """grid(x, f, limit); gradient: `through`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, f: int, limit: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bound = limit * 2.0**-f
        return grid(x, f, limit)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return through(grad, x, ctx.bound), None, None


class RoundUnbounded(Function):
    """grid(x, f, limit) for sites whose limit is out of reach: the gradient passes everywhere, nothing is saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, f: int, limit: int) -> Tensor:
        return grid(x, f, limit)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad, None, None


class SiLU(Function):
    """sat(rshift(act(c))) of the spec for `activation = silu`: c·sigmoid12(c), rounded to 2^-f, clamped to ±limit units. c is on the Q8 grid."""

    @staticmethod
    def forward(ctx: Any, c: Tensor, f: int, limit: int) -> Tensor:
        ctx.save_for_backward(c)
        ctx.bound = limit * 2.0**-f
        s = torch.floor(torch.sqrt(c * c + 4.0) * 256.0).mul_(1.0 / 256.0)
        q = torch.floor((c / s).add_(1.0).mul_(2048.0)).mul_(1.0 / 4096.0)
        return grid(q.mul_(c), f, limit)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (c,) = ctx.saved_tensors
        r = torch.rsqrt(c * c + 4.0)
        half = 0.5 + 0.5 * c * r
        slope = half + 2.0 * c * r * r * r
        return through(grad, c * half, ctx.bound) * slope, None, None


class Squareplus(Function):
    """sat(rshift(act(c))) of the spec for `activation = squareplus`: squareplus(c) − 1, rounded to 2^-f, clamped to ±limit units."""

    @staticmethod
    def forward(ctx: Any, c: Tensor, f: int, limit: int) -> Tensor:
        ctx.save_for_backward(c)
        ctx.bound = limit * 2.0**-f
        s = torch.floor(torch.sqrt(c * c + 4.0) * 256.0)
        y = torch.floor((c * 256.0 + s) * 0.5).mul_(1.0 / 256.0).sub_(1.0)
        return grid(y, f, limit)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (c,) = ctx.saved_tensors
        v = c * c + 4.0
        r = torch.rsqrt(v)
        y = 0.5 * (c + v * r) - 1.0
        return through(grad, y, ctx.bound) * (0.5 + 0.5 * c * r), None, None


ACTIVATIONS = {"silu": SiLU, "squareplus": Squareplus}


def norm_shift(x: Tensor, f: int) -> tuple[Tensor, Tensor]:
    """(S, j) of the spec's norm (section 4), each float [..., 1]: the sum of squares in units of 2^-2f with its floor of 2^14, and the shift j ≥ 0."""
    total = (x * x).sum(-1, keepdim=True) * 4.0**f + 2.0**14
    return total, torch.floor((torch.floor(torch.log2(total)) - 14.0) * 0.5)


class BitShiftNorm(Function):
    """norm(x, g) of the spec (section 4): x real on a grid of 2^-f, g on the Q6 grid, result int8 Q5.

    The gradient is that of the smooth x·g/√(eps + Σx²) scaled by the ratio of the two norms, which is held constant.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, g: Tensor, f: int, mantissa: int) -> Tensor:
        e = x.shape[-1].bit_length() >> 1
        total, j = norm_shift(x, f)
        if mantissa:
            mu = torch.floor(2.0**15 * torch.rsqrt(torch.floor(total * torch.exp2(-2.0 * j))) * (1 + 1e-7))
        else:
            mu = torch.full_like(j, 128.0)
        down = torch.exp2(f + 4.0 - j)
        n = torch.floor(x * down + 0.5)
        out = torch.floor(n * mu * (g * (2.0 ** (6 - 20 + e))) + 0.5).clamp_(-INT8, INT8).mul_(2.0**-5)
        ctx.save_for_backward(x, g, down * mu * 2.0 ** (6 - 20 + e - 5), total * 4.0**-f)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, g, ratio, total = ctx.saved_tensors
        xr = x * ratio
        grad = through(grad, xr * g, INT8 * 2.0**-5)
        grad_g = (grad * xr).flatten(0, -2).sum(0)
        if g.numel() == 1:
            grad_g = grad_g.sum().reshape(1)
        gg = grad * g
        grad_x = ratio * (gg - x * ((gg * x).sum(-1, keepdim=True) / total))
        return grad_x, grad_g, None, None


def row_multipliers(weight: Tensor, ternary: bool) -> tuple[Tensor, Tensor]:
    """Multipliers m (float [O, 1] of integers 1 … 255) and exponent t (float scalar) such that row o of W is w · m_o · 2^-t with w int8 (or ternary).

    int8: the smallest m_o that holds the row's largest weight in ±127. Ternary: the mean of |W| (BitNet b1.58, arXiv:2402.17764), row by row.
    """
    if ternary:
        scale = weight.abs().mean(1, keepdim=True).clamp_min(1e-6)
    else:
        scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-6) / INT8
    t = torch.floor(torch.log2(255.0 / scale.max())).clamp(3, 27)
    units = scale * torch.exp2(t)
    return (torch.round(units) if ternary else torch.ceil(units)).clamp(1, 255), t


class QuantWeight(Function):
    """W on the grid of its rows (section 5 of the spec); the gradient passes straight through."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ternary: bool) -> Tensor:
        m, t = row_multipliers(weight, ternary)
        step = m * torch.exp2(-t)
        limit = 1 if ternary else INT8
        return torch.round(weight / step).clamp_(-limit, limit).mul_(step)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class Gained(Function):
    """Rows of W [O, K] times a learnt gain [O]: what is then quantised.

    A ternary row stands for its mean |W| times −1, 0 or 1, so the gradient of its gain is that of these, not of W (as for the step of Esser et al. 2020,
    arXiv:1902.08153).
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, gain: Tensor, ternary: bool) -> Tensor:
        ctx.save_for_backward(weight, gain)
        ctx.ternary = ternary
        return weight * gain[:, None]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        weight, gain = ctx.saved_tensors
        unit = QuantWeight.apply(weight, True) if ctx.ternary else weight
        return grad * gain[:, None], (grad * unit).sum(1), None


def embedding_multiplier(weight: Tensor) -> Tensor:
    """m_e of the spec (float scalar holding an integer): one unit of e stands for m_e · 2^-12; it holds all but outliers beyond six standard deviations."""
    top = torch.minimum(weight.abs().max(), 6.0 * weight.square().mean().sqrt())
    return torch.ceil(top * (4096.0 / INT8)).clamp(1, 1023)


class QuantEmbedding(Function):
    """The embedding on its grid of m_e · 2^-12; the gradient passes straight through."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        step = embedding_multiplier(weight) * 2.0**-12
        return torch.round(weight / step).clamp_(-INT8, INT8).mul_(step)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad
