"""The models' passes with everything between the matrix products in C++ (trainer/), and their loss.

The integer model's forward pass is exact: the integers that the engine computes, the rounding of the state included. It takes the parameters of
`nn.model` and gives the gradients that `nn.quant` defines; `nn.model` is the readable form, and what the tests compare this with.

Products of integers are exact in any arithmetic that holds them: int8 where the processor has dot products of bytes, float32 elsewhere. In the backward
pass of the integer model one factor is always integers of at most eight bits times a scale, so on processors with bfloat16 products the other, a gradient,
is rounded to bfloat16 (relative error 2^-9); MAMBA_INTEGER_TRAIN_PRODUCTS=float32 in the environment keeps that from happening.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mamba_integer import _native
from mamba_integer.nn.model import EMBED_SCALE, FloatMamba, IntegerBlock, MambaInteger, document_index
from mamba_integer.nn.quant import INT8, INT16, QuantEmbedding, embedding_multiplier, row_multipliers, through

_CHUNK = 32  # steps between stored states, as in trainer/src
_ROWS = 512  # positions whose logits exist at a time
_EXACT_IN_FLOAT = (1 << 24) // (INT8 * INT8)  # longest product of int8 vectors whose partial sums float32 holds

_INT8_PRODUCTS: bool = getattr(torch.cpu, "_is_vnni_supported", lambda: False)()
_BFLOAT16_PRODUCTS: bool = (
    getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    and os.environ.get("MAMBA_INTEGER_TRAIN_PRODUCTS") != "float32"
)


class _Mixer(ctypes.Structure):
    """mi_mixer of trainer/src/kernels.h."""

    _fields_ = [
        *((n, ctypes.c_int32) for n in ("kind", "rows", "length", "heads", "head_dim", "d_state", "mantissa")),
        *((n, ctypes.c_void_p) for n in ("index", "projected", "conv_weight", "conv_bias", "skip", "norm_scale")),
        *((n, ctypes.c_void_p) for n in ("keep", "add", "k", "out", "norms", "states")),
    ]


class _MixerGrads(ctypes.Structure):
    _fields_ = [(n, ctypes.c_void_p) for n in ("grad_out", "grad_projected", "grad_keep", "grad_add")]


class _Norm(ctypes.Structure):
    _fields_ = [
        *((n, ctypes.c_int32) for n in ("is_float", "width", "mantissa")),
        *((n, ctypes.c_void_p) for n in ("in", "scale", "out", "norms")),
    ]


_POINTER, _INT, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float
_SIGNATURES = {
    "norm": (_POINTER, _LONG, _INT),
    "norm_backward": (_POINTER, _POINTER, _POINTER, _POINTER, _LONG, _LONG, _INT),
    "requantise": (_POINTER, _POINTER, _INT, _POINTER, _POINTER, _LONG, _INT, _INT, _INT),
    "residual": (_POINTER, _POINTER, _POINTER, _INT, _POINTER, _LONG, _INT, _INT),
    "mixer": (_POINTER, _INT),
    "mixer_backward": (_POINTER, _POINTER, _POINTER, _LONG, _INT),
    "cross_entropy": (_POINTER, _INT, _FLOAT, _POINTER, _POINTER, _POINTER, _LONG, _INT, _INT),
}
_KERNELS = {name: ctypes.CFUNCTYPE(None, *_SIGNATURES[name])(address) for name, address in _native.training_kernels}


def _at(t: Tensor | None) -> int | None:
    """Address of a dense CPU tensor."""
    if t is None:
        return None
    assert t.is_contiguous()
    assert t.device.type == "cpu"
    return t.data_ptr()


def _struct(of: type[ctypes.Structure], **fields: Any) -> Any:
    """A structure whose pointers are given as tensors. Whoever calls keeps the tensors alive."""
    s = of()
    for name, value in fields.items():
        setattr(s, name, _at(value) if value is None or isinstance(value, Tensor) else int(value))
    return s


def _product(a: Tensor, w: Tensor) -> Tensor:
    """int8 [R, K] times int8 [O, K] transposed -> int32 [R, O], exact."""
    if _INT8_PRODUCTS or a.shape[1] > _EXACT_IN_FLOAT:
        return torch._int_mm(a, w.t())
    return torch.mm(a.float(), w.float().t()).to(torch.int32)


def _integers(x: Tensor, f: int, limit: int) -> Tensor:
    """`grid` of nn.quant in units: int32."""
    return torch.floor(x * 2.0**f + 0.5).clamp_(-limit, limit).to(torch.int32)


def _inside(x: Tensor, f: int, limit: int, grad: Tensor) -> Tensor:
    """Gradient of nn.quant.Round."""
    return through(grad, x, limit * 2.0**-f)


class _Weight:
    """A quantised matrix: int8 [O, K], multipliers int32 [O], shift; and the real numbers that it stands for [O, K]."""

    def __init__(self, weight: Tensor, ternary: bool) -> None:
        m, t = row_multipliers(weight, ternary)
        step = m * torch.exp2(-t)
        limit = 1 if ternary else INT8
        w = torch.round(weight / step).clamp_(-limit, limit)
        self.int8, self.mul, self.shift, self.real = w.to(torch.int8), m[:, 0].to(torch.int32), int(t) - 3, w * step


def _backward_products(grad: Tensor, weight: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x [R, K] and of the weight [O, K] (real) of a product, from grad [R, O]. int8 x stands for x / 32."""
    if x.dtype == torch.float32:
        return torch.mm(grad, weight), torch.mm(grad.t(), x)
    low = torch.bfloat16 if _BFLOAT16_PRODUCTS else torch.float32
    g = grad.to(low)
    return torch.mm(g, weight.to(low)).float(), torch.mm(g.t(), x.to(low)).float().mul_(2.0**-5)


