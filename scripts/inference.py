"""Generates text with the integer engine: the entry point of `mamba-integer generate` under its older name.

Without arguments: a story from the shipped model. With arguments: as `mamba-integer generate`.
"""

from __future__ import annotations

import sys

from mamba_integer.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["generate", *(sys.argv[1:] or ["--prompt", "Once upon a time"])]))
