"""Training runs: exact resumption, crash safety, bad input."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from mamba_integer import export
from mamba_integer.config import ModelConfig
from mamba_integer.engine import Model
from mamba_integer.errors import ArgumentError, CheckpointError, MambaIntegerError
from mamba_integer.evaluate import evaluate
from mamba_integer.nn import build_model, fused
from mamba_integer.tokenizer import Tokenizer
from mamba_integer.train import loop, pretrain
from mamba_integer.train.checkpoint import CHECKPOINT, load_checkpoint, restore, save_checkpoint
from mamba_integer.train.data import Document, StreamBatches, padded_documents, token_stream
from mamba_integer.train.metrics import Metrics
from tests.models import shipped_model

STORIES = "\n<|endoftext|>\n".join(
    f"The {a} {b} saw a {c}. It was {d}, and the {b} was happy."
    for a in ("big", "red")
    for b in ("dog", "cat", "bird")
    for c in ("tree", "ball")
    for d in ("tall", "new", "lost")
)
CONFIG = ModelConfig(d_model=32, n_layers=1, n_heads=2, head_dim=32, d_state=4, vocab_size=280, context_length=32)


@pytest.fixture
def files(tmp_path: Path) -> pretrain.TrainConfig:
    (tmp_path / "text.txt").write_text(STORIES)
    Tokenizer.train(STORIES, CONFIG.vocab_size).save(tmp_path / "small.bpe")
    text = str(tmp_path / "text.txt")
    return pretrain.TrainConfig(
        data=text, valid=text, tokenizer=str(tmp_path / "small.bpe"), tokens=12 * 2 * 32, batch=2, warmup=2,
        log_every=3, valid_every=5, valid_documents=3, threads=1,
    )  # fmt: skip


def quiet(line: str) -> None:
    pass


def interrupt_at(step: int) -> object:
    """A `report` that asks the run to stop, as Ctrl-C does, once it has reported `step`."""

    def report(line: str) -> None:
        if line.startswith(f"step {step}/"):
            signal.raise_signal(signal.SIGINT)

    return report


@pytest.mark.parametrize("muon", [0.0, 2e-2])
def test_a_resumed_run_equals_an_uninterrupted_one(files: pretrain.TrainConfig, tmp_path: Path, muon: float) -> None:
    files = dataclasses.replace(files, muon=muon)
    whole = pretrain.train(CONFIG, files, tmp_path / "whole", quiet)
    stopped = pretrain.train(CONFIG, files, tmp_path / "parts", interrupt_at(6))  # type: ignore[arg-type]
    assert stopped == {"complete": False, "step": 6}
    resumed = pretrain.train(CONFIG, files, tmp_path / "parts", quiet)
    a, _ = load_checkpoint(tmp_path / "whole" / CHECKPOINT)
    b, _ = load_checkpoint(tmp_path / "parts" / CHECKPOINT)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    by_adamw, by_muon = (
        {k.split(".", 2)[2] for k in a if k.startswith(f"optimizer.{kind}.")} for kind in ("exp_avg", "momentum_buffer")
    )
    matrices = {f"blocks.{i}.{name}" for i in range(CONFIG.n_layers) for name in ("in_proj", "out_proj")}
    assert by_muon == (matrices if muon else set())
    assert by_adamw == {name for name, _ in build_model(CONFIG).named_parameters()} - by_muon
    assert whole["nats_per_token"] == resumed["nats_per_token"]
    steps = [json.loads(line)["step"] for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert list((tmp_path / "parts").glob("events.*")), "TensorBoard events"
    with pytest.raises(CheckpointError, match="a run of another optimiser"):
        pretrain.train(CONFIG, dataclasses.replace(files, muon=2e-2 - muon), tmp_path / "parts", quiet)


def test_a_finished_run_is_lengthened(files: pretrain.TrainConfig, tmp_path: Path) -> None:
    """At the rates that the longer run has from there on; until it is done there is no summary, which says "complete"."""
    run, longer = tmp_path / "run", dataclasses.replace(files, tokens=2 * files.tokens)
    assert pretrain.train(CONFIG, files, run, quiet)["step"] == 12
    assert (run / "summary.json").exists()
    assert pretrain.train(CONFIG, longer, run, interrupt_at(15)) == {"complete": False, "step": 15}  # type: ignore[arg-type]
    assert not (run / "summary.json").exists()
    assert pretrain.train(CONFIG, longer, run, quiet)["step"] == 24
    assert json.loads((run / "summary.json").read_text())["complete"] is True
    rates = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        if "lr" in (row := json.loads(line)):
            rates[row["step"]] = row["lr"]
    assert rates[12] < rates[15] > rates[24]


@pytest.mark.parametrize(("arithmetic", "muon"), [("integer", 0.0), ("integer", 2e-2), ("float", 0.0)])
def test_training_learns(files: pretrain.TrainConfig, tmp_path: Path, arithmetic: str, muon: float) -> None:
    t = dataclasses.replace(files, arithmetic=arithmetic, tokens=60 * 2 * 32, lr=1e-2, muon=muon)
    summary = pretrain.train(CONFIG, t, tmp_path / "run", quiet)
    assert summary["nats_per_token"] < 2.5, "untrained: ln 280 = 5.6"


def test_weights_become_ternary_on_the_way(files: pretrain.TrainConfig, tmp_path: Path) -> None:
    """Up to then the run is that of one whose weights are int8 for longer; it ends, and is exported, with ternary weights."""
    ternary = dataclasses.replace(CONFIG, weights="ternary")
    t = dataclasses.replace(files, int8_until=0.5, lr=1e-2)
    runs = {"run": t, "later": dataclasses.replace(t, int8_until=0.99), "never": dataclasses.replace(t, int8_until=0.0)}
    for name, changed in runs.items():
        stopped = pretrain.train(ternary, changed, tmp_path / name, interrupt_at(6))  # type: ignore[arg-type]
        assert stopped == {"complete": False, "step": 6}
    a, b, c = (load_checkpoint(tmp_path / name / CHECKPOINT)[0] for name in runs)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not any(torch.equal(a[k], c[k]) for k in a if k.startswith("model.") and k.endswith(("_proj", "_gain")))
    summary = pretrain.train(ternary, t, tmp_path / "run", quiet)
    pretrain.train(ternary, runs["later"], tmp_path / "later", quiet)
    a, b = (load_checkpoint(tmp_path / name / CHECKPOINT)[0] for name in ("run", "later"))
    assert not any(torch.equal(a[k], b[k]) for k in a if k.startswith("model.") and k.endswith(("_proj", "_gain")))
    export.export(tmp_path / "run", tmp_path / "m.gguf", "small")
    result = evaluate(Model.load(tmp_path / "m.gguf"), tmp_path / "text.txt")
    assert result.nats_per_token == pytest.approx(summary["nats_per_token"], rel=1e-5)
    tensors, meta = load_checkpoint(tmp_path / "run" / CHECKPOINT)
    kept = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    del kept["blocks.0.in_gain"]
    header = {"format": "mamba-integer-checkpoint", "version": "1", "meta": json.dumps(meta)}
    (tmp_path / "part.safetensors").write_bytes(save({f"model.{k}": v for k, v in kept.items()}, header))
    with pytest.raises(CheckpointError, match="(?s)does not fit the model.*blocks.0.in_gain"):
        export.export(tmp_path / "part.safetensors", tmp_path / "n.gguf", "small")
    assert not (tmp_path / "n.gguf").exists()
    with pytest.raises(ArgumentError, match="--int8-until must be at least 0 and below 1"):
        dataclasses.replace(files, int8_until=1.0)


def test_a_student_learns_from_its_teacher(files: pretrain.TrainConfig, tmp_path: Path) -> None:
    """Of a text of noise, with all of the targets the teacher's: only the teacher knows the stories."""
    pretrain.train(CONFIG, dataclasses.replace(files, tokens=60 * 2 * 32, lr=1e-2), tmp_path / "teacher", quiet)
    noise = np.random.default_rng(0).permutation(list(STORIES.replace("<|endoftext|>", "")))
    (tmp_path / "noise.txt").write_text("".join(noise))
    student = dataclasses.replace(files, data=str(tmp_path / "noise.txt"), tokens=60 * 2 * 32, lr=1e-2)
    alone = pretrain.train(CONFIG, student, tmp_path / "alone", quiet)
    taught = dataclasses.replace(student, teacher=str(tmp_path / "teacher"), teacher_share=1.0)
    summary = pretrain.train(CONFIG, taught, tmp_path / "taught", quiet)
    assert summary["nats_per_token"] < alone["nats_per_token"] - 0.3
    with pytest.raises(CheckpointError, match="another task"):
        pretrain.train(CONFIG, student, tmp_path / "taught", quiet)


