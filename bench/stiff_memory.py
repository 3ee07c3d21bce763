"""The stiff-memory trap: decays that are added to and clamped lose their time scales. Small training runs of one shape that differ in the decay alone.

    python bench/stiff_memory.py --data TEXT     # run what is missing, one after the other, then draw the figure
    python bench/stiff_memory.py --table         # the results so far, as Markdown
    python bench/stiff_memory.py --figure        # draws docs/stiff_memory.svg from docs/stiff_memory.json, without training

A head keeps the share n of its state at a token and takes in 1 − n of the new value; n is an integer / 2^15, at most 32,767 / 2^15, and its time constant
is τ = −1 / ln n tokens. The model around it is the float baseline, with the training kernels that the project trains with. Every run sees the same
initial weights, and those of a group the same tokens in the same order. docs/STIFF_MEMORY.md says what came out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mamba_integer.config import ModelConfig
from mamba_integer.files import write_atomically
from mamba_integer.nn import token_nats
from mamba_integer.nn.init import time_constants
from mamba_integer.nn.model import FloatBlock, FloatMamba
from mamba_integer.nn.quant import INT16, Round, RoundUnbounded
from mamba_integer.tokenizer import Tokenizer, documents, read_text
from mamba_integer.train import loop
from mamba_integer.train.data import Document, StreamBatches, Tokens, padded_documents, token_stream
from mamba_integer.train.pretrain import ROOT

TOP = 32767 / 32768  # the largest n
DEAD = 0.01  # a head is dead if the standard deviation over tokens of its log2 τ is below
SHAPE = {"d_model": 128, "n_layers": 2, "n_heads": 8, "head_dim": 32, "d_state": 16, "vocab_size": 2048}


class AdditiveBlock(FloatBlock):
    """n = clamp(base + mod, 0, TOP), mod = clamp(dt, −1, 1) / 4: the form of the reference description. No gradient passes where n is clamped.

    `base` is base_decay_nums / 2^15, rounded straight-through; `log_a` is not used. `kept` is n of the last pass, [B, T, H].
    """

    kept: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.base = nn.Parameter(torch.exp(-1.0 / time_constants(config.n_heads)))

    def reach(self, base: Tensor) -> Tensor:
        """Largest mod of a head, [H]."""
        return torch.full_like(base, 0.25)

    def share(self, dt: Tensor, log_a: Tensor, base: Tensor) -> Tensor:
        """n on the grid of 2^-15, [..., H]."""
        base = RoundUnbounded.apply(base, 15, 1 << 24)
        mod = RoundUnbounded.apply(dt.clamp(-1.0, 1.0) * self.reach(base.detach()), 15, 1 << 24)
        return (base + mod).clamp(0.0, TOP) + 0.0 * log_a

    def decay(self, dt: Tensor, log_a: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
        """As in FloatBlock: (share of the state that is kept, input gate), each [..., H]."""
        n = self.share(dt, log_a, base)
        self.kept = n.detach()
        return n, 1.0 - n


class NarrowBlock(AdditiveBlock):
    """The same with the range of mod clamped to half of what is left above the base: ± min(1/4, (1 − base) / 2)."""

    def reach(self, base: Tensor) -> Tensor:
        return ((1.0 - base.clamp(0.0, TOP)) / 2).clamp(max=0.25)


class RelativeBlock(AdditiveBlock):
    """The project's form with k = 15 (spec/ARITHMETIC.md, section 7): n = 1 − A·clamp(1 + dt + base, 1/8, 4), A = exp(log_a)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.log_a = nn.Parameter(torch.log1p(-self.base.detach()))
        self.base = nn.Parameter(torch.zeros(config.n_heads))

    def share(self, dt: Tensor, log_a: Tensor, base: Tensor) -> Tensor:
        a = Round.apply(log_a.exp() * 2.0**15, 4, 1 << 19)
        m = RoundUnbounded.apply((1.0 + dt + Round.apply(base, 8, INT16)).clamp(0.125, 4.0) * a, 0, 1 << 24)
        n: Tensor = 1.0 - m.clamp(1.0, 32767.0) * 2.0**-15
        return n


class StiffMamba(FloatMamba):
    """The float baseline with other blocks, for the training kernels only: `forward` is not theirs."""

    def __init__(self, config: ModelConfig, block: type[AdditiveBlock]) -> None:
        super().__init__(config)
        self.blocks = nn.ModuleList([block(config) for _ in range(config.n_layers)])


