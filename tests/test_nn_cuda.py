"""The CUDA kernels as PyTorch operators, on the CPU: the library is the CUDA sources compiled for the host (engine/cuda/host_shim.hpp).

Forward against the reference in NumPy, every integer; gradients against those of the modules.
"""

from __future__ import annotations

import copy
import ctypes
import itertools
import platform
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_integer import arithmetic
from mamba_integer.config import ModelConfig
from mamba_integer.export import export_state
from mamba_integer.nn import build_model, cuda, loss
from mamba_integer.nn.model import MambaInteger, Positions
from mamba_integer.nn.quant import QuantWeight, RoundUnbounded, row_multipliers
from mamba_integer.nn.scan import dyadic_scan
from mamba_integer.reference import Reference
from tests.models import TINY_TOKENIZER

pytestmark = pytest.mark.skipif(platform.system() != "Linux", reason="the library is found by Linux's loader")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def library(on_host: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The operators find the library for no GPU; what was found is forgotten before and after."""
    monkeypatch.setenv("MAMBA_INTEGER_CUDA", str(on_host))
    monkeypatch.delenv("MAMBA_INTEGER_TRAIN_CUDA", raising=False)
    forget()
    yield
    forget()


def forget() -> None:
    cuda._library.cache_clear()
    cuda._passes.cache_clear()


@pytest.fixture
def in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models on the CPU use the operators."""
    monkeypatch.setattr(cuda, "usable", lambda device: True)


def resets(seed: int, batch: int, length: int, share: float) -> Tensor:
    return torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) < share


