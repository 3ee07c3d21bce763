"""Trains the low-bit profile of ARITHMETIC section 12 in PyTorch: the forward pass is the integers of `micro.py`, gradients pass the roundings.

Every table is trained as a clipped line (or, for the two multiplications, a clipped product) with a slope and an offset of its own for each channel, and
written out entry by entry at the end; every row of weights spends its budget of units on its inputs. Run as `mamba-integer encrypted train`.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_integer.encrypted import micro
from mamba_integer.encrypted.micro import ALPHABET, MicroConfig, MicroModel
from mamba_integer.errors import ArgumentError

DIGITS = torch.arange(-16, 16, dtype=torch.float32)  # every input that a table has


def digit(x: Tensor, low: int, high: int) -> Tensor:
    """x rounded (halves up) and clipped to low … high; the gradient is that of the clipping alone."""
    y = x.clamp(low, high)
    return y + ((y + 0.5).floor() - y).detach()


def spend(w: Tensor, units: int) -> Tensor:
    """Integers [..., K] in the proportions of w whose magnitudes sum to `units`: largest remainders, the lowest index at a tie."""
    share = w * (units / w.abs().sum(-1, keepdim=True).clamp_min(1e-9))
    whole = share.detach().abs().floor()
    rest = share.detach().abs() - whole
    rank = rest.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    q = (whole + (rank < units - whole.sum(-1, keepdim=True))) * share.detach().sign()
    return share + (q - share).detach()


class Line(nn.Module):
    """A table that is a clipped line: digit(slope · s + offset), for each of `count` channels."""

    def __init__(self, count: int, slope: float, low: int, high: int, spread: float = 0.3) -> None:
        super().__init__()
        self.slope = nn.Parameter(slope * (1 + spread * torch.randn(count)))
        self.offset = nn.Parameter(torch.zeros(count))
        self.low, self.high = low, high

    def forward(self, s: Tensor) -> Tensor:
        return digit(self.slope * s + self.offset, self.low, self.high)

    def table(self) -> Tensor:
        """int [count, 32]: the entry for s = −16 … 15."""
        entries: Tensor = self(DIGITS[:, None])
        return entries.T.to(torch.int64)


class Product(nn.Module):
    """A table of two digits packed into five bits, a (−4 … 3) and b (0 … 3): digit(slope · a · b / 3)."""

    def __init__(self, count: int, slope: float, low: int, high: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.full((count,), slope))
        self.low, self.high = low, high

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return digit(self.slope * a * b / 3, self.low, self.high)

    def table(self) -> Tensor:
        packed = DIGITS.to(torch.int64)[:, None]
        entries: Tensor = self((packed >> 2).float(), (packed & 3).float())
        return entries.T.to(torch.int64)


class Layer(nn.Module):
    """One layer after its projections: history digits x, B, C, gate g → o."""

    def __init__(self, c: MicroConfig, i: int) -> None:
        super().__init__()
        E, H = c.d_inner, c.n_heads
        self.config = c
        last = i + 1 == c.n_layers
        if i:
            self.in_proj = nn.Parameter(torch.randn(2 * E + 2 * H, c.d_model))
            self.project = Line(E + 2 * H, 0.5, *micro.HISTORY)
            self.gate = Line(E, 0.3, *micro.SHARE)
            nn.init.constant_(self.gate.offset, 1.5)
        self.conv = nn.Parameter(torch.randn(E + 2 * H, micro.TAPS) + torch.tensor([0.0, 0.3, 0.6, 1.2]))
        self.act = Line(E, 0.6, *micro.SIGNAL)
        self.share = Line(2 * H, 0.3, *micro.SHARE)
        nn.init.constant_(self.share.offset, 1.5)
        self.write = Product(E, 1.2, *micro.WRITE)
        self.decay = nn.Parameter(torch.logit(torch.linspace(0.3, 0.95, E)[torch.randperm(E)]))
        self.read = Line(E, 0.5, *micro.SIGNAL)
        self.out = Product(E, 1.3, *micro.SIGNAL)
        self.gated = Product(E, 1.0, *(micro.FINAL if last else micro.OUTPUT))
        if not last:
            self.out_proj = nn.Parameter(torch.randn(c.d_model, E))
            self.residual = Line(c.d_model, 0.5, *micro.RESIDUAL)

    def leak(self, s: Tensor) -> Tensor:
        return digit(torch.sigmoid(self.decay) * s, *micro.STATE)

    def projected(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """(history [..., E + 2H], gate [..., E]) of a residual, for every layer but the first."""
        E = self.config.d_inner
        p = r @ spend(self.in_proj, micro.units(micro.RESIDUAL)).T
        return self.project(p[..., E:]), self.gate(p[..., :E])

    def forward(self, history: Tensor, g: Tensor) -> Tensor:
        """history [B, T, E + 2H], g [B, T, E] → o [B, T, E], from the zero state."""
        c = self.config
        E, H = c.d_inner, c.n_heads
        padded = F.pad(history, (0, 0, micro.TAPS - 1, 0)).unfold(1, micro.TAPS, 1)
        conv = (padded * spend(self.conv, micro.units(micro.HISTORY))).sum(-1)
        x = self.act(conv[..., :E])
        B, C = self.share(conv[..., E:]).repeat_interleave(E // H, -1).chunk(2, -1)
        v = self.write(x, B)
        h = torch.zeros_like(v[:, 0])
        sums = []
        for v_t in v.unbind(1):
            s = h + v_t
            sums.append(s)
            h = self.leak(s)
        y = self.out(self.read(torch.stack(sums, 1)), C)
        o: Tensor = self.gated(y, g)
        return o

    def added(self, r: Tensor, o: Tensor) -> Tensor:
        """The next residual, of every layer but the last."""
        added: Tensor = self.residual(r + o @ spend(self.out_proj, micro.OUT_UNITS).T)
        return added


class Micro(nn.Module):
    def __init__(self, c: MicroConfig) -> None:
        super().__init__()
        self.config = c
        E, H = c.d_inner, c.n_heads
        self.embedding = nn.Parameter(torch.randn(c.vocab_size, c.d_model))
        self.front = nn.Parameter(torch.randn(c.vocab_size, E + 2 * H))
        self.front_gate = nn.Parameter(1.5 + torch.randn(c.vocab_size, E))
        self.stack = [Layer(c, i) for i in range(c.n_layers)]
        self.layers = nn.ModuleList(self.stack)  # registers them
        self.final = Line(c.d_model, 1.5, *micro.FINAL)
        self.head = nn.Parameter(0.5 * torch.randn(c.vocab_size, c.d_model + E))
        self.bias = nn.Parameter(torch.zeros(c.vocab_size))

    def token_tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """Functions of the token alone: residual [V, D], history [V, E + 2H] and gate [V, E] of the first layer."""
        return (
            digit(self.embedding, *micro.RESIDUAL),
            digit(1.5 * self.front, *micro.HISTORY),
            digit(self.front_gate, *micro.SHARE),
        )

    def weights(self) -> tuple[Tensor, Tensor]:
        return digit(3 * self.head, *micro.HEAD), digit(16 * self.bias, *micro.BIAS)

    def forward(self, tokens: Tensor) -> Tensor:
        """Integer logits (as float) [B, T, V] of tokens [B, T]."""
        r, history, g = (table[tokens] for table in self.token_tables())
        for i, layer in enumerate(self.stack):
            if i:
                history, g = layer.projected(r)
            o = layer(history, g)
            if i + 1 < len(self.stack):
                r = layer.added(r, o)
        head, bias = self.weights()
        logits: Tensor = torch.cat([self.final(r), o], -1) @ head.T + bias
        return logits

    def export(self, name: str, about: str) -> MicroModel:
        """The integer model: tables entry by entry."""
        with torch.no_grad():
            r, history, g = self.token_tables()
            head, bias = self.weights()
            tensors = {
                "embedding": r,
                "front": history,
                "front_gate": g,
                "head": head,
                "bias": bias,
                "final": self.final.table(),
            }
            for i, layer in enumerate(self.stack):
                if i:
                    tensors[f"{i}.in_proj"] = spend(layer.in_proj, micro.units(micro.RESIDUAL))
                    tensors[f"{i}.project"] = layer.project.table()
                    tensors[f"{i}.gate"] = layer.gate.table()
                tensors[f"{i}.conv"] = spend(layer.conv, micro.units(micro.HISTORY))
                tensors[f"{i}.decay"] = layer.leak(DIGITS[:, None]).T
                for part in ("act", "share", "write", "read", "out", "gated"):
                    tensors[f"{i}.{part}"] = getattr(layer, part).table()
                if i + 1 < len(self.stack):
                    tensors[f"{i}.out_proj"] = spend(layer.out_proj, micro.OUT_UNITS)
                    tensors[f"{i}.residual"] = layer.residual.table()
            return MicroModel(self.config, name, about, {key: t.to(torch.int64).numpy() for key, t in tensors.items()})


def sentences(text: str) -> list[str]:
    """Sentences of stories in the alphabet's characters, one line each."""
    text = text.lower().replace("<|endoftext|>", "\n").replace("’", "'").replace("!", ".").replace("\n", " ")
    text = re.sub(r" +", " ", re.sub(f"[^{re.escape(ALPHABET)}]", "", text))
    return [s.strip() for s in re.split(r"(?<=[.?]) ", text) if len(s.strip()) >= 8]