@dataclasses.dataclass(frozen=True)
class Case:
    """A run. frozen: steps before `base` learns. rates: learning rate of the decay parameters over that of the rest. Batches: rows of `length` tokens."""

    block: type[AdditiveBlock]
    title: str
    frozen: int = 0
    rates: float = 1.0
    lr: float = 8e-3
    steps: int = 750
    batch: int = 4
    length: int = 512


FORMS = {
    "additive": Case(AdditiveBlock, "additive, ± 1/4"),
    "frozen": Case(AdditiveBlock, "additive, base frozen", frozen=250),
    "narrow": Case(NarrowBlock, "additive, clamped range"),
    "both": Case(NarrowBlock, "frozen, clamped range", frozen=250),
    "relative": Case(RelativeBlock, "relative"),
}


@dataclasses.dataclass(frozen=True)
class Group:
    """A row of the figure. changes: of fields of Case. forms: those that are run."""

    title: str
    label: str
    changes: dict[str, Any]
    forms: tuple[str, ...] = tuple(FORMS)


GROUPS = {
    "": Group("750 steps of 2,048 tokens; decays learn at the rate of all parameters", "750 steps", {}),
    "-x20": Group(
        "750 steps of 2,048 tokens; decays learn 20 times as fast: a stand-in for long training",
        "750 steps, 20 × decay rate",
        {"rates": 20.0},
        ("additive", "frozen", "narrow", "relative"),
    ),
    "-15k": Group(
        "15,000 steps of 128 tokens; decays learn at the rate of all parameters",
        "15,000 small steps",
        {"steps": 15_000, "batch": 1, "length": 128, "lr": 2e-3},
        ("additive", "relative"),
    ),
}

CASES = {
    form + suffix: dataclasses.replace(FORMS[form], **group.changes)
    for suffix, group in GROUPS.items()
    for form in group.forms
}

# Targets by the distance to the last earlier occurrence of the same token in the document, up to:
BUCKETS = {"1–4": 4, "5–16": 16, "17–64": 64, "65–256": 256}
LOCAL = "local"  # whatever the distance: targets that the token before makes likely


def local_grammar(stream: Tokens, vocab: int, least: float = 0.2, tokens: int = 4_000_000) -> npt.NDArray[np.bool_]:
    """[V, V]: whether the second token follows the first in at least a share `least` of the latter's occurrences in the training text."""
    part = np.asarray(stream[:tokens], np.int64)
    counts = np.bincount(part[:-1] * vocab + part[1:], minlength=vocab * vocab).reshape(vocab, vocab)
    return counts >= least * np.maximum(counts.sum(1, keepdims=True), 1)


@torch.no_grad()
def by_distance(
    model: FloatMamba, items: list[Document], eot: int, local: npt.NDArray[np.bool_]
) -> dict[str, list[float]]:
    """[nats a token, number] of the targets of documents, by bucket; `all` counts the closing end-of-text tokens too."""
    sums: dict[str, list[float]] = {name: [0.0, 0] for name in ("all", LOCAL, *BUCKETS, "further", "none")}
    for tokens, weights in padded_documents(items, eot, 4096):
        inputs = torch.from_numpy(tokens[:, :-1])
        reset = inputs == eot
        reset[:, 0] = True
        nats = token_nats(model, inputs, reset, torch.from_numpy(tokens[:, 1:])).numpy()
        for row, row_weights, row_nats in zip(tokens, weights, nats, strict=True):
            last: dict[int, int] = {}
            for at in np.flatnonzero(row_weights):
                target = int(row[at + 1])
                names = ["all"]
                if target != eot:
                    back = int(at) - last[target] if target in last else None
                    fits = (name for name, most in BUCKETS.items() if back is not None and back <= most)
                    names.append("none" if back is None else next(fits, "further"))
                    names += [LOCAL] if local[row[at], target] else []
                last[target] = int(at)
                for name in names:
                    sums[name][0] += float(row_nats[at])
                    sums[name][1] += 1
    return {name: [round(total / max(count, 1), 4), int(count)] for name, (total, count) in sums.items()}


@torch.no_grad()
def spectrum(model: FloatMamba, tokens: Tensor, eot: int) -> dict[str, list[float]]:
    """Of every head, layer by layer: median and standard deviation over tokens of log2 τ, and the share of tokens at the largest n. tokens int64 [B, T]."""
    reset = tokens == eot
    reset[:, 0] = True
    token_nats(model, tokens, reset, tokens)
    n = torch.cat([block.kept.flatten(0, 1) for block in model.blocks], 1).double()  # type: ignore[operator, union-attr]
    log_tau = -torch.log2(-torch.log(n.clamp(min=2.0**-15)))
    figures = {
        "tau": log_tau.median(0).values,
        "std": log_tau.std(0, correction=0),
        "saturated": (n >= TOP).double().mean(0),
    }
    return {name: [round(v, 3) for v in values.tolist()] for name, values in figures.items()}