def test_teachers_that_cannot_be(files: pretrain.TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read the checkpoint"):
        pretrain.train(CONFIG, dataclasses.replace(files, teacher=str(tmp_path / "none")), tmp_path / "run", quiet)
    with pytest.raises(ArgumentError, match="has 2048 tokens, the tokenizer 280"):
        pretrain.train(CONFIG, dataclasses.replace(files, teacher=str(shipped_model())), tmp_path / "run", quiet)
    with pytest.raises(ArgumentError, match="--teacher-share must be above 0 and at most 1"):
        dataclasses.replace(files, teacher_share=0.0)
    assert not (tmp_path / "run").exists()


def test_exported_model_has_the_loss_that_training_saw(files: pretrain.TrainConfig, tmp_path: Path) -> None:
    summary = pretrain.train(CONFIG, dataclasses.replace(files, lr=1e-2), tmp_path / "run", quiet)
    export.export(tmp_path / "run", tmp_path / "m.gguf", "small")
    result = evaluate(Model.load(tmp_path / "m.gguf"), tmp_path / "text.txt")
    assert result.nats_per_token == pytest.approx(summary["nats_per_token"], rel=0.005)
    assert result.bits_per_byte == pytest.approx(summary["bits_per_byte"], rel=0.005)


def test_a_float_baseline_cannot_be_exported(files: pretrain.TrainConfig, tmp_path: Path) -> None:
    pretrain.train(CONFIG, dataclasses.replace(files, arithmetic="float", tokens=64), tmp_path / "run", quiet)
    with pytest.raises(CheckpointError, match="float baseline"):
        export.export(tmp_path / "run", tmp_path / "m.gguf", "small")
    assert not (tmp_path / "m.gguf").exists()


def test_another_models_run_is_not_resumed(files: pretrain.TrainConfig, tmp_path: Path) -> None:
    pretrain.train(CONFIG, dataclasses.replace(files, tokens=64), tmp_path / "run", quiet)
    with pytest.raises(CheckpointError, match="another model"):
        pretrain.train(dataclasses.replace(CONFIG, n_layers=2), files, tmp_path / "run", quiet)


KILLED = """
import sys, torch
from pathlib import Path
from mamba_integer.train.checkpoint import save_checkpoint
model = torch.nn.Linear(700, 700)
optimizer = torch.optim.AdamW(model.parameters())
print("ready", flush=True)
step = 0
while True:
    with torch.no_grad():
        model.weight.fill_(step)
    save_checkpoint(Path(sys.argv[1]), model, optimizer, {"step": step})
    step += 1
"""


def test_sigkill_while_writing_leaves_a_good_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    rng = np.random.default_rng(0)
    for _ in range(4):
        p = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE)
        assert p.stdout is not None
        p.stdout.readline()
        while not path.exists():
            time.sleep(0.005)
        time.sleep(float(rng.uniform(0.0, 0.1)))
        p.kill()
        p.wait()
        p.stdout.close()
        tensors, meta = load_checkpoint(path)
        assert (tensors["model.weight"] == meta["step"]).all(), "the state and the step it says it is of"


