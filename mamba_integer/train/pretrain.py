"""Pre-training: AdamW with a warm-up, a plateau and a linear decay (Hu et al. 2024, arXiv:2404.06395), crash-safe and exactly resumable.

A run is a directory: `config.json` (what was asked for), `checkpoint.safetensors` (the last good state), `metrics.jsonl` and TensorBoard events. Starting
the same command again resumes it. The order of the data is a function of seed and step, so an interrupted run sees what an uninterrupted one would have.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from mamba_integer.config import ModelConfig
from mamba_integer.errors import ArgumentError, CheckpointError
from mamba_integer.files import write_atomically
from mamba_integer.nn import FloatMamba, MambaInteger, build_model, loss, token_nats
from mamba_integer.tokenizer import Tokenizer, documents, read_text
from mamba_integer.train.checkpoint import load_checkpoint, restore, save_checkpoint
from mamba_integer.train.data import Batches, padded_documents, token_stream
from mamba_integer.train.metrics import Metrics, time_scales

CHECKPOINT = "checkpoint.safetensors"
ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What a run does. Times in seconds, lengths in tokens."""

    data: str
    valid: str
    tokenizer: str
    arithmetic: str = "integer"
    tokens: int = 10_000_000
    batch: int = 8
    lr: float = 4e-3
    warmup: int = 100  # steps
    decay: float = 0.4  # share of the run over which the learning rate falls to 0
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0
    valid_every: int = 500  # steps
    valid_documents: int = 48  # of the validation text while training; all of them at the end
    log_every: int = 20  # steps
    save_every: float = 120.0
    threads: int = 0  # 0: what PyTorch chooses
    device: str = "cpu"


OPTIONS = {
    "tokens": "tokens to train on, in all",
    "batch": "rows a step, each as long as the configuration's context",
    "lr": "learning rate of the plateau",
    "warmup": "steps until the plateau",
    "decay": "share of the run over which the learning rate falls to 0",
    "weight_decay": "of matrices; vectors have none",
    "clip": "largest norm of the gradient",
    "seed": "of initial weights and order of the data",
    "valid_every": "steps between looks at the validation text",
    "valid_documents": "documents of it while training; all of them at the end",
    "log_every": "steps between lines of metrics",
    "save_every": "seconds between checkpoints",
    "threads": "of PyTorch; 0: what it chooses",
}


def learning_rate(t: TrainConfig, step: int, steps: int) -> float:
    """Warm-up, plateau, linear decay to zero."""
    falling = (steps - step) / max(1.0, t.decay * steps)
    return t.lr * min(1.0, (step + 1) / t.warmup, falling)


