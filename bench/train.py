"""Training: tokens a second of whole steps (forward, backward, clipping, AdamW) of one shape, beside other trainers of this kind.

Peers, each if it is installed (`pip install transformers mambapy`): transformers' Mamba-2, and its Mamba with mambapy's parallel scan as the slow path,
and mambapy alone, all in float32 on random weights of the same d_model, layers and vocabulary.
`modules` is our own model computed by the readable PyTorch modules of nn/model.py.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.common import by_turns, result
from mamba_integer.config import ModelConfig
from mamba_integer.nn import build_model, loss
from mamba_integer.train.loop import LoopConfig, Optimizer, make_optimizer

ROWS, LENGTH = 8, 256
SHAPES = {"small": (256, 6, 4096), "shipped": (192, 4, 2048), "ablation": (128, 4, 2048)}


def step_of(
    parameters: list[Tensor], optimizer: torch.optim.Optimizer | Optimizer, nats: Callable[[], Tensor]
) -> Callable[[], int]:
    """One training step; gives how many tokens it took."""

    def work() -> int:
        nats().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        for p in parameters:
            p.grad = None
        return ROWS * LENGTH

    return work


def peers(d_model: int, layers: int, vocabulary: int, tokens: Tensor) -> dict[str, Callable[[], int]]:
    """The installed peers' steps. Each predicts the same tokens from the same inputs."""
    found: dict[str, Callable[[], int]] = {}
    inputs, targets = tokens[:, :-1], tokens[:, 1:].flatten()

    def add(name: str, model: torch.nn.Module, logits: Callable[[], Tensor]) -> None:
        parameters = list(model.parameters())
        optimizer = torch.optim.AdamW(parameters, fused=True)
        found[name] = step_of(parameters, optimizer, lambda: F.cross_entropy(logits().flatten(0, 1), targets))

    try:
        import transformers as tr

        common = {"vocab_size": vocabulary, "hidden_size": d_model, "num_hidden_layers": layers, "state_size": 16}
        two = tr.Mamba2ForCausalLM(
            tr.Mamba2Config(**common, num_heads=2 * d_model // 32, head_dim=32, n_groups=1, chunk_size=64)
        )
        add("transformers Mamba-2", two, lambda: two(inputs, use_cache=False).logits)
        one = tr.MambaForCausalLM(tr.MambaConfig(**common, use_mambapy=True))
        add("transformers Mamba", one, lambda: one(inputs, use_cache=False).logits)
    except ImportError:
        pass
    try:
        from mambapy.lm import LM
        from mambapy.mamba import MambaConfig

        alone = LM(MambaConfig(d_model=d_model, n_layers=layers), vocab_size=vocabulary)
        add("mambapy", alone, lambda: alone(inputs))
    except ImportError:
        pass
    return found


def products_share(work: Callable[[], int]) -> float:
    """Share of a step's time in matrix products."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    events = profile.key_averages()
    total = sum(e.self_cpu_time_total for e in events)
    return sum(e.self_cpu_time_total for e in events if e.key in ("aten::mm", "aten::_int_mm", "aten::addmm")) / total


def run(options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    d_model, layers, vocabulary = SHAPES[options.shape or "small"]
    torch.manual_seed(0)
    tokens = torch.randint(vocabulary, (ROWS, LENGTH + 1))
    inputs, targets = tokens[:, :-1], tokens[:, 1:].contiguous()
    reset = torch.zeros(inputs.shape, dtype=torch.bool)
    reset[:, 0] = True
    weights = torch.full(inputs.shape, 1.0 / inputs.numel())
    config = ModelConfig(
        d_model=d_model,
        n_layers=layers,
        n_heads=2 * d_model // 32,
        head_dim=32,
        d_state=16,
        vocab_size=vocabulary,
        context_length=LENGTH,
        activation="squareplus",
    )
    works: dict[str, Callable[[], int]] = {}
    for name, arithmetic, fused in (
        ("mamba-integer", "integer", True),
        ("modules", "integer", False),
        ("float baseline", "float", True),
    ):
        model = build_model(config, arithmetic)
        nats = (
            (lambda m=model: loss(m, inputs, reset, targets, weights))
            if fused
            else (lambda m=model: F.cross_entropy(m(inputs, reset).flatten(0, 1), targets.flatten()))
        )
        optimizer = make_optimizer(model, LoopConfig(valid="", tokenizer=""))
        works[name] = step_of(list(model.parameters()), optimizer, nats)
    works |= peers(d_model, layers, vocabulary, tokens)
    rates, ratios = by_turns(works, options.seconds, time.process_time)
    share = products_share(works["mamba-integer"])
    measured = {name: {"train": round(rate, 1)} for name, rate in rates.items()}
    return {
        **result("train", "tokens per CPU-second", measured, threads=options.threads),
        "ratios": {name: {"train": round(r, 2)} for name, r in ratios.items()},
        "matrix_products_share": round(share, 3),
        "shape": {"d_model": d_model, "n_layers": layers, "vocab_size": vocabulary, "batch": ROWS, "length": LENGTH},
        "torch": torch.__version__,
    }
