"""The training modules: the scan against its plain form, gradients against autograd, the fake-quantised model against the integer model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mamba_integer.config import ModelConfig
from mamba_integer.export import export_state, quantise_linear
from mamba_integer.nn import MambaInteger, build_model
from mamba_integer.nn.init import dyadic_hippo, time_constants
from mamba_integer.nn.model import CausalConv, IntegerBlock, Positions
from mamba_integer.nn.quant import (
    ACTIVATIONS,
    BitShiftNorm,
    Gained,
    QuantEmbedding,
    QuantWeight,
    Round,
    SiLU,
    Squareplus,
)
from mamba_integer.nn.scan import chunked_scan, segments, sequential_scan
from mamba_integer.reference import Reference
from mamba_integer.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train("the cat sat on the mat and the dog sat on the log " * 20, 270)


def small_config(**changes: object) -> ModelConfig:
    shape = {"d_model": 48, "n_layers": 2, "n_heads": 3, "head_dim": 32, "d_state": 8, "context_length": 64}
    return ModelConfig(**{**shape, "vocab_size": TOKENIZER.vocab_size, **changes})  # type: ignore[arg-type]


def random_resets(generator: torch.Generator, batch: int, length: int, share: float) -> Tensor:
    reset = torch.rand(batch, length, generator=generator) < share
    reset[:, 0] = True
    return reset


@pytest.mark.parametrize(
    ("length", "chunk", "share"), [(1, 32, 0.0), (32, 32, 0.1), (70, 32, 0.05), (70, 16, 0.5), (64, 8, 0.0)]
)
def test_chunked_scan_is_the_sequential_scan(length: int, chunk: int, share: float) -> None:
    g = torch.Generator().manual_seed(length + chunk)
    x = torch.randn(2, length, 3, 4, generator=g, dtype=torch.float64, requires_grad=True)
    log_n = (-torch.rand(2, length, 3, generator=g, dtype=torch.float64)).requires_grad_()
    b, c = (torch.randn(2, length, 5, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(2))
    seg = segments(random_resets(g, 2, length, share))
    fast, plain = chunked_scan(x, log_n, b, c, seg, chunk), sequential_scan(x, log_n, b, c, seg)
    torch.testing.assert_close(fast, plain)
    weight = torch.randn(fast.shape, generator=g, dtype=torch.float64)
    for a, e in zip(
        torch.autograd.grad((fast * weight).sum(), (x, log_n, b, c)),
        torch.autograd.grad((plain * weight).sum(), (x, log_n, b, c)),
        strict=True,
    ):
        torch.testing.assert_close(a, e)


def test_conv_does_not_cross_documents() -> None:
    g = torch.Generator().manual_seed(1)
    pos = Positions(random_resets(g, 3, 20, 0.25))
    p = torch.randn(3, 20, 5, generator=g, dtype=torch.float64, requires_grad=True)
    w, bias = (
        torch.randn(5, 4, generator=g, dtype=torch.float64, requires_grad=True),
        torch.randn(5, dtype=torch.float64, requires_grad=True),
    )
    out = CausalConv.apply(p, w, bias, pos.crossings)
    rows = []
    for i in range(3):
        for t in range(20):
            row = bias
            for back in range(4):
                if t >= back and pos.seg[i, t - back] == pos.seg[i, t]:
                    row = row + p[i, t - back] * w[:, 3 - back]
            rows.append(row)
    plain = torch.stack(rows).view(3, 20, 5)
    torch.testing.assert_close(out, plain)
    weight = torch.randn(out.shape, generator=g, dtype=torch.float64)
    for a, e in zip(
        torch.autograd.grad((out * weight).sum(), (p, w, bias)),
        torch.autograd.grad((plain * weight).sum(), (p, w, bias)),
        strict=True,
    ):
        torch.testing.assert_close(a, e)


def test_positions_count_from_the_start_of_a_document() -> None:
    reset = torch.tensor([[True, False, False, True, False], [True, True, False, False, False]])
    assert Positions(reset).index.tolist() == [[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]]


def test_gradients_are_those_of_the_smooth_functions() -> None:
    x = (torch.randint(-700, 700, (200,)) / 256.0).requires_grad_()
    for function, smooth in (
        (SiLU, lambda v: v * 0.5 * (1 + v / torch.sqrt(v * v + 4))),
        (Squareplus, lambda v: 0.5 * (v + torch.sqrt(v * v + 4)) - 1),
    ):
        (grad,) = torch.autograd.grad(function.apply(x, 8, 32767).sum(), x)
        (expected,) = torch.autograd.grad(smooth(x).sum(), x)
        torch.testing.assert_close(grad, expected)
    for sign in (1, -1):  # a clamped value is only let back inside
        (grad,) = torch.autograd.grad((sign * Round.apply(x, 5, 31)).sum(), x)
        assert torch.equal(grad, sign * ((x.abs() <= 31 / 32) | (sign * x > 0)).float())


def test_gradient_of_the_gain_of_a_row() -> None:
    """By differences: the loss is linear in the gain as long as the row's int8 or ternary values stay what they are."""
    torch.manual_seed(3)
    weight, gain, slope = torch.randn(5, 40), torch.rand(5) + 0.5, torch.randn(5, 40)
    for ternary in (False, True):
        w, g = weight.clone().requires_grad_(), gain.clone().requires_grad_()
        (QuantWeight.apply(Gained.apply(w, g, ternary), ternary) * slope).sum().backward()
        assert torch.equal(w.grad, slope * gain[:, None])
        unit = QuantWeight.apply(weight, True) if ternary else weight
        assert torch.allclose(g.grad, (unit * slope).sum(1))
        for row in range(5):
            moved = gain.clone()
            moved[row] *= 4  # a factor that the multipliers hold exactly or nearly
            change = QuantWeight.apply(weight * moved[:, None], ternary) - QuantWeight.apply(
                weight * gain[:, None], ternary
            )
            assert float((change * slope).sum()) == pytest.approx(float(g.grad[row] * 3 * gain[row]), abs=0.6)


