"""Dyadic HiPPO: where the decays start.

S4D-Real (Gu et al. 2022, arXiv:2206.11893) gives the states of a diagonal SSM decay rates in a fixed spectrum, and Mamba-2 keeps one rate per head. Here
the heads' time constants τ are a geometric series, and each rate 1/τ is projected to the dyadic form of the scan, 1/τ ≈ A / 2^(k + 4): k such that the
data-dependent multiplier m = 2^k/τ · (1/8 … 4) keeps within eight bits with room on both sides.
"""

from __future__ import annotations

import torch
from torch import Tensor


def time_constants(n_heads: int, shortest: float = 2.0, longest: float = 1000.0) -> Tensor:
    """Geometric from `shortest` to `longest` tokens, float [H]."""
    return torch.logspace(0, 1, n_heads, base=longest / shortest, dtype=torch.float32) * shortest


def dyadic_hippo(n_heads: int, scan: str, shortest: float = 2.0, longest: float = 1000.0) -> tuple[Tensor, Tensor]:
    """(k, a): static shifts k int [H] (8 … 15; 15 for the literal scan) and rates a = 1/τ float [H] at which training starts."""
    tau = time_constants(n_heads, shortest, longest)
    k = torch.full_like(tau, 15.0) if scan == "literal" else torch.log2(48.0 * tau).round().clamp(8, 15)
    return k.to(torch.int64), 1.0 / tau
