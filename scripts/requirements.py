"""Prints the requirements of the named extras in pyproject.toml, one a line, a requirements file for the Makefile (pip cannot install extras alone)."""

import re
import sys
from pathlib import Path

text = (Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8")
for extra in sys.argv[1:]:
    found = re.search(rf"^{re.escape(extra)} = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL)
    if found is None:
        sys.exit(f"no extra named {extra}")
    for requirement in re.findall(r'"([^"]+)"', found[1]):
        print(requirement)