def main(arguments: argparse.Namespace) -> dict[str, object]:
    """Trains by the parsed options of `mamba-integer encrypted train`; what the command prints. Raises ArgumentError."""
    config = MicroConfig.load(arguments.config)
    try:
        lines = sentences(arguments.data.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{arguments.data}: not UTF-8 text: {error.reason}") from None
    length, batch = arguments.length, arguments.batch
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    ids = torch.tensor(micro.encode("\n" + "\n".join(lines) + "\n"), dtype=torch.int64)
    starts = (ids[: -length - 1] == 0).nonzero()[:, 0]
    if len(starts) < 100:
        raise ArgumentError(f"{arguments.data}: too little text: {len(starts)} sentences")
    held = starts[len(starts) * 99 // 100 :][:4096]
    starts = starts[: len(starts) * 99 // 100 - length]
    model = Micro(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=arguments.lr, betas=(0.9, 0.98))
    offsets = torch.arange(length + 1)

    def loss_of(rows: Tensor) -> Tensor:
        logits = model(rows[:, :-1]) * 2.0**-micro.LOGIT_SHIFT
        return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())

    began = time.perf_counter()
    running = 0.0
    for step in range(1, arguments.steps + 1):
        done = step / arguments.steps
        optimizer.param_groups[0]["lr"] = (
            arguments.lr * min(step / 100, 1) * (0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)
        )
        rows = ids[starts[torch.randint(len(starts), (batch,))][:, None] + offsets]
        loss = loss_of(rows)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        running = loss.item() if step == 1 else 0.98 * running + 0.02 * loss.item()
        if step % arguments.every == 0 or step == arguments.steps:
            seconds = time.perf_counter() - began
            print(
                f"step {step} of {arguments.steps}  {running / math.log(2):.4f} bits a character  {seconds:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    with torch.no_grad():
        bits = torch.stack(
            [loss_of(ids[part[:, None] + offsets]) for part in torch.split(held, 512)]
        ).mean().item() / math.log(2)
    exported = model.export(arguments.name, arguments.about)
    exported.save(arguments.output)
    return {
        "file": str(arguments.output),
        "digest": exported.digest,
        "bits_per_character": round(bits, 4),
        "tables_per_character": exported.tables,
        "seconds": round(time.perf_counter() - began, 1),
    }