FULL_DISK = """
import resource, signal, sys, torch
from pathlib import Path
from mamba_integer.errors import CheckpointError
from mamba_integer.train.checkpoint import save_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
model = torch.nn.Linear(700, 700)
try:
    save_checkpoint(Path(sys.argv[1]), model, torch.optim.AdamW(model.parameters()), {})
except CheckpointError as e:
    print(e)
"""


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    model = torch.nn.Linear(3, 3)
    save_checkpoint(path, model, torch.optim.AdamW(model.parameters()), {"step": 7})
    out = subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=True)
    assert "the last one is still there" in out.stdout
    assert load_checkpoint(path)[1] == {"step": 7}
    assert list(tmp_path.iterdir()) == [path], "no partial file stays behind"


def test_damaged_checkpoints_are_named(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    model = build_model(CONFIG)
    save_checkpoint(path, model, torch.optim.AdamW(model.parameters()), {"step": 1})
    good = path.read_bytes()
    for bad in (b"", good[:100], good[: len(good) // 2], b"\xff" * 64 + good[64:]):
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match="checkpoint"):
            load_checkpoint(path)
    with pytest.raises(CheckpointError, match="cannot read"):
        load_checkpoint(tmp_path / "none")
    path.write_bytes(good)
    tensors, _ = load_checkpoint(path)
    with pytest.raises(CheckpointError, match="does not fit"):
        restore(tensors, build_model(dataclasses.replace(CONFIG, d_model=64)))


def test_batches_cover_an_epoch_once_and_depend_on_the_step_alone() -> None:
    stream = np.arange(1000, dtype=np.uint16)
    batches = StreamBatches(stream, 3, 10, seed=4)
    forward = [batches[i][0] for i in range(66)]
    assert batches.rows == 98
    starts = np.concatenate(forward)[:98, 0]
    assert len(set(starts.tolist())) == 98
    assert (np.diff(np.sort(starts)) == 10).all()
    assert all((np.diff(b) == 1).all() for b in forward)
    again = StreamBatches(stream, 3, 10, seed=4)
    for i in (65, 3, 40):
        assert np.array_equal(again[i][0], forward[i])
        assert (again[i][1] == np.ones((3, 10))).all()
    assert not np.array_equal(StreamBatches(stream, 3, 10, seed=5)[0][0], forward[0])
    with pytest.raises(ArgumentError, match="too few"):
        StreamBatches(stream[:15], 3, 10, seed=0)


def test_stream_and_padded_documents(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("one two\n<|endoftext|>\n\nthree\n\n<|endoftext|>\n")
    tok = Tokenizer.train("one two three", 258)
    stream = token_stream(path, tok, tmp_path / "cache")
    assert np.array_equal(stream, token_stream(path, tok, tmp_path / "cache"))
    e = tok.eot
    ids = tok.encode_batch(["one two", "three"])
    assert stream.tolist() == [e, *ids[0], e, *ids[1], e]
    for budget, prompt in ((1, 0), (1000, 0), (1000, 1)):
        seen = []
        for tokens, weights in padded_documents([Document(x, prompt) for x in ids], e, budget):
            for row, weight in zip(tokens, weights, strict=True):
                n = int(weight.sum())
                assert not weight[:prompt].any()
                assert (weight[prompt : prompt + n] == 1).all()
                seen.append(row[: prompt + n + 1].tolist())
        assert sorted(seen) == sorted([[e, *x, e] for x in ids])


def test_metrics_of_a_killed_run_are_mended(tmp_path: Path) -> None:
    with contextlib.closing(Metrics(tmp_path, 0)) as m:
        for step in (10, 20, 30):
            m.log(step, loss=1.0, log2_tau=[1.0, 2.0])
    with (tmp_path / "metrics.jsonl").open("a") as f:
        f.write('{"step": 40, "lo')
    with contextlib.closing(Metrics(tmp_path, 20)) as m:
        m.log(30, loss=0.5)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(10, 1.0), (20, 1.0), (30, 0.5)]


def test_learning_rate_warms_up_stays_and_falls() -> None:
    t = pretrain.TrainConfig(data="", valid="", tokenizer="", lr=1.0, warmup=10, decay=0.5)
    rates = [loop.learning_rate(t, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[20:50] == [1.0] * 30
    assert rates[75] == pytest.approx(0.5)
    assert 0 < rates[99] < 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "missing.txt"}, "missing.txt"),
        ({"tokenizer": "missing.bpe"}, "missing.bpe"),
    ],
)
def test_bad_input(files: pretrain.TrainConfig, tmp_path: Path, change: dict[str, str], message: str) -> None:
    with pytest.raises(MambaIntegerError, match=message):
        pretrain.train(CONFIG, dataclasses.replace(files, **change), tmp_path / "run", quiet)  # type: ignore[arg-type]