def test_norm_gradient() -> None:
    """At full mantissa the norm is within its rounding of the smooth RMS norm, and its gradient within the mantissa's 1/128 of that one's."""
    g = torch.Generator().manual_seed(2)
    x = torch.round(torch.randn(30, 64, generator=g) * 256) / 256
    scale = torch.round(torch.rand(64, generator=g) * 64 + 16) / 64
    x.requires_grad_()
    scale.requires_grad_()

    def smooth(v: Tensor, s: Tensor) -> Tensor:
        return v * torch.rsqrt((v * v).sum(-1, keepdim=True) + 2.0**-2) * s * 2.0 ** ((64).bit_length() >> 1)

    out = BitShiftNorm.apply(x, scale, 8, 8)
    inside = smooth(x, scale).abs() < 3.9
    assert ((out - smooth(x, scale)).abs()[inside] < 1 / 64 + 4 / 128).all()
    weight = torch.randn(out.shape, generator=g) * inside
    got = torch.autograd.grad((out * weight).sum(), (x, scale))
    expected = torch.autograd.grad((smooth(x, scale) * weight).sum(), (x, scale))
    for a, e in zip(got, expected, strict=True):
        assert (a - e).norm() < 0.02 * e.norm()


def test_weights_land_on_their_rows_grid() -> None:
    weight = torch.randn(7, 33, generator=torch.Generator().manual_seed(3)) * torch.logspace(-3, 0, 7)[:, None]
    for ternary in (False, True):
        w, m, s = quantise_linear(weight, ternary)
        assert np.abs(w).max() <= (1 if ternary else 127)
        assert m.min() >= 1
        assert m.max() <= 255
        real = torch.from_numpy(w.astype(np.float32) * m[:, None].astype(np.float32) * 2.0 ** (-s - 3))
        assert torch.equal(real, QuantWeight.apply(weight, ternary))


def test_hostile_row_sums_make_the_multiplier_give_way() -> None:
    w, m, s = quantise_linear(torch.full((3, 600), 0.5), False)
    assert (127 * np.abs(w.astype(np.int64)).sum(1) * m + (1 << s >> 1) < 1 << 29).all()


def test_dyadic_hippo_spans_its_time_scales() -> None:
    tau = time_constants(12)
    assert tau[0] == pytest.approx(2.0)
    assert tau[-1] == pytest.approx(1000.0)
    k, a = dyadic_hippo(12, "convex")
    assert int(k.min()) >= 8
    assert int(k.max()) <= 15
    m = a * 2.0 ** k.float()
    assert (m / 8 >= 1).all(), "the slowest modulation still moves the multiplier"
    assert (m[k > 8] * 4 <= 255).all()


