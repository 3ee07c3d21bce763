"""The decays that bench/stiff_memory.py compares: their values and gradients, and its figure."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.stiff_memory import (
    CASES,
    FORMS,
    SHAPE,
    TOP,
    AdditiveBlock,
    NarrowBlock,
    RelativeBlock,
    StiffMamba,
    by_distance,
    spectrum,
    train,
)
from mamba_integer.config import ModelConfig
from mamba_integer.nn import loss
from mamba_integer.nn.model import IntegerBlock
from mamba_integer.tokenizer import Tokenizer
from mamba_integer.train.data import Document

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ModelConfig(**{**SHAPE, "vocab_size": 64}, context_length=64)
H = CONFIG.n_heads


def leaves(block: AdditiveBlock, dt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dt, log_a, base = (v.detach().clone().requires_grad_() for v in (dt, block.log_a, block.base))
    return dt, log_a, base


@pytest.mark.parametrize("kind", [AdditiveBlock, NarrowBlock, RelativeBlock])
def test_shares_are_on_the_grid_and_start_at_the_same_time_constants(kind: type[AdditiveBlock]) -> None:
    block = kind(CONFIG)
    n, add = block.decay(torch.zeros(1, H), block.log_a, block.base)
    assert torch.equal(n + add, torch.ones_like(n))
    assert (-1 / n.double().log())[0].tolist() == pytest.approx(torch.logspace(0.30103, 3, H).tolist(), rel=0.02)
    n, _ = block.decay(torch.randn(500, H) * 5, block.log_a, block.base)
    assert torch.equal(n * 2**15, (n * 2**15).round())
    assert torch.all(n >= 0)
    assert torch.all(n <= TOP)


def test_an_additive_head_at_the_top_passes_no_gradient() -> None:
    block = AdditiveBlock(CONFIG)
    dt, log_a, base = leaves(block, torch.full((3, H), 0.9))
    n, _ = block.decay(dt, log_a, base)
    assert (n == TOP).sum(1).tolist() == [H - 1] * 3  # the fastest head starts at 0.61
    n.sum().backward()
    assert dt.grad is not None
    assert base.grad is not None
    assert torch.count_nonzero(dt.grad, dim=1).tolist() == [1] * 3
    assert base.grad.tolist() == [3.0] + [0.0] * (H - 1)
    assert dt.grad[:, 0].tolist() == [0.25] * 3


def test_a_narrow_head_keeps_off_the_top_until_its_base_is_there() -> None:
    block = NarrowBlock(CONFIG)
    dt, log_a, base = leaves(block, torch.randn(1000, H) * 3)
    n, _ = block.decay(dt, log_a, base)
    left = 1 - block.base.detach()
    assert torch.all(1 - n >= left.div(2) - 2**-15)
    assert torch.all(1 - n <= left.mul(1.5) + 2**-15)
    n.sum().backward()
    assert base.grad is not None
    assert base.grad.tolist() == [1000.0] * H
    dt, log_a, base = leaves(block, torch.randn(1000, H))
    n, _ = block.decay(dt, log_a, base + 0.4)
    assert torch.all(n == TOP)
    n.sum().backward()
    assert base.grad is not None
    assert not base.grad.any()


def test_the_relative_form_is_the_integer_models_literal_decay_and_lives() -> None:
    literal = IntegerBlock(ModelConfig(**SHAPE, context_length=64, scan="literal"))
    block = RelativeBlock(CONFIG)
    dt, log_a, base = leaves(block, torch.randn(1000, H) * 0.5)
    n, _ = block.decay(dt, log_a, base)
    assert torch.equal((1 - n) * 2**15, literal.decay(dt, log_a, base))
    assert torch.all(n < TOP)
    assert torch.all((-torch.log2(-n.log())).std(0) > 0.3)
    n.sum().backward()
    for v in (dt, log_a, base):
        assert v.grad is not None
        assert torch.all(v.grad.abs().reshape(-1, H).sum(0) > 0)


@pytest.mark.parametrize("form", FORMS)
def test_the_training_kernels_take_the_blocks(form: str) -> None:
    torch.manual_seed(0)
    model = StiffMamba(CONFIG, FORMS[form].block)
    tokens = torch.randint(1, 64, (2, 40))
    reset = torch.zeros(2, 40, dtype=torch.bool)
    reset[:, 0] = True
    loss(model, tokens, reset, tokens, torch.ones(2, 40)).backward()
    for block in model.blocks:
        assert block.base.grad is not None
        assert torch.isfinite(block.base.grad).all()
        assert block.base.grad.any()
    seen = spectrum(model, tokens, 0)
    assert [len(v) for v in seen.values()] == [2 * H] * 3
    assert min(seen["std"]) > 0
    with torch.no_grad():
        for block in model.blocks:
            block.base[3], block.log_a[3] = 2.0, -20.0
    seen = spectrum(model, tokens, 0)
    assert (seen["saturated"][3], seen["std"][3], seen["tau"][3]) == (1.0, 0.0, 15.0)


def test_targets_fall_into_the_bucket_of_their_last_occurrence() -> None:
    model = StiffMamba(CONFIG, RelativeBlock)
    document = Document([5, 6, 5, *range(7, 17), 5, 6])
    local = torch.zeros(64, 64, dtype=torch.bool)
    local[5, 6] = True
    counts = {name: n for name, (_, n) in by_distance(model, [document, document], 0, local.numpy()).items()}
    assert counts == {"all": 32, "local": 4, "1–4": 2, "5–16": 4, "17–64": 0, "65–256": 0, "further": 0, "none": 24}


@pytest.mark.parametrize("frozen", [2, 3])
def test_a_frozen_base_learns_only_after_its_time(frozen: int) -> None:
    case = dataclasses.replace(CASES["frozen-x20"], frozen=frozen, steps=3, batch=1, length=64)
    stream = np.random.default_rng(0).integers(0, 2048, 2000).astype(np.uint16)
    bases: list[Tensor] = []

    def keep(model: StiffMamba) -> dict[str, list[float]]:
        bases.extend(block.base.detach() for block in model.blocks)
        return {}

    result = train(case, stream, Tokenizer.load(ROOT / "configs/tinystories-2048.bpe"), keep, lambda line: None)
    assert result["steps"] == [0, 1, 2, 3]
    start = AdditiveBlock(CONFIG).base
    assert [torch.equal(base, start) for base in bases] == [frozen == 3] * 2


def test_the_committed_figure_is_drawn_from_the_committed_results(tmp_path: Path) -> None:
    svg = tmp_path / "figure.svg"
    command = [sys.executable, "bench/stiff_memory.py", "--figure", "--svg", str(svg)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False
    )
    assert done.returncode == 0, done.stderr
    assert svg.read_bytes() == (ROOT / "docs/stiff_memory.svg").read_bytes()
    assert (ROOT / "docs/stiff_memory.json").stat().st_size < 100_000
