"""The monitor: what it reads of runs, what it serves and to whom, what a browser shows, and the alerts, on histories made up and on runs gone wrong."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mamba_integer import cli
from mamba_integer.config import ModelConfig
from mamba_integer.errors import CheckpointError
from mamba_integer.nn import build_model
from mamba_integer.nn.quant import norm_shift
from mamba_integer.tokenizer import Tokenizer
from mamba_integer.train import alerts, instruments, pretrain
from mamba_integer.train.monitor.runs import MAX_BUCKETS, MAX_FRAMES, RunReader, Runs
from mamba_integer.train.monitor.server import MonitorServer

STORIES = "\n<|endoftext|>\n".join(f"The {a} dog saw a {b}. It was {c}." for a in ("big", "red") for b in ("tree", "ball")
                                     for c in ("tall", "new"))  # fmt: skip
CONFIG = ModelConfig(d_model=32, n_layers=2, n_heads=4, head_dim=16, d_state=4, vocab_size=270, context_length=32)
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


# ---- instruments -----------------------------------------------------------------------------------------------------------------------------------


def batch(model_config: ModelConfig = CONFIG) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(model_config.vocab_size, (2, 32), generator=torch.Generator().manual_seed(1))
    reset = torch.zeros(2, 32, dtype=torch.bool)
    reset[:, 0] = True
    reset[1, 9] = True
    return tokens, reset


@pytest.mark.parametrize(
    "change", [{}, {"scan": "literal", "rotation": True}, {"weights": "ternary", "norm_scale": "scalar"}]
)
def test_observing_changes_nothing_and_gives_all_figures(change: dict[str, Any]) -> None:
    config = ModelConfig(**{**vars(CONFIG), **change})
    torch.manual_seed(0)
    model = build_model(config)
    tokens, reset = batch(config)
    before, random = model(tokens, reset), torch.random.get_rng_state()
    figures = instruments.measure(model, tokens, reset)
    assert torch.equal(model(tokens, reset), before)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(p.grad is None for p in model.parameters())
    heads = [(len(v), len(v[0])) for v in (figures[n] for n in ("tau_median", "tau_std", "m_low", "m_high"))]  # type: ignore[index, arg-type]
    assert heads == [(2, 4)] * 4
    for name, value in figures.items():
        flat = [v for row in alerts.rows(value) for v in row] or alerts.numbers(value)
        assert all(math.isfinite(v) for v in flat), name
        if name.startswith(("clip/", "dead/", "zeros/", "m_")):
            assert all(0 <= v <= 1 for v in flat), name
        if name.startswith("norm_shift/"):
            assert all(sum(row) == pytest.approx(1) for row in alerts.rows(value)), name
    zeros = figures["zeros/in_proj"]
    assert isinstance(zeros, list)
    assert all(0.25 < z < 0.4 if config.weights == "ternary" else z < 0.02 for z in zeros)  # type: ignore[operator]


def test_norm_shift_is_that_of_the_spec() -> None:
    from mamba_integer import arithmetic

    rng = torch.Generator().manual_seed(0)
    for scale in (0, 1, 40, 3000, 131071):
        x = torch.randint(-scale, scale + 1, (24,), generator=rng)
        _, j, _ = arithmetic.norm(x.numpy(), torch.full((24,), 64).numpy(), 8)
        assert int(norm_shift(x / 256.0, 8)[1]) == int(j)


def test_figures_name_what_was_broken() -> None:
    torch.manual_seed(0)
    model = build_model(CONFIG)
    with torch.no_grad():
        model.blocks[1].in_proj[-4:] = 0.0  # type: ignore[index, operator]  # dt = 0: constant decays
        model.blocks[0].base.fill_(50.0)  # type: ignore[union-attr, operator]  # m at its highest
        model.blocks[0].norm1.fill_(1.9)  # type: ignore[union-attr, operator]
        model.blocks[1].in_proj[:128] *= 40.0  # type: ignore[index, operator]
    found = alerts.find([{"step": 1, **instruments.measure(model, *batch())}])
    text = "\n".join(map(str, found))
    assert "stiff memory in layer 1, heads 0, 1, 2, 3" in text
    assert "4 of 4 heads are dead" in text
    assert "saturating quantiser in x, layers 1" in text
    assert all(a.remedy and a.message for a in found)


def test_a_healthy_new_model_raises_no_alert() -> None:
    torch.manual_seed(0)
    assert alerts.find([{"step": 1, **instruments.measure(build_model(CONFIG), *batch())}]) == []


def test_gradient_norms_add_up() -> None:
    for arithmetic in ("integer", "float"):
        model = build_model(CONFIG, arithmetic)
        model(*batch()).square().mean().backward()
        norms = instruments.gradient_norms(model.named_parameters(), 2.0)
        whole = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        assert math.hypot(*norms.values()) == pytest.approx(2 * float(whole), rel=1e-4)
        assert all(v > 0 for v in norms.values())


# ---- alerts ----------------------------------------------------------------------------------------------------------------------------------------


def losses(values: list[float]) -> list[dict[str, Any]]:
    return [{"step": 10 * i, "loss": v} for i, v in enumerate(values)]


FALLING = [5 * 0.99**i + 0.02 * (i % 3) for i in range(90)]
HEALTHY = {"tau_std": [[0.5] * 4], "tau_median": [[1.0, 4.0, 7.0, 10.0]], "m_low": [[0.1] * 4], "m_high": [[0.1] * 4], "clip/x": [0.01],
           "dead/x": [0.0]}  # fmt: skip


@pytest.mark.parametrize(
    ("history", "kind", "words"),
    [
        ([{"step": 3, "loss": "NaN"}], "not finite", "nan"),
        ([{"step": 3, "loss": 2.0, "grad_norm": "Infinity"}], "not finite", "grad_norm is inf"),
        (losses([*FALLING[:50], 7.0, *FALLING[50:]]), "loss spike", "jumped to 7.000"),
        (losses([3.0 + 0.01 * (i % 2) for i in range(90)]), "no progress", "median of the last 30 lines"),
        ([{"step": 9, **HEALTHY, "tau_std": [[0.5, 0.0, 0.4, 0.0]]}], "stiff memory", "2 of 4 heads are dead"),
        ([{"step": 9, **HEALTHY, "m_high": [[0.1, 0.9, 0.1, 0.1]]}], "stiff memory", "keep the shortest memory"),
        ([{"step": 9, **HEALTHY, "m_low": [[0.1, 0.9, 0.1, 0.1]]}], "stiff memory", "keep the longest memory"),
        ([{"step": 9, **HEALTHY, "tau_median": [[5.0, 5.1, 5.2, 5.3]]}], "collapsed spectrum", "0.11 octaves"),
        ([{"step": 9, **HEALTHY, "clip/x": [0.01, 0.3]}], "saturating quantiser", "30.0% of the values"),
        ([{"step": 9, **HEALTHY, "clip/norm_f": 0.3}], "saturating quantiser", "30.0% of the values"),
        ([{"step": 9, **HEALTHY, "dead/gated": [0.5]}], "dead channels", "50% of the channels"),
    ],
)  # fmt: skip
def test_each_alert(history: list[dict[str, Any]], kind: str, words: str) -> None:
    (alert,) = alerts.find(history)
    assert alert.kind == kind
    assert words in alert.message
    assert alert.remedy in str(alert)
    assert [a.kind for a in alerts.Watch(history[:-1]).see(history[-1])] in ([kind], []), "seen, or known already"


def test_no_alert_without_cause() -> None:
    assert alerts.find([]) == []
    assert alerts.find([*losses(FALLING), {"step": 900, **HEALTHY}]) == []
    assert alerts.find([{"step": 1, **HEALTHY, "tau_std": [[0.0] * 4]}, {"step": 2, **HEALTHY}]) == [], "it has passed"


def test_watch_says_each_alert_once_and_again_when_it_returns() -> None:
    bad = {**HEALTHY, "dead/x": [0.5]}
    watch = alerts.Watch()
    said = [bool(watch.see({"step": i, **r})) for i, r in enumerate((HEALTHY, bad, bad, HEALTHY, bad))]
    assert said == [False, True, False, False, True]


@pytest.mark.parametrize(
    "value", [None, True, "x", {}, [], [None], [[]], [[None, "NaN"]], [["x"], 3], 10**400, -1, "Infinity", [[1e999]]]
)
def test_alerts_survive_any_value(value: object) -> None:
    names = ("step", "loss", "valid_loss", "grad_norm", "clip/x", "dead/x", *HEALTHY)
    alerts.find([dict.fromkeys(names, value)] * 3 + [{"step": 1, name: value} for name in names])
    assert isinstance(alerts.Watch().see({"step": 1, **dict.fromkeys(names[1:], value)}), list)


# ---- runs gone wrong, for real -------------------------------------------------------------------------------------------------------------------------


def train(folder: Path, lines: list[str], **options: Any) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    text, bpe = folder.parent / "text.txt", folder.parent / "small.bpe"
    text.write_text(STORIES)
    Tokenizer.train(STORIES, CONFIG.vocab_size).save(bpe)
    t = pretrain.TrainConfig(**{
        "data": str(text), "valid": str(text), "tokenizer": str(bpe), "tokens": 60 * 64, "batch": 2, "warmup": 1, "log_every": 2, "inspect_every": 10,
        "valid_every": 20, "valid_documents": 2, "threads": 1, **options,
    })  # fmt: skip
    pretrain.train(CONFIG, t, folder, lines.append)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that went well ("calm") and one whose learning rate was a hundred times too high ("hot")."""
    folder = tmp_path_factory.mktemp("runs")
    said: dict[str, list[str]] = {"calm": [], "hot": []}
    train(folder / "calm", said["calm"], lr=4e-3)
    train(folder / "hot", said["hot"], lr=0.5, clip=1e6)
    (folder / "said.json").write_text(json.dumps(said))
    return folder


