"""The CUDA kernels (engine/cuda/) as PyTorch operators with gradients: `mamba_integer::scan` and `mamba_integer::bitlinear`.

Forward they are the engine's own integers, the rounding of the state included. Backward they are what `nn.scan` and `nn.quant` define: the scan's gradient is
that of `dyadic_scan`, which is computed anew then, so that nothing of it need be kept; BitLinear's passes straight through the rounding.

`MambaInteger` uses them on a GPU where libmamba_integer_cuda.so of this release is found and passes `check`; elsewhere its modules compute as ever. The
library is looked for as the engine does: where MAMBA_INTEGER_CUDA says, else beside the package, else where the loader looks.
MAMBA_INTEGER_TRAIN_CUDA=off in the environment turns the operators off, and MAMBA_INTEGER_TRAIN_PRODUCTS=float32 (see `nn.fused`) keeps BitLinear's
gradients from being rounded to bfloat16.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_integer import _native, arithmetic
from mamba_integer.nn.quant import INT8, row_multipliers
from mamba_integer.nn.scan import dyadic_scan

_NAME = "libmamba_integer_cuda.so"
_SPANS = 4096  # sequences a launch: each has a state of its own while it runs
_TOKENS = 1 << 20  # of a product, at most
_POINTER, _INT = ctypes.c_void_p, ctypes.c_int32


class _Plugin(ctypes.Structure):
    """How DevicePlugin of engine/src/plugin.hpp begins, in every release."""

    _fields_ = [("version", ctypes.c_uint32), ("engine", ctypes.c_char_p)]


class _Matrix(ctypes.Structure):
    """mi_matrix of engine/cuda/mamba_integer_kernels.h."""

    _fields_ = [("weight", _POINTER), ("mul", _POINTER), *((n, _INT) for n in ("rows", "cols", "shift", "ternary"))]


class _Scan(ctypes.Structure):
    """mi_scan."""

    _fields_ = [
        *((n, _POINTER) for n in ("k", "A", "base", "skip")),
        *((n, _INT) for n in ("heads", "head_dim", "d_state", "form", "gate")),
    ]


_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "launch_bitlinear": (_POINTER, _POINTER, _INT, _POINTER, _POINTER),
    "launch_dyadic_mamba": (*[_POINTER] * 2, _INT, *[_POINTER] * 4, _INT, ctypes.c_uint64, _POINTER, _POINTER),
    "launch_state_stride": (_INT,),
}


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The library, or None where there is none. Raises OSError if MAMBA_INTEGER_CUDA names what is none, RuntimeError if it is of another release."""
    named = os.environ.get("MAMBA_INTEGER_CUDA")
    found = None
    for path in [named] if named else [str(Path(_native.__file__).parent / _NAME), _NAME]:
        try:
            found = ctypes.CDLL(path)
            break
        except OSError:
            if named:
                raise
    if found is None:
        return None
    plugin = getattr(found, "mamba_integer_cuda_plugin", None)
    if plugin is not None:
        plugin.restype = ctypes.POINTER(_Plugin)
    if plugin is None or plugin().contents.engine.decode() != _native.__version__:
        raise RuntimeError(f"{path} is not of this release, {_native.__version__}")
    for name, arguments in _SIGNATURES.items():
        getattr(found, name).argtypes = arguments
    found.launch_error.restype = ctypes.c_char_p
    return found


def _launch(name: str, device: torch.device, *arguments: Any) -> None:
    """Puts a kernel into PyTorch's current stream of the device. Raises RuntimeError if it cannot be launched."""
    library = _library()
    if library is None:
        raise RuntimeError(f"{_NAME} was not found")
    on_gpu = device.type == "cuda"
    stream = torch.cuda.current_stream(device).cuda_stream if on_gpu else None
    with torch.cuda.device(device) if on_gpu else contextlib.nullcontext():
        if getattr(library, name)(*arguments, stream):
            raise RuntimeError(library.launch_error().decode())


def _units(x: Tensor, f: int, dtype: torch.dtype) -> Tensor:
    """Real numbers on the grid of 2^-f as integers, dense."""
    return torch.round(x * 2.0**f).to(dtype).contiguous()


def _agree(operator: str, device: torch.device, tensors: Mapping[str, tuple[Tensor, tuple[int, ...]]]) -> None:
    """Raises ValueError unless every tensor has its shape and lies on the device: kernels see addresses alone."""
    for name, (tensor, shape) in tensors.items():
        if tensor.shape != shape or tensor.device != device:
            told = f"{list(tensor.shape)} on {tensor.device}"
            raise ValueError(f"mamba_integer::{operator}: {name} must be {list(shape)} on {device}, not {told}")


# ---- BitLinear -----------------------------------------------------------------------------------------------------------------------------------


class Matrix(NamedTuple):
    """A quantised matrix [O, K] as the kernels read it: int8 [O, K rounded up to 64], int16 [O], and the shift of spec/ARITHMETIC.md, section 5."""

    int8: Tensor
    mul: Tensor
    shift: int