# ---- BitLinear -----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ternary", [False, True])
@pytest.mark.parametrize(("shape", "outputs", "k"), [((1,), 3, 1), ((2, 2), 65, 70), ((3, 23), 70, 64), ((5,), 9, 200)])
def test_bitlinear(
    shape: tuple[int, ...], outputs: int, k: int, ternary: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "_TOKENS", 40)
    g = torch.Generator().manual_seed(k)
    units = torch.randint(-127, 128, (*shape, k), generator=g)
    x = (units / 32.0).requires_grad_()
    weight = (torch.randn(outputs, k, generator=g) * torch.rand(outputs, 1, generator=g)).requires_grad_()
    found = cuda.matrices([(weight, ternary)])
    assert found is not None
    out = cuda.bitlinear(x, weight, *found[0])
    m, t = row_multipliers(weight.detach(), ternary)
    w = torch.round(QuantWeight.apply(weight.detach(), ternary) / m * 2**t)
    expected = arithmetic.bitlinear(units.numpy(), w.to(torch.int64).numpy(), m[:, 0].long().numpy(), int(t) - 3)
    assert np.array_equal((out.detach() * 256).numpy(), expected)
    assert np.ptp(expected) > 0

    grad = torch.randn(out.shape, generator=g)
    got = torch.autograd.grad(out, (x, weight), grad)
    plain = RoundUnbounded.apply(F.linear(x, QuantWeight.apply(weight, ternary)), 8, 32767)
    for a, b in zip(got, torch.autograd.grad(plain, (x, weight), grad), strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_of_bitlinear_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU does: near float32, and not float32."""
    g = torch.Generator().manual_seed(2)
    x = (torch.randint(-127, 128, (90, 70), generator=g) / 32.0).requires_grad_()
    weight = torch.randn(30, 70, generator=g).requires_grad_()
    found = cuda.matrices([(weight, False)])
    assert found is not None
    grad = torch.randn(90, 30, generator=g)
    exact = torch.autograd.grad(cuda.bitlinear(x, weight, *found[0]), (x, weight), grad)
    monkeypatch.setattr(cuda, "_bfloat16_products", lambda device: True)
    for a, b in zip(torch.autograd.grad(cuda.bitlinear(x, weight, *found[0]), (x, weight), grad), exact, strict=True):
        assert a.dtype == torch.float32
        assert 0 < (a - b).norm() < 2**-7 * b.norm()


def test_products_beyond_32_bits_are_left_to_the_modules() -> None:
    row = torch.full((1, 4000), 0.99)
    assert cuda.matrices([(torch.ones(2, 8), False)])
    assert cuda.matrices([(torch.ones(2, 8), False), (torch.cat([row, row * 0.3]), False)]) is None
    assert cuda.matrices([(torch.full((2, 8), torch.nan), False)]) is None


# ---- Scan ----------------------------------------------------------------------------------------------------------------------------------------


def scan_inputs(seed: int, batch: int, length: int, heads: int, dim: int, n: int) -> dict[str, Tensor]:
    """Integers: full range of each, slow and fast heads."""
    g = torch.Generator().manual_seed(seed)

    def some(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=g)

    return {
        "x": some(-127, 127, batch, length, heads * dim),
        "b": some(-31, 31, batch, length, n),
        "c": some(-31, 31, batch, length, n),
        "dt": some(-700, 700, batch, length, heads),
        "rate": torch.exp2(torch.rand(heads, generator=g) * 14 + 2).long(),
        "base": some(-300, 300, heads),
        "skip": some(-127, 127, heads),
        "shift": some(8, 15, heads),
    }


SCALES = {"x": 5, "b": 3, "c": 3, "dt": 8, "rate": 4, "base": 8, "skip": 6, "shift": 0}
SCANS = [(1, 1, 1, 1, 2), (2, 5, 3, 33, 6), (3, 70, 2, 20, 16), (2, 40, 1, 5, 64)]


@pytest.mark.parametrize("form", ["convex", "literal"])
@pytest.mark.parametrize("shape", SCANS, ids=str)
def test_scan(shape: tuple[int, int, int, int, int], form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_SPANS", 4)
    batch, length, heads, dim, _ = shape
    integers = scan_inputs(length, *shape)
    real = {name: v.double() * 2.0 ** -SCALES[name] for name, v in integers.items()}
    pos = Positions(resets(length, batch, length, 0.2))
    leaves = [v.requires_grad_() for name, v in real.items() if name != "shift"]
    y = cuda.scan(*real.values(), pos.seg, pos.starts, form == "convex")

    i = {name: v.numpy() for name, v in integers.items()}
    m = arithmetic.modulation(i["dt"], i["rate"], i["base"], i["shift"], form)
    for row in range(batch):
        for t in range(length):
            if t == 0 or pos.seg[row, t] != pos.seg[row, t - 1]:
                h: np.ndarray = np.zeros((heads, dim, shape[-1]), np.int64)
            x = i["x"][row, t].reshape(heads, dim)
            v = x[..., None] * i["b"][row, t] << 6
            h = arithmetic.scan_step(h, v, m[row, t][:, None, None], i["shift"][:, None, None], form)
            expected = arithmetic.scan_output(h, i["c"][row, t], i["skip"][:, None], x).ravel()
            assert np.array_equal((y[row, t].detach() * 256).numpy(), expected), (row, t)

    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plain = dyadic_scan(*real.values(), pos.seg, form == "convex")
    got, wanted = torch.autograd.grad(y, leaves, grad), torch.autograd.grad(plain, leaves, grad)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_operators_are_well_formed() -> None:
    """PyTorch's own examination: schema, nothing written to inputs, fake tensors, gradients registered."""
    weight = torch.randn(5, 70, requires_grad=True)
    found = cuda.matrices([(weight, False)])
    assert found is not None
    x = (torch.randint(-127, 128, (2, 3, 70)) / 32.0).requires_grad_()
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(cuda.bitlinear, (x, weight, *found[0]), test_utils=tests)
    pos = Positions(resets(3, 2, 9, 0.3))
    real = [v.float() * 2.0 ** -SCALES[name] for name, v in scan_inputs(3, 2, 9, 2, 4, 6).items()]
    real[0].requires_grad_()
    torch.library.opcheck(cuda.scan, (*real, pos.seg, pos.starts, True), test_utils=tests)


# ---- Models --------------------------------------------------------------------------------------------------------------------------------------

# Without rotation, whose angles the modules round otherwise than the integers do.
VARIANTS: list[dict[str, object]] = [
    {},
    {"scan": "literal", "weights": "ternary"},
    {"norm_scale": "scalar", "activation": "squareplus", "gate": "squareplus", "head_dim": 5, "d_state": 6},
]


def lively(changes: dict[str, object]) -> MambaInteger:
    shape = {"d_model": 40, "n_layers": 2, "n_heads": 3, "head_dim": 16, "d_state": 16, "context_length": 30}
    config = ModelConfig(**{**shape, "vocab_size": TINY_TOKENIZER.vocab_size, **changes})  # type: ignore[arg-type]
    torch.manual_seed(len(str(changes)))
    model = build_model(config)
    assert isinstance(model, MambaInteger)
    with torch.no_grad():
        for block in model.blocks:
            block.in_proj.mul_(2.0)
            block.base.normal_()
            block.conv_bias.normal_()
    return model


@pytest.mark.usefixtures("in_use")
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_every_logit_is_the_reference(changes: dict[str, object]) -> None:
    """In float64, where the modules between the two operators are exact."""
    model = lively(changes)
    tokens = torch.randint(0, model.config.vocab_size, (2, 30))
    reset = resets(8, 2, 30, 0.1)
    with torch.no_grad():
        logits = copy.deepcopy(model).double()(tokens, reset)
    integers = export_state(model.state_dict(), model.config, TINY_TOKENIZER, "test", {})
    reference = Reference(integers)
    for row in range(2):
        starts = sorted({0, *torch.nonzero(reset[row])[:, 0].tolist(), 30})
        for first, end in itertools.pairwise(starts):
            wanted = np.asarray(reference.logits(tokens[row, first:end].tolist())).astype(np.float64)
            got = logits[row, first:end].numpy() * 2**integers.logit_shift / integers.embed_mul
            np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-3)