def test_training_says_its_alerts_in_the_terminal(runs: Path) -> None:
    said = json.loads((runs / "said.json").read_text())
    assert any("ALERT stiff memory" in line and "Remedy: " in line for line in said["hot"])
    assert any("ALERT saturating quantiser" in line for line in said["hot"])
    assert not any("heads are dead" in line for line in said["calm"])


def test_decays_driven_to_their_limits_are_stiff_memory(tmp_path: Path) -> None:
    said: list[str] = []
    train(tmp_path / "run", said, lr=1e-3, lr_decay_rates=1000.0)
    assert any("ALERT stiff memory" in line for line in said), said


def test_a_run_that_diverges_says_so_in_its_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mamba_integer.train import loop

    real = loop.loss_sum
    calls: list[int] = []

    def diverging(*args: Any) -> torch.Tensor:
        calls.append(1)
        return real(*args) * (float("inf") if len(calls) > 4 else 1.0)

    monkeypatch.setattr(loop, "loss_sum", diverging)
    said: list[str] = []
    with pytest.raises(CheckpointError, match="not finite"):
        train(tmp_path / "run", said)
    assert any("ALERT not finite" in line for line in said)
    overview = RunReader(tmp_path / "run").overview()
    assert "not finite" in {a["kind"] for a in overview["alerts"]}
    written = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line, parse_constant=pytest.fail) for line in written)


