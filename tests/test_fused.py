"""The training kernels: the integer model's loss against the reference in NumPy, gradients against autograd on the readable modules."""

from __future__ import annotations

import copy
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_integer.config import ModelConfig
from mamba_integer.export import export_state
from mamba_integer.nn import Teacher, build_model, fused, loss, token_nats
from mamba_integer.nn import scan as scan_module
from mamba_integer.nn.quant import RoundUnbounded
from mamba_integer.nn.scan import segments
from mamba_integer.reference import Reference
from mamba_integer.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train("the cat sat on the mat and the dog sat on the log " * 20, 270)
VARIANTS = [
    {},
    {"activation": "squareplus"},
    {"gate": "squareplus", "d_state": 6, "head_dim": 20},
    {"activation": "squareplus", "gate": "squareplus", "norm_mantissa": 0},
    {"norm_scale": "scalar", "weights": "ternary", "head_dim": 8, "n_heads": 5},
    {"d_state": 64, "head_dim": 64, "n_heads": 1},
]


def config(**changes: object) -> ModelConfig:
    shape = {"d_model": 40, "n_layers": 3, "n_heads": 3, "head_dim": 32, "d_state": 16, "context_length": 70}
    return ModelConfig(**{**shape, "vocab_size": TOKENIZER.vocab_size, **changes})  # type: ignore[arg-type]


def text(seed: int, length: int = 70, batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens, reset, targets); rows begin at a reset and have some more."""
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, TOKENIZER.vocab_size, (batch, length + 1), generator=g)
    reset = torch.rand(batch, length, generator=g) < 0.05
    reset[:, 0] = True
    return tokens[:, :-1], reset, tokens[:, 1:]


def exact_scan(x: Tensor, log_n: Tensor, b: Tensor, c: Tensor, seg: Tensor, chunk: int = 32) -> Tensor:
    """`chunked_scan`, step by step and with the state rounded to its grid of 2^-14 as in the spec; exact in float64."""
    share = -torch.expm1(log_n)
    h = x.new_zeros(*x.shape[:1], *x.shape[2:], b.shape[-1])
    out = []
    for t in range(x.shape[1]):
        if t:
            h = h * (seg[:, t] == seg[:, t - 1])[:, None, None, None]
        change = x[:, t, :, :, None] * b[:, t, None, None, :] - share[:, t, :, None, None] * h
        h = h + RoundUnbounded.apply(change, 14, 1 << 40)
        out.append((h * c[:, t, None, None, :]).sum(-1))
    return torch.stack(out, 1)


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.float().clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("int8_products", [False, True])
def test_integer_forward_is_the_reference(
    changes: dict[str, object], int8_products: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every logit: a change of one unit anywhere would move the loss by more than the float32 logarithm's error."""
    monkeypatch.setattr(fused, "_INT8_PRODUCTS", int8_products)
    torch.manual_seed(len(str(changes)))
    model = build_model(config(**changes))
    with torch.no_grad():
        for block in model.blocks:  # livelier than at the start of training
            block.in_proj.mul_(2.0)
            block.base.normal_()
            block.conv_bias.normal_()
    integers = export_state(model.state_dict(), model.config, TOKENIZER, "test", {})
    reference = Reference(integers)
    tokens, reset, targets = text(7)
    nats = token_nats(model, tokens, reset, targets)
    scale = integers.embed_mul / 2**integers.logit_shift
    for row in range(len(tokens)):
        starts = [*torch.nonzero(reset[row])[:, 0].tolist(), tokens.shape[1]]
        for first, end in itertools.pairwise(starts):
            logits = np.asarray(reference.logits(tokens[row, first:end].tolist())).astype(np.float64) * scale
            best = logits.max(1)
            expected = best + np.log(np.exp(logits - best[:, None]).sum(1))
            expected -= logits[np.arange(len(logits)), targets[row, first:end].numpy()]
            np.testing.assert_allclose(nats[row, first:end].numpy(), expected, atol=5e-6, rtol=2e-6)