def train(
    case: Case,
    stream: Tokens,
    tokenizer: Tokenizer,
    score: Callable[[FloatMamba], dict[str, list[float]]],
    report: loop.Report,
) -> dict[str, Any]:
    """A run from its beginning to its end: the spectrum and the mean loss since the look before at some steps, and the validation loss at the end."""
    torch.manual_seed(0)
    model = StiffMamba(ModelConfig(**SHAPE, context_length=case.length), case.block)
    t = loop.LoopConfig(valid="", tokenizer="", lr=case.lr, lr_decay_rates=case.rates, warmup=50)
    optimizer = loop.make_optimizer(model, t)
    batches = StreamBatches(stream, case.batch, case.length, seed=0)
    fixed = torch.from_numpy(StreamBatches(stream, 2, 512, seed=1)[0][0][:, :-1])
    every = max(1, case.steps // 15)
    begun, losses = time.process_time(), []
    history: dict[str, list[Any]] = {name: [] for name in ("steps", "loss", "tau", "std", "saturated")}
    for step in range(case.steps + 1):
        if step % every == 0 or step in (10, 25, case.steps):
            seen = spectrum(model, fixed, tokenizer.eot)
            mean = round(math.fsum(losses) / len(losses), 4) if losses else None
            for name, value in {"steps": step, "loss": mean, **seen}.items():
                history[name].append(value)
            report(f"step {step:,}/{case.steps:,}  loss {mean}  {time.process_time() - begun:.0f} CPU-seconds")
            losses = []
        if step == case.steps:
            break
        for block in model.blocks:
            block.base.requires_grad_(step >= case.frozen)  # type: ignore[union-attr]
        for group in optimizer.param_groups:
            group["lr"] = loop.learning_rate(t, step, case.steps) * group["lr_scale"]
        tokens, weights = (torch.from_numpy(v) for v in batches[step])
        model.zero_grad()
        mean_loss = loop.loss_sum(model, tokens, weights, tokenizer.eot) / weights.numel()
        mean_loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), t.clip)
        optimizer.step()
        losses.append(float(mean_loss.detach()))
    return {**history, "valid": score(model), "cpu_seconds": round(time.process_time() - begun)}


def summary(result: dict[str, Any]) -> dict[str, float]:
    """What the table says of a run's end."""
    tau, std = np.array(result["tau"][-1]), np.array(result["std"][-1])
    dead = std < DEAD
    return {
        "valid": result["valid"]["all"][0],
        "dead": int(dead.sum()),
        "zero": int((dead & (tau < 0)).sum()),
        "saturated": float(np.mean(result["saturated"][-1])),
        "fast": int((~dead & (tau < 3)).sum()),
        "long": int((~dead & (tau >= 5) & (tau < 12)).sum()),
        "spread": float(tau.std()),
        "std": float(np.median(std)),
    }


