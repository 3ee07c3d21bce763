"""Generates text with the integer engine: the entry point of `mamba-integer generate` under its older name.

Without arguments: a story from the shipped model. With arguments: as `mamba-integer generate`; after `--inspect`, as `mamba-integer inspect`.
"""

from __future__ import annotations

import sys

from mamba_integer.cli import main

if __name__ == "__main__":
    arguments = sys.argv[1:] or ["--prompt", "Once upon a time"]
    inspected = arguments[0] == "--inspect"
    raise SystemExit(main(["inspect", *arguments[1:]] if inspected else ["generate", *arguments]))