@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("arithmetic", ["integer", "float"])
def test_gradients_are_those_of_the_modules(
    arithmetic: str, changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The modules in float64, where their roundings are exact, against the kernels with products in float32."""
    if arithmetic == "integer":
        monkeypatch.setattr(scan_module, "chunked_scan", exact_scan)
    monkeypatch.setattr(fused, "_BFLOAT16_PRODUCTS", False)
    torch.manual_seed(3)
    model = build_model(config(**changes), arithmetic)
    with torch.no_grad():
        for block in model.blocks:  # so that every clamp is reached, the product of output and gate among them
            block.in_proj[: model.config.d_inner] *= 3.0
            block.conv_weight[::7] *= 3.0
            block.skip.fill_(1.9)
            block.conv_bias[::5] = 20.0
    tokens, reset, targets = text(5)
    weights = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(1)) / tokens.numel()
    plain = copy.deepcopy(model).double()
    nats = F.cross_entropy(plain(tokens, reset).flatten(0, 1), targets.flatten(), reduction="none")
    (nats * weights.flatten()).sum().backward()
    expected = gradients(plain)
    loss(model, tokens, reset, targets, weights).backward()
    got = gradients(model)
    assert set(got) == set(expected) == {name for name, _ in model.named_parameters()}
    # A float32 that is rounded the other way than its float64 moves a few numbers of the integer model by one unit.
    tolerance = 1e-4 if arithmetic == "float" else 3e-2
    largest = max(e.norm() for e in expected.values())
    for name, e in expected.items():
        assert (got[name] - e).norm() <= tolerance * e.norm() + 1e-6 * largest, name


@pytest.mark.parametrize(("student", "master"), [("integer", "float"), ("float", "integer"), ("float", "float")])
@pytest.mark.parametrize("rotation", [False, True])  # with it the modules compute, not the kernels
def test_a_teacher_is_part_of_the_targets(
    student: str, master: str, rotation: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The value stays that of the text; the gradient is that of the mixture, written out."""
    if student == "integer":
        monkeypatch.setattr(scan_module, "chunked_scan", exact_scan)
    monkeypatch.setattr(fused, "_BFLOAT16_PRODUCTS", False)
    torch.manual_seed(8)
    model = build_model(config(rotation=rotation), student)
    teachers = tuple(build_model(config(rotation=rotation), kind) for kind in (master, "float"))
    with torch.no_grad():
        for teacher in teachers:
            teacher.embedding.mul_(3.0)  # sure of itself
    tokens, reset, targets = text(9)
    weights = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(2)) / tokens.numel()
    alone = loss(model, tokens, reset, targets, weights)
    taught = loss(model, tokens, reset, targets, weights, Teacher(teachers, 0.75))
    torch.testing.assert_close(taught, alone)
    taught.backward()
    got = gradients(model)
    plain = copy.deepcopy(model).double()
    plain.zero_grad()
    with torch.no_grad():
        soft = sum(copy.deepcopy(m).double()(tokens, reset).flatten(0, 1).softmax(-1) for m in teachers) / 2
    mixed = 0.25 * F.one_hot(targets.flatten(), soft.shape[1]) + 0.75 * soft
    nats = F.cross_entropy(plain(tokens, reset).flatten(0, 1), mixed, reduction="none")
    (nats * weights.flatten()).sum().backward()
    largest = max(p.grad.norm() for p in plain.parameters())
    for name, p in plain.named_parameters():
        tolerance = 1e-4 if student == master else 3e-2  # as above
        assert (got[name] - p.grad).norm() <= tolerance * p.grad.norm() + 1e-6 * largest, name


def test_bfloat16_products_change_gradients_by_their_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = build_model(config())
    tokens, reset, targets = text(1)
    weights = torch.full(tokens.shape, 1.0 / tokens.numel())
    found = []
    for low in (False, True):
        monkeypatch.setattr(fused, "_BFLOAT16_PRODUCTS", low)
        model.zero_grad()
        loss(model, tokens, reset, targets, weights).backward()
        found.append(gradients(model))
    for name, e in found[0].items():
        assert 0 < (found[1][name] - e).norm() < 0.1 * e.norm(), name


