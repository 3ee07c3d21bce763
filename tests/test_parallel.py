"""Training in several processes: real ones that speak through Gloo, some started by torchrun.

Tolerance. One process sums a batch's gradient in one matrix product, two sum halves and then add: float32 sums in another order, a relative difference of
some 1e-7 at a step, which now and then turns the rounding of a weight, and with it some integers of the forward pass. Over the 12 steps of these runs losses
differed by at most 1.5e-4 nats. What a mistake changes (a row twice, a forgotten scale, another order of rows) is above 1e-2; the bar lies between.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mamba_integer.nn import fused
from mamba_integer.train import pretrain
from mamba_integer.train.checkpoint import CHECKPOINT, load_checkpoint
from tests.test_train import CONFIG, files, quiet  # noqa: F401  (files is a fixture)

ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = 1e-3  # nats per token, see above
Config = pretrain.TrainConfig


@pytest.fixture(autouse=True)
def float32_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in bfloat16 round what one process sums otherwise than what two sum: here, and in the processes that a test starts, there are none."""
    monkeypatch.setattr(fused, "_BFLOAT16_PRODUCTS", False)
    monkeypatch.setenv("MAMBA_INTEGER_TRAIN_PRODUCTS", "float32")


def options(t: Config, run: Path) -> list[str]:
    shape = run.parent / "shape.json"
    shape.write_text(CONFIG.to_json())
    named = {"run-dir": run, "config": shape, **{k: getattr(t, k) for k in t.__dataclass_fields__}}
    return [text for k, v in named.items() for text in (f"--{k.replace('_', '-')}", str(v))]


def outcome(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status and standard error. A process that hangs fails the test."""
    _, err = process.communicate(timeout=120)
    return process.returncode, err


# Trains with `pretrain` in as many processes as the environment says. In process `rank`, `event` happens when the batch of `step` is made.
WORKER = """
import os, signal, sys
from mamba_integer.errors import ArgumentError
from mamba_integer.train import data, loop
from mamba_integer.train.__main__ import run
event, rank, step = sys.argv[1], sys.argv[2], int(sys.argv[3])
plain = data.StreamBatches.__getitem__
def get(self, at):
    if at == step and os.environ["RANK"] == rank:
        if event == "signal":
            signal.raise_signal(signal.SIGTERM)
        if event == "error":
            raise ArgumentError("the text has gone")
        if event == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if event == "drift":
            optimizers[0].param_groups[0]["params"][0].data.add_(1e-3)
    return plain(self, at)
data.StreamBatches.__getitem__ = get
optimizers = []
make = loop.make_optimizer
def kept(*arguments):
    optimizers.append(make(*arguments))
    return optimizers[0]
loop.make_optimizer = kept
run(sys.argv[4:])
"""


def train_in(n: int, t: Config, run: Path, event: str = "", rank: int = 0, step: int = -1) -> list[tuple[int, str]]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    world = {"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, event, str(rank), str(step), *options(t, run)],
            env={**os.environ, **world, "RANK": str(r), "LOCAL_RANK": str(r)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(n)
    ]
    try:
        return [outcome(p) for p in started]
    finally:
        for p in started:
            p.kill()


def metrics(run: Path, name: str = "loss") -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def check_same_run(run: Path, whole: Path) -> None:
    for name in ("loss", "grad_norm", "valid_loss"):
        a, b = metrics(run, name), metrics(whole, name)
        assert a.keys() == b.keys()
        assert a == pytest.approx(b, abs=TOLERANCE), name
    a, b = (load_checkpoint(r / CHECKPOINT)[0] for r in (run, whole))
    assert a.keys() == b.keys()
    assert all(torch.allclose(a[k].double(), b[k].double(), atol=1e-3) for k in a if k.startswith("model."))


@pytest.fixture
def whole(files: Config, tmp_path: Path) -> Path:  # noqa: F811
    """The run of one process."""
    pretrain.train(CONFIG, files, tmp_path / "whole", quiet)
    return tmp_path / "whole"


def torchrun(t: Config, run: Path, n: int = 2, module: str = "mamba_integer.train") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n), "-m", module]
    return subprocess.run(
        [*command, *options(t, run), "--json"], cwd=ROOT, capture_output=True, text=True, timeout=180, check=False
    )


def test_two_processes_under_torchrun_train_as_one(files: Config, tmp_path: Path, whole: Path) -> None:  # noqa: F811
    done = torchrun(files, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)  # one object, from one process
    assert summary == json.loads((tmp_path / "two" / "summary.json").read_text())
    assert done.stderr.count("step 12/12") == 1, "one process reports"
    check_same_run(tmp_path / "two", whole)
    assert summary["nats_per_token"] == pytest.approx(
        json.loads((whole / "summary.json").read_text())["nats_per_token"], abs=TOLERANCE
    )


def test_a_run_is_resumed_by_another_number_of_processes(files: Config, tmp_path: Path, whole: Path) -> None:  # noqa: F811
    run = tmp_path / "parts"
    for n, event, step in ((2, "signal", 5), (1, "signal", 8), (2, "", -1)):
        for status, err in train_in(n, files, run, event, rank=n - 1, step=step):
            assert status == (130 if event else 0), err
        assert load_checkpoint(run / CHECKPOINT)[1]["step"] == (step + 1 if event else 12)
    check_same_run(run, whole)


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_in_one_process_ends_all(files: Config, tmp_path: Path, rank: int) -> None:  # noqa: F811
    results = train_in(2, files, tmp_path / "run", "error", rank, 3)
    assert [status for status, _ in results] == [2, 2]
    assert "mamba-integer: error: the text has gone\n" in results[rank][1]
    assert f"mamba-integer: error: process {rank}: the text has gone\n" in results[1 - rank][1]
    assert "Traceback" not in results[0][1] + results[1][1]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_dies_ends_the_other(files: Config, tmp_path: Path, rank: int) -> None:  # noqa: F811
    results = train_in(2, files, tmp_path / "run", "die", rank, 3)
    assert results[rank][0] == -signal.SIGKILL
    assert results[1 - rank][0] == 2
    assert f"process {1 - rank} lost the others" in results[1 - rank][1]
    assert "Traceback" not in results[1 - rank][1]


def test_processes_whose_weights_differ_save_nothing(files: Config, tmp_path: Path) -> None:  # noqa: F811
    for status, err in train_in(2, files, tmp_path / "run", "drift", 1, 3):
        assert status == 2, err
        assert "the processes do not have the same weights" in err
    assert not (tmp_path / "run" / CHECKPOINT).exists()


def test_the_batch_must_divide(files: Config, tmp_path: Path) -> None:  # noqa: F811
    for status, err in train_in(3, files, tmp_path / "run"):
        assert status == 2, err
        assert "--batch 2 does not divide by 3 processes" in err
    assert not (tmp_path / "run").exists()
