"""A generation with the state's inside: how long each head remembers, what saturates, how far norms shift, and which tokens were candidates.

Everything is read from the engine's trace (engine/include/mamba_integer.h), which is exact; half-lives and probabilities are computed from it in double
precision. One HTML file with drawings shows it; nothing but NumPy is needed.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt

from mamba_integer.engine import Model, log_softmax
from mamba_integer.errors import ArgumentError
from mamba_integer.model_file import read_model
from mamba_integer.sampling import Sampling

Floats = npt.NDArray[np.float64]

# Site → the magnitude at which its values saturate (ARITHMETIC §8).
LIMITS = {
    "norm1": 127,
    "in_proj": 32767,
    "conv": 32767,
    "x": 127,
    "B": 31,
    "C": 31,
    "y": 32767,
    "gate": 16383,
    "gated": 131071,
    "norm2": 127,
    "out_proj": 32767,
    "resid": 131071,
}


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found. T tokens were fed, the prompt's first; L layers, H heads.

    half_life [T, L, H]: tokens until half of a state is replaced at the share that this token chose, ln 2 / −ln(1 − m/2^k).
    norm_shift [T, L, 2]: j of norm1 and norm2 (ARITHMETIC §4): their inputs were divided by 2^j. final_shift [T]: that of norm_f.
    saturated: (layer, site) → (values at their limit, all values); "m" counts shares at 1 or at their maximum.
    candidates: for each generated token the likeliest ones before it, (token, probability at temperature 1), the likeliest first.
    """

    model: Model
    prompt_tokens: list[int]
    tokens: list[int]
    texts: list[str]  # of each token fed
    half_life: Floats
    norm_shift: npt.NDArray[np.int64]
    final_shift: npt.NDArray[np.int64]
    saturated: dict[tuple[int, str], tuple[int, int]]
    candidates: list[list[tuple[int, float]]]

    @property
    def text(self) -> str:
        end = self.model.tokenizer.eot
        return self.model.tokenizer.decode([t for t in self.tokens if t != end])

    def heads(self) -> list[dict[str, Any]]:
        """Per layer and head: median, 10th and 90th percentile of the half-life, and how much it depends on the text (standard deviation of its log2)."""
        low, median, high = np.percentile(self.half_life, [10, 50, 90], axis=0)
        spread = np.log2(self.half_life).std(axis=0)
        layers, heads = median.shape
        return [
            {
                "layer": layer,
                "head": head,
                "half_life": round(float(median[layer, head]), 2),
                "half_life_p10": round(float(low[layer, head]), 2),
                "half_life_p90": round(float(high[layer, head]), 2),
                "spread_octaves": round(float(spread[layer, head]), 3),
            }
            for layer in range(layers)
            for head in range(heads)
        ]

    def norms(self) -> list[dict[str, Any]]:
        return [
            {
                "layer": layer,
                "norm": f"norm{which + 1}",
                "shift_mean": round(float(self.norm_shift[:, layer, which].mean()), 2),
                "shift_min": int(self.norm_shift[:, layer, which].min()),
                "shift_max": int(self.norm_shift[:, layer, which].max()),
            }
            for layer in range(self.norm_shift.shape[1])
            for which in (0, 1)
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "model_digest": self.model.digest,
            "prompt_tokens": self.prompt_tokens,
            "tokens": self.tokens,
            "text": self.text,
            "heads": self.heads(),
            "norms": self.norms(),
            "saturation": [
                {"layer": layer, "site": site, "saturated": count, "values": values}
                for (layer, site), (count, values) in sorted(self.saturated.items())
            ],
            "candidates": [
                [{"token": t, "text": self.model.tokenizer.decode([t]), "probability": round(p, 6)} for t, p in step]
                for step in self.candidates
            ],
        }