def test_gradients_of_a_model_are_near_the_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """All parameters have one, and a step along it is a step along the modules'; they differ as the rounded state differs from the other."""
    model = lively({"rotation": True})  # with which the CPU's fused kernels do not compute
    tokens = torch.randint(0, model.config.vocab_size, (2, 31))
    reset = resets(9, 2, 30, 0.1)
    grads = []
    for kernels in (False, True):
        monkeypatch.setattr(cuda, "usable", lambda device, kernels=kernels: kernels)
        same = copy.deepcopy(model)
        loss(same, tokens[:, :-1], reset, tokens[:, 1:], torch.full((2, 30), 1 / 60)).backward()
        grads.append({name: p.grad for name, p in same.named_parameters()})
    for name, wanted in grads[0].items():
        got = grads[1][name]
        assert wanted is not None, name
        assert got is not None, name
        assert F.cosine_similarity(got.flatten(), wanted.flatten(), 0) > 0.9, name


# ---- Where they serve ----------------------------------------------------------------------------------------------------------------------------

GPU = torch.device("cuda", 0)


def test_check_finds_wrong_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda.check(CPU)
    assert cuda._passes(CPU)
    launch = cuda._launch

    def spoilt(name: str, device: torch.device, *arguments: int) -> None:
        launch(name, device, *arguments)
        if name == wrong:
            ctypes.c_int16.from_address(arguments[-1]).value ^= 1  # the first output

    monkeypatch.setattr(cuda, "_launch", spoilt)
    for wrong in ("launch_bitlinear", "launch_dyadic_mamba"):
        forget()
        with pytest.warns(RuntimeWarning, match=f"does without the CUDA kernels: .*{wrong}"):
            assert not cuda._passes(CPU)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not cuda._passes(CPU)  # told once


def test_shapes_that_do_not_agree() -> None:
    weight = torch.ones(2, 8)
    found = cuda.matrices([(weight, False)])
    assert found is not None
    int8, mul, shift = found[0]
    for x, a, m in (
        (torch.ones(1, 9), int8, mul),
        (torch.ones(1, 8), int8[:, :8], mul),
        (torch.ones(1, 8), int8, mul[:1]),
    ):
        with pytest.raises(ValueError, match=r"mamba_integer::bitlinear: \w+ must be \["):
            cuda.bitlinear(x, weight, a, m, shift)
    real = [v.float() * 2.0 ** -SCALES[name] for name, v in scan_inputs(3, 2, 9, 2, 4, 6).items()]
    pos = Positions(resets(3, 2, 9, 0.3))
    for i, v in enumerate(real):
        wrong = [*real[:i], v[..., :-1], *real[i + 1 :]]
        with pytest.raises(ValueError, match=r"mamba_integer::scan: \w+ must be \["):
            cuda.scan(*wrong, pos.seg, pos.starts, True)


def test_a_launch_that_is_refused_is_an_error() -> None:
    weight = torch.ones(2, 8)
    found = cuda.matrices([(weight, False)])
    assert found is not None
    with pytest.raises(RuntimeError, match="launch_bitlinear: rows must be at least 1"):
        cuda.bitlinear(torch.ones(1, 8), weight, found[0].int8, found[0].mul, 25)


def test_where_they_do_not_serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, on_host: Path) -> None:
    assert not cuda.usable(CPU)
    monkeypatch.setattr(cuda, "check", lambda device: None)
    assert cuda.usable(GPU)
    monkeypatch.setenv("MAMBA_INTEGER_TRAIN_CUDA", "off")
    assert not cuda.usable(GPU)
    monkeypatch.delenv("MAMBA_INTEGER_TRAIN_CUDA")

    forget()
    monkeypatch.setenv("MAMBA_INTEGER_CUDA", str(tmp_path / "nowhere.so"))
    with pytest.warns(RuntimeWarning, match="nowhere"):
        assert not cuda.usable(GPU)
    forget()
    other = tmp_path / "other.so"
    shutil.copy(on_host, other)
    monkeypatch.setenv("MAMBA_INTEGER_CUDA", str(other))
    other.write_bytes(other.read_bytes().replace(cuda._native.__version__.encode() + b"\0", b"9.9.9\0"))
    with pytest.warns(RuntimeWarning, match="not of this release"):
        assert not cuda.usable(GPU)
    forget()
    monkeypatch.delenv("MAMBA_INTEGER_CUDA")
    monkeypatch.setattr(cuda, "_NAME", "libmamba_integer_nowhere.so")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not cuda.usable(GPU)