def test_rates_and_vectors_have_learning_rates_of_their_own(files: pretrain.TrainConfig) -> None:
    model = build_model(CONFIG)
    optimizer = loop.make_optimizer(model, dataclasses.replace(files, lr_decay_rates=0.25, lr_vectors=0.5))
    scales = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, p in model.named_parameters():
        kind = name.rpartition(".")[2]
        assert scales[id(p)] == (0.25 if kind in ("log_a", "base") else 0.5 if p.ndim == 1 else 1.0), name
        assert (decays[id(p)] > 0) == (p.ndim > 1), name
    with_muon = loop.make_optimizer(model, dataclasses.replace(files, lr=1e-2, muon=3e-2))
    scales = {id(p): group["lr_scale"] for group in with_muon.param_groups for p in group["params"]}
    for name, p in model.named_parameters():
        assert scales[id(p)] == pytest.approx(3.0 if name.endswith("_proj") else 1.0), name


def test_a_learning_rate_of_zero_holds_the_decay_rates(files: pretrain.TrainConfig, tmp_path: Path) -> None:
    pretrain.train(CONFIG, dataclasses.replace(files, lr_decay_rates=0.0), tmp_path / "run", quiet)
    tensors, _ = load_checkpoint(tmp_path / "run" / CHECKPOINT)
    torch.manual_seed(files.seed)
    for name, p in build_model(CONFIG).named_parameters():
        moved = not torch.equal(tensors[f"model.{name}"], p)
        assert moved != name.endswith((".log_a", ".base")), name


def test_micro_batches_give_the_same_run(
    files: pretrain.TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "_BFLOAT16_PRODUCTS", False)  # their rounding differs with what is summed
    t = dataclasses.replace(files, batch=3)
    whole = pretrain.train(CONFIG, t, tmp_path / "whole", quiet)
    parts = pretrain.train(CONFIG, dataclasses.replace(t, micro_batch=2), tmp_path / "parts", quiet)
    assert whole["nats_per_token"] == pytest.approx(parts["nats_per_token"], abs=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"batch": 0},
        {"tokens": -1},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"decay": 1.5},
        {"log_every": 0},
        {"micro_batch": -1},
    ],
)
def test_bad_settings_are_named(files: pretrain.TrainConfig, change: dict[str, float]) -> None:
    with pytest.raises(ArgumentError, match="--" + next(iter(change)).replace("_", "-")):
        dataclasses.replace(files, **change)  # type: ignore[arg-type]
