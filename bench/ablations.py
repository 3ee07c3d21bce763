"""Ablations: named groups of training runs of one small shape, differing in what their names say; resumable, and a table of what came out.

    python bench/ablations.py --data TEXT grid           # run what is missing of a group, one after the other
    python bench/ablations.py --table grid               # the results so far, as Markdown

The groups are written down here before they are run. Every run of a group sees the same tokens in the same order.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from mamba_integer.config import ModelConfig
from mamba_integer.train.pretrain import ROOT, TrainConfig, train

SHAPE = {
    "d_model": 128,
    "n_layers": 4,
    "n_heads": 8,
    "head_dim": 32,
    "d_state": 16,
    "vocab_size": 2048,
    "context_length": 256,
}
TOKENS = 5_000_000
Run = dict[
    str, Any
]  # fields of ModelConfig and TrainConfig that differ from the defaults; teachers are names of other runs


def grid() -> dict[str, Run]:
    """The tuning grid, the same for the integer model and for the float baseline."""
    runs: dict[str, Run] = {}
    for batch, rates in ((8, (4e-3, 8e-3, 1.6e-2)), (4, (4e-3, 8e-3))):
        for lr in rates:
            for arithmetic in ("integer", "float"):
                runs[f"{arithmetic}-b{batch}-lr{lr:g}"] = {"arithmetic": arithmetic, "batch": batch, "lr": lr}
    return runs


def levers() -> dict[str, Run]:
    """The integer model at batch 8 and 1.6e-2, one thing changed at a time; since the grid, gradients pass a clamp where they lead back inside."""
    best: Run = {"batch": 8, "lr": 1.6e-2}
    square: Run = {**best, "activation": "squareplus"}
    return {
        "inward": best,
        "inward-squareplus": square,
        "inward-rates-0.3": {**best, "lr_decay_rates": 0.3},
        "inward-squareplus-both": {**square, "gate": "squareplus"},
        "inward-squareplus-vectors-0.3": {**square, "lr_vectors": 0.3},
        "inward-squareplus-vectors-3": {**square, "lr_vectors": 3.0},
        "inward-squareplus-lr2.4e-2": {**square, "lr": 2.4e-2},
    }


def ternary() -> dict[str, Run]:
    """Ternary weights with one scale a row (one a matrix gave 2.3613 at 1.6e-2), one thing changed at a time."""
    base: Run = {"batch": 8, "lr": 1.6e-2, "activation": "squareplus", "weights": "ternary"}
    return {
        "ternary-rows": base,
        "ternary-rows-lr8e-3": {**base, "lr": 8e-3},
        "ternary-rows-wd0.01": {**base, "weight_decay": 0.01},
        "ternary-rows-lr3e-2": {**base, "lr": 3e-2},
    }


def taught() -> dict[str, Run]:
    """Ternary weights that are int8 for part of the run, and a float twin (`final-float-0`) or three that teach; one thing changed at a time."""
    base: Run = {"batch": 8, "lr": 1.6e-2, "activation": "squareplus", "weights": "ternary"}
    float_twin: Run = {"teacher": "final-float-0", "teacher_share": 0.7}
    late: Run = {**base, "int8_until": 0.6}
    twins: Run = {**late, "teacher": "final-float-0,final-float-1,final-float-2", "teacher_share": 0.7}
    return {
        "taught-late": late,
        "taught-late-float": {**late, **float_twin},
        "taught-later-float": {**late, **float_twin, "int8_until": 0.75},
        "taught-float": {**base, **float_twin},
        "taught-int8-float": {**base, **float_twin, "weights": "int8"},
        "taught-twins-lr1.2e-2": {**twins, "lr": 1.2e-2},
        "taught-twins-decay-0": {**twins, "weight_decay": 0.0},
        "taught-twins-vectors-3": {**twins, "lr_vectors": 3.0},
    }


def muon() -> dict[str, Run]:
    """The layers' matrices by Muon, everything else as AdamW had it best: the same learning rates for the integer model and for the float baseline.
    Then the integer model at 2e-2 with one thing changed at a time."""
    runs: dict[str, Run] = {}
    for lr in (1e-2, 2e-2, 4e-2):
        runs[f"muon-integer-{lr:g}"] = {"batch": 8, "lr": 1.6e-2, "activation": "squareplus", "muon": lr}
        runs[f"muon-float-{lr:g}"] = {"batch": 8, "lr": 8e-3, "arithmetic": "float", "muon": lr}
    best: Run = {"batch": 8, "lr": 1.6e-2, "activation": "squareplus", "muon": 2e-2}
    return {
        **runs,
        "muon-gate-squareplus": {**best, "gate": "squareplus"},
        "muon-mantissa-0": {**best, "norm_mantissa": 0},
        "muon-state-32": {**best, "d_state": 32},
        "muon-heads-4x64": {**best, "n_heads": 4, "head_dim": 64},
        "muon-heads-16x16": {**best, "n_heads": 16, "head_dim": 16},
        "muon-vectors-3": {**best, "lr_vectors": 3.0},
        "muon-decay-0": {**best, "weight_decay": 0.0},
    }


def final() -> dict[str, Run]:
    """Three seeds of what the grid and the levers found best: for the float baseline batch 8 and 8e-3,
    for the integer model squareplus and 1.6e-2, without and with Muon (ternary weights 8e-3);
    ternary weights also taught by the float baseline of the same seed, by all three of them ("twins"),
    and by the three int8 models with Muon ("siblings"), which also teach int8 models of the same kind;
    and the float baseline taught by its twins, to tell what the teachers give from what integers cost."""
    runs: dict[str, Run] = {}
    for seed in range(3):
        integer: Run = {"batch": 8, "lr": 1.6e-2, "activation": "squareplus", "seed": seed}
        runs[f"final-integer-{seed}"] = integer
        runs[f"final-integer-muon-{seed}"] = {**integer, "muon": 2e-2}
        runs[f"final-ternary-{seed}"] = {**integer, "weights": "ternary", "lr": 8e-3}
        runs[f"final-float-{seed}"] = {"batch": 8, "lr": 8e-3, "arithmetic": "float", "seed": seed}
        runs[f"final-ternary-taught-{seed}"] = {
            **integer,
            "weights": "ternary",
            "int8_until": 0.6,
            "teacher": f"final-float-{seed}",
            "teacher_share": 0.7,
        }
    floats = ",".join(f"final-float-{seed}" for seed in range(3))
    siblings = ",".join(f"final-integer-muon-{seed}" for seed in range(3))
    for seed in range(3):
        best: Run = {"batch": 8, "activation": "squareplus", "seed": seed, "teacher_share": 0.7}
        late: Run = {**best, "weights": "ternary", "int8_until": 0.6}
        runs[f"final-ternary-twins-{seed}"] = {**late, "lr": 1.6e-2, "teacher": floats}
        runs[f"final-ternary-siblings-{seed}"] = {**late, "lr": 1.2e-2, "teacher": siblings}
        runs[f"final-integer-siblings-{seed}"] = {**best, "lr": 1.6e-2, "muon": 2e-2, "teacher": siblings}
        runs[f"final-float-twins-{seed}"] = {
            "arithmetic": "float",
            "batch": 8,
            "lr": 8e-3,
            "seed": seed,
            "teacher": floats,
            "teacher_share": 0.7,
        }
    return runs


GROUPS = {"grid": grid, "ternary": ternary, "levers": levers, "muon": muon, "final": final, "taught": taught}


def split(run: Run) -> tuple[ModelConfig, dict[str, Any]]:
    """A run's model and its fields of TrainConfig."""
    names = {f.name for f in dataclasses.fields(ModelConfig)}
    model = ModelConfig(**{**SHAPE, **{k: v for k, v in run.items() if k in names}})
    return model, {"tokens": TOKENS, **{k: v for k, v in run.items() if k not in names}}


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("group", nargs="+", choices=sorted(GROUPS))
    p.add_argument("--data", help="training text")
    p.add_argument("--valid", default=str(ROOT / "data/tinystories_valid.txt"))
    p.add_argument("--runs", type=Path, default=ROOT / "runs/ablations", help="directory of the runs")
    p.add_argument("--only", default="", help="only runs whose name contains this")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--table", action="store_true", help="print results instead of running")
    a = p.parse_args()
    runs = {name: run for g in a.group for name, run in GROUPS[g]().items() if a.only in name}
    if a.table:
        print("| run | parameters | nats a token | bits a byte | tokens a second |\n|---|---|---|---|---|")
        for name in runs:
            if (path := a.runs / name / "summary.json").exists():
                s = json.loads(path.read_text())
                print(
                    f"| {name} | {s['parameters']:,} | {s['nats_per_token']:.4f} | {s['bits_per_byte']:.4f} | {s['tokens'] / s['seconds']:,.0f} |"
                )
        return 0
    if not a.data:
        p.error("--data TEXT is needed to run a group")
    for name, run in runs.items():
        if (a.runs / name / "summary.json").exists():
            continue
        model, fields = split(run)
        common = {
            "data": a.data,
            "valid": a.valid,
            "tokenizer": str(ROOT / "configs/tinystories-2048.bpe"),
            "threads": a.threads,
            "valid_every": 1000,
            "log_every": 100,
        }
        if "teacher" in fields:
            fields["teacher"] = ",".join(str(a.runs / name) for name in fields["teacher"].split(","))
        t = TrainConfig(**{**common, **fields})
        print(f"== {name}", file=sys.stderr)
        if not train(model, t, a.runs / name, lambda line: print(line, file=sys.stderr, flush=True))["complete"]:
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
