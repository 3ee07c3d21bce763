"""The primitives of spec/ARITHMETIC.md against their definitions: exhaustive where the domain allows, at every boundary and at random elsewhere."""

from __future__ import annotations

import importlib.util
import itertools
import math
import re
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mamba_integer import arithmetic as ar

ROOT = Path(__file__).resolve().parents[1]
I32 = 1 << 31
EXTREMES = [-I32, -I32 + 1, -(1 << 30), -1, 0, 1, (1 << 30) - 1, I32 - 2, I32 - 1]
INT16 = np.arange(-(1 << 15), 1 << 15)
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")
int32s = st.integers(-I32, I32 - 1)


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"scripts/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- The document, its constants and its vectors


def plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(plain(v) for v in value)
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def test_worked_examples_of_the_spec() -> None:
    names = {name: getattr(ar, name) for name in dir(ar) if not name.startswith("_")}
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "spec/ARITHMETIC.md").read_text("utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    assert len(lines) >= 48
    for line in lines:
        left, right = line.split(" == ")
        assert plain(eval(left, names)) == eval(right), line


def test_generated_constants_are_current(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["gen_constants.py", "--check"])
    assert script("gen_constants").main() == 0, capsys.readouterr().err


def test_vectors_are_current(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["make_vectors.py", "--check"])
    assert script("make_vectors").main() == 0, capsys.readouterr().err


# ---- Integers only


@pytest.mark.parametrize("bad", [1.0, [1.5, 2.0], np.float32(3), True, 1j, "1", np.zeros(2)])
def test_anything_but_integers_is_refused(bad: npt.ArrayLike) -> None:
    for function in (ar.ints, ar.bitlen, ar.rsqrt, ar.isqrt, ar.sigmoid12, ar.squareplus, ar.pow2neg):
        with pytest.raises(TypeError):
            function(bad)
    with pytest.raises(TypeError):
        ar.rshift(bad, 1)
    with pytest.raises(TypeError):
        ar.matmul(np.ones((1, 1), np.int8), bad if np.ndim(bad) == 2 else np.array([[0.5]]))


def test_values_out_of_range_are_refused() -> None:
    for call in (
        lambda: ar.bitlen(-1),
        lambda: ar.rsqrt(0),
        lambda: ar.isqrt(1 << 32),
        lambda: ar.sigmoid12(1 << 15),
        lambda: ar.norm([1 << 17], [1]),
        lambda: ar.pow2neg(1 << 16),
        lambda: ar.rotate(I32, 0, 1),
        lambda: ar.act(0, "relu"),
        lambda: ar.scan_step(0, 0, 1, 8, "other"),
        lambda: ar.cayley_transform(np.zeros(3, int), np.zeros(3, int)),
        lambda: ar.cayley_transform(np.zeros(2048, int), np.zeros(2048, int)),
        lambda: ar.sample([1 << 30], 1, 1),
        lambda: ar.sample([1, 2], 1, 1, temperature=(1 << 22) + 1),
        lambda: ar.sample([1, 2], 1, 1, temperature=1, top_p=0),
    ):
        with pytest.raises(ValueError, match=r"must be|unknown|out of range"):
            call()
    with pytest.raises(OverflowError):
        ar.ints(np.array([1 << 63], np.uint64))


# ---- §1


@given(st.integers(-(1 << 60), 1 << 60), st.integers(0, 40))
def test_rshift(x: int, s: int) -> None:
    y = int(ar.rshift(x, s))
    assert 2 * y * (1 << s) <= 2 * x + (1 << s) * (s > 0) < 2 * (y + 1) * (1 << s)
    assert y == (2 * x + (1 << s)) // (2 << s)


@given(st.integers(-(1 << 40), 1 << 40), st.integers(2, 32))
def test_sat(x: int, bits: int) -> None:
    top = (1 << (bits - 1)) - 1
    assert int(ar.sat(x, bits)) == sorted((-top, x, top))[1]
    assert int(ar.sat(-x, bits)) == -int(ar.sat(x, bits))


def test_bitlen() -> None:
    v = [0, *(n for b in range(63) for n in ((1 << b) - 1, 1 << b, (1 << b) + 1))]
    assert ar.bitlen(v).tolist() == [n.bit_length() for n in v]


# ---- §2 and §3: the inequalities, in int64 that holds them exactly


def check_rsqrt(v: npt.NDArray[np.int64]) -> None:
    y, j = ar.rsqrt(v)
    u = v << (2 * (15 - j))
    assert ((u >= 1 << 30) & (u < 1 << 32)).all()
    assert (y * y * u <= 1 << 62).all()
    assert ((y + 1) * (y + 1) * u > 1 << 62).all()


def test_rsqrt_on_both_sides_of_every_step() -> None:
    last = np.array([(1 << 62) // (y * y) for y in range(1 << 15, (1 << 16) + 1)])  # the largest u of each y
    for v in (last - 1, last, last + 1):
        check_rsqrt(v[(v >= 1 << 30) & (v < 1 << 32)])


def test_rsqrt_of_every_size() -> None:
    check_rsqrt(np.arange(1, 1 << 16))
    check_rsqrt(np.array([v for b in range(33) for v in ((1 << b) - 1, 1 << b, (1 << b) + 1) if 0 < v < 1 << 32]))
    check_rsqrt(np.random.default_rng(0).integers(1, 1 << 32, 1 << 18))


def test_isqrt_around_every_square() -> None:
    s = np.arange(1 << 16)
    assert (ar.isqrt(s * s) == s).all()
    assert (ar.isqrt(s * s + 2 * s) == s).all()
    assert (ar.isqrt(s[1:] * s[1:] - 1) == s[1:] - 1).all()


def test_sigmoid_and_squareplus_of_every_int16() -> None:
    s = np.array([math.isqrt(c * c + (1 << 18)) for c in INT16.tolist()])
    q = ar.sigmoid12(INT16)
    assert (q * 2 * s <= (s + INT16) << 12).all()
    assert ((s + INT16) << 12 < (q + 1) * 2 * s).all()
    assert q.min() == 0
    assert q.max() == 4095
    assert (ar.squareplus(INT16) == (INT16 + s) >> 1).all()
    real = INT16 / 256
    assert np.abs(q / 4096 - (1 + real / np.sqrt(real**2 + 4)) / 2).max() < 2**-8
    silu, f = ar.act(INT16, "silu")
    assert np.abs(silu).max() < 1 << 27
    assert np.abs(silu / 2**f - real * (1 + real / np.sqrt(real**2 + 4)) / 2).max() < 2**-5
    assert (np.diff(silu[1 << 15 :]) >= 0).all()  # bounds.py takes the largest value from the end


# ---- §4


def test_norm_mantissa_of_every_sum() -> None:
    S = np.arange(1 << 14, 1 << 16)
    mu = ar.rsqrt(S << 16)[0] >> 8
    assert (mu * mu * S <= 1 << 30).all()
    assert ((mu + 1) * (mu + 1) * S > 1 << 30).all()
    assert mu.min() == 128
    assert mu.max() == 256


@settings(max_examples=100)
@given(st.data())
def test_norm_by_definition(data: st.DataObject) -> None:
    d = data.draw(st.integers(1, 80))
    limit = (1 << data.draw(st.integers(0, 17))) - 1
    x = data.draw(st.lists(st.integers(-limit, limit), min_size=d, max_size=d))
    g = data.draw(st.lists(st.integers(-127, 127), min_size=d, max_size=d))
    mantissa = data.draw(st.sampled_from([0, 8]))
    out, j, mu = (plain(v) for v in ar.norm(x, g, mantissa))
    S = (1 << 14) + sum(v * v for v in x)
    assert j == (S.bit_length() - 15) // 2
    expected = math.isqrt((1 << 30) // (S >> (2 * j))) if mantissa else 128
    assert mu == expected
    n = [(2 * 16 * v + (1 << j)) // (2 << j) if j else 16 * v for v in x]
    assert max(map(abs, n)) <= 1 << 12
    shift = 20 - d.bit_length() // 2
    assert out == [
        max(-127, min(127, (2 * a * mu * b + (1 << shift)) // (2 << shift))) for a, b in zip(n, g, strict=True)
    ]


def test_norm_of_the_largest_input() -> None:
    out, j, mu = ar.norm(np.full(1 << 14, (1 << 17) - 1), [127])
    assert (int(j), int(mu)) == (16, 128)
    assert (out == out[0]).all()


# ---- §5 to §7


def test_bitlinear_and_conv_by_definition() -> None:
    r = np.random.default_rng(3)
    x, W, m = r.integers(-127, 128, (2, 3, 37)), r.integers(-127, 128, (5, 37)), r.integers(1, 256, 5)
    got = ar.bitlinear(x.astype(np.int8), W.astype(np.int8), m.astype(np.int16), 7)
    for index in np.ndindex(2, 3, 5):
        acc = sum(int(a) * int(b) for a, b in zip(x[index[:2]], W[index[2]], strict=True))
        assert got[index] == max(-32767, min(32767, (acc * int(m[index[2]]) + 64) >> 7))
    p, w, b = r.integers(-32767, 32768, (50, 4)), r.integers(-127, 128, (50, 4)), r.integers(-32767, 32768, 50)
    for row, got_c in enumerate(ar.conv4(p, w, b)):
        total = sum(int(a) * int(c) for a, c in zip(p[row], w[row], strict=True))
        assert got_c == max(-32767, min(32767, ((total + 32) >> 6) + int(b[row])))


@given(st.integers(8, 15), st.lists(st.tuples(st.integers(1, 255), st.sampled_from([-1, 0, 1])), max_size=60))
def test_convex_scan_stays_between_its_inputs(k: int, steps: list[tuple[int, int]]) -> None:
    top = 127 * 31 * 64
    h = 0
    for m, sign in steps:
        before, v = h, sign * top
        h = int(ar.scan_step(h, v, m, k, "convex"))
        assert min(before, v) <= h <= max(before, v)


@settings(max_examples=20)
@given(st.integers(8, 15), st.data())
def test_literal_scan_stays_below_its_bound(k: int, data: st.DataObject) -> None:
    top = 127 * 31 * 64
    h = 0
    least = data.draw(st.integers(1, (1 << k) - 1))
    for _ in range(30):
        m = data.draw(st.sampled_from([least, (1 << k) - 1]))
        h = int(ar.scan_step(h, top, m, k, "literal"))
        assert 0 <= h <= top + (1 << k)


def test_modulation_limits() -> None:
    dt, A = np.array([-32767, -224, 0, 768, 32767]), 1 << 12
    assert ar.modulation(dt, A, 0, 15, "literal").tolist() == [32, 32, 256, 1024, 1024]
    assert ar.modulation(dt, A, 0, 15, "convex").tolist() == [32, 32, 255, 255, 255]
    assert ar.modulation(dt, 1, 0, 8, "convex").tolist() == [1] * 5
    assert ar.modulation(dt, 1 << 19, 0, 8, "literal").tolist() == [255] * 5


# ---- §10


def test_rotation_constants_are_the_nearest() -> None:
    for j in range(129):
        angle = 2 * math.pi * j / 1024
        assert abs(ar.ROTATION_T[j] - 2**30 * math.tan(angle / 2)) < 0.5001
        assert abs(ar.ROTATION_S[j] - 2**30 * math.sin(angle)) < 0.5001
    assert ar.ROTATION_FREQUENCIES[:8] == (163, 81, 40, 20, 10, 5, 2, 1)
    assert len(ar.ROTATION_FREQUENCIES) == 32


@pytest.mark.parametrize("b", [13, 20, 30])
def test_rotation_is_invertible_at_the_extremes(b: int) -> None:
    x, y = np.array(list(itertools.product(EXTREMES, EXTREMES))).T
    angle = np.arange(1024)[:, None]
    for forward, back in ((ar.rotate, ar.rotate_inverse), (ar.rotate_inverse, ar.rotate)):
        again = back(*forward(x, y, angle, b), angle, b)
        assert (again[0] == x).all()
        assert (again[1] == y).all()


@given(int32s, int32s, st.integers(-5000, 5000), st.integers(13, 30))
def test_rotation_is_invertible(x: int, y: int, angle: int, b: int) -> None:
    there = ar.rotate(x, y, angle, b)
    assert all(-I32 <= int(v) < I32 for v in there)
    assert plain(ar.rotate_inverse(*there, angle, b)) == (x, y)


@pytest.mark.parametrize(("b", "limit"), [(13, 32767), (30, 1 << 29)])
def test_rotation_is_a_rotation(b: int, limit: int) -> None:
    r = np.random.default_rng(b)
    x, y = r.integers(-limit, limit + 1, (2, 1024, 50))
    x[:, 0], y[:, 0], x[:, 1], y[:, 1] = limit, limit, limit, -limit
    turn = np.exp(2j * np.pi * np.arange(1024)[:, None] / 1024)
    got, want = ar.rotate(x, y, np.arange(1024)[:, None], b), (x + 1j * y) * turn
    radius = np.abs(want)
    for part, exact in zip(got, (want.real, want.imag), strict=True):
        assert (np.abs(part - exact) <= 1.1 + 3.4 * 2.0 ** (-b - 1) * radius).all()


def test_rotated_heads_depend_on_relative_position() -> None:
    """C·B of rotated vectors against that of the other positions with the same distance."""
    r = np.random.default_rng(0)
    B, C = r.integers(-900, 900, (2, 16))
    products = [int(ar.rotate_heads(B, p) @ ar.rotate_heads(C, p + 5)) for p in range(0, 3000, 37)]
    exact = np.abs(B).max() * np.abs(C).max() * 16
    assert np.ptp(products) < exact / 100
    assert (ar.rotate_heads(B, 3) == ar.rotate_heads(B, 3 + 1024)).all()
    assert (ar.rotate_heads(B, 0) == B).all()


@pytest.mark.parametrize("m", range(1, 11))
def test_transform_is_invertible_on_every_int32(m: int) -> None:
    n = 1 << m
    r = np.random.default_rng(m)
    z = np.concatenate([r.integers(-I32, I32, (20, 2, n)), r.choice(EXTREMES, (20, 2, n))])
    z[0], z[1], z[2] = -I32, I32 - 1, 0
    for forward, back in (
        (ar.cayley_transform, ar.cayley_transform_inverse),
        (ar.cayley_transform_inverse, ar.cayley_transform),
    ):
        again = back(*forward(z[:, 0], z[:, 1]))
        assert (again[0] == z[:, 0]).all()
        assert (again[1] == z[:, 1]).all()


@given(st.integers(1, 5), st.data())
def test_transform_is_invertible(m: int, data: st.DataObject) -> None:
    re, im = (data.draw(st.lists(int32s, min_size=1 << m, max_size=1 << m)) for _ in range(2))
    assert plain(ar.cayley_transform_inverse(*ar.cayley_transform(re, im))) == (re, im)


@pytest.mark.parametrize("m", range(1, 11))
def test_transform_against_the_exact_one(m: int) -> None:
    """The spec's bounds on error and energy, and what it says was measured."""
    n, top = 1 << m, 1 << 20
    r = np.random.default_rng(m)
    z = r.integers(-top, top + 1, (60, 2, n))
    z[:10] = r.choice([-top, top], (10, 2, n))
    z[10], z[11, 0], z[11, 1] = top, top, 0
    for i in range(12, 30):
        wave = top * np.exp(2j * np.pi * (i - 12) * np.arange(n) / n)
        z[i] = np.rint(wave.real), np.rint(wave.imag)
    got = np.array(ar.cayley_transform(z[:, 0], z[:, 1]))
    want = np.fft.fft(z[:, 0] + 1j * z[:, 1]) / math.sqrt(n)
    error = np.maximum(np.abs(got[0] - want.real), np.abs(got[1] - want.imag))
    assert error.max() <= 6.35 * (math.sqrt(n) - 1) + 1.5 <= 200
    assert error.max() <= 10.5
    assert math.sqrt((error**2).mean()) <= 2
    energy = (got.astype(float) ** 2).sum((0, 2))
    original = (z.astype(float) ** 2).sum((1, 2))
    assert (np.abs(np.sqrt(energy / original) - 1) <= 2.7 * m / np.sqrt(original / n) + 2.0**-24).all()
    assert np.abs(energy / original - 1).max() < 1e-5


# ---- §11


def test_pow2neg_everywhere() -> None:
    F = np.arange(1 << 16)
    w = ar.pow2neg(F)
    assert w[0] == 1 << 16
    assert w[-1] == 1 << 15
    assert (np.diff(w) <= 0).all()
    exact = 2.0 ** (16 - F / 65536)
    assert 5.66 < np.abs(w - exact).max() < 5.67
    assert np.abs(w / exact - 1).max() < 1.6e-4


def test_philox_known_answers() -> None:
    """From the authors' Random123 library, kat_vectors."""
    words = [0xFFFFFFFF] * 4
    for counter, key, want in (
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (words, words[:2], [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ):
        assert ar.philox4x32(counter, key).tolist() == want


@given(st.integers(1, 1 << 22), st.integers(1, 1023))
def test_inverse_temperature(temperature: int, embed_mul: int) -> None:
    C = ar.inverse_temperature(temperature, embed_mul)
    assert min((embed_mul * 94548 << 16) // temperature, (1 << 32) - 1) == C


def naive_sample(l: list[int], me: int, shift: int, T: int, top_k: int, top_p: int, seed: int, step: int) -> int:
    """Section 11 once more, in Python's integers and lists."""
    order = sorted(range(len(l)), key=lambda v: (-l[v], v))
    if T == 0:
        return order[0]
    kept = order[: top_k or None]
    C = min((me * 94548 << 16) // T, (1 << 32) - 1)
    weight = {}
    for v in kept:
        e = (max(l) - l[v]) * C >> shift
        weight[v] = int(ar.pow2neg(e & 65535)) >> (e >> 16) if e >> 16 <= 16 else 0
    if top_p < 1 << 16:
        total, running, prefix = sum(weight.values()), 0, []
        for v in sorted(kept, key=lambda v: (-weight[v], v)):
            prefix.append(v)
            running += weight[v]
            if running << 16 >= top_p * total:
                break
        kept = prefix
    counter, key = [step & 0xFFFFFFFF, step >> 32, 0, 0], [seed & 0xFFFFFFFF, seed >> 32]
    target = (int(ar.philox4x32(counter, key)[0]) >> 2) * sum(weight[v] for v in kept) >> 30
    running = 0
    for v in sorted(kept):
        running += weight[v]
        if running > target:
            return v
    raise AssertionError("the weights add up to more than the target")


@given(st.data())
def test_sample_by_definition(data: st.DataObject) -> None:
    word = st.integers(0, (1 << 64) - 1)
    logit = st.integers(-2000, 2000) | st.integers(-(1 << 30) + 1, (1 << 30) - 1)
    args = (
        data.draw(st.lists(logit, min_size=1, max_size=30)),
        data.draw(st.integers(1, 1023)),
        data.draw(st.integers(0, 31)),
        data.draw(st.sampled_from([0, 1, 1000, 65536, 1 << 22]) | st.integers(0, 1 << 22)),
        data.draw(st.integers(0, 40)),
        data.draw(st.sampled_from([1, 1 << 16]) | st.integers(1, 1 << 16)),
        data.draw(word),
        data.draw(word),
    )
    assert ar.sample(*args) == naive_sample(*args)


def test_sample_follows_the_distribution() -> None:
    logits, me, shift = [900, 1000, 0, 1100, 700], 30, 15
    exact = np.exp(np.array(logits) * me / 2**shift / 0.8)
    exact /= exact.sum()
    n = 3000
    seen = Counter(ar.sample(logits, me, shift, temperature=52429, seed=9, step=i) for i in range(n))
    for token, p in enumerate(exact):
        assert abs(seen[token] - n * p) < 5 * math.sqrt(n * p * (1 - p)) + 1
    assert {ar.sample(logits, me, shift, temperature=52429, top_k=2, seed=i) for i in range(60)} == {1, 3}
    assert {ar.sample(logits, me, shift, temperature=52429, top_p=1, seed=i) for i in range(20)} == {3}
