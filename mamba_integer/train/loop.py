"""The loop that `train` and `finetune` share: AdamW with a warm-up, a plateau and a linear decay (Hu et al. 2024, arXiv:2404.06395).

A run is a directory: `config.json` (what was asked for), `checkpoint.safetensors` (the last good state), `metrics.jsonl` and TensorBoard events, and in
the end `summary.json`. Starting the same command again resumes it, with as many processes as one likes: the order of the data is a function of seed and
step, so an interrupted run sees what an uninterrupted one would have. This module knows nothing of where batches come from.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mamba_integer.config import ModelConfig
from mamba_integer.errors import ArgumentError, CheckpointError
from mamba_integer.files import write_atomically
from mamba_integer.nn import FloatMamba, MambaInteger, Teacher, build_model, loss
from mamba_integer.tokenizer import Tokenizer
from mamba_integer.train.checkpoint import CHECKPOINT, load_checkpoint, restore, save_checkpoint
from mamba_integer.train.data import Batch, Document, padded_documents
from mamba_integer.train.instruments import gradient_norms, inspect
from mamba_integer.train.metrics import Metrics, time_scales
from mamba_integer.train.parallel import Gradients, World

Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How a run trains. Times in seconds, lengths in tokens. Making an invalid one raises ArgumentError."""

    valid: str
    tokenizer: str
    arithmetic: str = "integer"
    tokens: int = 10_000_000
    batch: int = 8
    micro_batch: int = 0
    lr: float = 4e-3
    lr_decay_rates: float = 1.0
    lr_vectors: float = 1.0
    muon: float = 0.0
    warmup: int = 100  # steps
    int8_until: float = 0.0  # share of the run
    decay: float = 0.4  # share of the run over which the learning rate falls to 0
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0
    valid_every: int = 500  # steps
    valid_documents: int = 48  # of the validation text while training; all of them at the end
    log_every: int = 20  # steps
    inspect_every: int = 200  # steps; 0: never
    save_every: float = 120.0
    threads: int = 0  # 0: what PyTorch chooses
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least):
                raise ArgumentError(f"{_option(name)} must be at least {least}, not {value}")
        for name in ("lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ArgumentError(f"{_option(name)} must be above 0, not {getattr(self, name)}")
        if not 0 <= self.int8_until < 1:
            raise ArgumentError(f"--int8-until must be at least 0 and below 1, not {self.int8_until}")
        if not 0 <= self.decay <= 1:
            raise ArgumentError(f"--decay must be from 0 to 1, not {self.decay}")


_LEAST = {
    "tokens": 1, "batch": 1, "micro_batch": 0, "lr_decay_rates": 0, "lr_vectors": 0, "muon": 0, "warmup": 0, "weight_decay": 0, "seed": 0, "valid_every": 1,
    "valid_documents": 1, "log_every": 1, "inspect_every": 0, "save_every": 0, "threads": 0,
}  # fmt: skip

OPTIONS = {
    "arithmetic": "the integer model or the float baseline",
    "tokens": "tokens to train on, in all",
    "batch": "rows a step, over all processes",
    "micro_batch": "rows that a process computes at a time, to save memory; 0: all of its part of the batch",
    "lr": "learning rate of the plateau",
    "lr_decay_rates": "times that, for the decay rates of the heads (log_a and base)",
    "lr_vectors": "times that, for the other vectors (norm scales, biases, skips)",
    "muon": "learning rate of the plateau for in_proj and out_proj, by Muon in place of AdamW; 0: AdamW for them too",
    "warmup": "steps until the plateau",
    "int8_until": "share of the run in which weights that are to be ternary are still int8",
    "decay": "share of the run over which the learning rate falls to 0",
    "weight_decay": "of matrices; vectors have none",
    "clip": "largest norm of the gradient",
    "seed": "of initial weights and order of the data",
    "valid_every": "steps between looks at the validation text",
    "valid_documents": "documents of it while training; all of them at the end",
    "log_every": "steps between lines of metrics",
    "inspect_every": "steps between looks inside the model (saturation, memory, a sample story; for `monitor`); 0: never",
    "save_every": "seconds between checkpoints",
    "threads": "of PyTorch, in each process; 0: what it chooses",
    "device": "where to train",
}
_CHOICES = {"arithmetic": ("integer", "float"), "device": ("cpu", "cuda")}


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def add_run_option(p: argparse.ArgumentParser, default: str) -> None:
    # torchrun takes --run for a short form of its own --run-path, hence a second name
    p.add_argument("--run", "--run-dir", type=Path, default=Path(default), metavar="DIR", help="directory of the run")


def add_options(p: argparse.ArgumentParser, kind: type[LoopConfig], skip: tuple[str, ...], **texts: str) -> None:
    """An option for each field of a configuration but those in `skip`; `texts`: help for the fields that OPTIONS does not know."""
    for f in dataclasses.fields(kind):
        if f.name not in skip:
            default, text = f.default, {**OPTIONS, **texts}[f.name]
            if f.name in _CHOICES:
                p.add_argument(_option(f.name), choices=_CHOICES[f.name], default=default, help=text)
            else:
                p.add_argument(_option(f.name), type=type(default), default=default, help=text)


def on_command_line(run: Path, as_json: bool, device: str, work: Callable[[World, Report], dict[str, Any]]) -> int:
    """What the verbs do around a run: joins the processes, reports on standard error from the first one, prints the summary, gives the exit status."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ArgumentError("--device cuda: PyTorch finds no CUDA device here")
    with World.join(device) as world:
        summary = work(world, lambda line: print(line, file=sys.stderr, flush=True))
    if world.first:
        state = "complete" if summary["complete"] else "interrupted"
        print(json.dumps(summary) if as_json else f"run {run}: {state}")
    return 0 if summary["complete"] else 130


class Batches(Protocol):
    """Rows of `length` positions; `batches[step]` is a function of the step alone."""

    length: int

    def __getitem__(self, step: int) -> Batch: ...


@dataclasses.dataclass(frozen=True)
class Task:
    """What a run trains on.

    kind: what must be the same when it is resumed, beside the model. texts: validation documents, scored as a whole (`valid_loss`).
    answers: validation documents of which only the part after a prompt is scored (`valid_answer_loss`). start: parameters to begin with.
    teacher: a model, on the device of the run, whose distribution is part of the targets.
    """

    kind: dict[str, str]
    tokenizer: Tokenizer
    batches: Batches
    texts: list[Document]
    answers: list[Document] = dataclasses.field(default_factory=list)
    start: dict[str, Tensor] | None = None
    teacher: Teacher | None = None


def learning_rate(t: LoopConfig, step: int, steps: int) -> float:
    """Warm-up, plateau, linear decay to zero."""
    falling = (steps - step) / max(1.0, t.decay * steps)
    return t.lr * min(1.0, (step + 1) / max(1, t.warmup), falling)


class Optimizer:
    """Optimisers of disjoint parameters as one."""

    def __init__(self, first: torch.optim.Optimizer, *more: torch.optim.Optimizer) -> None:
        self._all = (first, *more)
        self.state = first.state
        for other in more:
            other.state = self.state
        self.param_groups = [group for one in self._all for group in one.param_groups]

    def step(self) -> None:
        for one in self._all:
            one.step()


def make_optimizer(model: nn.Module, t: LoopConfig) -> Optimizer:
    """AdamW, and if asked for Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) for the matrices of the layers.

    Matrices decay, vectors (norm scales, biases, decay rates) do not. `lr_scale` of a group multiplies the learning rate of every step. Muon's updates are
    made as large as AdamW's usually are (Liu et al. 2025, arXiv:2502.16982).
    """
    named = list(model.named_parameters())
    rates = [p for name, p in named if name.endswith((".log_a", ".base"))]
    matrices = [p for name, p in named if t.muon and name.endswith((".in_proj", ".out_proj"))]
    known = {id(p) for p in (*rates, *matrices)}
    rest = [p for _, p in named if id(p) not in known]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": t.weight_decay, "lr_scale": 1.0},
        {"params": rates, "weight_decay": 0.0, "lr_scale": t.lr_decay_rates},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0, "lr_scale": t.lr_vectors},
    ]
    adamw = torch.optim.AdamW(groups, lr=t.lr, betas=(0.9, 0.98), eps=1e-9, fused=True)
    if not matrices:
        return Optimizer(adamw)
    orthogonal = {"params": matrices, "weight_decay": t.weight_decay, "lr_scale": t.muon / t.lr}
    return Optimizer(adamw, torch.optim.Muon([orthogonal], lr=t.muon, adjust_lr_fn="match_rms_adamw"))


def loss_sum(
    model: MambaInteger | FloatMamba, tokens: Tensor, weights: Tensor, eot: int, teacher: Teacher | None = None
) -> Tensor:
    """Sum over positions of weight · −ln p(next token), float64. tokens int64 [B, T + 1], weights float32 [B, T]; each row starts from an empty state."""
    inputs = tokens[:, :-1]
    reset = inputs == eot
    reset[:, 0] = True
    return loss(model, inputs, reset, tokens[:, 1:], weights, teacher)


def on_device(tokens: npt.NDArray[np.int64], weights: npt.NDArray[np.float32], world: World) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(tokens).to(world.device), torch.from_numpy(weights).to(world.device)


@torch.no_grad()
def validate(
    model: MambaInteger | FloatMamba, items: list[Document], eot: int, world: World, budget: int = 4096
) -> float:
    """Nats per scored token of documents, each from a fresh state, its closing end-of-text token included: the fake-quantised loss.

    The processes share the documents and all return the same number.
    """
    total, count = 0.0, 0.0
    with world.guard():
        for i, (tokens, weights) in enumerate(padded_documents(items, eot, budget)):
            if i % world.size == world.rank:
                total += float(loss_sum(model, *on_device(tokens, weights, world), eot))
                count += float(weights.sum(dtype=np.float64))
    total, count = world.totals(total, count)
    return total / count


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Within, SIGINT and SIGTERM only make the function that it gives say True, so that a run can finish its step and save."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    old = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of all parameters, shortened: whether processes have the same."""
    whole = hashlib.sha256()
    for p in model.parameters():
        whole.update(p.detach().cpu().numpy().tobytes())
    return whole.hexdigest()[:16]


