"""Tunes a trained model to answer requests: the entry point of `mamba-integer finetune` under its older name.

Without arguments: a short run (100,000 tokens) from the shipped model on the shipped sample into runs/sample-instruct. With arguments: as
`mamba-integer finetune`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mamba_integer.cli import main

ROOT = Path(__file__).resolve().parents[1]
SHORT = [
    "--from",
    str(ROOT / "models/tinystories.gguf"),
    "--run",
    str(ROOT / "runs/sample-instruct"),
    "--tokens",
    "100000",
]

if __name__ == "__main__":
    raise SystemExit(main(["finetune", *(sys.argv[1:] or SHORT)]))