def test_json_snapshot(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["monitor", str(runs), "--json"]) == 0
    calm, hot = json.loads(capsys.readouterr().out)["runs"]
    assert (calm["name"], calm["state"], calm["step"], calm["steps"]) == ("calm", "finished", 60, 60)
    lines = [json.loads(line) for line in (runs / "calm" / "metrics.jsonl").read_text().splitlines()]
    assert calm["loss"] == pytest.approx([line["loss"] for line in lines if "loss" in line][-1], abs=1e-5)
    assert {"stiff memory", "saturating quantiser"} <= {a["kind"] for a in hot["alerts"]}
    assert set(hot["alerts"][0]) == {"kind", "step", "where", "message", "remedy", "critical"}
    assert cli.main(["monitor", str(runs / "calm"), "--json"]) == 0
    assert [r["name"] for r in json.loads(capsys.readouterr().out)["runs"]] == ["calm"]


def test_bad_usage_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([str(tmp_path), "--json"], [str(tmp_path / "none")], [str(tmp_path), "--port", "99999"]):
        assert cli.main(["monitor", *arguments]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_monitor_needs_neither_torch_nor_tensorboard(runs: Path) -> None:
    code = (
        "import sys\nclass No:\n def find_spec(self, name, *_):\n  if name.split('.')[0] in ('torch', 'tensorboard', 'safetensors'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, No())\nfrom mamba_integer.cli import main\nsys.exit(main(['monitor', sys.argv[1], '--json']))"
    )
    subprocess.run([sys.executable, "-c", code, str(runs)], check=True, capture_output=True)


# ---- reading -------------------------------------------------------------------------------------------------------------------------------------


def write(folder: Path, *lines: str, mode: str = "a") -> None:
    folder.mkdir(exist_ok=True)
    with (folder / "metrics.jsonl").open(mode) as f:
        f.write("".join(lines))


def line(step: int, **values: Any) -> str:
    return json.dumps({"step": step, **values}) + "\n"


def test_reading_goes_on_where_it_stopped(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write(run, line(1, loss=3.0), line(2, loss=2.0), '{"step": 3, "lo')
    reader = RunReader(run)
    first = reader.snapshot()
    assert first["series"]["loss"]["mean"] == [3.0, 2.0]
    write(run, 'ss": 1.0}\n')
    second = reader.snapshot(first["cursor"])
    assert not second["fresh"]
    assert second["series"]["loss"] == {"from": 2, "step": [3], "mean": [1.0]}
    assert reader.snapshot(second["cursor"])["series"] == {}
    # a resumed run rewrites its file: shorter, or even longer again before we look
    write(run, line(1, loss=3.0), *(line(s, loss=9.0) for s in range(2, 9)), mode="w")
    third = reader.snapshot(second["cursor"])
    assert third["fresh"]
    assert third["series"]["loss"]["mean"] == [3.0] + [9.0] * 7
    for cursor in ("", "x", "1:x", ":", "1:" + "9" * 999, "²:²"):
        assert reader.snapshot(cursor)["fresh"]
    shutil.rmtree(run)
    assert reader.overview()["state"] == "gone"
    assert reader.snapshot()["series"]["loss"]["mean"], "what was read stays"


def test_a_huge_file_is_thinned(tmp_path: Path) -> None:
    run = tmp_path / "run"
    n = 20_001
    write(run, *(line(i, loss=float(i), tau_std=[[float(i)]]) for i in range(n)))
    reader = RunReader(run)
    snapshot = reader.snapshot()
    loss, frames = snapshot["series"]["loss"], snapshot["frames"]["tau_std"]
    assert MAX_BUCKETS // 2 <= len(loss["step"]) <= MAX_BUCKETS
    assert loss["step"][-1] == n - 1
    assert all(low <= mean <= high for low, mean, high in zip(loss["low"], loss["mean"], loss["high"], strict=True))
    assert loss["low"][0] == 0
    assert MAX_FRAMES // 2 <= len(frames["step"]) <= MAX_FRAMES
    assert frames["step"][-1] == n - 1, "the newest is always there"
    kept = {name: dict(part) for name, part in (("loss", loss), ("tau_std", frames))}
    cursor = snapshot["cursor"]
    for i in range(n, n + 700):  # what a page puts together of increments is what a new page would get
        write(run, line(i, loss=float(i), tau_std=[[float(i)]]))
        if i % 13 == 0:
            new = reader.snapshot(cursor)
            cursor = new["cursor"]
            for name, part in {**new["series"], **new["frames"]}.items():
                old = {} if new["fresh"] else kept[name]
                kept[name] = {k: [*old.get(k, [])[: part["from"]], *v] for k, v in part.items() if k != "from"}
    new = reader.snapshot(cursor)
    whole = reader.snapshot()
    for name, part in {**whole["series"], **whole["frames"]}.items():
        late = {**new["series"], **new["frames"]}.get(name, {"from": len(kept[name]["step"])})
        for k in part:
            if k != "from":
                assert [*kept[name][k][: late["from"]], *late.get(k, [])] == part[k]


def test_hostile_lines_are_passed_over(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write(
        run, "[" * 100_000 + "\n", "null\n", "3\n", '"x"\n', "{}\n", line(-1, loss=1), '{"step": true, "loss": 1}\n', '{"step": 1e3}\n', "\x00\xff\n",
        '{"step": ' + "9" * 5000 + "}\n", "x" * 3_000_000 + "\n", line(10**30), line(1, **{f"n{i}": i for i in range(1000)}),
        line(2, **{"a" * 1000: 1, "bell\x07": 1}), '{"step": 3, "loss": NaN, "lr": 1e999, "huge": ' + "9" * 400 + "}\n",
        line(4, tau_std="x", tau_median=[[None]], clips=[[1] * 100_000], mixed=[1, [2]], deep=[[[1]]]), line(5, sample=HOSTILE * 1000),
    )  # fmt: skip
    (run / "config.json").write_text(
        json.dumps({"model": {"n_layers": HOSTILE, "d_model": 1e999}, "train": [1], "steps": "x"})
    )
    (run / "summary.json").write_text("[")
    reader = RunReader(run)
    snapshot = reader.snapshot()
    json.dumps(snapshot, allow_nan=False)
    assert snapshot["run"]["step"] == 5
    assert snapshot["run"]["broken_lines"] >= 10
    assert len(snapshot["series"]) <= 200
    assert all(len(name) <= 64 for name in snapshot["series"])
    assert "clips" not in snapshot["frames"]


def test_a_fifo_in_place_of_the_file_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.jsonl")
    (tmp_path / "config.json").write_text("{}")
    assert RunReader(tmp_path).overview()["step"] == 0


def test_states(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    reader = RunReader(run)
    assert reader.overview()["state"] == "waiting"
    write(run, line(1, loss=3.0))
    assert reader.overview()["state"] == "running"
    long_ago = time.time() - 9000
    os.utime(run / "metrics.jsonl", (long_ago, long_ago))
    overview = reader.overview()
    assert overview["state"] == "stopped"
    assert [a["kind"] for a in overview["alerts"]] == ["stopped"]
    (run / "summary.json").write_text('{"complete": true}')
    assert reader.overview()["state"] == "finished"


# ---- serving ---------------------------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[MonitorServer]:
    with MonitorServer(Runs(folder), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(
    server: MonitorServer, path: str, host: str | None = None, method: str = "GET"
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
    with contextlib.closing(connection):
        connection.putrequest(method, path, skip_host=True)
        if host != "":
            connection.putheader("Host", host or f"127.0.0.1:{server.server_address[1]}")
        connection.endheaders()
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()


def test_serves_page_and_figures_to_this_machine_only(runs: Path) -> None:
    with serving(runs) as server:
        assert server.server_address[0] == "127.0.0.1"
        for path, kind in (("/", "text/html"), ("/monitor.js", "text/javascript"), ("/monitor.css", "text/css")):
            status, headers, body = ask(server, path)
            assert status == 200
            assert headers["Content-Type"].startswith(kind)
            assert "default-src 'none'" in headers["Content-Security-Policy"]
            assert b"http://" not in body, "everything is served from here"
            assert b"https://" not in body
        names = [r["name"] for r in json.loads(ask(server, "/api/runs")[2])["runs"]]
        assert names == ["calm", "hot"]
        assert json.loads(ask(server, "/api/run?name=calm&only=loss")[2])["series"].keys() == {"loss"}
        assert ask(server, "/", method="HEAD")[2] == b""
        for host in (
            "evil.example",
            "evil.example:80",
            "127.0.0.1.evil.example",
            "",
            "10.0.0.1",
            "[::2]",
            "a@b",
            "[bad",
        ):
            assert ask(server, "/api/runs", host)[0] in (400, 403), host
        for host in ("localhost", "localhost:1", "127.0.0.1:9", "[::1]:8"):
            assert ask(server, "/api/runs", host)[0] == 200, host
        for path in (
            "/../pyproject.toml", "/..%2f..%2fetc/passwd", "//etc/passwd", "/metrics.jsonl", "/calm/config.json", "/runs.py", "/api/run", "/api/run?name=",
            "/api/run?name=..%2Fcalm", "/api/run?name=/etc", "/api/run?name=said.json", "http://127.0.0.1/../x", "/%00", "/monitor.js/..", "*",
        ):  # fmt: skip
            assert ask(server, path)[0] in (400, 404), path
        assert ask(server, "/", method="POST")[0] == 501


def test_a_taken_port_is_one_line(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(runs) as server:
        assert cli.main(["monitor", str(runs), "--no-open", "--port", str(server.server_address[1])]) == 2
    assert "give another --port" in capsys.readouterr().err


# ---- in a browser --------------------------------------------------------------------------------------------------------------------------------------


def page(url: str, profile: Path, *options: str) -> str:
    """The page's document after its scripts have run, by a headless Chromium."""
    browser = next((b for b in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if b), None)
    assert browser, "the page is tested in Chromium: apt-get install chromium (`make test` does it when run as root)"
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", f"--user-data-dir={profile}", "--virtual-time-budget=5000", *options, "--dump-dom", url],
        capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_page_shows_runs_in_a_browser(runs: Path, tmp_path: Path) -> None:
    with serving(runs) as server:
        calm = page(server.url + "#calm", tmp_path / "profile", "--window-size=1280,2000")
        hot = page(server.url + "#hot", tmp_path / "profile", "--window-size=390,2000")
    for text in (calm, hot):
        assert 'data-ready="yes"' in text
        assert text.count("<canvas") == 11
        assert "nats/token" in text
        assert "Once upon a time" in text, "a sample story"
        assert "no inspection yet" not in text
        assert "no answer from" not in text
        assert "norm2: at limit" in text
    assert "finished" in calm
    assert "stiff memory" in hot
    assert "lower --lr-decay-rates" in hot
    assert "All runs" in calm


def test_page_survives_hostile_metrics(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "<b>evil<b>"
    run.mkdir(parents=True)
    write(
        run, line(1, loss=3.0, sample=HOSTILE, **{HOSTILE[:60]: 1.0, "__proto__": 1.0, "constructor": [1.0]}),
        line(2, loss=1e308, lr=-1e308, tau_median=[[1e308, 1]], tau_std=[[]], **{"clip/x": [5, -3], "norm_shift/norm1": [[1]], "zeros/in_proj": []}),
        line(3, loss="NaN", tau_median=[1, 2], tau_std=[[1], [2, 3]], m_low=[[1]], **{"norm_shift/norm1": [], "dead/x": 3, "clip/norm1": 3}),
        line(4, loss=2.5, sample="<script>alert(1)</script>"),
    )  # fmt: skip
    with serving(tmp_path / "runs") as server:
        text = page(server.url, tmp_path / "profile")
    assert 'data-ready="yes"' in text
    assert "owned" not in text.split("</title>")[0]
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text, "shown as the text that it is"
    assert "<img" not in text
    assert "no answer from" not in text, "no script error stopped the page"
    assert "not finite" in text