MODES = [
    {},
    {"weights": "ternary"},
    {"scan": "literal"},
    {"activation": "squareplus", "gate": "squareplus"},
    {"norm_mantissa": 0, "norm_scale": "scalar"},
    {"rotation": True},
]


def trained_like(config: ModelConfig) -> MambaInteger:
    """A model whose parameters have left their initial values."""
    torch.manual_seed(5)
    model = build_model(config)
    assert isinstance(model, MambaInteger)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * p.abs().mean() * torch.randn_like(p)
    return model


@pytest.mark.parametrize("changes", MODES, ids=str)
def test_training_sees_what_the_integers_compute(changes: dict[str, object]) -> None:
    """Fake-quantised logits against the exported integer model's.

    They differ where the rounding of the state, which training leaves out, tips a later rounding over; in the pure power-of-two norm that can be a factor
    of two for a whole position, hence the median over positions.
    """
    config = small_config(**changes)
    model = trained_like(config)
    tokens = torch.randint(0, TOKENIZER.vocab_size, (1, 40))
    reset = torch.zeros(1, 40, dtype=torch.bool)
    reset[:, 0] = True
    with torch.no_grad():
        trained = model(tokens, reset)[0].numpy()
    exported = export_state(model.state_dict(), config, TOKENIZER, "test", {})
    real = Reference(exported).logits(tokens[0].tolist()) * (exported.embed_mul / 2.0**exported.logit_shift)
    off = np.abs(real - trained).mean(1) / trained.std()
    assert np.median(off) < 0.03
    assert np.corrcoef(real.ravel(), trained.ravel())[0, 1] > 0.98


@pytest.mark.parametrize("changes", MODES, ids=str)
def test_up_to_the_scan_training_is_exact(changes: dict[str, object]) -> None:
    """Every intermediate of the first layer before the scan equals the integer model's, bit for bit, as does m."""
    config = small_config(**changes)
    model = trained_like(config)
    block = model.blocks[0]
    assert isinstance(block, IntegerBlock)
    tokens = torch.randint(0, TOKENIZER.vocab_size, (1, 24))
    e, n, h = config.d_inner, config.d_state, config.n_heads
    sites: dict[str, list[np.ndarray]] = {}
    exported = export_state(model.state_dict(), config, TOKENIZER, "test", {})
    Reference(exported, trace=lambda _, site, v: sites.setdefault(site, []).append(np.array(v).ravel())).logits(
        tokens[0].tolist()
    )
    with torch.no_grad():
        pos = Positions(torch.arange(24)[None] == 0)
        r = torch.nn.functional.embedding(tokens, QuantEmbedding.apply(model.embedding)) * 16.0
        u = BitShiftNorm.apply(r, Round.apply(block.norm1, 6, 127), 8, config.norm_mantissa)
        p = Round.apply(
            torch.nn.functional.linear(u, QuantWeight.apply(block.matrices()[0], config.weights == "ternary")), 8, 32767
        )
        _, xbc, dt = p.split([e, e + 2 * n, h], -1)
        weight, bias = Round.apply(block.conv_weight, 6, 127), Round.apply(block.conv_bias, 8, 32767)
        c = Round.apply(CausalConv.apply(xbc, weight, bias, pos.crossings), 8, 32767)
        act = ACTIVATIONS[config.activation]
        expected = {"embed": (r, 8), "blk.0.norm1": (u, 5), "blk.0.in_proj": (p, 8), "blk.0.conv": (c, 8)}
        expected |= {
            "blk.0.x": (act.apply(c[..., :e], 5, 127), 5),
            "blk.0.m": (block.decay(dt, block.log_a, block.base), 0),
        }
        if not config.rotation:
            expected |= {
                "blk.0.B": (act.apply(c[..., e : e + n], 3, 31), 3),
                "blk.0.C": (act.apply(c[..., e + n :], 3, 31), 3),
            }
    for site, (value, scale) in expected.items():
        assert np.array_equal(np.stack(sites[site]), (value[0].double() * 2.0**scale).numpy()), site


def test_unknown_arithmetic_is_refused() -> None:
    with pytest.raises(ValueError, match="'integer' or 'float'"):
        build_model(small_config(), "complex")