def inspect(
    model: Model,
    prompt: str,
    *,
    max_tokens: int = 40,
    temperature: str | float | Decimal = 0.8,
    top_k: int = 40,
    top_p: str | float | Decimal = 1,
    seed: int = 0,
    candidates: int = 5,
) -> Inspection:
    """Generates as `Model.generate` does, with the trace on. The model must have been loaded from a file: its scan constants are read from there.

    Raises ArgumentError for an empty prompt, a parameter outside its range, or a model without a file.
    """
    if model.path is None:
        raise ArgumentError("inspect needs a model that was loaded from a file")
    if max_tokens < 1 or candidates < 1:
        raise ArgumentError("max_tokens and candidates must be at least 1")
    if not prompt:
        raise ArgumentError("the prompt is empty")
    sampling = Sampling.parse(temperature, top_k, top_p, seed)
    weights = read_model(model.path)
    layers, heads = model.config.n_layers, model.config.n_heads
    k = np.stack([weights.tensors[f"blk.{i}.scan.k"] for i in range(layers)]).astype(np.int64)  # [L, H]
    most = np.full_like(k, 255) if model.config.scan == "convex" else (1 << k) - 1

    half_life: list[Floats] = []
    shifts: list[npt.NDArray[np.int64]] = []
    final: list[int] = []
    saturated: dict[tuple[int, str], tuple[int, int]] = {}

    def count(layer: int, site: str, at_limit: npt.NDArray[np.bool_]) -> None:
        before = saturated.get((layer, site), (0, 0))
        saturated[layer, site] = before[0] + int(at_limit.sum()), before[1] + at_limit.size

    def see(position: int, site: str, values: npt.NDArray[np.int32]) -> None:
        if site == "embed":
            half_life.append(np.zeros((layers, heads)))
            shifts.append(np.zeros((layers, 2), np.int64))
        if site == "norm_f.j":
            final.append(int(values[0]))
        if not site.startswith("blk."):
            return
        layer, name = int(site.split(".")[1]), site.split(".", 2)[2]
        if name == "m":
            half_life[-1][layer] = math.log(2) / -np.log1p(-values / (1 << k[layer]))
            count(layer, name, (values == 1) | (values == most[layer]))
        elif name in ("norm1.j", "norm2.j"):
            shifts[-1][layer, int(name[4]) - 1] = values[0]
        elif name in LIMITS:
            count(layer, name, np.abs(values) >= LIMITS[name])

    session = model.session()
    prompt_tokens, tokens, steps = model.encode(prompt), [], []
    fed = prompt_tokens
    for step in range(max_tokens):
        logits = session.feed_traced(fed, see)[-1]
        probabilities = np.exp(log_softmax(logits, model.config))
        best = np.argsort(-probabilities, kind="stable")[:candidates]
        steps.append([(int(t), float(probabilities[t])) for t in best])
        token = session.sample(sampling, step)
        tokens.append(token)
        fed = [token]
        if token == model.tokenizer.eot:
            break
    texts = [model.tokenizer.decode([t]) for t in [*prompt_tokens, *tokens[:-1]]]
    return Inspection(
        model, prompt_tokens, tokens, texts, np.stack(half_life), np.stack(shifts), np.array(final), saturated, steps
    )


# ---- the page ------------------------------------------------------------------------------------------------------------------------------------

