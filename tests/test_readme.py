"""The README's example runs as it stands, and what the README names exists."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "int32, best next token" in done.stdout


def test_links_and_paths_exist() -> None:
    for document in (ROOT / "README.md", ROOT / "docs/ARCHITECTURE.md", ROOT / "data/README.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_rooms_of_the_architecture_exist() -> None:
    rooms = (ROOT / "docs/ARCHITECTURE.md").read_text(encoding="utf-8").partition("## Rooms")[2].partition("##")[0]
    for path in re.findall(r"`(mamba_integer/[\w/]+(?:\.py)?|[\w]+/)`", rooms):
        assert (ROOT / path).exists(), path


def test_verbs_of_the_readme_exist() -> None:
    env = {**os.environ, "COLUMNS": "200"}
    shown = subprocess.run(
        [sys.executable, "-m", "mamba_integer", "--help"], cwd=ROOT, capture_output=True, text=True, check=True, env=env
    ).stdout
    for verb in re.findall(r"^\| `mamba-integer (\w+)", README, re.MULTILINE):
        assert re.search(rf"^ +{verb}\b", shown, re.MULTILINE), verb


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"make ([a-z]+)", re.sub(r"```python.*?```", "", README, flags=re.DOTALL))) & {
        "demo",
        "test",
        "native",
        "lint",
        "bench",
        "vectors",
    }:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