@torch.library.custom_op("mamba_integer::bitlinear", mutates_args=())
def bitlinear(x: Tensor, weight: Tensor, int8: Tensor, mul: Tensor, shift: int) -> Tensor:
    """Section 5 of the spec: x [..., K] on the int8 Q5 grid -> [..., O] on the Q8 grid.

    int8, mul, shift: the `Matrix` of weight [O, K], which itself is not read: it is whose gradient is found. Raises ValueError for shapes that do not
    agree, RuntimeError if the kernel cannot be launched.
    """
    outputs, k = weight.shape
    padded = k + -k % 64
    shapes = {"x": (x, (*x.shape[:-1], k)), "int8": (int8, (outputs, padded)), "mul": (mul, (outputs,))}
    _agree("bitlinear", x.device, shapes)
    int8, mul = int8.to(torch.int8).contiguous(), mul.to(torch.int16).contiguous()
    units = F.pad(_units(x, 5, torch.int8).view(-1, k), (0, padded - k)).contiguous()
    out = torch.empty(len(units), outputs, dtype=torch.int16, device=x.device)
    matrix = _Matrix(int8.data_ptr(), mul.data_ptr(), outputs, k, shift, 0)
    for some, to in zip(torch.split(units, _TOKENS), torch.split(out, _TOKENS), strict=True):
        _launch("launch_bitlinear", x.device, ctypes.addressof(matrix), some.data_ptr(), len(some), to.data_ptr())
    return out.to(x.dtype).mul_(2.0**-8).view(*x.shape[:-1], outputs)


