"""Trains the integer model: the entry point of `mamba-integer train` under its older name.

Without arguments: a short run (100,000 tokens, a minute or two on two cores) on the shipped sample into runs/sample. With arguments: as `mamba-integer train`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mamba_integer.cli import main

ROOT = Path(__file__).resolve().parents[1]

if __name__ == "__main__":
    raise SystemExit(main(["train", *(sys.argv[1:] or ["--run", str(ROOT / "runs/sample"), "--tokens", "100000"])]))
