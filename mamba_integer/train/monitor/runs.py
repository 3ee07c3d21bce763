"""Reads runs, live or finished, and keeps of them what a page can show.

`metrics.jsonl` is read incrementally: only whole new lines, and all again when the file was rewritten (a resumed run drops lines). Nothing in it is
trusted: a line, value or name of another type or size than training writes is passed over, and memory is bounded whatever the file's length. Scalars are
kept in buckets of equally many records, whose number is halved when there are too many; so are the frames of a list or matrix.
"""

from __future__ import annotations

import json
import math
import os
import stat
import threading
import time
from bisect import bisect_right
from pathlib import Path
from typing import Any

from mamba_integer.train import alerts

METRICS, CONFIG, SUMMARY = "metrics.jsonl", "config.json", "summary.json"
MAX_BUCKETS = 2000
MAX_FRAMES = 240
MAX_NAMES = 200
MAX_ELEMENTS = 8192  # of one frame
MAX_RUNS = 64
_MAX_LINE = 1 << 20
_MAX_NAME = 64
_MAX_TEXT = 4000
_MAX_STEP = 1 << 53
_CHUNK = 1 << 22


def _short(v: float) -> float | None:
    """As JSON may hold it and a page can use it: five digits, None for what is not finite."""
    return float(f"{v:.5g}") if math.isfinite(v) else None


class Track:
    """One scalar over a run, in at most MAX_BUCKETS buckets (step of the last record, mean, least, greatest)."""

    def __init__(self) -> None:
        self.at: list[int] = []  # sequence number of the last record in each bucket
        self.step: list[int] = []
        self.mean: list[float] = []
        self.low: list[float] = []
        self.high: list[float] = []
        self.per_bucket, self._filled = 1, 1
        self.not_finite: tuple[int, float] | None = None

    def add(self, at: int, step: int, v: float) -> bool:
        """True if older buckets changed."""
        if not math.isfinite(v):
            self.not_finite = self.not_finite or (step, v)
            return False
        if self._filled < self.per_bucket:
            n = self._filled
            self.at[-1], self.step[-1] = at, step
            self.mean[-1] = (self.mean[-1] * n + v) / (n + 1) if abs(v) < 1e300 else v
            self.low[-1], self.high[-1] = min(self.low[-1], v), max(self.high[-1], v)
            self._filled = n + 1
            return False
        for values, value in ((self.at, at), (self.step, step), (self.mean, v), (self.low, v), (self.high, v)):
            values.append(value)  # type: ignore[arg-type]
        self._filled = 1
        if len(self.step) <= MAX_BUCKETS or len(self.step) % 2:
            return False
        self.at, self.step = self.at[1::2], self.step[1::2]
        self.mean = [(a / 2 + b / 2) for a, b in zip(self.mean[::2], self.mean[1::2], strict=True)]
        self.low = [min(pair) for pair in zip(self.low[::2], self.low[1::2], strict=True)]
        self.high = [max(pair) for pair in zip(self.high[::2], self.high[1::2], strict=True)]
        self.per_bucket *= 2
        self._filled = self.per_bucket
        return True

    def since(self, at: int) -> dict[str, Any]:
        i = bisect_right(self.at, at)
        out: dict[str, Any] = {"from": i, "step": self.step[i:], "mean": list(map(_short, self.mean[i:]))}
        if self.per_bucket > 1:
            out |= {"low": list(map(_short, self.low[i:])), "high": list(map(_short, self.high[i:]))}
        return out


class Frames:
    """One list, matrix or text over a run, at most MAX_FRAMES of them, evenly thinned."""

    def __init__(self) -> None:
        self.at: list[int] = []
        self.step: list[int] = []
        self.data: list[Any] = []
        self._every, self._seen = 1, 0

    def add(self, at: int, step: int, data: Any) -> bool:
        """True if frames before the newest changed. The newest is always kept."""
        replace = self.data and (self._seen - 1) % self._every
        for values, value in ((self.at, at), (self.step, step), (self.data, data)):
            if replace:
                values.pop()
            values.append(value)
        self._seen += 1
        if len(self.data) <= MAX_FRAMES:
            return False
        self.at, self.step, self.data = self.at[::2], self.step[::2], self.data[::2]
        self._every *= 2
        return True

    def since(self, at: int) -> dict[str, Any]:
        i = bisect_right(self.at, at)
        return {"from": i, "step": self.step[i:], "data": self.data[i:]}


