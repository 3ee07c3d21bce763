"""What is wrong with a run, and what to do about it: pure functions of its metrics.

A history is the list of records of `metrics.jsonl` in order, each a dict with "step". Records come from a file that anyone may have written, so values of
unexpected types are passed over. Needs the standard library only: `train` and `monitor` both ask here.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, Any]
History = Sequence[Record]

# Thresholds. Chosen by reason and by a few small runs (2 layers, some hundred steps); not yet checked on long ones.
DEAD_SPREAD = 0.02
"""Standard deviation over tokens of log2 τ, in octaves, below which a head's decay is constant. Heads of small runs that went well had more than 0.3."""
SATURATED_HEAD = 0.5
"""Share of tokens at one limit of the state multiplier above which a head is stuck: it has one bit of choice left and, there, no gradient."""
COLLAPSED_SPECTRUM = 1.0
"""Standard deviation over a layer's heads of median log2 τ, in octaves. Heads start at 2 to 1,000 tokens, a spread of 2.7 octaves or more."""
SATURATED_SITE = 0.05
"""Share of values at a quantiser's limit, from where gradients only lead back. The products that norm2 sees are heavy-tailed, with 0.03 at their
limit from the first step on; this is above that."""
DEAD_CHANNELS = 0.1
"""Share of channels that never change over an inspected batch; their weights are wasted, and straight-through gradients rarely revive them."""
SPIKE_DEVIATIONS = 6.0
SPIKE_NATS = 0.3
"""A loss is a spike above the median of the WINDOW before by SPIKE_DEVIATIONS robust deviations and SPIKE_NATS: noise of healthy runs stays below both."""
WINDOW = 20
"""Lines of losses that judge the next one."""
PROGRESS = 0.002
PROGRESS_LINES = 60
"""The loss must fall by this share from the middle third of a run of at least so many lines to its last third."""


@dataclass(frozen=True)
class Alert:
    """One thing that is wrong. `step`: where it was seen first (events) or last (states); `where`: layer, head or site, or "" for the run."""

    kind: str
    step: int
    where: str
    message: str
    remedy: str
    critical: bool = False

    @property
    def key(self) -> tuple[str, str, bool]:
        """What two alerts of the same trouble share, though heads or layers come and go."""
        return self.kind, self.where.split(",")[0], self.critical

    def __str__(self) -> str:
        where = f" in {self.where}" if self.where else ""
        return f"ALERT {self.kind}{where} at step {self.step:,}: {self.message}. Remedy: {self.remedy}"


def find(history: History) -> list[Alert]:
    """All alerts of a history, the gravest first. States (heads, quantisers, …) are those of the last inspection; events (spikes) are all."""
    alerts = [alert for look in _LOOKS for alert in look(history)]
    return sorted(alerts, key=lambda a: not a.critical)


class Watch:
    """Follows a run as it goes: `see` gives the alerts that a new record brings, each kind and place once until it has passed."""

    def __init__(self, history: History = ()) -> None:
        self._history = list(history)[-_KEPT:]
        self._known = {a.key for a in find(self._history)}

    def see(self, record: Record) -> list[Alert]:
        self._history = [*self._history[1 - _KEPT :], record]
        found = find(self._history)
        new = [a for a in found if a.key not in self._known]
        self._known = {a.key for a in found}
        return new


_KEPT = 240  # records that Watch looks at


# ---- reading ---------------------------------------------------------------------------------------------------------------------------------------


def number(value: object) -> float | None:
    """A metric as float, or None if it is no number. Non-finite numbers are written as the strings "NaN", "Infinity" and "-Infinity"."""
    if isinstance(value, str) and value in ("NaN", "Infinity", "-Infinity"):
        return float(value.replace("Infinity", "inf"))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def numbers(value: object) -> list[float]:
    """A list of metrics as floats; what is no number is nan. A single number is a list of one."""
    items = value if isinstance(value, list) else [value]
    return [math.nan if (v := number(item)) is None else v for item in items]


def rows(value: object) -> list[list[float]]:
    return [numbers(row) for row in value if isinstance(row, list)] if isinstance(value, list) else []


def _step(record: Record) -> int:
    step = record.get("step")
    return step if isinstance(step, int) else 0


def series(history: History, name: str) -> list[tuple[int, float]]:
    """(step, value) of the records that have a number of this name."""
    return [(_step(r), v) for r in history if (v := number(r.get(name))) is not None]


def _latest(history: History, name: str) -> tuple[int, Any]:
    for record in reversed(history):
        if name in record:
            return _step(record), record[name]
    return 0, None


def _list(indices: Sequence[int]) -> str:
    shown = ", ".join(map(str, indices[:8]))
    return shown + (f" and {len(indices) - 8} more" if len(indices) > 8 else "")


# ---- what may be wrong -------------------------------------------------------------------------------------------------------------------------------


def not_finite(history: History) -> Iterator[Alert]:
    for name in ("loss", "valid_loss", "grad_norm"):
        for step, value in series(history, name):
            if not math.isfinite(value):
                yield Alert(
                    "not finite", step, name, f"{name} is {value}",
                    "start again from the last checkpoint with a lower --lr (half), or more --warmup", critical=True,
                )  # fmt: skip
                break


def loss_spike(history: History) -> Iterator[Alert]:
    losses = [(step, v) for step, v in series(history, "loss") if math.isfinite(v)]
    last = None
    for i in range(WINDOW, len(losses)):
        before = [v for _, v in losses[i - WINDOW : i]]
        middle = statistics.median(before)
        deviation = 1.4826 * statistics.median(abs(v - middle) for v in before)
        step, value = losses[i]
        if value > middle + max(SPIKE_NATS, SPIKE_DEVIATIONS * deviation):
            if last is None or i - last > WINDOW:
                yield Alert(
                    "loss spike", step, "",
                    f"the loss jumped to {value:.3f} from {middle:.3f} (median of the {WINDOW} lines before)",
                    "if it does not come back within some hundred steps, resume from an earlier checkpoint with a lower --lr or --clip",
                )  # fmt: skip
            last = i