@pytest.mark.parametrize("arithmetic", ["integer", "float"])
def test_loss_is_the_sum_of_the_nats_and_threads_agree(arithmetic: str) -> None:
    torch.manual_seed(2)
    model = build_model(config(), arithmetic)
    tokens, reset, targets = text(2, length=45, batch=5)
    weights = torch.rand(tokens.shape)
    old = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            model.zero_grad()
            total = loss(model, tokens, reset, targets, weights)
            total.backward()
            torch.testing.assert_close(
                total, (token_nats(model, tokens, reset, targets) * weights).sum(dtype=torch.float64)
            )
            found.append(gradients(model))
    finally:
        torch.set_num_threads(old)
    for other in found[1:]:
        for name, e in found[0].items():
            torch.testing.assert_close(other[name], e, atol=1e-4, rtol=1e-3)


def test_a_position_with_no_weight_teaches_nothing() -> None:
    """Targets of weight 0 may be anything, and inputs after the last weighted position too."""
    torch.manual_seed(4)
    model = build_model(config())
    tokens, reset, targets = text(3)
    weights = torch.zeros(tokens.shape)
    weights[:, 10:40] = 0.01
    found = []
    for change in (0, 1):
        model.zero_grad()
        other, other_inputs = targets.clone(), tokens.clone()
        other[:, :10] = (other[:, :10] + change) % 200
        other_inputs[:, 45:] = (other_inputs[:, 45:] + change) % 200
        loss(model, other_inputs, reset, other, weights).backward()
        found.append(gradients(model))
    for name, e in found[0].items():
        torch.testing.assert_close(found[1][name], e, atol=1e-7, rtol=1e-5)


def test_what_the_kernels_do_not_compute_is_computed_by_the_modules() -> None:
    torch.manual_seed(6)
    tokens, reset, targets = text(4)
    weights = torch.full(tokens.shape, 1.0 / tokens.numel())
    for changes in ({"rotation": True}, {"scan": "literal"}):
        model = build_model(config(**changes))
        assert not fused.supported(model)
        got = loss(model, tokens, reset, targets, weights)
        expected = F.cross_entropy(model(tokens, reset).flatten(0, 1), targets.flatten())
        torch.testing.assert_close(got, expected.double())
        assert got.requires_grad
        torch.testing.assert_close(token_nats(model, tokens, reset, targets).mean(), expected)


def test_segments_of_the_exact_scan() -> None:
    """The test's own scan forgets at resets."""
    _, reset, _ = text(1)
    assert segments(reset).max() > 1


PROGRAM = """
import sys, torch
sys.path.insert(0, "tests")
from test_fused import build_model, config, gradients, loss, text
torch.set_num_threads(1)
for arithmetic in ("integer", "float"):
    torch.manual_seed(9)
    model = build_model(config(), arithmetic)
    tokens, reset, targets = text(8)
    total = loss(model, tokens, reset, targets, torch.full(tokens.shape, 1 / tokens.numel()))
    total.backward()
    print(repr(total.item()), *(repr(g.norm().item()) for g in gradients(model).values()))
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="one instruction set elsewhere")
def test_every_instruction_set_computes_the_same() -> None:
    """The smaller instruction sets against the one that this processor's own choice runs; the integer loss to the last bits of its logarithm."""
    found = []
    for isa in (None, "v3", "baseline"):
        env = {k: v for k, v in os.environ.items() if k != "MAMBA_INTEGER_TRAIN_ISA"}
        env |= {} if isa is None else {"MAMBA_INTEGER_TRAIN_ISA": isa}
        out = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=True)
        found.append([[float(x) for x in line.split()] for line in out.stdout.splitlines()])
    for other in found[1:]:
        for numbers, expected in zip(other, found[0], strict=True):
            assert numbers[0] == pytest.approx(expected[0], abs=2e-6)
            assert numbers[1:] == pytest.approx(expected[1:], rel=1e-3, abs=1e-7)