def table(results: dict[str, Any]) -> str:
    names = ("all", LOCAL, *BUCKETS, "further", "none")
    lines = []
    for suffix, group in GROUPS.items():
        shown = {form: results[form + suffix] for form in FORMS if form + suffix in results}
        if not shown:
            continue
        lines += [f"**{group.title}**", ""]
        lines += [
            "| decay | dead heads (of them at n = 0) | tokens saturated | τ < 8 | τ 32 … 4,096 | spread of median log2 τ | std over tokens, median head |"
        ]
        lines += ["|---|---|---|---|---|---|---|"]
        for form, r in shown.items():
            s = summary(r)
            lines.append(
                f"| {FORMS[form].title} | {s['dead']} of {len(r['tau'][-1])} ({s['zero']}) | {s['saturated']:.0%} | {s['fast']} | {s['long']} "
                f"| {s['spread']:.2f} | {s['std']:.2f} |"
            )
        lines += ["", "| nats a token | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
        for form, r in shown.items():
            lines.append(f"| {FORMS[form].title} | " + " | ".join(f"{r['valid'][n][0]:.3f}" for n in names) + " |")
        counts = next(iter(shown.values()))["valid"]
        lines += ["| targets | " + " | ".join(f"{counts[n][1]:,}" for n in names) + " |", ""]
    return "\n".join(lines)


# The figure. Heads from short to long initial τ: dark to light, in steps of lightness that every eye tells apart.
_HEADS = ("#440154", "#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#8fc93a", "#d4b106")
_BARS = {"additive": "#d55e00", "frozen": "#e69f00", "narrow": "#56b4e9", "both": "#0072b2"}
_LOW, _HIGH = -4.0, 16.0  # log2 τ


_HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="DejaVu Sans, Helvetica, Arial, sans-serif" font-size="13" fill="#1b1f24">
<title>{name}</title>
<style>
  .t {{ font-weight: bold; font-size: 14px }}
  .h {{ font-weight: bold; font-size: 12.5px }}
  .s {{ font-size: 11px; fill: #424a53 }}
  .panel {{ fill: #fff; stroke: #8c959f }}
  .grid {{ fill: none; stroke: #d0d7de }}
  .axis {{ fill: none; stroke: #1b1f24 }}
  .line {{ fill: none; stroke-width: 1.6 }}
  .dead {{ fill: none; stroke: #8c959f; stroke-width: 1.4; stroke-dasharray: 4 3 }}
</style>
<rect width="{width}" height="{height}" fill="#fff"/>"""


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>'


def _panel(x: float, y: float, width: float, height: float, title: str, r: dict[str, Any]) -> list[str]:
    """Median log2 τ of every head over steps; from where a head is dead, a dashed grey line."""
    steps, s = r["steps"], summary(r)

    def px(step: float) -> float:
        return x + width * step / steps[-1]

    def py(log_tau: float) -> float:
        return y + height * (_HIGH - log_tau) / (_HIGH - _LOW)

    out = [f'<rect class="panel" x="{x}" y="{y}" width="{width}" height="{height}"/>', _text(x, y - 22, title, "h")]
    out.append(_text(x, y - 7, f"dead {s['dead']} of {len(r['tau'][0])} · saturated {s['saturated']:.0%}", "s"))
    out += [f'<path class="grid" d="M{x} {py(v):.1f}h{width}"/>' for v in (0, 5, 10, 15)]
    for head in range(len(r["tau"][0])):
        dead = [std[head] < DEAD for std in r["std"]]
        points = [f"{px(step):.1f} {py(tau[head]):.1f}" for step, tau in zip(steps, r["tau"], strict=True)]
        i = 0
        while i < len(points) - 1:  # stretches of living and of dead
            j = i + 1
            while j < len(points) - 1 and dead[j + 1] == dead[i + 1]:
                j += 1
            style = 'class="dead"' if dead[i + 1] else f'class="line" stroke="{_HEADS[head % len(_HEADS)]}"'
            out.append(f'<path {style} d="M{" ".join(points[i : j + 1])}"/>')
            i = j
    out += [
        _text(px(v), y + height + 15, f"{v:,}", "s", "middle")
        for v in (0, steps[-1] // 3, steps[-1] // 3 * 2, steps[-1])
    ]
    return out


def figure(results: dict[str, Any]) -> str:
    """The SVG: a row of panels for every group, and below them the loss by bucket against the relative form."""
    width, height, left, gap = 190.0, 160.0, 62.0, 22.0
    out: list[str] = []
    y = 84.0
    groups = {s: g for s, g in GROUPS.items() if f"relative{s}" in results}
    for suffix, group in groups.items():
        out.append(_text(left, y, group.title, "t"))
        y += 50
        for i, (form, case) in enumerate(FORMS.items()):
            if form + suffix in results:
                out += _panel(left + i * (width + gap), y, width, height, case.title, results[form + suffix])
        for v in (0, 5, 10, 15):
            out.append(_text(left - 6, y + height * (_HIGH - v) / (_HIGH - _LOW) + 4, str(v), "s", "end"))
        middle = y + height / 2
        out.append(
            f'<text class="s" text-anchor="middle" transform="translate({left - 34} {middle}) rotate(-90)">median log2 τ</text>'
        )
        y += height + 58
    out.append(
        _text(
            left,
            y,
            "Validation loss against the relative form, nats a token (above 0: worse), by where the target last stood in its document",
            "t",
        )
    )
    y += 32
    names = ("all", LOCAL, *BUCKETS, "further", "none")
    full = 5 * width + 4 * gap
    gains = {
        suffix: {
            form: [results[form + suffix]["valid"][n][0] - results[f"relative{suffix}"]["valid"][n][0] for n in names]
            for form in _BARS
            if form + suffix in results
        }
        for suffix in groups
    }
    every = [v for g in gains.values() for values in g.values() for v in values]
    low, high = min([-0.01, *every]), max([0.01, *every])
    panel = 150.0
    for suffix, g in gains.items():

        def py(v: float, top: float = y) -> float:
            return top + 8 + (panel - 16) * (high - v) / (high - low)

        out.append(f'<rect class="panel" x="{left}" y="{y}" width="{full}" height="{panel}"/>')
        step = 0.1 if high - low > 0.3 else 0.05 if high - low > 0.12 else 0.02
        for k in range(math.ceil(low / step), math.floor(high / step) + 1):
            kind = "grid" if k else "axis"
            out.append(f'<path class="{kind}" d="M{left} {py(k * step):.1f}h{full}"/>')
            out.append(_text(left - 6, py(k * step) + 4, f"{k * step:+.2f}" if k else "0", "s", "end"))
        slot = full / len(names)
        for i, name in enumerate(names):
            for j, (form, values) in enumerate(g.items()):
                bar = slot * 0.18
                x = left + slot * i + slot * 0.14 + j * bar
                a, b = sorted((py(values[i]), py(0.0)))
                out.append(
                    f'<rect x="{x:.1f}" y="{a:.1f}" width="{bar - 2:.1f}" height="{max(b - a, 0.6):.1f}" fill="{_BARS[form]}"/>'
                )
            label = {"all": "all targets", LOCAL: "likely after 1 token", "none": "never before"}.get(
                name, f"{name} back"
            )
            out.append(_text(left + slot * (i + 0.5), y + panel + 15, label, "s", "middle"))
        out.append(_text(left, y - 6, groups[suffix].label, "s"))
        y += panel + 44
    for i, (form, colour) in enumerate(_BARS.items()):
        out.append(f'<rect x="{left + 215 * i}" y="{y - 4}" width="12" height="12" fill="{colour}"/>')
        out.append(_text(left + 215 * i + 18, y + 7, FORMS[form].title))
    tau = time_constants(8).tolist()
    legend = [_text(left, 46, "one line a head, 2 layers × 8; colour: its first τ in tokens", "s")]
    for i, colour in enumerate(_HEADS):
        x = left + 345 + 68 * i
        legend += [f'<path class="line" stroke="{colour}" d="M{x} 42h18"/>', _text(x + 22, 46, f"{tau[i]:.0f}", "s")]
    x = left + 345 + 68 * 8
    legend += [f'<path class="dead" d="M{x} 42h18"/>', _text(x + 22, 46, "dead", "s")]
    w, h = left + full + 20, y + 24
    name = "The stiff-memory trap: time constants of the heads over training, and what their loss costs"
    top = _text(
        left, 24, "Time constants of the heads while training (15: n stands at 32,767 / 32,768 and never forgets)", "t"
    )
    head = _HEAD.format(width=f"{w:.0f}", height=f"{h:.0f}", name=name)
    return "\n".join([head, top, *legend, *out, "</svg>", ""])


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", help="training text")
    p.add_argument("--valid", default=str(ROOT / "data/tinystories_valid.txt"))
    p.add_argument(
        "--results",
        type=Path,
        default=ROOT / "docs/stiff_memory.json",
        help="results, a run that is there is not run again",
    )
    p.add_argument("--svg", type=Path, default=ROOT / "docs/stiff_memory.svg", help="where the figure goes")
    p.add_argument("--only", default="", help="only runs whose name contains this")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--table", action="store_true", help="print results instead of running")
    p.add_argument("--figure", action="store_true", help="draw the figure instead of running")
    a = p.parse_args()

    def results() -> dict[str, Any]:
        return json.loads(a.results.read_text()) if a.results.exists() else {}

    if (a.table or a.figure) and not results():
        p.error(f"{a.results}: no results yet; --data TEXT trains")
    if a.table:
        print(table(results()))
        return 0
    if not a.figure:
        if not a.data:
            p.error("--data TEXT is needed to train")
        torch.set_num_threads(a.threads)
        tokenizer = Tokenizer.load(str(ROOT / "configs/tinystories-2048.bpe"))
        stream = token_stream(Path(a.data), tokenizer, ROOT / "runs/cache")
        items = [Document(ids) for ids in tokenizer.encode_batch(documents(read_text(a.valid)))]
        local = local_grammar(stream, tokenizer.vocab_size)
        for name, case in CASES.items():
            if a.only not in name or name in results():
                continue
            print(f"== {name}", file=sys.stderr)
            result = train(
                case,
                stream,
                tokenizer,
                lambda model: by_distance(model, items, tokenizer.eot, local),
                lambda line: print(line, file=sys.stderr, flush=True),
            )
            done = results() | {name: result}
            lines = ",\n".join(
                f"{json.dumps(k)}: {json.dumps(done[k], separators=(',', ':'))}" for k in CASES if k in done
            )
            write_atomically(a.results, f"{{\n{lines}\n}}\n".encode())
    write_atomically(a.svg, figure(results()).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