def no_progress(history: History) -> Iterator[Alert]:
    losses = [(step, v) for step, v in series(history, "loss") if math.isfinite(v)]
    if len(losses) < PROGRESS_LINES:
        return
    third = len(losses) // 3
    middle, end = (statistics.median(v for _, v in losses[i * third : (i + 1) * third]) for i in (1, 2))
    if end > middle * (1 - PROGRESS):
        yield Alert(
            "no progress", losses[-1][0], "",
            f"the loss is {end:.4f} (median of the last {third} lines) after {middle:.4f} before",
            "let the learning rate fall (shorter run or larger --decay), or change --lr by a factor of 2; if it never fell, check the data",
        )  # fmt: skip


def stiff_memory(history: History) -> Iterator[Alert]:
    """Heads whose decay no longer depends on the data: dead (constant) or stuck at a limit of the state multiplier."""
    step, spread = _latest(history, "tau_std")
    _, low = _latest(history, "m_low")
    _, high = _latest(history, "m_high")
    lows, highs = rows(low), rows(high)
    for layer, deviations in enumerate(rows(spread)):
        dead = [h for h, v in enumerate(deviations) if v < DEAD_SPREAD]
        if dead:
            yield Alert(
                "stiff memory", step, f"layer {layer}, heads {_list(dead)}",
                f"{len(dead)} of {len(deviations)} heads are dead: their decay is the same at every token (log2 τ spreads by less than {DEAD_SPREAD})",
                "lower --lr-decay-rates (0.3) and start again, or go on from a checkpoint in which the heads live", critical=2 * len(dead) >= len(deviations),
            )  # fmt: skip
        for name, shares in (("shortest", highs), ("longest", lows)):
            at = shares[layer] if layer < len(shares) else []
            stuck = [h for h, v in enumerate(at) if v > SATURATED_HEAD and h not in dead]
            if stuck:
                yield Alert(
                    "stiff memory", step, f"layer {layer}, heads {_list(stuck)} ({name})",
                    f"{len(stuck)} of {len(at)} heads keep the {name} memory that they can have at more than {SATURATED_HEAD:.0%} of tokens",
                    "lower --lr-decay-rates (0.3); a head that wants another time scale needs another shift k: more heads (n_heads) give a finer spectrum",
                )  # fmt: skip


def collapsed_spectrum(history: History) -> Iterator[Alert]:
    step, medians = _latest(history, "tau_median")
    for layer, values in enumerate(rows(medians)):
        finite = [v for v in values if math.isfinite(v)]
        if len(finite) >= 4 and (spread := statistics.pstdev(finite)) < COLLAPSED_SPECTRUM:
            yield Alert(
                "collapsed spectrum", step, f"layer {layer}",
                f"all heads remember about equally long: median log2 τ spreads by {spread:.2f} octaves over heads",
                "lower --lr-decay-rates (0.3) and start again: the heads begin with a spread of time scales and lost it",
            )  # fmt: skip


_SITE_REMEDIES = {
    "norm1": "its scale has grown too large: lower --lr, or more --weight-decay",
    "norm2": "its scale has grown too large: lower --lr, or more --weight-decay",
    "norm_f": "the final norm's scale has grown too large: lower --lr",
    "embedding": "few words have grown far beyond the others: more --weight-decay",
    "gate": "the gate's projection has grown too large: lower --lr, or more --weight-decay",
    "residual": "the residual stream has grown too large for 18 bits: lower --lr, or more --weight-decay",
}
_SITE_REMEDY = "its weights have grown too large for the fixed-point range: lower --lr, or more --weight-decay"


def saturation(history: History) -> Iterator[Alert]:
    for name in _names(history, "clip/"):
        site = name.removeprefix("clip/")
        step, value = _latest(history, name)
        shares = numbers(value)
        layers = [i for i, v in enumerate(shares) if v > SATURATED_SITE]
        if layers:
            where = f"{site}, layers {_list(layers)}" if isinstance(value, list) else site
            yield Alert(
                "saturating quantiser", step, where,
                f"{max(shares[i] for i in layers):.1%} of the values are at the limit of the quantiser, from where gradients only lead back",
                _SITE_REMEDIES.get(site, _SITE_REMEDY), critical=site == "residual",
            )  # fmt: skip


def dead_channels(history: History) -> Iterator[Alert]:
    for name in _names(history, "dead/"):
        step, value = _latest(history, name)
        shares = numbers(value)
        layers = [i for i, v in enumerate(shares) if v > DEAD_CHANNELS]
        if layers:
            yield Alert(
                "dead channels", step, f"{name.removeprefix('dead/')}, layers {_list(layers)}",
                f"{max(shares[i] for i in layers):.0%} of the channels never change",
                "lower --lr or lengthen --warmup and start again; a smaller model would do the same work",
            )  # fmt: skip


def _names(history: History, prefix: str) -> list[str]:
    """Names with this prefix in the last record that has any (an inspection writes them all at once)."""
    for record in reversed(history):
        names = [name for name in record if isinstance(name, str) and name.startswith(prefix)]
        if names:
            return names
    return []


_LOOKS: tuple[Callable[[History], Iterator[Alert]], ...] = (
    not_finite, loss_spike, no_progress, stiff_memory, collapsed_spectrum, saturation, dead_channels,
)  # fmt: skip