class Run:
    """A run under way: model, optimiser, step and what is written of them."""

    def __init__(
        self, config: ModelConfig, t: LoopConfig, task: Task, folder: Path, world: World, report: Report
    ) -> None:
        """Begins the run in `folder` or takes up the one that is there.

        Raises ArgumentError for bad input, CheckpointError for a damaged or foreign checkpoint, ParallelError if processes do not see the same run.
        """
        if t.batch % world.size:
            raise ArgumentError(f"--batch {t.batch} does not divide by {world.size} processes")
        if task.tokenizer.vocab_size != config.vocab_size:
            raise ArgumentError(f"the tokenizer has {task.tokenizer.vocab_size} tokens, the model {config.vocab_size}")
        self.t, self.task, self.folder, self.world, self.report = t, task, folder, world, report
        self.per_step = t.batch * task.batches.length
        self.steps = math.ceil(t.tokens / self.per_step)
        self.step, self.seconds = 0, 0.0
        torch.manual_seed(t.seed)
        self.model = build_model(config, t.arithmetic).to(world.device)
        self.optimizer = make_optimizer(self.model, t)
        self.asked = {"model": dataclasses.asdict(config), "train": dataclasses.asdict(t), "task": task.kind}
        if (folder / CHECKPOINT).exists():
            self._resume()
        elif task.start is not None:
            restore(task.start, self.model)
        world.agree(f"step {self.step} {weights_digest(self.model)}", "weights to begin with")
        self.gradients = Gradients(self.model.parameters())
        if world.first:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / "config.json", json.dumps({**self.asked, "steps": self.steps}, indent=2).encode())
            if self.step < self.steps:  # a finished run that is lengthened is not complete
                (folder / "summary.json").unlink(missing_ok=True)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        processes = f" in {world.size} processes" if world.size > 1 else ""
        self.report(
            f"{t.arithmetic} model, {self.parameters:,} parameters; {self.steps:,} steps of {t.batch} × {task.batches.length}{processes}"
        )

    def _resume(self) -> None:
        tensors, meta = load_checkpoint(self.folder / CHECKPOINT)
        before = meta["train"]
        same = {
            "model": meta["model"] == self.asked["model"] and before["arithmetic"] == self.t.arithmetic,
            "task": meta.get("task", {"verb": "train"}) == self.task.kind,
            "optimiser": (before.get("muon", 0.0) > 0) == (self.t.muon > 0),
        }
        for what, is_same in same.items():
            if not is_same:
                raise CheckpointError(f"{self.folder} holds a run of another {what}; give another --run directory")
        restore(tensors, self.model, self.optimizer)
        self.step, self.seconds = meta["step"], meta["seconds"]
        self.report(f"resuming {self.folder} at step {self.step:,} of {self.steps:,}")

    def go(self) -> dict[str, Any]:
        """Trains to the end, or until a signal to any process. Returns the summary (also in summary.json when the run is complete)."""
        t, world, model, optimizer = self.t, self.world, self.model, self.optimizer
        self._started = time.monotonic() - self.seconds
        saved = time.monotonic()
        with contextlib.ExitStack() as stack:
            interrupted = stack.enter_context(interruptible())
            metrics = (
                stack.enter_context(contextlib.closing(Metrics(self.folder, self.step, self.report)))
                if world.first
                else None
            )
            window, window_steps, window_start = 0.0, 0, time.monotonic()
            while self.step < self.steps and not world.any(interrupted()):
                lr = learning_rate(t, self.step, self.steps)
                for group in optimizer.param_groups:
                    group["lr"] = lr * group["lr_scale"]
                if isinstance(model, MambaInteger):
                    model.hold_at_int8(self.step < t.int8_until * self.steps)
                with world.guard():
                    self._backward()
                mean_loss = self.gradients.sum_over(world)
                norm = self.gradients.clip_(t.clip)
                if not math.isfinite(norm):
                    if metrics:
                        metrics.log(self.step, loss=mean_loss, grad_norm=norm)
                    raise CheckpointError(
                        f"the gradient at step {self.step} is not finite; lower --lr (the last checkpoint is in {self.folder})"
                    )
                # Here every p.grad is the clipped gradient of the whole batch, the same in every process.

                optimizer.step()
                self.step += 1
                # Here the step is done, and parameters and optimiser state are those of the next.

                window, window_steps = window + mean_loss, window_steps + 1
                last = self.step == self.steps
                if self.step % t.log_every == 0 or last:
                    now = time.monotonic()
                    speed = window_steps * self.per_step / (now - window_start)
                    mean, minutes = window / window_steps, (self.steps - self.step) * self.per_step / speed / 60
                    if metrics:
                        norms = gradient_norms(model.named_parameters(), max(1.0, norm / t.clip))
                        metrics.log(
                            self.step,
                            loss=mean,
                            lr=lr,
                            grad_norm=norm,
                            tokens_per_second=speed,
                            seconds_left=60 * minutes,
                            **norms,
                        )
                    self.report(
                        f"step {self.step:,}/{self.steps:,}  loss {mean:.4f}  lr {lr:.2e}  {speed:,.0f} tok/s  {minutes:.0f} min left"
                    )
                    window, window_steps, window_start = 0.0, 0, now
                if metrics and t.inspect_every and (self.step % t.inspect_every == 0 or last):
                    begun = time.monotonic()
                    rows = torch.from_numpy(self.task.batches[0][0][:2, :-1]).to(world.device)
                    metrics.log(self.step, **inspect(model, rows, self.task.tokenizer))
                    window_start += time.monotonic() - begun
                if self.step % t.valid_every == 0 and not last:
                    losses = self._validate(t.valid_documents)
                    if metrics:
                        metrics.log(self.step, **losses, **time_scales(model))
                    shown = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
                    self.report(f"step {self.step:,}  {shown} (nats per token)")
                    window_start = time.monotonic()
                if world.first and time.monotonic() - saved > t.save_every:
                    self._save()
                    saved = time.monotonic()
            world.agree(f"step {self.step} {weights_digest(model)}", "weights")
            if world.first:
                self._save()
            if isinstance(model, MambaInteger):
                model.hold_at_int8(False)
            if self.step < self.steps:
                self.report(f"stopped at step {self.step:,}; the same command goes on from there")
                return {"complete": False, "step": self.step}
            return self._finish(metrics)

    def _backward(self) -> None:
        """Adds this process's part of the batch's mean loss and of its gradient to `gradients`."""
        tokens, weights = self.task.batches[self.step]
        total = float(weights.sum(dtype=np.float64))
        part = len(tokens) // self.world.size
        begin, rows = self.world.rank * part, self.t.micro_batch or part
        self.gradients.clear()
        for at in range(begin, begin + part, rows):
            mine = slice(at, min(at + rows, begin + part))
            part_loss = loss_sum(
                self.model,
                *on_device(tokens[mine], weights[mine], self.world),
                self.task.tokenizer.eot,
                self.task.teacher,
            )
            part_loss = part_loss / max(total, 1.0)
            part_loss.backward()  # type: ignore[no-untyped-call]
            self.gradients.add_loss(part_loss)

    def _validate(self, most: int | None) -> dict[str, float]:
        sets = {"valid_loss": self.task.texts, "valid_answer_loss": self.task.answers}
        return {
            name: validate(self.model, items[:most], self.task.tokenizer.eot, self.world)
            for name, items in sets.items()
            if items
        }

    def _save(self) -> None:
        meta = {**self.asked, "step": self.step, "seconds": time.monotonic() - self._started}
        save_checkpoint(self.folder / CHECKPOINT, self.model, self.optimizer, meta)

    def _finish(self, metrics: Metrics | None) -> dict[str, Any]:
        losses = self._validate(None)
        nats = losses["valid_loss"]
        count = sum(len(item.tokens) + 1 for item in self.task.texts)
        text_bytes = sum(len(self.task.tokenizer.decode_bytes(item.tokens)) for item in self.task.texts)
        bpb = nats * count / text_bytes / math.log(2)
        summary = {
            "complete": True,
            "step": self.step,
            "tokens": self.step * self.per_step,
            "parameters": self.parameters,
            "nats_per_token": nats,
            "perplexity": math.exp(nats),
            "bits_per_byte": bpb,
            **({"answer_nats_per_token": losses["valid_answer_loss"]} if self.task.answers else {}),
            "seconds": time.monotonic() - self._started,
        }
        if metrics:
            metrics.log(self.step, **losses, valid_bits_per_byte=bpb)
            write_atomically(self.folder / "summary.json", json.dumps(summary, indent=2).encode())
        answers = f", answers {losses['valid_answer_loss']:.4f} nats/token" if self.task.answers else ""
        quantised = " (fake-quantised)" if self.t.arithmetic == "integer" else ""
        self.report(f"done: {nats:.4f} nats/token, {bpb:.4f} bits per byte{answers}{quantised}")
        return summary


def silent(line: str) -> None:
    """The report of processes other than the first."""


def go(config: ModelConfig, t: LoopConfig, task: Task, folder: Path, world: World, report: Report) -> dict[str, Any]:
    """Trains, or goes on with, the run in `folder`. Returns its summary; see Run for what it raises."""
    return Run(config, t, task, folder, world, report if world.first else silent).go()
