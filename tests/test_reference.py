"""The reference against a second implementation of sections 2 to 10 in plain Python integers, and the vectors that every language reads."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mamba_integer import arithmetic as ar
from mamba_integer import model_file as mf
from mamba_integer.config import ModelConfig
from mamba_integer.random_model import Stream, random_config, random_model
from mamba_integer.reference import Reference
from mamba_integer.sampling import Sampling

LAYER_SITES = "norm1.j norm1.mu norm1 in_proj conv x B C m state y gate gated norm2.j norm2.mu norm2 out_proj resid"
VECTORS = Path(__file__).resolve().parents[1] / "spec/vectors"

# ---- The spec once more: lists of Python's integers, floor division and math.isqrt, one token at a time


def rsh(x: int, s: int) -> int:
    return (2 * x + 2**s) // 2 ** (s + 1)


def sat(x: int, bits: int) -> int:
    return max(1 - 2 ** (bits - 1), min(2 ** (bits - 1) - 1, x))


def act(c: int, form: str) -> tuple[int, int]:
    s = math.isqrt(c * c + 2**18)
    return (c * ((s + c) * 2**12 // (2 * s)), 20) if form == "silu" else ((c + s) // 2 - 256, 8)


def norm(x: list[int], g: list[int], mantissa: int) -> list[int]:
    S = 2**14 + sum(v * v for v in x)
    j = (S.bit_length() - 15) // 2
    mu = math.isqrt(2**30 // (S // 4**j)) if mantissa else 128
    g = g * len(x) if len(g) == 1 else g
    return [sat(rsh(rsh(16 * v, j) * mu * w, 20 - len(x).bit_length() // 2), 8) for v, w in zip(x, g, strict=True)]


def bitlinear(x: list[int], W: list[list[int]], m: list[int], s: int) -> list[int]:
    return [
        sat(rsh(sum(a * b for a, b in zip(row, x, strict=True)) * scale, s), 16)
        for row, scale in zip(W, m, strict=True)
    ]


def wrap(x: int) -> int:
    return (x + 2**31) % 2**32 - 2**31


def rotate(x: int, y: int, a: int) -> tuple[int, int]:
    q = (a + 127) // 256
    j = a - 256 * q
    sign = -1 if j < 0 else 1
    t, s = (sign * rsh(table[abs(j)], 17) for table in (ar.ROTATION_T, ar.ROTATION_S))
    for _ in range(q % 4):
        x, y = wrap(-y), x
    x = wrap(x - rsh(t * y, 13))
    y = wrap(y + rsh(s * x, 13))
    return wrap(x - rsh(t * y, 13)), y


def naive_logits(model: mf.IntegerModel, tokens: list[int]) -> list[list[int]]:
    c = model.config
    w = {name: tensor.tolist() for name, tensor in model.tensors.items()}
    E, N, P = c.d_inner, c.d_state, c.head_dim
    windows = [[[0] * c.d_conv for _ in range(4)] for _ in range(c.n_layers)]
    states = [[[0] * N for _ in range(E)] for _ in range(c.n_layers)]
    out = []
    for position, token in enumerate(tokens):
        r = [model.embed_mul * v for v in w["token_embd.weight"][token]]
        for i in range(c.n_layers):
            p = {name.split(".", 2)[2]: value for name, value in w.items() if name.startswith(f"blk.{i}.")}
            u = norm(r, p["norm1.scale"], c.norm_mantissa)
            projected = bitlinear(u, p["in_proj.weight"], p["in_proj.mul"], model.in_proj_shift[i])
            z, xBC, dt = projected[:E], projected[E : E + c.d_conv], projected[E + c.d_conv :]
            windows[i] = [*windows[i][1:], xBC]
            conv = []
            for ch in range(c.d_conv):
                total = sum(p["conv.weight"][ch][tap] * windows[i][tap][ch] for tap in range(4))
                conv.append(sat(rsh(total, 6) + p["conv.bias"][ch], 16))
            a = [act(v, c.activation)[0] for v in conv]
            f = act(0, c.activation)[1]
            x = [sat(rsh(v, f - 5), 8) for v in a[:E]]
            BC = []
            for part in (a[E : E + N], a[E + N :]):
                if c.rotation:
                    part = [rsh(v, f - 8) for v in part]
                    for k in range(N // 2):
                        angle = ar.ROTATION_FREQUENCIES[k] * position % 1024
                        part[k], part[k + N // 2] = rotate(part[k], part[k + N // 2], angle)
                    BC.append([sat(rsh(v, 5), 6) for v in part])
                else:
                    BC.append([sat(rsh(v, f - 3), 6) for v in part])
            B, C = BC
            o = []
            for e in range(E):
                head = e // P
                k = p["scan.k"][head]
                mod = min(max(256 + dt[head] + p["scan.base"][head], 32), 1024)
                m = min(max(rsh(mod * p["scan.A"][head], 12), 1), 255 if c.scan == "convex" else 2**k - 1)
                h = states[i][e]
                for n in range(N):
                    v = x[e] * B[n] * 64
                    h[n] = (
                        h[n] + rsh(m * (v - h[n]), k)
                        if c.scan == "convex"
                        else rsh(h[n] * (2**k - m), k) + rsh(m * v, k)
                    )
                y = sat(rsh(sum(C[n] * h[n] for n in range(N)) + p["scan.skip"][head] * x[e] * 64, 9), 16)
                gate, f_gate = act(z[e], c.gate)
                o.append(sat(rsh(y * sat(rsh(gate, f_gate - 8), 15), 6), 18))
            v = norm(o, p["norm2.scale"], c.norm_mantissa)
            added = bitlinear(v, p["out_proj.weight"], p["out_proj.mul"], model.out_proj_shift[i])
            r = [sat(a + b, 18) for a, b in zip(r, added, strict=True)]
        u = norm(r, w["output_norm.scale"], c.norm_mantissa)
        out.append([sum(a * b for a, b in zip(row, u, strict=True)) for row in w["token_embd.weight"]])
    return out


def small(seed: int, **fixed: Any) -> tuple[mf.IntegerModel, np.ndarray]:
    config = random_config(
        seed, **{"d_model": 3 + seed % 9, "n_heads": 1 + seed % 3, "head_dim": 1 + seed % 4, "vocab_size": 20, **fixed}
    )
    return random_model(config, seed, hostile=seed % 4 == 3), Stream(seed, 8).integers(0, 19, (12,))


@pytest.mark.parametrize("seed", range(24))
def test_reference_against_plain_python(seed: int) -> None:
    model, tokens = small(seed, rotation=seed % 2 == 0, scan=("convex", "literal")[seed // 2 % 2])
    assert Reference(model).logits(tokens).tolist() == naive_logits(model, tokens.tolist())


def test_random_models_cover_every_mode() -> None:
    configs = [random_config(seed) for seed in range(60)]
    for name, values in {
        "scan": {"convex", "literal"},
        "activation": {"silu", "squareplus"},
        "gate": {"silu", "squareplus"},
        "norm_mantissa": {0, 8},
        "norm_scale": {"channel", "scalar"},
        "rotation": {False, True},
        "weights": {"int8", "ternary"},
    }.items():
        assert {getattr(config, name) for config in configs} == values


# ---- State, batches, trace


def test_a_batch_gives_the_bits_of_its_sequences() -> None:
    for seed in range(6):
        model, _ = small(seed)
        tokens = Stream(seed, 4).integers(0, 19, (2, 3, 9))
        reference = Reference(model)
        together = reference.logits(tokens)
        assert together.dtype == np.int32
        assert together.shape == (2, 3, 9, 20)
        for index in np.ndindex(2, 3):
            assert (reference.logits(tokens[index]) == together[index]).all()


def test_state_and_reset() -> None:
    model, tokens = small(1)
    reference = Reference(model)
    want = reference.logits(tokens)
    assert reference.position == len(tokens)
    reference.reset()
    assert reference.position == 0
    assert all(not s.conv.any() and not s.h.any() for s in reference.state)
    assert all((reference.step(int(t)) == row).all() for t, row in zip(tokens, want, strict=True))
    c = model.config
    assert reference.state[0].h.shape == (c.n_heads, c.head_dim, c.d_state)
    assert reference.state[0].conv.shape == (c.d_conv, 3)


def test_past_matters_and_future_does_not() -> None:
    model = random_model(ModelConfig(16, 2, 2, 4, 4, 20, 0), 3)
    reference = Reference(model)
    a, b = [1, 2, 3, 4, 5, 6, 7], [9, 2, 3, 4, 5, 6, 8]
    left, right = reference.logits(a), reference.logits(b)
    assert (left[5] != right[5]).any()
    assert (reference.logits(a[:4]) == left[:4]).all()


@pytest.mark.parametrize("bad", [-1, 20, 1 << 40])
def test_token_outside_the_vocabulary(bad: int) -> None:
    with pytest.raises(ValueError, match="token must be from 0 to 19"):
        Reference(small(0)[0]).step(bad)
    with pytest.raises(TypeError):
        Reference(small(0)[0]).step(1.0)


def test_trace_names_sizes_and_order() -> None:
    model, tokens = small(2, n_layers=2)
    c = model.config
    seen: list[tuple[int, str, np.ndarray]] = []
    logits = Reference(model, lambda *event: seen.append(event)).logits(tokens[:2])
    E, N, H, D = c.d_inner, c.d_state, c.n_heads, c.d_model
    counts = [1, 1, D, c.d_in_proj, c.d_conv, E, N, N, H, E * N, E, E, E, 1, 1, E, D, D]
    layer = dict(zip(LAYER_SITES.split(), counts, strict=True))
    sizes = {"embed": D} | {f"blk.{i}.{name}": n for i in range(2) for name, n in layer.items()}
    sizes |= {"norm_f.j": 1, "norm_f.mu": 1, "norm_f": D, "logits": c.vocab_size}
    assert [(p, site, v.shape) for p, site, v in seen] == [(p, site, (n,)) for p in (0, 1) for site, n in sizes.items()]
    assert all(v.dtype == np.int32 for _, _, v in seen)
    assert (seen[-1][2] == logits[-1]).all()


def test_generate() -> None:
    model, tokens = small(5)
    reference = Reference(model)
    sampling = Sampling(temperature=80000, top_k=12, seed=(1 << 63) + 5)
    chosen = list(reference.generate(tokens, 8, sampling))
    assert len(chosen) == 8
    logits = Reference(model).logits([*tokens, *chosen])
    for step, token in enumerate(chosen):
        assert reference.sample(logits[len(tokens) - 1 + step], sampling, step) == token
    greedy = list(reference.generate(tokens, 8, Sampling()))
    assert greedy[0] == int(logits[len(tokens) - 1].argmax())
    assert list(reference.generate(tokens, 8, sampling, end=chosen[2])) == chosen[: chosen.index(chosen[2]) + 1]


# ---- Vectors


def load(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((VECTORS / f"{name}.json").read_text("utf-8"))
    return content


def test_vectors_are_small_and_simple() -> None:
    def simple(value: Any) -> bool:
        if isinstance(value, dict):
            return all(map(simple, value.values()))
        if isinstance(value, list):
            return all(map(simple, value))
        return isinstance(value, str) or (type(value) is int and -(1 << 63) <= value < 1 << 63)

    files = sorted(VECTORS.glob("*.json"))
    assert sum(path.stat().st_size for path in files) < 600_000
    for path in files:
        content = load(path.stem)
        assert content["about"].startswith("Section")
        assert simple(content)


def test_model_vectors() -> None:
    for case in load("model")["cases"]:
        model = mf.parse(bytes.fromhex(case["file"]))
        assert model.digest == case["digest"]
        reference = Reference(model)
        logits = reference.logits(case["tokens"])
        assert hashlib.sha256(logits.astype("<i4").tobytes()).hexdigest() == case["logits_sha256"]
        assert logits.tolist() == naive_logits(model, case["tokens"])
        assert logits[-1, :8].tolist() == case["last_logits"]
        low, high = case["seed"]
        sampling = Sampling(case["temperature"], case["top_k"], case["top_p"], low | high << 32)
        assert list(reference.generate(case["prompt"], len(case["sampled"]), sampling)) == case["sampled"]
        assert len(set(case["sampled"])) > 3


def test_a_changed_weight_changes_digest_and_logits() -> None:
    case = load("model")["cases"][0]
    model = mf.parse(bytes.fromhex(case["file"]))
    tensors = {name: tensor.copy() for name, tensor in model.tensors.items()}
    np.negative(tensors["blk.0.out_proj.weight"], out=tensors["blk.0.out_proj.weight"])
    other = dataclasses.replace(model, tensors=tensors)
    assert other.digest != model.digest
    assert (Reference(other).logits(case["tokens"]) != Reference(model).logits(case["tokens"])).any()
