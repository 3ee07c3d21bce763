#!/usr/bin/env python3
"""Writes spec/vectors/*.json from the executable spec; `--check` only compares. Deterministic: the same bytes on every machine.

Each file is an object with `about` and groups of examples, made of objects, arrays, integers (within int64) and strings alone. A group holds columns of equal
length or a list of cases. 64-bit words are pairs [low, high] of 32-bit words; `sha256` is over int32 values, little-endian, in order.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mamba_integer import arithmetic as ar
from mamba_integer.config import ModelConfig
from mamba_integer.encrypted.micro import MicroModel, encode
from mamba_integer.model_file import serialize
from mamba_integer.random_model import Stream, random_model
from mamba_integer.reference import Reference
from mamba_integer.sampling import Sampling

ROOT = Path(__file__).resolve().parent.parent
Group = dict[str, Any]
I32 = 1 << 31


def plain(value: Any) -> Any:
    """NumPy values as lists and integers."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def text_of(content: Group) -> str:
    """JSON with one line for each array of integers."""
    text = json.dumps(plain(content), indent=1, ensure_ascii=False)
    return re.sub(r"\[[\s\d,-]*\]", lambda m: "[" + ", ".join(m[0][1:-1].split()).replace(",,", ",") + "]", text) + "\n"


def sha256(values: Any) -> str:
    return hashlib.sha256(np.asarray(values).astype("<i4").tobytes()).hexdigest()


def mixed(r: Stream, n: int, bits: int) -> ar.Ints:
    """n non-negative integers below 2^bits, as many of every bit length."""
    low, high = r.integers(0, (1 << 31) - 1, (n,)), r.integers(0, (1 << 31) - 1, (n,))
    return (low | high << 31) >> (62 - r.integers(1, bits, (n,)))


def shift() -> Group:
    r = Stream(1)
    x = np.concatenate([[0, 1, -1, 5, -5, 7, -7, I32 - 1, -I32], mixed(r, 40, 45), -mixed(r, 40, 45)])
    s = np.concatenate([[0, 1, 1, 1, 1, 0, 0, 31, 31], r.integers(0, 24, (80,))])
    v = np.concatenate([np.arange(10), *([(1 << b) - 1, 1 << b] for b in (16, 31, 32, 48, 62)), mixed(r, 20, 62)])
    y = np.concatenate([x[:9], mixed(r, 20, 20), -mixed(r, 20, 20)])
    return {
        "about": "Section 1. rshift: x, s -> out. sat: x -> sat6, sat8, sat16, sat18. bitlen: v -> out.",
        "rshift": {"x": x, "s": s, "out": ar.rshift(x, s)},
        "sat": {"x": y, **{f"sat{bits}": ar.sat(y, bits) for bits in (6, 8, 16, 18)}},
        "bitlen": {"v": v, "out": ar.bitlen(v)},
    }