def _norm(x: Tensor, scale: Tensor, mantissa: int) -> tuple[Tensor, Tensor]:
    """x [R, D], scale [D] int32 Q6 (integer model) or float32 -> (int8 Q5 or float32 [R, D], what the backward pass needs [R, 2])."""
    real = scale.dtype == torch.float32
    out = torch.empty(x.shape, dtype=torch.float32 if real else torch.int8)
    norms = torch.empty(x.shape[0], 2)
    s = _struct(
        _Norm, is_float=real, width=x.shape[1], mantissa=mantissa, **{"in": x}, scale=scale, out=out, norms=norms
    )
    _KERNELS["norm"](ctypes.addressof(s), x.shape[0], torch.get_num_threads())
    return out, norms


def _norm_backward(grad: Tensor, x: Tensor, scale: Tensor, norms: Tensor, add_to: Tensor) -> Tensor:
    """Adds the gradient of x to `add_to` and returns that of the scale [D]."""
    threads = torch.get_num_threads()
    grad_scale = torch.zeros(threads, x.shape[1])
    s = _struct(_Norm, is_float=scale.dtype == torch.float32, width=x.shape[1], **{"in": x}, scale=scale, norms=norms)
    _KERNELS["norm_backward"](
        ctypes.addressof(s), _at(grad), _at(add_to), _at(grad_scale), x.shape[1], x.shape[0], threads
    )
    return grad_scale.sum(0)


def _like(parameter: Tensor, grad: Tensor) -> Tensor:
    """The gradient of a norm scale, which may be one number for all channels."""
    return grad.sum().reshape(1) if parameter.numel() == 1 else grad


