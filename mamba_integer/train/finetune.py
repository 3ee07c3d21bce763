"""Instruction tuning: a trained model learns to answer requests (`train/instruct.py`); only answers are targets. The loop is `train/loop.py`."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import torch

from mamba_integer.errors import ArgumentError
from mamba_integer.tokenizer import documents, read_text
from mamba_integer.train import loop
from mamba_integer.train.base import load_base
from mamba_integer.train.data import Document
from mamba_integer.train.instruct import Examples, PackedBatches, read_pairs
from mamba_integer.train.parallel import World

ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig(loop.LoopConfig):
    """What a run does: `loop.LoopConfig`, and what it starts from and tunes on. tokenizer "": that of the base."""

    base: str
    data: str
    tokenizer: str = ""
    context: int = 512
    plain: float = 0.2
    wanted: float = 3.0
    instructions: str = ""
    instructions_share: float = 0.1
    tokens: int = 4_000_000
    batch: int = 4
    lr: float = 1e-3
    warmup: int = 50
    decay: float = 1.0


OPTIONS = {
    "context": "tokens a row; stories longer than this lose their end",
    "plain": "share of stories without a request, so that the model keeps telling stories unasked",
    "wanted": "weight of the words that a request names, where the story first uses them; other tokens of an answer weigh 1",
    "instructions": 'JSONL file of {"instruction", "input", "output"} objects to mix in',
    "instructions_share": "share of examples drawn from --instructions",
}


def finetune(t: FinetuneConfig, run: Path, report: loop.Report = print, world: World | None = None) -> dict[str, Any]:
    """Tunes, or goes on with, the run in directory `run`. Returns its summary (also written to run/summary.json when it is complete).

    The run keeps a copy of the tokenizer. Raises ArgumentError for bad input and CheckpointError for a damaged or foreign checkpoint.
    """
    world = world or World(device=t.device)
    if t.threads:
        torch.set_num_threads(t.threads)
    if t.context < 1:
        raise ArgumentError(f"--context must be at least 1, not {t.context}")
    if not 0 <= t.wanted < math.inf:
        raise ArgumentError(f"--wanted must be at least 0, not {t.wanted}")
    if run.resolve() == Path(t.base).resolve():
        raise ArgumentError("--run must be another directory than --from")
    base = load_base(Path(t.base), t.tokenizer)
    config = dataclasses.replace(base.config, context_length=t.context)
    if world.first:
        report("reading the text …")
    tokenizer = base.tokenizer
    if tokenizer.vocab_size != config.vocab_size:
        raise ArgumentError(f"the tokenizer has {tokenizer.vocab_size} tokens, the model {config.vocab_size}")
    pairs = read_pairs(t.instructions) if t.instructions else []
    examples = Examples(
        documents(read_text(t.data)), tokenizer, t.seed, t.plain, pairs, t.instructions_share if pairs else 0.0
    )
    valid = documents(read_text(t.valid))
    asked = Examples(valid, tokenizer, seed=0, words=examples.words)
    model = base.model()
    task = loop.Task(
        kind={"verb": "finetune", "from": loop.weights_digest(model)},
        tokenizer=tokenizer,
        batches=PackedBatches(examples.__getitem__, tokenizer.eot, t.batch, t.context, t.wanted),
        texts=[Document(ids) for ids in tokenizer.encode_batch(valid)],
        answers=[asked[i] for i in range(len(valid))],
        start=base.state,
    )
    own = run / "tokenizer.bpe"
    if world.first:
        run.mkdir(parents=True, exist_ok=True)
        tokenizer.save(own)
    t = dataclasses.replace(t, tokenizer=str(own), arithmetic=base.arithmetic)
    return loop.go(config, t, task, run, world, report)


def main(argv: list[str] | None = None) -> int:
    """`mamba-integer finetune`. Raises MambaIntegerError for users' mistakes."""
    p = argparse.ArgumentParser(
        prog="mamba-integer finetune",
        description="Tune a trained model to answer requests, which are made from stories. Start the same command again to resume.",
        epilog="example: mamba-integer finetune --from runs/mine --run runs/mine-instruct --data stories.txt; then mamba-integer export runs/mine-instruct",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument(
        "--from", dest="base", required=True, metavar="RUN", help="run, checkpoint or model file to start from"
    )
    loop.add_run_option(p, "runs/tinystories-instruct")
    p.add_argument("--data", default=str(ROOT / "data/tinystories_sample.txt"), help="stories to make requests of")
    p.add_argument("--valid", default=str(ROOT / "data/tinystories_valid.txt"), help="validation stories")
    p.add_argument("--tokenizer", default="", help="tokenizer file; none: that of --from")
    p.add_argument("--json", action="store_true", help="print the summary as JSON; progress goes to standard error")
    loop.add_options(p, FinetuneConfig, skip=("base", "data", "valid", "tokenizer", "arithmetic"), **OPTIONS)
    a = vars(p.parse_args(argv))
    run, as_json = a.pop("run"), a.pop("json")
    t = FinetuneConfig(**a)
    return loop.on_command_line(run, as_json, t.device, lambda world, report: finetune(t, run, report, world))


if __name__ == "__main__":
    sys.exit(main())
