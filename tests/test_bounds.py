"""The bounds hold on every site of every random model, hostile ones included; adversarial inputs reach them where they are exact."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mamba_integer import arithmetic as ar
from mamba_integer import bounds
from mamba_integer.config import ModelConfig
from mamba_integer.errors import ModelFormatError
from mamba_integer.model_file import IntegerModel
from mamba_integer.random_model import Stream, random_config, random_model
from mamba_integer.reference import Reference

TINY = ModelConfig(24, 2, 3, 4, 6, 20, 0)


def by_name(model: IntegerModel) -> dict[str, bounds.Site]:
    return {site.name: site for site in bounds.sites(model)}


def with_values(model: IntegerModel, **values: object) -> IntegerModel:
    """The model with some tensors of layer 0 filled with a value or replaced by an array."""
    tensors = dict(model.tensors)
    for short, value in values.items():
        name = f"blk.0.{short.replace('__', '.')}"
        tensors[name] = np.broadcast_to(np.array(value), tensors[name].shape).astype(tensors[name].dtype)
    return dataclasses.replace(model, tensors=tensors)


@pytest.mark.parametrize("seed", range(24))
def test_no_traced_value_exceeds_its_bound(seed: int) -> None:
    config = random_config(seed)
    model = random_model(config, seed, hostile=seed % 2 == 0)
    sites = by_name(model)
    largest: dict[str, int] = {}

    def trace(position: int, site: str, values: np.ndarray) -> None:
        largest[site] = max(largest.get(site, 0), int(np.abs(values.astype(np.int64)).max()))

    Reference(model, trace).logits(Stream(seed, 5).integers(0, config.vocab_size - 1, (4, 16)))
    assert largest.keys() <= sites.keys()
    for name, value in largest.items():
        assert value <= sites[name].limit, name
    bounds.check(model, provable=False)


def test_sites_are_in_order_and_unique() -> None:
    names = [site.name for site in bounds.sites(random_model(TINY, 0))]
    assert len(set(names)) == len(names)
    assert names[0] == "embed"
    assert names[-1] == "logits"


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(0, 24), st.integers(0, 10**6))
def test_linear_bound_is_reached_and_not_exceeded(K: int, s: int, seed: int) -> None:
    """Norms that saturate give inputs of ±127; x = 127 · sign(w) then reaches the bound of its row."""
    r = np.random.default_rng(seed)
    W = r.integers(-127, 128, (5, K))
    m = r.integers(1, 256, 5)
    total = np.abs(W).sum(1) * 127
    for row in range(5):
        x = 127 * np.sign(W[row])
        assert ar.matmul(x, W)[row] == total[row]
        for y in (ar.rshift(ar.matmul(x, W) * m, s), ar.rshift(ar.matmul(-x, W) * m, s)):
            assert (np.abs(y) <= ar.rshift(total * m, s)).all()
        assert ar.rshift(ar.matmul(x, W) * m, s)[row] == ar.rshift(total * m, s)[row]


def test_model_bounds_are_those_of_its_rows() -> None:
    model = with_values(random_model(TINY, 4), norm1__scale=127)
    sites = by_name(model)
    W = np.abs(model.tensors["blk.0.in_proj.weight"].astype(np.int64)).sum(1) * 127
    assert sites["blk.0.in_proj.acc"].largest == W.max()
    assert sites["blk.0.in_proj"].largest == (W * model.tensors["blk.0.in_proj.mul"]).max()
    assert sites["embed"].largest == model.embed_mul * np.abs(model.tensors["token_embd.weight"].astype(int)).max()


def test_small_scales_shrink_what_follows() -> None:
    model = random_model(TINY, 4)
    small, large = by_name(with_values(model, norm1__scale=1)), by_name(with_values(model, norm1__scale=127))
    assert small["blk.0.norm1"].limit < large["blk.0.norm1"].limit == 127
    for name in ("blk.0.in_proj", "blk.0.conv", "blk.0.gate"):
        assert small[name].largest < large[name].largest


def test_conv_bound_is_reached() -> None:
    r = np.random.default_rng(1)
    for _ in range(50):
        p_max, w, b = int(r.integers(1, 32768)), r.integers(-127, 128, 4), int(r.integers(-32767, 32768))
        bound = min(int(ar.rshift(np.abs(w).sum() * p_max, 6)) + abs(b), 32767)
        p = p_max * np.sign(w) * (1 if b >= 0 else -1)
        assert abs(abs(int(ar.conv4(p, w, b))) - bound) <= 1
        assert (np.abs(ar.conv4(r.integers(-p_max, p_max + 1, (200, 4)), w, b)) <= bound).all()


@pytest.mark.parametrize("scan", ["convex", "literal"])
def test_state_bound_is_approached(scan: str) -> None:
    """The same extreme input for ever drives the state to its bound, and never beyond."""
    v = 127 * 31 * 64
    for k, m in ((8, 255), (12, 200), (15, 255)):
        bound = v if scan == "convex" else v + (1 << k)
        h = np.int64(0)
        for _ in range(2000):
            h = ar.scan_step(h, v, m, k, scan)
            assert h <= bound
        assert h > 0.99 * v


def test_rotation_bounds() -> None:
    config = dataclasses.replace(TINY, rotation=True)
    model = with_values(random_model(config, 2), norm1__scale=127, conv__bias=32767, conv__weight=127)
    sites = by_name(model)
    x = sites["blk.0.B.Q8"].limit
    assert x > 32000
    corner = np.array([x, x, -x, -x]), np.array([x, -x, x, -x])
    turned = np.array(ar.rotate(corner[0], corner[1], np.arange(1024)[:, None]))
    assert np.abs(turned).max() <= sites["blk.0.B"].largest
    for shear in (1, 2, 3):
        assert sites[f"blk.0.B.shear{shear}"].provable


# ---- Refusals


def test_ordinary_models_are_provable() -> None:
    for seed in range(30):
        config = random_config(seed, scan="convex")
        bounds.check(random_model(config, seed))
    for seed in range(30):
        bounds.check(random_model(random_config(seed, scan="literal"), seed))


def test_literal_scan_is_not_provable() -> None:
    model = random_model(dataclasses.replace(TINY, scan="literal"), 1)
    with pytest.raises(ModelFormatError, match=r"blk\.0\.state\.kept"):
        bounds.check(model, provable=True)


def wide_rows() -> IntegerModel:
    """A model whose first input projection reaches 2^29 but not 2^30: the file format allows it, the prover's rule does not."""
    model = random_model(dataclasses.replace(TINY, d_model=256), 3)
    full = with_values(model, norm1__scale=127, in_proj__weight=100, in_proj__mul=255)
    return dataclasses.replace(full, in_proj_shift=[14, *full.in_proj_shift[1:]])