_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #1b1f24; background: #fff }
h1 { font-size: 1.35rem } h2 { font-size: 1.05rem; margin: 2rem 0 .3rem } p { margin: .3rem 0; max-width: 60rem }
table { border-collapse: collapse; font-size: 13px } td, th { padding: 2px 9px; text-align: right; border-bottom: 1px solid #e3e6ea } th { font-weight: 600 }
svg { display: block; margin: .4rem 0; font: 11px system-ui, sans-serif; max-width: 100%; height: auto }
.text span { border-bottom: 3px solid; white-space: pre-wrap } .prompt { color: #6a737d } .note { color: #57606a }
"""


def _color(share: float) -> str:
    """0 … 1 from pale yellow by green to dark blue, readable without colour vision because it only gets darker."""
    stops = [(253, 231, 150), (122, 201, 130), (33, 145, 140), (59, 82, 139), (48, 18, 84)]
    at = min(max(share, 0.0), 1.0) * (len(stops) - 1)
    i = min(int(at), len(stops) - 2)
    return "#" + "".join(f"{round(a + (b - a) * (at - i)):02x}" for a, b in zip(stops[i], stops[i + 1], strict=True))


def _shown(text: str) -> str:
    return html.escape("".join(c if c.isprintable() else "⏎" if c == "\n" else "·" for c in text) or "·")


def _count(half_life: float) -> str:
    return f"{half_life:.3g}" if half_life < 100 else f"{half_life:,.0f}"


def _ticks(low: float, high: float) -> list[float]:
    return [10.0**e for e in range(math.ceil(low), math.floor(high) + 1)]


def page(found: Inspection) -> str:
    """One HTML page that needs nothing else: drawings, tables, and the text with its candidates."""
    heads = found.heads()
    low = math.log10(min(h["half_life_p10"] for h in heads)) - 0.1
    high = math.log10(max(h["half_life_p90"] for h in heads)) + 0.1
    parts = [
        "<!doctype html>",
        f"<html lang='en'><meta charset='utf-8'><title>inspect {_shown(found.model.name)}</title><style>{_STYLE}</style>",
        f"<h1>{_shown(found.model.name)}: {len(found.prompt_tokens)} tokens of prompt, {len(found.tokens)} chosen</h1>",
        f"<p class='note'>model {found.model.digest}</p>",
        "<h2>The text</h2><p>Hold the pointer over a token for the candidates that it was chosen from. The darker its line, the less likely it was.</p>",
        f"<p class='text'>{_text(found)}</p>",
        "<h2>How long each head remembers</h2>",
        (
            "<p>Half-life in tokens, on a logarithmic scale: the dot is the median over the text, the bar reaches from the 10th to the 90th percentile. "
            "A short bar is a head whose memory does not depend on what it reads.</p>"
        ),
        _heads_drawing(found, heads, low, high),
        "<h2>Memory along the text</h2>",
        (
            "<p>A row is a head, those of a layer from the shortest to the longest memory; a column is a token. Pale: what came before is forgotten at once; "
            "dark: kept.</p>"
        ),
        _memory_drawing(found, low, high),
        "<h2>Norm shifts</h2><p>The power of two by which a norm divides its input: how large the residual and the gated output are, layer by layer.</p>",
        _table(
            ("layer", "norm", "mean", "least", "most"),
            [(n["layer"], n["norm"], f"{n['shift_mean']:.2f}", n["shift_min"], n["shift_max"]) for n in found.norms()],
        ),
        "<h2>Saturation</h2><p>Values at the limit of their site, in percent; m: shares of the state at 1 or at their maximum.</p>",
        _saturation_table(found),
        "</html>",
    ]
    return "\n".join(parts)


def _table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    cells = "".join(f"<th>{h}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"


def _text(found: Inspection) -> str:
    prompt = "".join(found.texts[1 : len(found.prompt_tokens)])
    out = [f"<span class='prompt' style='border-color:#fff'>{_shown(prompt)}</span>"]
    decode = found.model.tokenizer.decode
    for token, step in zip(found.tokens, found.candidates, strict=True):
        chosen = dict(step).get(token)
        surprise = 1.0 if chosen is None else min(-math.log2(max(chosen, 1e-9)) / 8, 1)
        said = "\n".join(f"{p:6.1%}  {_shown(decode([t]))}{'  ←' if t == token else ''}" for t, p in step)
        out.append(f"<span style='border-color:{_color(surprise)}' title='{said}'>{_shown(decode([token]))}</span>")
    return "".join(out)


def _heads_drawing(found: Inspection, heads: list[dict[str, Any]], low: float, high: float) -> str:
    row, left, width, gap = 13, 64, 760, 12
    layers = found.half_life.shape[1]
    height = 24 + len(heads) * row + layers * gap

    def x(half_life: float) -> float:
        return left + width * (math.log10(max(half_life, 1e-9)) - low) / (high - low)

    lines = [f"<svg viewBox='0 0 {left + width + 70} {height + 18}' width='{left + width + 70}' role='img'>"]
    for tick in _ticks(low, high):
        lines.append(f"<line x1='{x(tick):.1f}' x2='{x(tick):.1f}' y1='14' y2='{height}' stroke='#e3e6ea'/>")
        lines.append(
            f"<text x='{x(tick):.1f}' y='{height + 12}' text-anchor='middle' fill='#57606a'>{_count(tick)}</text>"
        )
    y = 20.0
    for layer in range(layers):
        y += gap
        lines.append(f"<text x='4' y='{y + 4:.1f}' font-weight='600'>layer {layer}</text>")
        for h in sorted((h for h in heads if h["layer"] == layer), key=lambda h: float(h["half_life"])):
            begin, middle, end = (h[key] for key in ("half_life_p10", "half_life", "half_life_p90"))
            shade = _color((math.log10(middle) - low) / (high - low))
            lines.append(
                f"<g><title>layer {layer}, head {h['head']}: {middle:g} tokens ({begin:g} … {end:g})</title>"
                f"<line x1='{x(begin):.1f}' x2='{x(end):.1f}' y1='{y:.1f}' y2='{y:.1f}' stroke='{shade}' stroke-width='5' "
                f"stroke-linecap='round'/><circle cx='{x(middle):.1f}' cy='{y:.1f}' r='3.6' fill='#1b1f24'/>"
                f"<text x='{x(end) + 8:.1f}' y='{y + 4:.1f}' fill='#57606a'>{_count(middle)}</text></g>"
            )
            y += row
    return "".join([*lines, "</svg>"])


def _memory_drawing(found: Inspection, low: float, high: float) -> str:
    steps, layers, heads = found.half_life.shape
    cell, tall, left, gap, top = max(6, min(16, 1000 // steps)), 9, 64, 8, 76
    height = top + layers * (heads * tall + gap)
    lines = [f"<svg viewBox='0 0 {left + steps * cell + 8} {height}' width='{left + steps * cell + 8}' role='img'>"]
    for t, text in enumerate(found.texts):
        at = left + t * cell + cell / 2 + 3
        lines.append(
            f"<text transform='translate({at:.1f},{top - 6}) rotate(-60)' font-size='10'>{_shown(text)[:12]}</text>"
        )
    for layer in range(layers):
        y0 = top + layer * (heads * tall + gap)
        lines.append(f"<text x='4' y='{y0 + 12}' font-weight='600'>layer {layer}</text>")
        order = np.argsort(np.median(found.half_life[:, layer], axis=0), kind="stable")
        for i, head in enumerate(order):
            for t in range(steps):
                share = (math.log10(found.half_life[t, layer, head]) - low) / (high - low)
                lines.append(
                    f"<rect x='{left + t * cell}' y='{y0 + i * tall}' width='{cell}' height='{tall}' fill='{_color(share)}'/>"
                )
    return "".join([*lines, "</svg>"])


def _saturation_table(found: Inspection) -> str:
    sites = [*LIMITS, "m"]
    rows = []
    for layer in range(found.half_life.shape[1]):
        shares = [100 * found.saturated[layer, s][0] / found.saturated[layer, s][1] for s in sites]
        rows.append([layer, *(f"{share:.2f}" if share else "0" for share in shares)])
    return _table(["layer", *sites], rows)
