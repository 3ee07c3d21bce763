"""What `inspect` shows is what the reference computes, and is shown safely."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from mamba_integer.cli import main
from mamba_integer.engine import Model
from mamba_integer.errors import ArgumentError
from mamba_integer.inspection import LIMITS, inspect, page
from mamba_integer.model_file import read_model
from mamba_integer.reference import Reference
from tests.models import tiny_model_bytes


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inspect") / "tiny.gguf"
    path.write_bytes(tiny_model_bytes())
    return path


def test_against_the_reference(path: Path) -> None:
    model, weights = Model.load(path), read_model(path)
    found = inspect(model, "The cat", max_tokens=6, seed=3)
    generation = model.generate("The cat", max_tokens=6, seed=3)
    generation.finish()
    assert (found.tokens, found.prompt_tokens) == (generation.tokens, generation.prompt_tokens)
    assert found.text == generation.text
    fed = [*found.prompt_tokens, *found.tokens[:-1]]
    sites: dict[tuple[int, str], npt.NDArray[np.int32]] = {}
    logits = Reference(weights, lambda p, s, v: sites.__setitem__((p, s), np.array(v))).logits(fed)
    steps, layers, heads = found.half_life.shape
    assert (steps, layers, heads) == (len(fed), model.config.n_layers, model.config.n_heads)
    for t in range(steps):
        for layer in range(layers):
            assert found.norm_shift[t, layer].tolist() == [
                int(sites[t, f"blk.{layer}.norm{n}.j"].reshape(-1)[0]) for n in (1, 2)
            ]
            k = weights.tensors[f"blk.{layer}.scan.k"]
            for head in range(heads):
                share = int(sites[t, f"blk.{layer}.m"][head]) / 2 ** int(k[head])
                assert found.half_life[t, layer, head] == pytest.approx(math.log(0.5) / math.log(1 - share))
    for layer in range(layers):
        for site, limit in LIMITS.items():
            values = np.stack([sites[t, f"blk.{layer}.{site}"] for t in range(steps)])
            assert found.saturated[layer, site] == (int((np.abs(values) >= limit).sum()), values.size)
    first = found.candidates[0]
    row = logits[len(found.prompt_tokens) - 1]
    assert [t for t, _ in first] == np.argsort(-row.astype(np.int64), kind="stable")[:5].tolist()
    assert all(0 < p < 1 for _, p in first)


class Checked(HTMLParser):
    """Every element is closed, and there are none that could run or load anything."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "iframe", "object", "link", "img")
        assert not any(name.startswith("on") or name in ("href", "src") for name, _ in attrs)
        if tag not in ("meta", "line", "circle", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "circle", "rect"):
            assert self.open.pop() == tag


def test_page(path: Path) -> None:
    found = inspect(Model.load(path), "<script>alert('1')</script> & \"quoted\"", max_tokens=12, temperature=3)
    checked = Checked()
    checked.feed(page(found))
    assert checked.open == []
    assert page(found).count("<circle") == found.half_life.shape[1] * found.half_life.shape[2]


def test_command(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "page.html"
    assert main(["inspect", "--model", str(path), "--prompt", "The", "--max-tokens", "5", "-o", str(output)]) == 0
    told = capsys.readouterr().out
    assert "half-life" in told
    assert "norm shifts" in told
    assert output.read_text().startswith("<!doctype html>")
    assert main(["inspect", "--model", str(path), "--prompt", "The", "--max-tokens", "5", "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert {"tokens", "heads", "norms", "saturation", "candidates", "model_digest", "text"} <= set(out)
    assert main(["inspect", "--model", str(path), "--prompt", "The", "-o", str(tmp_path)]) == 2


def test_refusals(path: Path) -> None:
    model = Model.load(path)
    for bad in ({"max_tokens": 0}, {"candidates": 0}, {"top_p": 2}):
        with pytest.raises(ArgumentError):
            inspect(model, "The", **bad)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="empty"):
        inspect(model, "")
    with pytest.raises(ArgumentError, match="file"):
        inspect(Model.from_bytes(path.read_bytes()), "The")