def _frame(value: list[Any]) -> list[Any] | None:
    """A list of numbers, or of lists of numbers, as a page may have it. None for anything else, and for what is too large."""
    nested = bool(value) and all(isinstance(row, list) for row in value)
    lists = value if nested else [value]
    if len(lists) > MAX_ELEMENTS or sum(map(len, lists)) > MAX_ELEMENTS:
        return None
    out = []
    for row in lists:
        if any(alerts.number(v) is None for v in row):
            return None
        out.append([_short(v) for v in alerts.numbers(row)])
    return out if nested else out[0]


class RunReader:
    """One run. `snapshot` reads what is new and gives it; it may be called from several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name or str(folder)
        self._lock = threading.Lock()
        self._generation = 0
        self._clear()

    def _clear(self) -> None:
        self._generation += 1
        self._offset, self._tail, self._inode, self._skipping = 0, b"", 0, False
        self._count = 0
        self._broken = 0  # lines passed over
        self.tracks: dict[str, Track] = {}
        self.frames: dict[str, Frames] = {}
        self.texts: dict[str, Frames] = {}
        self._inspected: dict[str, Any] = {}
        self.step = 0

    # ---- reading

    def _read(self) -> None:
        path = self.folder / METRICS
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                return
            with path.open("rb") as f:
                info = os.fstat(f.fileno())
                f.seek(max(0, self._offset - len(self._tail)))
                if self._offset and (
                    info.st_size < self._offset or info.st_ino != self._inode or f.read(len(self._tail)) != self._tail
                ):
                    self._clear()
                    f.seek(0)
                self._inode = info.st_ino
                while chunk := f.read(_CHUNK):
                    end = chunk.rfind(b"\n") + 1
                    if end:
                        self._take(chunk[:end])
                    elif len(chunk) > _MAX_LINE:
                        self._skipping, end = True, len(chunk)  # inside a line that is too long
                    else:
                        break  # the last line is still being written
                    self._offset += end
                    self._tail = chunk[max(0, end - 64) : end]
                    f.seek(self._offset)
        except OSError:
            return  # gone, or not there yet: what was read stays

    def _take(self, lines: bytes) -> None:
        for line in lines.splitlines():
            if self._skipping:
                self._skipping = False  # the end of a line that was too long
                self._broken += 1
                continue
            try:
                record = json.loads(line) if len(line) <= _MAX_LINE else None
            except (ValueError, RecursionError):
                record = None
            record = record if isinstance(record, dict) else {}
            step = record.get("step")
            if isinstance(step, int) and not isinstance(step, bool) and 0 <= step < _MAX_STEP:
                self._add(step, record)
            else:
                self._broken += 1

    def _add(self, step: int, record: dict[str, Any]) -> None:
        self._count += 1
        self.step = max(self.step, step)
        changed = False
        for name, value in record.items():
            known = len(self.tracks) + len(self.frames) + len(self.texts) < MAX_NAMES
            if name == "step" or len(name) > _MAX_NAME or not name.isprintable():
                continue
            if (v := alerts.number(value)) is not None:
                if known or name in self.tracks:
                    changed |= self.tracks.setdefault(name, Track()).add(self._count, step, v)
                    if name.startswith(("clip/", "dead/")):
                        self._inspected[name] = (step, v)
            elif isinstance(value, list) and (known or name in self.frames):
                if (frame := _frame(value)) is not None:
                    changed |= self.frames.setdefault(name, Frames()).add(self._count, step, frame)
                    self._inspected[name] = (step, frame)
            elif isinstance(value, str) and (known or name in self.texts):
                changed |= self.texts.setdefault(name, Frames()).add(self._count, step, value[:_MAX_TEXT])
        if changed:
            self._generation += 1

    def _json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        try:
            info = path.stat()
            if not stat.S_ISREG(info.st_mode) or info.st_size > _MAX_LINE:
                return {}
            value = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}

    # ---- judging

    def _last(self, name: str) -> float | None:
        track = self.tracks.get(name)
        return _short(track.mean[-1]) if track and track.mean else None

    def _state(self) -> tuple[str, float | None]:
        """("running" | "finished" | "stopped" | "waiting" | "gone", seconds since the last line)."""
        try:
            age = max(0.0, time.time() - (self.folder / METRICS).stat().st_mtime)
        except OSError:
            return ("waiting" if self.folder.is_dir() and not self._count else "gone"), None
        if self._json(SUMMARY).get("complete") is True:
            return "finished", age
        patience = 120.0  # seconds: a look at the validation text or a checkpoint may take a while
        train, steps, speed = self._json(CONFIG).get("train"), self._steps(), self._last("tokens_per_second")
        if isinstance(train, dict) and steps and speed and speed > 0:
            tokens, per_line = alerts.number(train.get("tokens")), alerts.number(train.get("log_every"))
            patience = max(patience, 6 * (per_line or 0.0) * (tokens or 0.0) / steps / speed)
        return ("running" if age < patience else "stopped"), age

    def _shape(self) -> dict[str, int]:
        model = self._json(CONFIG).get("model")
        names = ("d_model", "n_layers", "n_heads", "head_dim", "d_state", "vocab_size", "context_length")
        values = model if isinstance(model, dict) else {}
        return {n: values[n] for n in names if type(values.get(n)) is int and 0 <= values[n] < 1 << 32}

    def _steps(self) -> int | None:
        steps = self._json(CONFIG).get("steps")
        return steps if type(steps) is int and 0 < steps < _MAX_STEP else None

    def _alerts(self, state: str, age: float | None) -> list[alerts.Alert]:
        records: list[dict[str, Any]] = []
        for name in ("loss", "valid_loss", "grad_norm"):
            if (track := self.tracks.get(name)) is not None:
                records += [{"step": s, name: v} for s, v in zip(track.step, track.high, strict=True)]
                if track.not_finite:
                    records.append({"step": track.not_finite[0], name: track.not_finite[1]})
        records += [{"step": step, name: value} for name, (step, value) in self._inspected.items()]
        # an inspection's figures belong to one record: the alerts look for names in the newest one
        latest = {name: value for name, (_, value) in self._inspected.items()}
        step = max((s for s, _ in self._inspected.values()), default=0)
        found = alerts.find([*records, {"step": step, **latest}])
        if state == "stopped" and age is not None:
            found.append(
                alerts.Alert(
                    "stopped",
                    self.step,
                    "",
                    f"nothing was written for {age / 60:.0f} min and the run is not complete",
                    "see whether the process lives; the same command resumes the run from its last checkpoint",
                )
            )
        return found

    # ---- giving

    def overview(self) -> dict[str, Any]:
        """What one line of a list of runs, and `monitor --json`, say."""
        with self._lock:
            self._read()
            return self._overview()

    def _overview(self) -> dict[str, Any]:
        state, age = self._state()
        config = self._json(CONFIG).get("train")
        arithmetic = config.get("arithmetic") if isinstance(config, dict) else None
        return {
            "name": self.name,
            "state": state,
            "seconds_since_last_line": None if age is None else round(age, 1),
            "arithmetic": arithmetic if arithmetic in ("integer", "float") else None,
            "model": self._shape(),
            "step": self.step,
            "steps": self._steps(),
            "lines": self._count,
            "broken_lines": self._broken,
            **{n: self._last(n) for n in ("loss", "valid_loss", "lr", "grad_norm", "tokens_per_second")},
            "seconds_left": self._last("seconds_left") if state == "running" else None,
            "alerts": [vars(a) for a in self._alerts(state, age)],
        }

    def snapshot(self, cursor: str = "", only: tuple[str, ...] = ()) -> dict[str, Any]:
        """All that is new since `cursor` (an earlier snapshot's, "" for all). `only`: names of scalars to give, all and everything else if empty."""
        with self._lock:
            self._read()
            generation, _, count = cursor.partition(":")
            fresh = generation != str(self._generation) or not count.isascii() or not count.isdigit()
            at = 0 if fresh or len(count) > 15 else int(count)
            series = {n: t.since(at) for n, t in self.tracks.items() if not only or n in only}
            out: dict[str, Any] = {
                "cursor": f"{self._generation}:{self._count}",
                "fresh": fresh,
                "run": self._overview(),
                "series": {n: s for n, s in series.items() if s["step"]},
            }
            for key, group in (("frames", self.frames), ("texts", self.texts)):
                parts = {} if only else {n: f.since(at) for n, f in group.items()}
                out[key] = {n: p for n, p in parts.items() if p["step"]}
            return out


def _is_run(folder: Path) -> bool:
    return (folder / METRICS).is_file() or (folder / CONFIG).is_file()


class Runs:
    """The run in a folder, or the runs in its subfolders. Runs that appear later are found; one that is deleted stays, as gone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._lock = threading.Lock()
        self._known: dict[str, RunReader] = {}

    def all(self) -> dict[str, RunReader]:
        with self._lock:
            try:
                inside = [self.folder] if _is_run(self.folder) else sorted(self.folder.iterdir())
            except OSError:
                inside = []
            for folder in inside:
                if folder.name not in self._known and len(self._known) < MAX_RUNS and _is_run(folder):
                    self._known[folder.name] = RunReader(folder)
            return dict(self._known)
