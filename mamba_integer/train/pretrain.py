"""Pre-training on a text: every token of it is a target. The loop is `train/loop.py`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch

from mamba_integer.config import ModelConfig
from mamba_integer.errors import ArgumentError
from mamba_integer.nn import Teacher
from mamba_integer.tokenizer import Tokenizer, documents, read_text
from mamba_integer.train import loop
from mamba_integer.train.base import load_base
from mamba_integer.train.data import Document, StreamBatches, token_stream
from mamba_integer.train.parallel import World

ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(loop.LoopConfig):
    """What a run does: `loop.LoopConfig`, and the training text. teacher: trained models to learn from, by commas; "": none."""

    data: str
    teacher: str = ""
    teacher_share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.teacher_share <= 1:
            raise ArgumentError(f"--teacher-share must be above 0 and at most 1, not {self.teacher_share}")


OPTIONS = {
    "teacher": "run, checkpoint or model file with the same tokenizer, whose distribution becomes part of the targets (distillation); "
    "several, separated by commas: the mean of their distributions",
    "teacher_share": "share of the teachers' distribution in the targets",
}


def load_teacher(t: TrainConfig, tokenizer: Tokenizer, device: str | torch.device) -> tuple[Teacher, str]:
    """The teacher that a run asks for, and the digests of its weights. Raises MambaIntegerError for one that cannot be it."""
    models = []
    for path in t.teacher.split(","):
        base = load_base(Path(path), t.tokenizer)
        if base.config.vocab_size != tokenizer.vocab_size:
            raise ArgumentError(f"{path} has {base.config.vocab_size} tokens, the tokenizer {tokenizer.vocab_size}")
        models.append(base.model().to(device).requires_grad_(False))
    return Teacher(tuple(models), t.teacher_share), " ".join(map(loop.weights_digest, models))


def train(
    model_config: ModelConfig, t: TrainConfig, run: Path, report: loop.Report = print, world: World | None = None
) -> dict[str, Any]:
    """Trains, or goes on with, the run in directory `run`. Returns its summary (also written to run/summary.json when it is complete).

    Raises ArgumentError for bad input and CheckpointError for a damaged or foreign checkpoint.
    """
    world = world or World(device=t.device)
    if t.threads:
        torch.set_num_threads(t.threads)
    tokenizer = Tokenizer.load(t.tokenizer)
    if world.first:
        report("reading the text …")
    with world.in_turn():
        stream = token_stream(Path(t.data), tokenizer, run.parent / "cache")
    teacher, digest = load_teacher(t, tokenizer, world.device) if t.teacher else (None, "")
    task = loop.Task(
        kind={"verb": "train", "teacher": f"{t.teacher_share} {digest}"} if teacher else {"verb": "train"},
        tokenizer=tokenizer,
        batches=StreamBatches(stream, t.batch, model_config.context_length, t.seed),
        texts=[Document(ids) for ids in tokenizer.encode_batch(documents(read_text(t.valid)))],
        teacher=teacher,
    )
    return loop.go(model_config, t, task, run, world, report)


def main(argv: list[str] | None = None) -> int:
    """`mamba-integer train`. Raises MambaIntegerError for users' mistakes."""
    p = argparse.ArgumentParser(
        prog="mamba-integer train",
        description="Train the integer model (or its float baseline). Start the same command again to resume; with more --tokens, a finished run "
        "goes on, at the rates of a run of that length.",
        epilog="examples: mamba-integer train --run runs/mine --data stories.txt --tokens 11000000 --batch 4 --lr 3e-3; "
        "in two processes: torchrun --nproc-per-node 2 -m mamba_integer.train --run-dir runs/mine --data stories.txt",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    loop.add_run_option(p, "runs/tinystories")
    p.add_argument("--config", type=Path, default=ROOT / "configs/tinystories.json", help="model shape (JSON)")
    p.add_argument("--data", default=str(ROOT / "data/tinystories_sample.txt"), help="training text")
    p.add_argument("--valid", default=str(ROOT / "data/tinystories_valid.txt"), help="validation text")
    p.add_argument("--tokenizer", default=str(ROOT / "configs/tinystories-2048.bpe"), help="tokenizer file")
    p.add_argument("--json", action="store_true", help="print the summary as JSON; progress goes to standard error")
    loop.add_options(p, TrainConfig, skip=("data", "valid", "tokenizer"), **OPTIONS)
    a = vars(p.parse_args(argv))
    run, config, as_json = a.pop("run"), ModelConfig.load(a.pop("config")), a.pop("json")
    t = TrainConfig(**a)
    return loop.on_command_line(run, as_json, t.device, lambda world, report: train(config, t, run, report, world))


if __name__ == "__main__":
    sys.exit(main())
