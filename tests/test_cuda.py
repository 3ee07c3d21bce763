"""`--device cuda` without a GPU: the engine loads a plug-in that is the CUDA sources compiled for the host (engine/cuda/host_shim.hpp), and must give
what the CPU gives; and where there is no plug-in, or a wrong one, one line says so.

engine/tests/test_cuda.cpp tests the kernels themselves; tests/test_cuda_machine_code.py what nvcc makes of them.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mamba_integer.cli import main
from mamba_integer.engine import Model, feed_many
from mamba_integer.errors import ArgumentError
from mamba_integer.model_file import serialize
from mamba_integer.random_model import random_model
from mamba_integer.sampling import Sampling
from tests.conftest import CUDA_LIBRARY as NAME
from tests.models import TINY_CONFIG, TINY_TOKENIZER, shipped_model

ROOT = Path(__file__).resolve().parents[1]
STANDALONE = ROOT / "build/engine/mamba_infer"
PROGRAM = (sys.executable, "-m", "mamba_integer")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cuda(on_host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAMBA_INTEGER_CUDA", str(on_host))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(a) for a in arguments])
        return (status, *capsys.readouterr())

    return call


def generated(run: Run, device: str, *arguments: object) -> dict[str, object]:
    status, out, err = run("generate", "--json", "--device", device, *arguments)
    assert status == 0, err
    told: dict[str, object] = json.loads(out)
    del told["tokens_per_second"]
    return told


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("sampling", [("--temperature", 0), ("--seed", 7), ("--top-k", 0, "--top-p", "0.7")])
def test_shipped_model_tells_the_same_story(run: Run, sampling: tuple[object, ...]) -> None:
    arguments = ("--model", shipped_model(), "--prompt", "The little dog", "--max-tokens", 12, *sampling)
    assert generated(run, "cuda", *arguments) == generated(run, "cpu", *arguments)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize(
    ("scan", "activation", "rotation", "weights"),
    list(itertools.product(("convex", "literal"), ("silu", "squareplus"), (False, True), ("int8", "ternary"))),
)
def test_every_mode(scan: str, activation: str, rotation: bool, weights: str) -> None:
    config = dataclasses.replace(
        TINY_CONFIG, scan=scan, activation=activation, gate=activation, rotation=rotation, weights=weights
    )
    model = Model.from_bytes(serialize(random_model(config, 3, tokenizer=TINY_TOKENIZER.to_bytes())))
    tokens = np.random.default_rng(4).integers(0, config.vocab_size, 300).tolist()
    here, there = model.session(), model.session(device="cuda")
    assert np.array_equal(there.feed(tokens), here.feed(tokens))
    assert there.save() == here.save()
    assert there.position == len(tokens)


@pytest.mark.usefixtures("cuda")
def test_sessions_on_two_devices() -> None:
    model = Model.load(shipped_model())
    sessions = [model.session(device="cuda") for _ in range(3)]
    prompts = [model.encode(text) for text in ("Once", "The cat sat", "A")]
    feed_many(sessions, prompts)
    for session, prompt in zip(sessions, prompts, strict=True):
        assert np.array_equal(session.logits(), model.logits(prompt)[-1])
    moved = model.session(state=sessions[1].save())
    sampling = Sampling.parse("0.8", 40, "1", 5)
    assert moved.sample(sampling, 0) == sessions[1].sample(sampling, 0)
    back = model.session(state=moved.save(), device="cuda")
    assert np.array_equal(back.feed([1, 2]), moved.feed([1, 2]))
    sessions[0].reset()
    with pytest.raises(ArgumentError, match="no token was fed"):
        sessions[0].logits()
    with pytest.raises(ArgumentError, match="different devices"):
        feed_many([sessions[0], moved], [[1], [1]])
    with pytest.raises(ArgumentError, match="trace"):
        sessions[0].feed_traced([1], lambda *_: None)


@pytest.mark.usefixtures("cuda")
def test_receipt_of_one_device_replays_on_the_other(run: Run, tmp_path: Path) -> None:
    receipt = tmp_path / "story.json"
    arguments = ("--model", shipped_model(), "--prompt", "Once", "--max-tokens", 5, "--receipt", receipt)
    assert generated(run, "cuda", *arguments)
    status, _, err = run("replay", receipt, "--model", shipped_model())
    assert status == 0, err


@pytest.mark.usefixtures("cuda")
def test_standalone_program() -> None:
    def told(device: str) -> dict[str, object]:
        command = [str(STANDALONE), "--model", str(shipped_model()), "--tokens", "5,6,7", "--device", device]
        done = subprocess.run([*command, "--max-tokens", "6", "--json"], capture_output=True, text=True, check=True)
        out: dict[str, object] = json.loads(done.stdout)
        del out["tokens_per_second"]
        return out

    assert told("cuda") == told("cpu")


# ---- what goes wrong -----------------------------------------------------------------------------------------------------------------------------


def refused(library: Path | None) -> str:
    """What the command line says where MAMBA_INTEGER_CUDA is `library`: in a process of its own, as a library that was found stays."""
    environment = {k: v for k, v in os.environ.items() if k != "MAMBA_INTEGER_CUDA"}
    if library is not None:
        environment["MAMBA_INTEGER_CUDA"] = str(library)
    done = subprocess.run(
        [*PROGRAM, "generate", "--model", str(shipped_model()), "--prompt", "Hi", "--device", "cuda"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"mamba-integer: error: device cuda: [^\n]+\n", done.stderr), done.stderr
    return done.stderr


def test_no_library(tmp_path: Path) -> None:
    if not (ROOT / "mamba_integer" / NAME).exists():  # where a user may have put it
        assert NAME in refused(None)
        assert "scripts/build_cuda.sh" in refused(None)
    assert "nowhere" in refused(tmp_path / "nowhere.so")
    text = tmp_path / NAME
    text.write_text("not a library")
    assert str(text) in refused(text)


def test_library_of_something_else(tmp_path: Path) -> None:
    source = tmp_path / "other.c"
    source.write_text("int other(void) { return 1; }")
    subprocess.run(
        [*shlex.split(os.environ.get("CC", "cc")), "-shared", "-fPIC", str(source), "-o", str(tmp_path / NAME)],
        check=True,
    )
    assert "is not of this release" in refused(tmp_path / NAME)


def test_device_error_in_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = Model.load(shipped_model())
    with pytest.raises(ArgumentError, match="cpu or cuda"):
        model.session(device="tpu")
    code = f"""
from mamba_integer import DeviceError, Model
try:
    Model.load({str(shipped_model())!r}).session(device="cuda")
except DeviceError as error:
    print("told", error)
"""
    monkeypatch.setenv("MAMBA_INTEGER_CUDA", str(tmp_path / "nowhere.so"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.startswith("told device cuda: "), done