def make_optimizer(model: torch.nn.Module, t: TrainConfig) -> torch.optim.AdamW:
    """AdamW; matrices decay, vectors (norm scales, biases, decay rates) do not."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": t.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=t.lr, betas=(0.9, 0.98), eps=1e-9, fused=True)


def loss_sum(model: MambaInteger | FloatMamba, tokens: Tensor, scored: Tensor) -> Tensor:
    """Sum of −ln p over the scored positions of whole documents. tokens [B, T + 1], scored bool [B, T]."""
    reset = torch.zeros_like(scored)
    reset[:, 0] = True
    return (token_nats(model, tokens[:, :-1], reset, tokens[:, 1:]) * scored).sum(dtype=torch.float64)


@torch.no_grad()
def validate(
    model: MambaInteger | FloatMamba, ids: list[list[int]], eot: int, device: str, budget: int = 4096
) -> float:
    """Nats per token over documents, each from a fresh state, its closing end-of-text token included: the fake-quantised loss."""
    total, count = 0.0, 0
    for tokens, scored in padded_documents(ids, eot, budget):
        total += float(loss_sum(model, torch.from_numpy(tokens).to(device), torch.from_numpy(scored).to(device)))
        count += int(scored.sum())
    return total / count


class Interrupt:
    """Remembers SIGINT and SIGTERM so that a run can finish its step and save."""

    def __init__(self) -> None:
        self.asked = False
        self._old = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def restore(self) -> None:
        for s, handler in self._old.items():
            signal.signal(s, handler)


def train(
    model_config: ModelConfig, t: TrainConfig, run: Path, report: Callable[[str], None] = print
) -> dict[str, Any]:
    """Trains, or goes on with, the run in directory `run`. Returns its summary (also written to run/summary.json when it is complete).

    Raises ArgumentError for bad input and CheckpointError for a damaged or foreign checkpoint.
    """
    if t.threads:
        torch.set_num_threads(t.threads)
    tokenizer = Tokenizer.load(t.tokenizer)
    if tokenizer.vocab_size != model_config.vocab_size:
        raise ArgumentError(f"the tokenizer has {tokenizer.vocab_size} tokens, the model {model_config.vocab_size}")
    report("reading the text …")
    stream = token_stream(Path(t.data), tokenizer, run.parent / "cache")
    batches = Batches(stream, t.batch, model_config.context_length, t.seed)
    valid_ids = tokenizer.encode_batch(documents(read_text(t.valid)))
    some = valid_ids[: t.valid_documents]
    steps = math.ceil(t.tokens / (t.batch * model_config.context_length))

    torch.manual_seed(t.seed)
    model = build_model(model_config, t.arithmetic).to(t.device)
    optimizer = make_optimizer(model, t)
    run.mkdir(parents=True, exist_ok=True)
    asked = {"model": dataclasses.asdict(model_config), "train": dataclasses.asdict(t)}
    step, seconds = 0, 0.0
    if (run / CHECKPOINT).exists():
        tensors, meta = load_checkpoint(run / CHECKPOINT)
        if meta["model"] != asked["model"] or meta["train"]["arithmetic"] != t.arithmetic:
            raise CheckpointError(f"{run} holds a run of another model; give another --run directory")
        restore(tensors, model, optimizer)
        step, seconds = meta["step"], meta["seconds"]
        report(f"resuming {run} at step {step:,} of {steps:,}")
    write_atomically(run / "config.json", json.dumps(asked, indent=2).encode())
    parameters = sum(p.numel() for p in model.parameters())
    report(
        f"{t.arithmetic} model, {parameters:,} parameters; {len(stream):,} tokens of text; {steps:,} steps of {t.batch} × {model_config.context_length}"
    )

    interrupt = Interrupt()
    started, saved = time.monotonic() - seconds, time.monotonic()

    def save() -> None:
        meta = {**asked, "step": step, "seconds": time.monotonic() - started}
        save_checkpoint(run / CHECKPOINT, model, optimizer, meta)

    with contextlib.closing(Metrics(run, step)) as metrics:
        window, window_start = 0.0, time.monotonic()
        while step < steps and not interrupt.asked:
            lr = learning_rate(t, step, steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            tokens = torch.from_numpy(batches[step]).to(t.device)
            reset = tokens[:, :-1] == tokenizer.eot
            reset[:, 0] = True
            weights = torch.full(reset.shape, 1.0 / reset.numel(), device=t.device)
            batch_loss = loss(model, tokens[:, :-1], reset, tokens[:, 1:], weights)
            batch_loss.backward()  # type: ignore[no-untyped-call]
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), t.clip)
            if not torch.isfinite(norm):
                raise CheckpointError(
                    f"the gradient at step {step} is not finite; lower --lr (the last checkpoint is in {run})"
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            window += float(batch_loss.detach())
            if step % t.log_every == 0 or step == steps:
                n = (step - 1) % t.log_every + 1
                now = time.monotonic()
                speed = n * t.batch * model_config.context_length / (now - window_start)
                left = (steps - step) * t.batch * model_config.context_length / speed
                metrics.log(step, loss=window / n, lr=lr, grad_norm=float(norm), tokens_per_second=speed)
                report(
                    f"step {step:,}/{steps:,}  loss {window / n:.4f}  lr {lr:.2e}  {speed:,.0f} tok/s  {left / 60:.0f} min left"
                )
                window, window_start = 0.0, now
            if step % t.valid_every == 0 and step < steps:
                loss_valid = validate(model, some, tokenizer.eot, t.device)
                metrics.log(step, valid_loss=loss_valid, **time_scales(model))
                report(f"step {step:,}  validation {loss_valid:.4f} nats/token on {len(some)} documents")
                window_start = time.monotonic()
            if time.monotonic() - saved > t.save_every:
                save()
                saved = time.monotonic()
        save()
        interrupt.restore()
        if step < steps:
            report(f"stopped at step {step:,}; the same command goes on from there")
            return {"complete": False, "step": step}
        nats = validate(model, valid_ids, tokenizer.eot, t.device)
        count = sum(len(ids) + 1 for ids in valid_ids)
        text_bytes = sum(len(tokenizer.decode_bytes(ids)) for ids in valid_ids)
        bpb = nats * count / text_bytes / math.log(2)
        metrics.log(step, valid_loss=nats, valid_bits_per_byte=bpb)
    summary = {
        "complete": True,
        "step": step,
        "tokens": step * t.batch * model_config.context_length,
        "parameters": parameters,
        "nats_per_token": nats,
        "perplexity": math.exp(nats),
        "bits_per_byte": bpb,
        "seconds": time.monotonic() - started,
    }
    write_atomically(run / "summary.json", json.dumps(summary, indent=2).encode())
    report(
        f"done: {nats:.4f} nats/token, {bpb:.4f} bits per byte (fake-quantised)"
        if t.arithmetic == "integer"
        else f"done: {nats:.4f} nats/token, {bpb:.4f} bits per byte"
    )
    return summary


def main(argv: list[str] | None = None) -> int:
    """`mamba-integer train`. Raises MambaIntegerError for users' mistakes."""
    p = argparse.ArgumentParser(
        prog="mamba-integer train",
        description="Train the integer model (or its float baseline). Start the same command again to resume.",
        epilog="example: mamba-integer train --run runs/mine --data stories.txt --tokens 11000000 --batch 4 --lr 3e-3",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--run", type=Path, default=Path("runs/tinystories"), help="directory of the run")
    p.add_argument("--config", type=Path, default=ROOT / "configs/tinystories.json", help="model shape (JSON)")
    p.add_argument("--data", default=str(ROOT / "data/tinystories_sample.txt"), help="training text")
    p.add_argument("--valid", default=str(ROOT / "data/tinystories_valid.txt"), help="validation text")
    p.add_argument("--tokenizer", default=str(ROOT / "configs/tinystories-2048.bpe"), help="tokenizer file")
    p.add_argument("--json", action="store_true", help="print the summary as JSON; progress goes to standard error")
    for f in dataclasses.fields(TrainConfig):
        if f.name in ("data", "valid", "tokenizer"):
            continue
        option = "--" + f.name.replace("_", "-")
        if f.name == "arithmetic":
            p.add_argument(
                option, choices=("integer", "float"), default=f.default, help="the integer model or the float baseline"
            )
        elif f.name == "device":
            p.add_argument(option, choices=("cpu", "cuda"), default=f.default, help="where to train")
        else:
            p.add_argument(option, type=type(f.default), default=f.default, help=OPTIONS[f.name])
    a = vars(p.parse_args(argv))
    run, config, as_json = a.pop("run"), a.pop("config"), a.pop("json")
    t = TrainConfig(**a)
    if t.device == "cuda" and not torch.cuda.is_available():
        raise ArgumentError("--device cuda: PyTorch finds no CUDA device here")
    summary = train(ModelConfig.load(config), t, run, lambda line: print(line, file=sys.stderr, flush=True))
    print(json.dumps(summary) if as_json else f"run {run}: " + ("complete" if summary["complete"] else "interrupted"))
    return 0 if summary["complete"] else 130


if __name__ == "__main__":
    sys.exit(main())