def roots() -> Group:
    r = Stream(2)
    squares = mixed(r, 60, 16) ** 2
    v = np.concatenate([squares, np.maximum(squares - 1, 0), mixed(r, 60, 32), [(1 << 32) - 1]])
    u = np.concatenate([np.maximum(v, 1), *([(1 << 62) // int(y) ** 2] for y in r.integers(32769, 65535, (60,)))])
    y, j = ar.rsqrt(u)
    c = np.concatenate(
        [np.arange(-8, 9), [32767, -32767], r.integers(-32767, 32767, (60,)), r.integers(-999, 999, (60,))]
    )
    every = np.arange(-32767, 32768)
    return {
        "about": "Section 2. rsqrt: v -> y, j. isqrt: v -> out. sigmoid12, squareplus: c -> out; sha256 of the results for c = -32767 ... 32767.",
        "rsqrt": {"v": u, "y": y, "j": j},
        "isqrt": {"v": v, "out": ar.isqrt(v)},
        "sigmoid12": {"c": c, "out": ar.sigmoid12(c)},
        "squareplus": {"c": c, "out": ar.squareplus(c)},
        "sigmoid12_all": {"sha256": sha256(ar.sigmoid12(every))},
        "squareplus_all": {"sha256": sha256(ar.squareplus(every))},
    }


def activations() -> Group:
    r = Stream(3)
    c = np.concatenate(
        [np.arange(-8, 9), [32767, -32767], r.integers(-32767, 32767, (40,)), r.integers(-999, 999, (40,))]
    )
    every = np.arange(-32767, 32768)
    groups = {form: {"f": ar.act(0, form)[1], "c": c, "a": ar.act(c, form)[0]} for form in ("silu", "squareplus")}
    digests = {f"{form}_all": {"sha256": sha256(ar.act(every, form)[0])} for form in groups}
    return {"about": "Section 3. c -> a of scale f; sha256 of a for c = -32767 ... 32767.", **groups, **digests}


def norm() -> Group:
    r = Stream(4)
    cases = []
    for d in (1, 2, 3, 7, 16, 33, 64, 127, 200):
        for limit in (1, 100, 3000, (1 << 17) - 1):
            x, g = r.integers(-limit, limit, (d,)), r.integers(-127, 127, (1 if d == 33 else d,))
            for mantissa in (8, 0):
                out, j, mu = ar.norm(x, g, mantissa)
                cases.append({"mantissa": mantissa, "x": x, "g": g, "j": j, "mu": mu, "out": out})
    return {
        "about": "Section 4. x, g, mantissa -> j, mu, out. g has one element for each of x, or one for all.",
        "cases": cases,
    }


def bitlinear() -> Group:
    r = Stream(5)
    cases = []
    for outputs, K, ternary in ((1, 1, 0), (3, 5, 0), (4, 33, 0), (5, 64, 1), (7, 100, 0), (2, 257, 0)):
        limit = 1 if ternary else 127
        x, W, m = r.integers(-127, 127, (K,)), r.integers(-limit, limit, (outputs, K)), r.integers(1, 255, (outputs,))
        x[: K >> 1] = 127 * np.sign(W[0, : K >> 1])
        assert 127 * int((np.abs(W).sum(1) * m).max()) + (1 << 12) < 1 << 30
        cases += [{"x": x, "W": W, "m": m, "s": s, "out": ar.bitlinear(x, W, m, s)} for s in (0, 6, 13)]
    return {"about": "Section 5. x [K], W [O, K], m [O], s -> out [O].", "cases": cases}


def conv() -> Group:
    r = Stream(6)
    p, w, b = r.integers(-3000, 3000, (60, 4)), r.integers(-127, 127, (60, 4)), r.integers(-3000, 3000, (60,))
    p[:8] = 32767 * np.sign(r.integers(-2, 1, (8, 4)) * 2 + 1)
    w[:8], b[:4] = 127, 32767
    return {
        "about": "Section 6. p [i, 4] oldest first, w [i, 4], b [i] -> out [i].",
        "conv4": {"p": p, "w": w, "b": b, "out": ar.conv4(p, w, b)},
    }


def scan() -> Group:
    r = Stream(7)
    dt = np.concatenate([r.integers(-600, 1500, (30,)), [32767, -32767]])
    A, base, k = r.integers(1, 1 << 14, (32,)), r.integers(-300, 300, (32,)), r.integers(8, 15, (32,))
    A[:4] = 1, 1 << 19, 1 << 19, 1
    m = {scan: ar.modulation(dt, A, base, k, scan) for scan in ("convex", "literal")}
    cases = []
    for form in ("convex", "literal"):
        for k_h in (8, 11, 15):
            T, P, N = 6, 2, 4
            x, B, C = r.integers(-127, 127, (T, P)), r.integers(-31, 31, (T, N)), r.integers(-31, 31, (T, N))
            share = r.integers(1, 255 if form == "convex" else (1 << k_h) - 1, (T,))
            skip, h, states, outputs = int(r.integers(-127, 127)), np.zeros((P, N), np.int64), [], []
            for t in range(T):
                h = ar.scan_step(h, (x[t, :, None] * B[t]) << 6, share[t], k_h, form)
                states.append(h)
                outputs.append(ar.scan_output(h, C[t], skip, x[t]))
            cases.append(
                {
                    "scan": form,
                    "k": k_h,
                    "m": share,
                    "skip": skip,
                    "x": x,
                    "B": B,
                    "C": C,
                    "h": np.stack(states),
                    "y": np.stack(outputs),
                }
            )
    return {
        "about": "Section 7. modulation: dt, A, base, k -> m for each scan. cases: one head of P channels and N states over T tokens from h = 0; "
        "m [T], x [T, P], B and C [T, N] -> h [T, P, N] and y [T, P] after each token.",
        "modulation": {"dt": dt, "A": A, "base": base, "k": k, **m},
        "cases": cases,
    }


def rotation() -> Group:
    r = Stream(8)
    groups: Group = {}
    for b, limit in ((ar.MODEL_SCALE, 32767), (ar.TABLE_SCALE, I32 - 1)):
        angle = np.concatenate(
            [[0, 127, 128, 129, 255, 256, 257, 384, 385, 512, 640, 768, 896, 897, 1023], r.integers(0, 1023, (45,))]
        )
        x, y = r.integers(0, limit, (2, 60)) * (2 * r.integers(0, 1, (2, 60)) - 1)
        x[:4], y[:4] = -limit - 1, [limit, -limit - 1, 0, -1]
        out = ar.rotate(x, y, angle, b)
        groups[f"rotate_{b}"] = {"angle": angle, "x": x, "y": y, "out_x": out[0], "out_y": out[1]}
    heads = []
    for N, position in ((2, 1), (4, 0), (8, 5), (16, 1023), (16, 77), (34, 1000003), (64, 3)):
        v = r.integers(-300, 4000, (N,))
        heads.append({"position": position, "v": v, "out": ar.rotate_heads(v, position)})
    about = "Section 10. rotate_b: angle, x, y -> out_x, out_y at scale b; its inverse goes back. heads: B or C (N numbers, Q8) at a position -> rotated."
    return {"about": about, **groups, "heads": heads}


def transform() -> Group:
    r = Stream(9)
    cases = []
    for n in (2, 4, 8, 64, 1024):
        for extreme in (False, True):
            z = r.integers(-(1 << 20), 1 << 20, (2, n))
            if extreme:
                z = np.where(r.integers(0, 1, (2, n)), I32 - 1, -I32)
            re, im = ar.cayley_transform(*z)
            case = {"n": n, "re": z[0], "im": z[1], "out_re": re, "out_im": im}
            cases.append(case if n < 1024 else {**case, "out_re": [], "out_im": [], "sha256": sha256([re, im])})
    about = "Section 10. re, im -> out_re, out_im, at n = 1024 as the sha256 of out_re and then out_im. The inverse goes back exactly."
    return {"about": about, "cases": cases[:-1]}


def sampler() -> Group:
    r = Stream(10)
    words = [0xFFFFFFFF] * 4
    known = (
        ([0] * 4, [0] * 2),
        (words, words[:2]),
        ([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0]),
    )
    philox = [{"counter": c, "key": k, "out": ar.philox4x32(c, k)} for c, k in known]
    T, me = mixed(r, 30, 22), r.integers(1, 1023, (30,))
    T[:4], me[:4] = [1, 1, 1 << 22, 1 << 22], [1, 1023, 1, 1023]
    T = np.maximum(T, 1)
    F = np.concatenate([[0, 1, 32768, 65534, 65535], r.integers(0, 65535, (20,))])
    samples = []
    for i in range(60):
        V = int(r.integers(1, 50))
        l = r.integers(-4000, 4000, (V,)) >> int(r.integers(0, 8))
        word = r.integers(0, (1 << 31) - 1, (4,)) * 2 + 1
        if i < 3:
            l = (2 * r.integers(0, 1, (V,)) - 1) * ((1 << 30) - 1)
        top_p = int(r.choice([1 << 16, 60000, 30000, 1]))
        case = {
            "logits": l,
            "embed_mul": int(r.integers(1, 1023)),
            "logit_shift": int(r.integers(14, 20)),
            "temperature": int(r.choice([0, 1, 30000, 65536, 1 << 22])),
            "top_k": int(r.choice([0, 0, 1, 5, 1000])),
            "top_p": top_p,
            "seed": [int(word[0]), int(word[1])],
            "step": [int(word[2]) & 0xFFF, int(word[3]) if i & 1 else 0],
        }
        wide = {name: case[name][0] | case[name][1] << 32 for name in ("seed", "step")}
        samples.append({**case, "token": ar.sample(**{**case, **wide})})
    return {
        "about": "Section 11. philox: the known answers that its authors publish. inverse_temperature: temperature, embed_mul -> C. pow2neg: F -> out; "
        "sha256 over F = 0 ... 65535. sample: everything -> token.",
        "philox": philox,
        "inverse_temperature": {
            "temperature": T,
            "embed_mul": me,
            "C": [ar.inverse_temperature(int(t), int(m)) for t, m in zip(T, me, strict=True)],
        },
        "pow2neg": {"F": F, "out": ar.pow2neg(F)},
        "pow2neg_all": {"sha256": sha256(ar.pow2neg(np.arange(1 << 16)))},
        "sample": samples,
    }


def model() -> Group:
    configs = {
        "plain": ModelConfig(16, 2, 2, 6, 4, 23, 64),
        "rotated": ModelConfig(13, 1, 3, 5, 6, 31, 64, gate="squareplus", norm_scale="scalar", rotation=True),
        "literal": ModelConfig(
            9, 2, 1, 7, 2, 19, 64, scan="literal", activation="squareplus", norm_mantissa=0, weights="ternary"
        ),
        "hostile": ModelConfig(11, 2, 2, 3, 8, 17, 64, rotation=True),  # y, gate, gated and resid all saturate
    }
    cases = []
    for seed, (name, config) in enumerate(configs.items()):
        m = random_model(config, seed, hostile=name == "hostile", tokenizer=b"\x00not a tokenizer\xff")
        tokens = Stream(seed, 3).integers(0, config.vocab_size - 1, (40,))
        reference = Reference(m)
        logits = reference.logits(tokens)
        s = Sampling(temperature=52429, top_k=9, top_p=62259, seed=seed + (77 << 32))
        sampled = list(reference.generate(tokens[:5], 30, s))
        cases.append(
            {
                "name": name,
                "file": serialize(m).hex(),
                "digest": m.digest,
                "tokens": tokens,
                "logits_sha256": sha256(logits),
                "first_logits": logits[0, :8],
                "last_logits": logits[-1, :8],
                "prompt": tokens[:5],
                "temperature": s.temperature,
                "top_k": s.top_k,
                "top_p": s.top_p,
                "seed": [seed, 77],
                "sampled": sampled,
            }
        )
    return {
        "about": "Sections 8 and 9. file: a whole model file (FORMAT.md) in hexadecimal. tokens -> sha256 of all logits [T, V], and the first eight logits of "
        "the first and the last position. prompt and the sampling integers -> the 30 tokens sampled after it.",
        "cases": cases,
    }


def micro() -> Group:
    m = MicroModel.load(ROOT / "models/micro.json")
    text = "\nthe little dog's ball, is it red? yes.\nonce upon a time"
    return {
        "about": "Section 12. text, fed character by character to the shipped micro model from the zero state -> logits after each.",
        "digest": m.digest,
        "text": text,
        "logits": m.logits(encode(text)),
    }


def generated() -> dict[Path, str]:
    groups = (shift, roots, activations, norm, bitlinear, conv, scan, rotation, transform, sampler, model, micro)
    return {ROOT / f"spec/vectors/{group.__name__}.json": text_of(group()) for group in groups}


def main() -> int:
    files = generated()
    stale = [path for path, text in files.items() if not path.exists() or path.read_text("utf-8") != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is not what scripts/make_vectors.py writes", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(files[path], "utf-8")
    print(f"{len(files)} files, {len(stale)} written, {sum(len(text) for text in files.values()):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
