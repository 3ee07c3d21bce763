"""The selective scan in parallel form: h_t = n_t·h_{t−1} + g_t·x_t⊗B_t, y_t = C_t·h_t, per head, with resets.

`chunked_scan` is the state-space duality form of Mamba-2 (Dao & Gu 2024, arXiv:2405.21060, section 6): matrix products inside chunks, a short
recurrence between them. It leaves out one thing that the integer model does, the rounding of the state at every step; `sequential_scan` is what it
computes, written plainly, and what tests compare it with. `dyadic_scan` is the integer model's whole scan around it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mamba_integer.nn.quant import INT16, RoundUnbounded


def segments(reset: Tensor) -> Tensor:
    """Document number of each position. reset: bool [B, T], True where a document starts -> int [B, T]."""
    return reset.long().cumsum(1)


def chunked_scan(x: Tensor, log_n: Tensor, b: Tensor, c: Tensor, seg: Tensor, chunk: int = 32) -> Tensor:
    """x [B, T, H, P] (times its input gate), log_n [B, T, H] ≤ 0, b and c [B, T, N], seg [B, T] -> y [B, T, H, P]. T need not divide by chunk."""
    batch, length, heads, dim = x.shape
    pad = -length % chunk
    if pad:
        x, log_n, b, c = (torch.nn.functional.pad(v, (0, 0) * (v.ndim - 2) + (0, pad)) for v in (x, log_n, b, c))
        seg = torch.nn.functional.pad(seg, (0, pad), mode="replicate")
    count = (length + pad) // chunk
    x = x.view(batch, count, chunk, heads, dim).transpose(2, 3)  # [B, K, H, Q, P]
    cum = log_n.view(batch, count, chunk, heads).transpose(2, 3).cumsum(-1)  # [B, K, H, Q]
    b = b.view(batch, count, chunk, -1)
    c = c.view(batch, count, chunk, -1)
    seg = seg.view(batch, count, chunk)

    same = torch.tril(seg[..., :, None] == seg[..., None, :])  # [B, K, Q, Q]: j ≤ i in the same document
    decay = torch.exp((cum[..., :, None] - cum[..., None, :]).masked_fill(~same[:, :, None], -torch.inf))
    y = ((c @ b.transpose(-1, -2))[:, :, None] * decay) @ x
    if count > 1:
        last = seg[..., -1:]
        to_end = torch.exp(cum[..., -1:] - cum) * (seg == last)[:, :, None]  # [B, K, H, Q]
        added = b.transpose(-1, -2)[:, :, None] @ (x * to_end[..., None])  # [B, K, H, N, P]
        before = torch.cat([seg[:, :1, 0], seg[:, :-1, -1]], 1)[..., None]  # document of the incoming state
        carry = torch.exp(cum[..., -1]) * (before == last)  # [B, K, H]
        state = torch.zeros_like(added[:, 0])
        states = []
        for i in range(count):
            states.append(state)
            state = state * carry[:, i, :, None, None] + added[:, i]
        seen = torch.exp(cum) * (seg == before)[:, :, None]  # [B, K, H, Q]
        y = y + (c[:, :, None] @ torch.stack(states, 1)) * seen[..., None]
    return y.transpose(2, 3).reshape(batch, -1, heads, dim)[:, :length]


def sequential_scan(x: Tensor, log_n: Tensor, b: Tensor, c: Tensor, seg: Tensor) -> Tensor:
    """The same, one position after the other. Shapes as in chunked_scan."""
    batch, length, heads, dim = x.shape
    h = x.new_zeros(batch, heads, dim, b.shape[-1])
    out = []
    for t in range(length):
        keep = torch.ones_like(seg[:, 0], dtype=x.dtype) if t == 0 else (seg[:, t] == seg[:, t - 1]).to(x.dtype)
        h = h * (torch.exp(log_n[:, t]) * keep[:, None])[..., None, None] + x[:, t, :, :, None] * b[:, t, None, None, :]
        out.append((h * c[:, t, None, None, :]).sum(-1))
    return torch.stack(out, 1)


def decay(dt: Tensor, rate: Tensor, base: Tensor, shift: Tensor, convex: bool) -> Tensor:
    """m of the spec (section 7): dt [..., H] and base [H] on the Q8 grid, rate [H] on the Q4 grid, shift k [H] -> integers 1 … m_max as float [..., H]."""
    scale = torch.exp2(shift.to(dt.dtype))
    mod = (1.0 + dt + base).clamp(0.125, 4.0)
    m: Tensor = RoundUnbounded.apply(mod * rate, 0, 1 << 24)
    return m.clamp(min=1.0).minimum(torch.full_like(scale, 255.0) if convex else scale - 1.0)


def dyadic_scan(
    x: Tensor,
    b: Tensor,
    c: Tensor,
    dt: Tensor,
    rate: Tensor,
    base: Tensor,
    skip: Tensor,
    shift: Tensor,
    seg: Tensor,
    convex: bool,
) -> Tensor:
    """The integer model's scan (section 7 of the spec), its output rounded but not its state.

    x [B, T, E], b and c [B, T, N], dt [B, T, H], skip [H], seg [B, T]; rate, base and shift as in `decay` -> y [B, T, E] on the Q8 grid.
    """
    replaced = decay(dt, rate, base, shift, convex) * torch.exp2(-shift.to(dt.dtype))  # m / 2^k
    heads = x.view(*dt.shape, -1)
    y = chunked_scan(heads * replaced[..., None], torch.log1p(-replaced), b, c, seg)
    out: Tensor = RoundUnbounded.apply(y + heads * skip[:, None], 8, INT16)
    return out.flatten(2)
