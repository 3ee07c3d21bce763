"""Trains the Rust BPE tokenizer: the entry point of `mamba-integer tokenizer train` under its older name.

Without arguments: 2,048 tokens from the shipped sample, written to runs/sample/tokenizer.bpe. With arguments: as `mamba-integer tokenizer train`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mamba_integer.cli import main

ROOT = Path(__file__).resolve().parents[1]

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if not arguments:
        output = ROOT / "runs/sample/tokenizer.bpe"
        output.parent.mkdir(parents=True, exist_ok=True)
        arguments = ["--data", str(ROOT / "data/tinystories_sample.txt"), "--vocab-size", "2048", "-o", str(output)]
    raise SystemExit(main(["tokenizer", "train", *arguments]))