class _Layer(Function):
    """(r [B, T, D], the layer's parameters) -> r after the layer; index int32 [B, T] is the position in the document."""

    @staticmethod
    def forward(ctx: Any, block: Any, index: Tensor, r: Tensor, *parameters: Tensor) -> Tensor:
        norm1, in_proj, conv_weight, conv_bias, log_a, base, skip, norm2, out_proj = parameters
        c = block.config
        batch, length, d = r.shape
        e, h, width, rows = c.d_inner, c.n_heads, c.d_in_proj, batch * length
        threads = torch.get_num_threads()
        integer = isinstance(block, IntegerBlock)
        r = r.contiguous()
        conv: tuple[Tensor, ...]
        if integer:
            g1, g2 = (_integers(v, 6, INT8).expand(n).contiguous() for v, n in ((norm1, d), (norm2, e)))
            conv = (
                _integers(conv_weight, 6, INT8).t().contiguous(),
                _integers(conv_bias, 8, INT16),
                _integers(skip, 6, INT8),
            )
            w_in, w_out = (_Weight(w, block.ternary) for w in (in_proj, out_proj))
            u, norms1 = _norm(r.view(rows, d), g1, c.norm_mantissa)
            acc = _product(u, w_in.int8)
            p, dt = torch.empty(batch, length, width, dtype=torch.int16), torch.empty(batch, length, h)
            _KERNELS["requantise"](_at(acc), _at(w_in.mul), w_in.shift, _at(p), _at(dt), rows, width, h, threads)
            in_real, out_real = w_in.real, w_out.real
        else:
            g1, g2 = norm1.detach(), norm2.detach()
            conv = conv_weight.t().contiguous(), conv_bias.detach(), skip.detach()
            u, norms1 = _norm(r.view(rows, d), g1, c.norm_mantissa)
            p = torch.mm(u, in_proj.t()).view(batch, length, width)
            dt = p[..., -h:].contiguous()
            in_real, out_real = in_proj.detach(), out_proj.detach()
        with torch.enable_grad():  # the decays are few numbers: PyTorch finds their gradients
            leaves = tuple(v.detach().requires_grad_() for v in (dt, log_a, base))
            decay = block.decay(*leaves)
        keep, add = (None, decay) if integer else decay
        add = add.detach().contiguous()
        keep = keep if keep is None else keep.detach().contiguous()
        out = torch.empty(rows, e, dtype=u.dtype)
        states = torch.empty(
            batch, -(-length // _CHUNK), e * c.d_state, dtype=torch.int32 if integer else torch.float32
        )
        tensors = {
            "index": index,
            "projected": p,
            **dict(zip(("conv_weight", "conv_bias", "skip"), conv, strict=True)),
            "norm_scale": g2,
            "keep": keep,
            "add": add,
            "k": block.shift.to(torch.int32) if integer else None,
            "out": out,
            "norms": torch.empty(rows, 2),
            "states": states,
        }
        kind = 1 + (c.activation == "squareplus") + 2 * (c.gate == "squareplus") if integer else 0
        shape = {"rows": batch, "length": length, "heads": h, "head_dim": c.head_dim, "d_state": c.d_state}
        s = _struct(_Mixer, kind=kind, mantissa=c.norm_mantissa, **shape, **tensors)
        _KERNELS["mixer"](ctypes.addressof(s), threads)
        if integer:
            acc = _product(out, w_out.int8)
            result = torch.empty_like(r)
            _KERNELS["residual"](_at(r), _at(acc), _at(w_out.mul), w_out.shift, _at(result), rows, d, threads)
        else:
            result = r + torch.mm(out, out_real.t()).view(r.shape)
        ctx.block, ctx.mixer, ctx.tensors = block, s, tensors
        ctx.kept = r, u, norms1, g1, in_real, out_real, leaves, decay, parameters
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        r, u, norms1, g1, in_real, out_real, leaves, decay, parameters = ctx.kept
        norm1, _, conv_weight, conv_bias, _, _, skip, norm2, _ = parameters
        c = ctx.block.config
        batch, length, d = r.shape
        e, h, width, rows = c.d_inner, c.n_heads, c.d_in_proj, batch * length
        threads = torch.get_num_threads()
        integer = isinstance(ctx.block, IntegerBlock)
        grad = grad.contiguous()
        grad_v, g_out = _backward_products(grad.view(rows, d), out_real, ctx.tensors["out"])
        grad_p = torch.empty(batch, length, width)
        grad_keep, grad_add = torch.empty(batch, length, h), torch.empty(batch, length, h)
        sizes = [4 * c.d_conv, c.d_conv, h, e]
        grads = torch.zeros(threads, sum(sizes))
        g = _struct(_MixerGrads, grad_out=grad_v, grad_projected=grad_p, grad_keep=grad_keep, grad_add=grad_add)
        _KERNELS["mixer_backward"](ctypes.addressof(ctx.mixer), ctypes.addressof(g), _at(grads), sum(sizes), threads)
        g_conv, g_bias, g_skip, g_norm2 = torch.split(grads.sum(0), sizes)
        g_conv = g_conv.view(4, c.d_conv).t()
        # The integer model's decay is m; with ρ = m / 2^k a step keeps 1 − ρ and adds ρ.
        share = (grad_add - grad_keep) * torch.exp2(-ctx.block.shift.float()) if integer else (grad_keep, grad_add)
        g_dt, g_log_a, g_base = torch.autograd.grad(decay, leaves, share)
        grad_p[..., -h:] = g_dt
        grad_u, g_in = _backward_products(grad_p.view(rows, width), in_real, u)
        grad_r = grad.clone()
        g_norm1 = _norm_backward(grad_u, r.view(rows, d), g1, norms1, grad_r.view(rows, d))
        g_norm1, g_norm2 = _like(norm1, g_norm1), _like(norm2, g_norm2)
        if integer:
            g_conv, g_bias = _inside(conv_weight, 6, INT8, g_conv), _inside(conv_bias, 8, INT16, g_bias)
            g_norm1, g_norm2, g_skip = (
                _inside(v, 6, INT8, g) for v, g in ((norm1, g_norm1), (norm2, g_norm2), (skip, g_skip))
            )
        del ctx.block, ctx.mixer, ctx.tensors, ctx.kept
        return None, None, grad_r, g_norm1, g_in, g_conv, g_bias, g_log_a, g_base, g_skip, g_norm2, g_out


class _Final:
    """A model's final norm of r [R, D] and its output matrix: what logits are made of, some positions at a time."""

    def __init__(self, model: MambaInteger | FloatMamba, r: Tensor) -> None:
        self.integer, d = isinstance(model, MambaInteger), r.shape[1]
        self.table, self.scale = model.embedding.detach(), 1.0
        if self.integer:
            self.norm_scale = _integers(model.norm_f.detach(), 6, INT8).expand(d).contiguous()
            step = embedding_multiplier(self.table) * 2.0**-12
            e = torch.round(self.table / step).clamp_(-INT8, INT8)
            self.int8, self.table, self.scale = e.to(torch.int8), e * step, float(step) * 2.0**-5
        else:
            self.norm_scale = model.norm_f.detach()
        self.u, self.norms = _norm(r, self.norm_scale, model.config.norm_mantissa)

    def cross_entropy(self, at: slice, targets: Tensor, weights: Tensor | None, nats: Tensor) -> Tensor:
        """Writes the nats of these positions and returns, with weights, the gradient of weight · nats by their logits [rows, V]."""
        u = self.u[at]
        logits = _product(u, self.int8) if self.integer else torch.mm(u, self.table.t())
        pointers = [None if v is None else _at(v[at]) for v in (targets, weights, nats)]
        _KERNELS["cross_entropy"](
            _at(logits), not self.integer, self.scale, *pointers, len(u), len(self.table), torch.get_num_threads()
        )
        return logits.view(torch.float32)


class _Head(Function):
    """Final norm, logits and cross-entropy, some hundred positions at a time: (Σ weight · nats, nats [R]). Without weights: no gradient.

    lesson: the _Final of each teacher at the same positions and the share a of the mean of their distributions in the targets. The gradient by the
    logits is softmax − ((1 − a) · target + a · teachers' mean), that is the student's less a times the mean of the teachers' own gradients (Hinton et al.
    2015, arXiv:1503.02531, at temperature 1). The nats are those of the targets alone.
    """

    @staticmethod
    def forward(
        ctx: Any,
        model: Any,
        r: Tensor,
        norm_f: Tensor,
        embedding: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        lesson: tuple[list[_Final], float] | None,
    ) -> tuple[Tensor, Tensor]:
        rows = r.shape[0]
        r = r.contiguous()
        final = _Final(model, r)
        nats = torch.empty(rows)
        ctx.mark_non_differentiable(nats)
        parts = [slice(i, i + _ROWS) for i in range(0, rows, _ROWS)]
        if weights is None:
            for at in parts:
                final.cross_entropy(at, targets, None, nats)
            return nats.sum(), nats
        grad_u, grad_e = torch.empty(r.shape), torch.zeros_like(final.table)
        for at in parts:
            grad = final.cross_entropy(at, targets, weights, nats)
            if lesson is not None:
                teachers, share = lesson
                for teacher in teachers:
                    own = teacher.cross_entropy(at, targets, weights, torch.empty(rows))
                    grad.sub_(own, alpha=share / len(teachers))
            grad_u[at], more = _backward_products(grad, final.table, final.u[at])
            grad_e += more
        grad_r = torch.zeros_like(r)
        g_norm = _like(norm_f, _norm_backward(grad_u, r, final.norm_scale, final.norms, grad_r))
        ctx.grads = grad_r, _inside(norm_f, 6, INT8, g_norm) if final.integer else g_norm, grad_e
        return (nats * weights).sum(dtype=torch.float64), nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> Any:
        grad_r, grad_norm, grad_e = ctx.grads
        return None, grad_r * grad, grad_norm * grad, grad_e * grad, None, None, None


def supported(model: MambaInteger | FloatMamba) -> bool:
    """Whether the kernels compute this model: on the CPU, in the convex form, without rotation."""
    c = model.config
    return model.embedding.device.type == "cpu" and not c.rotation and c.scan == "convex"


def _layers(model: MambaInteger | FloatMamba, tokens: Tensor, index: Tensor) -> Tensor:
    """r [B · T, D] after the last layer."""
    embedding = QuantEmbedding.apply(model.embedding) if isinstance(model, MambaInteger) else model.embedding
    r = F.embedding(tokens, embedding) * EMBED_SCALE
    for b in model.blocks:
        w_in, w_out = b.matrices()  # type: ignore[operator]
        r = _Layer.apply(
            b, index, r, b.norm1, w_in, b.conv_weight, b.conv_bias, b.log_a, b.base, b.skip, b.norm2, w_out
        )
    return r.flatten(0, 1)


def _fused(
    model: MambaInteger | FloatMamba,
    tokens: Tensor,
    reset: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    teacher: Teacher | None = None,
) -> tuple[Tensor, Tensor]:
    index = document_index(reset).to(torch.int32).contiguous()
    lesson = None
    if teacher is not None:
        with torch.no_grad():
            lesson = [_Final(m, _layers(m, tokens, index)) for m in teacher.models], teacher.share
    result: tuple[Tensor, Tensor] = _Head.apply(
        model,
        _layers(model, tokens, index),
        model.norm_f,
        model.embedding,
        targets.flatten().contiguous(),
        None if weights is None else weights.flatten().contiguous(),
        lesson,
    )
    return result


@dataclasses.dataclass(frozen=True)
class Teacher:
    """Trained models of the same vocabulary, and the share of the mean of their distributions in a student's targets (0 … 1)."""

    models: tuple[MambaInteger | FloatMamba, ...]
    share: float


def loss(
    model: MambaInteger | FloatMamba,
    tokens: Tensor,
    reset: Tensor,
    targets: Tensor,
    weights: Tensor,
    teacher: Teacher | None = None,
) -> Tensor:
    """Σ weights · (−ln p(target)), a float64 scalar. tokens, targets int64 [B, T], reset bool [B, T], weights float32 [B, T].

    With a teacher the value is the same, and the gradient that of the mixture of targets and the teachers' mean distribution.
    """
    if teacher is None and not torch.is_grad_enabled():
        return (token_nats(model, tokens, reset, targets) * weights).sum(dtype=torch.float64)
    if all(map(supported, (model, *(teacher.models if teacher else ())))):
        return _fused(model, tokens, reset, targets, weights, teacher)[0]
    logits, flat = model(tokens, reset).flatten(0, 1), weights.flatten()
    total = (F.cross_entropy(logits, targets.flatten(), reduction="none") * flat).sum(dtype=torch.float64)
    if teacher is None:
        return total
    with torch.no_grad():
        given = [m(tokens, reset).flatten(0, 1).softmax(-1) for m in teacher.models]
        p = torch.stack(given).mean(0)
    soft = (F.cross_entropy(logits, p, reduction="none") * flat).sum(dtype=torch.float64)
    mixture = (1.0 - teacher.share) * total + teacher.share * soft
    return total.detach() + mixture - mixture.detach()


def token_nats(model: MambaInteger | FloatMamba, tokens: Tensor, reset: Tensor, targets: Tensor) -> Tensor:
    """−ln p(target) of every position, float32 [B, T]. Arguments as for `loss`; the kernels give no gradients of single positions."""
    if supported(model):
        with torch.no_grad():
            return _fused(model, tokens, reset, targets, None)[1].view(targets.shape)
    logits = model(tokens, reset).flatten(0, 1)
    return F.cross_entropy(logits, targets.flatten(), reduction="none").view(targets.shape)