def test_the_rule_is_refused_by_name() -> None:
    model = wide_rows()
    with pytest.raises(
        ModelFormatError, match=r"blk\.0\.in_proj: values may reach 8290.* break the prover's rule \(at most 30\)"
    ):
        bounds.check(model)
    bounds.check(model, provable=False)


def test_overflow_is_refused_by_name() -> None:
    model = with_values(
        random_model(dataclasses.replace(TINY, d_model=1024), 3),
        norm1__scale=127,
        in_proj__weight=127,
        in_proj__mul=255,
    )
    for provable in (None, True, False):
        with pytest.raises(ModelFormatError, match=r"blk\.0\.in_proj: values may reach \d+, beyond int32"):
            bounds.check(model, provable=provable)


def test_rule_and_overflow_at_their_edges() -> None:
    site = bounds.Site("s", "round", 10, (1 << 29) - 1 - (1 << 9), 10, (1 << 19) - 1, 127)
    assert (site.in_bits, site.out_bits, site.cells) == (30, 20, 300)
    assert site.provable
    assert not dataclasses.replace(site, out=1 << 19).provable
    assert dataclasses.replace(site, out=1 << 19, wide=True).provable
    assert not dataclasses.replace(site, largest=(1 << 31) - 1 - (1 << 9)).overflows
    assert dataclasses.replace(site, largest=(1 << 31) - (1 << 9)).overflows
    assert not dataclasses.replace(site, largest=1 << 31, width=64).overflows
    assert not dataclasses.replace(site, kind="root", largest=bounds.FIELD).provable


def test_table() -> None:
    model = random_model(TINY, 0)
    lines = bounds.table(model).splitlines()
    assert len(lines) == len(bounds.sites(model)) + 2
    assert lines[0].split() == ["site", "kind", "count", "in", "bits", "shift", "out", "bits", "rule", "cells"]
    assert lines[-1].split()[-1] == f"{sum(site.cells for site in bounds.sites(model)):,}"
    assert max(map(len, lines)) < 100
    assert "NO" in bounds.table(wide_rows())


def test_cells_of_the_scan_dominate() -> None:
    sites = bounds.sites(random_model(ModelConfig(64, 1, 4, 32, 16, 100, 0), 1))
    scan = next(site for site in sites if site.name == "blk.0.state.change")
    assert scan.count == 128 * 16
    assert scan.cells > sum(site.cells for site in sites) // 3