@bitlinear.register_fake
def _(x: Tensor, weight: Tensor, int8: Tensor, mul: Tensor, shift: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


def _keep_bitlinear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, _, int8, mul, ctx.shift = inputs
    ctx.save_for_backward(x, int8, mul)


def _bfloat16_products(device: torch.device) -> bool:
    """Whether factors of the backward pass are rounded to bfloat16, as in `nn.fused`."""
    wanted = os.environ.get("MAMBA_INTEGER_TRAIN_PRODUCTS") != "float32"
    return wanted and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def _bitlinear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
    x, int8, mul = ctx.saved_tensors
    low = torch.bfloat16 if x.dtype == torch.float32 and _bfloat16_products(x.device) else x.dtype
    weight = int8[:, : x.shape[-1]] * (mul.to(x.dtype) * 2.0 ** -(ctx.shift + 3))[:, None]
    g = grad.to(low)
    grad_weight = torch.mm(g.flatten(0, -2).t(), x.to(low).flatten(0, -2))
    return (g @ weight.to(low)).to(x.dtype), grad_weight.to(x.dtype), None, None, None


bitlinear.register_autograd(_bitlinear_backward, setup_context=_keep_bitlinear)


@torch.no_grad()
def matrices(weights: Iterable[tuple[Tensor, bool]]) -> list[Matrix] | None:
    """The matrices of (weight, whether it is ternary), or None if products of one of them might leave 32 bits, which the spec forbids but training may try.

    The host waits for the device once, whatever their number.
    """
    parts, numbers = [], []
    for weight, ternary in weights:
        m, t = row_multipliers(weight, ternary)
        limit = 1 if ternary else INT8
        int8 = torch.round(weight / (m * torch.exp2(-t))).clamp_(-limit, limit)
        numbers += [t - 3.0, (int8.abs().sum(1, keepdim=True) * m).max()]
        k = weight.shape[1]
        parts.append((F.pad(int8, (0, -k % 64)).to(torch.int8).contiguous(), m[:, 0].to(torch.int16)))
    told = torch.stack(numbers).tolist()
    if not all(INT8 * most < 2.0**30 for most in told[1::2]):  # NaN, too
        return None
    return [Matrix(int8, mul, int(shift)) for (int8, mul), shift in zip(parts, told[::2], strict=True)]


# ---- Scan ----------------------------------------------------------------------------------------------------------------------------------------


@torch.library.custom_op("mamba_integer::scan", mutates_args=())
def scan(
    x: Tensor,
    b: Tensor,
    c: Tensor,
    dt: Tensor,
    rate: Tensor,
    base: Tensor,
    skip: Tensor,
    shift: Tensor,
    seg: Tensor,
    starts: Tensor,
    convex: bool,
) -> Tensor:
    """Section 7 of the spec, `dyadic_scan` with the state rounded at every step. Arguments as there, on their grids.

    starts: int64 [S], where in the B · T positions `seg` changes or a row begins. Every such stretch is a sequence of its own to the kernel,
    which trusts them. Raises ValueError for shapes that do not agree, RuntimeError if the kernel cannot be launched.
    """
    library, device, (batch, length, heads), n = _library(), x.device, dt.shape, b.shape[-1]
    shapes = {"x": (x, (batch, length, x.shape[-1] // heads * heads)), "starts": (starts, (starts.numel(),))}
    shapes |= {name: (v, (batch, length, n)) for name, v in (("b", b), ("c", c))}
    shapes |= {name: (v, (heads,)) for name, v in (("rate", rate), ("base", base), ("skip", skip), ("shift", shift))}
    _agree("scan", device, shapes | {"dt": (dt, (batch, length, heads)), "seg": (seg, (batch, length))})
    rows = batch * length
    stride = n if library is None else library.launch_state_stride(n)
    bc = torch.stack([_units(v, 3, torch.int8).view(rows, n) for v in (b, c)], 1)
    bc = F.pad(bc, (0, stride - n)).contiguous()
    x_units, dt_units = _units(x, 5, torch.int8), _units(dt, 8, torch.int16)
    constants = (
        _units(shift, 0, torch.int8),
        _units(rate, 4, torch.int32),
        _units(base, 8, torch.int16),
        _units(skip, 6, torch.int8),
    )
    layer = _Scan(*(v.data_ptr() for v in constants), heads, x.shape[-1] // heads, n, 0 if convex else 1, 0)
    out = torch.empty(x.shape, dtype=torch.int32, device=device)
    lengths = torch.diff(starts, append=starts.new_full((1,), rows))
    for first, count in zip(torch.split(starts, _SPANS), torch.split(lengths, _SPANS), strict=True):
        h = torch.zeros(len(first), x.shape[-1] * n, dtype=torch.int32, device=device)
        spans = torch.zeros(len(first), 5, dtype=torch.int64, device=device)  # mi_span; the scan reads first, n and h
        spans[:, 0] = first + (count << 32)
        spans[:, 4] = h.data_ptr() + 4 * h.shape[1] * torch.arange(len(first), device=device)
        _launch(
            "launch_dyadic_mamba",
            device,
            ctypes.addressof(layer),
            spans.data_ptr(),
            len(first),
            x_units.data_ptr(),
            bc.data_ptr(),
            None,  # no gate
            dt_units.data_ptr(),
            heads,
            0,
            out.data_ptr(),
        )
    return out.to(x.dtype).mul_(2.0**-8)


@scan.register_fake
def _(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _keep_scan(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, _, ctx.convex = inputs
    ctx.save_for_backward(*tensors)


def _scan_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    *real, shift, seg = ctx.saved_tensors
    with torch.enable_grad():
        leaves = [v.detach().requires_grad_() for v in real]
        arguments: tuple[Any, ...] = (*leaves, shift, seg, ctx.convex)
        y = dyadic_scan(*arguments)
    return (*torch.autograd.grad(y, leaves, grad), None, None, None, None)


scan.register_autograd(_scan_backward, setup_context=_keep_scan)


# ---- Where they serve ----------------------------------------------------------------------------------------------------------------------------


def check(device: torch.device) -> None:
    """Holds both kernels on this device to the integers of `mamba_integer.arithmetic`. Raises RuntimeError."""
    r = np.random.default_rng(0)

    def real(values: Any, f: int = 0) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=device) * 2.0**-f

    tokens, k, outputs, shift = 70, 100, 70, 9
    u, w, m = r.integers(-127, 128, (tokens, k)), r.integers(-127, 128, (outputs, k)), r.integers(1, 256, outputs)
    int8 = F.pad(real(w), (0, -k % 64)).to(torch.int8)
    got = bitlinear(real(u, 5), real(w), int8, real(m).to(torch.int16), shift)
    if not torch.equal(got, real(arithmetic.bitlinear(u, w, m, shift), 8)):
        raise RuntimeError("the products of launch_bitlinear are wrong")

    length, reset, heads, dim, n = 40, 17, 2, 5, 6
    x, dt = r.integers(-127, 128, (length, heads, dim)), r.integers(-400, 400, (length, heads))
    b, c = r.integers(-31, 32, (2, length, n))
    k8, A, base, skip = np.array([8, 12]), np.array([700, 9000]), np.array([-30, 90]), np.array([64, -100])
    m, h = arithmetic.modulation(dt, A, base, k8, "convex"), np.zeros((heads, dim, n), np.int64)
    y = []
    for t in range(length):
        h = h * (t != reset)
        h = arithmetic.scan_step(h, x[t, :, :, None] * b[t] << 6, m[t, :, None, None], k8[:, None, None], "convex")
        y.append(arithmetic.scan_output(h, c[t], skip[:, None], x[t]).ravel())
    got = scan(
        *(real(x.reshape(1, length, -1), 5), real(b[None], 3), real(c[None], 3), real(dt[None], 8), real(A, 4)),
        *(real(base, 8), real(skip, 6), real(k8), (torch.arange(length, device=device) >= reset).long()[None]),
        *(torch.tensor([0, reset], device=device), True),
    )
    if not torch.equal(got[0], real(np.array(y), 8)):
        raise RuntimeError("the outputs of launch_dyadic_mamba are wrong")


@functools.cache
def _passes(device: torch.device) -> bool:
    try:
        if _library() is None:
            return False
        check(device)
    except (OSError, RuntimeError) as error:
        warnings.warn(f"training on {device} does without the CUDA kernels: {error}", RuntimeWarning, stacklevel=3)
        return False
    return True


def usable(device: torch.device) -> bool:
    """Whether the operators serve tensors of this device. A library that is there and fails is told of once, as a warning."""
    return device.type == "cuda" and os.environ.get("MAMBA_INTEGER_TRAIN_CUDA") != "off" and _passes(device)
