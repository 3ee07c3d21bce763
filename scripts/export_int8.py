"""Exports a training run to an integer model file: the entry point of `mamba-integer export` under its older name.

Without arguments: the run in runs/sample (made first by train_mamba_integer.py, if it is not there) to runs/sample/sample.gguf. With arguments: as
`mamba-integer export`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from mamba_integer.cli import main

ROOT = Path(__file__).resolve().parents[1]
RUN = ROOT / "runs/sample"

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if not arguments:
        if not (RUN / "checkpoint.safetensors").is_file():
            subprocess.run([sys.executable, str(ROOT / "scripts/train_mamba_integer.py")], check=True)
        arguments = [str(RUN), "-o", str(RUN / "sample.gguf")]
    raise SystemExit(main(["export", *arguments]))
