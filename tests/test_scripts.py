"""The scripts of the reference description's names: the quick ones without arguments, training and export on a small case."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from mamba_integer.engine import Model
from mamba_integer.tokenizer import Tokenizer
from tests.models import ROOT, SAMPLE, VALID


def script(name: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_prepare_rust_bpe() -> None:
    script("prepare_rust_bpe.py")
    assert Tokenizer.load(ROOT / "runs/sample/tokenizer.bpe").vocab_size == 2048


def test_inference() -> None:
    assert script("inference.py").startswith("Once upon a time")


def test_training_and_export(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(SAMPLE.read_text(encoding="utf-8")[:30_000], encoding="utf-8")
    (tmp_path / "valid.txt").write_text(VALID.read_text(encoding="utf-8")[:3_000], encoding="utf-8")
    script("prepare_rust_bpe.py", "--data", tmp_path / "train.txt", "--vocab-size", 320, "-o", tmp_path / "small.bpe")
    shape = {
        "d_model": 32,
        "n_layers": 1,
        "n_heads": 2,
        "head_dim": 16,
        "d_state": 4,
        "vocab_size": 320,
        "context_length": 32,
    }
    (tmp_path / "small.json").write_text(json.dumps(shape))
    files = (
        "--data",
        tmp_path / "train.txt",
        "--valid",
        tmp_path / "valid.txt",
        "--tokenizer",
        tmp_path / "small.bpe",
        "--config",
        tmp_path / "small.json",
    )
    script("train_mamba_integer.py", "--run", tmp_path / "run", *files, "--tokens", 2048, "--batch", 4)
    script("export_int8.py", tmp_path / "run", "-o", tmp_path / "small.gguf")
    assert Model.load(tmp_path / "small.gguf").config.d_model == 32
    tuned = tmp_path / "tuned"
    script(
        "sft_mamba_integer.py",
        "--from",
        tmp_path / "run",
        "--run",
        tuned,
        *files[:4],
        "--tokens",
        2048,
        "--context",
        64,
    )
    script("export_int8.py", tuned, "-o", tmp_path / "tuned.gguf")
    assert Model.load(tmp_path / "tuned.gguf").config.context_length == 64
    assert script("inference.py", "--model", tmp_path / "small.gguf", "--prompt", "The", "--max-tokens", 5).startswith(
        "The"
    )
