"""Worst cases: how large every value of a model can become, whatever text it reads, from its configuration and weights alone.

One `Site` for every place of ARITHMETIC §8 and §9 where something is summed, rounded or found by an inequality, layer by layer, each bound following from
those before it: |Σ w·x| ≤ Σ |w|·max|x|, row by row and channel by channel. `check` refuses a model in which a site could overflow the width that the spec
gives it, or in which a provable model breaks the prover's rule. Knows arithmetic.py and the model; runs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mamba_integer import arithmetic as ar
from mamba_integer.errors import ModelFormatError
from mamba_integer.model_file import IntegerModel

RULE_BITS = 30  # a rounding's result (bits with sign, before saturation) and its shift
FIELD = (1 << 31) - (1 << 24) + 1  # KoalaBear's prime: both sides of an inequality must stay below it

Bound = ar.Ints  # of |value|, by row or channel


@dataclass(frozen=True)
class Site:
    """One place of the model, at its worst row or channel.

    kind: `sum` (exact), `round` (rshift by `shift`), or `root` (defined by an inequality with a remainder below 2^shift; both sides at most `largest`).
    count: how many a token. largest: of |value| before rounding. out: of |result| before saturation. limit: of |result| after it.
    signed: the result may be negative. width: bits of the integer that holds `largest`. wide: the prover must split it into two limbs, as its rule does not
    hold: the sum of squares of a norm.
    """

    name: str
    kind: str
    count: int
    largest: int
    shift: int
    out: int
    limit: int
    signed: bool = True
    width: int = 32
    wide: bool = False

    @property
    def in_bits(self) -> int:
        return self.largest.bit_length() + 1

    @property
    def out_bits(self) -> int:
        return self.out.bit_length() + self.signed

    @property
    def cells(self) -> int:
        """Range-checked bits a token: of result and remainder; sums need none."""
        return 0 if self.kind == "sum" else self.count * (self.out_bits + self.shift)

    @property
    def overflows(self) -> bool:
        return self.largest + (1 << self.shift >> 1) >= 1 << (self.width - 1)

    @property
    def provable(self) -> bool:
        """The prover's rule: a wrong result cannot satisfy the constraint modulo the field's prime."""
        if self.wide:
            return True
        return (
            self.out_bits + self.shift <= RULE_BITS
            if self.kind == "round"
            else self.largest < FIELD >> (self.kind == "sum")
        )


def sites(model: IntegerModel) -> list[Site]:
    """Every site of a model, in the order of computation; those that the trace shows have its names."""
    return _Bounds(model).sites


def check(model: IntegerModel, *, provable: bool | None = None) -> None:
    """ModelFormatError, naming the site, if one could overflow or, unless `provable` is false, breaks the prover's rule.

    Left out, `provable` is true of models with the convex scan: the literal form's products are too wide for the rule.
    """
    strict = model.config.scan == "convex" if provable is None else provable
    for site in sites(model):
        if site.overflows:
            raise ModelFormatError(f"{site.name}: values may reach {site.largest}, beyond int{site.width}")
        if strict and not site.provable:
            raise ModelFormatError(
                f"{site.name}: values may reach {site.largest}; {site.out_bits} bits of result and a shift of {site.shift} "
                f"break the prover's rule (at most {RULE_BITS})"
            )


def table(model: IntegerModel) -> str:
    """The sites as text: one line each, then the sum of the proof cells."""
    lines = [
        f"{'site':<20} {'kind':<5} {'count':>7} {'in bits':>7} {'shift':>5} {'out bits':>8} {'rule':>4} {'cells':>9}"
    ]
    every = sites(model)
    for s in every:
        rule = "wide" if s.wide else "ok" if s.provable else "NO"
        lines.append(
            f"{s.name:<20} {s.kind:<5} {s.count:>7} {s.in_bits:>7} {s.shift:>5} {s.out_bits:>8} {rule:>4} {s.cells:>9,}"
        )
    return "\n".join([*lines, f"{'proof cells a token':<62} {sum(s.cells for s in every):>9,}"])


class _Bounds:
    """Walks through the model once, collecting sites; every method returns the bounds of what goes on."""

    def __init__(self, model: IntegerModel) -> None:
        self.model = model
        self.config = model.config
        self.sites: list[Site] = []

        r = self.tensor("token_embd.weight").max(0) * model.embed_mul
        self.sum("embed", r)
        for i in range(self.config.n_layers):
            r = self.layer(i, r)
        u = self.norm("norm_f", r, "output_norm.scale")
        self.sum("logits", self.tensor("token_embd.weight") @ u)

    def tensor(self, name: str) -> Bound:
        """|values| of a tensor."""
        return np.abs(ar.ints(self.model.tensors[name]))

    def layer(self, i: int, r: Bound) -> Bound:
        c, at = self.config, f"blk.{i}."
        E, N = c.d_inner, c.d_state
        u = self.norm(at + "norm1", r, at + "norm1.scale")
        z, xBC, dt = np.split(self.linear(at + "in_proj", u, self.model.in_proj_shift[i]), [E, E + c.d_conv])

        total = self.tensor(at + "conv.weight").sum(1) * xBC
        conv = self.round(at + "conv", total, 6, 32767, plus=self.tensor(at + "conv.bias"))
        a, f = self.activation(at + "conv", conv, c.activation)
        x = self.round(at + "x", a[:E], f - 5, 127)
        B = self.six_bits(at + "B", a[E : E + N], f)
        C = self.six_bits(at + "C", a[E + N :], f)

        k, A, base = (ar.ints(self.model.tensors[at + name]) for name in ("scan.k", "scan.A", "scan.base"))
        mod = np.minimum(np.maximum(256 + dt + base, 1 << 5), 1 << 10)
        m = self.round(at + "m", mod * A, 12, 255 if c.scan == "convex" else (1 << k) - 1, least=1)
        x = x.reshape(c.n_heads, c.head_dim)
        h = self.scan(at + "state", x.max(1) * int(B.max()) << 6, m, k)
        total = int(C.sum()) * h[:, None] + (self.tensor(at + "scan.skip")[:, None] * x << 6)
        y = self.round(at + "y", total.reshape(E), 9, 32767)

        a, f = self.activation(at + "gate", z, c.gate)
        g = self.round(at + "gate", a, f - 8, (1 << 14) - 1)
        o = self.round(at + "gated", y * g, 6, (1 << 17) - 1)
        v = self.norm(at + "norm2", o, at + "norm2.scale")
        added = self.linear(at + "out_proj", v, self.model.out_proj_shift[i])
        return self.sum(at + "resid", r + added, (1 << 17) - 1)

    def norm(self, at: str, x: Bound, scale: str) -> Bound:
        """|x| / 2^j < 2^8 and μ ≤ 2^8 whatever x is; its bound only limits j."""
        S = (1 << 14) + int((x * x).sum())
        j = (S.bit_length() - 15) >> 1
        self.sites.append(Site(at + ".j", "round", 1, S, 2 * j, (1 << 16) - 1, j, signed=False, width=64, wide=True))
        self.sites.append(Site(at + ".mu", "root", 1, (1 << 30) + (1 << 24) + (1 << 16), 25, 256, 256, signed=False))
        n = np.minimum(1 << 12, x << 4)
        self.sites.append(Site(at + ".n", "round", x.size, int(x.max()) << 4, j, int(n.max()), int(n.max())))
        return self.round(at, n * 256 * self.tensor(scale), 20 - (x.size.bit_length() >> 1), 127)

    def linear(self, at: str, x: Bound, s: int) -> Bound:
        total = self.sum(at + ".acc", self.tensor(at + ".weight") @ x)
        return self.round(at, total * self.tensor(at + ".mul"), s, 32767)

    def activation(self, at: str, c: Bound, form: str) -> tuple[Bound, int]:
        """|act(c)|, which is largest at an end, and its scale."""
        top = int(c.max())
        s = int(ar.isqrt(top * top + (1 << 18)))
        rest = (2 * s).bit_length()
        self.sites.append(Site(at + ".root", "root", c.size, (s + 1) * (s + 1), rest, s, s, signed=False))
        if form == "silu":
            q = int(ar.sigmoid12(top))
            self.sites.append(
                Site(at + ".sigmoid", "root", c.size, ((s + top) << 12) + 2 * s, rest, q, q, signed=False)
            )
        else:
            self.round(at + ".squareplus", np.full(c.shape, s + top), 1, least=0)
        a, f = ar.act(c, form)
        return np.maximum(a, np.abs(ar.act(-c, form)[0])), f

    def six_bits(self, at: str, a: Bound, f: int) -> Bound:
        if not self.config.rotation:
            return self.round(at, a, f - 3, 31)
        x = self.round(at + ".Q8", a, f - 8)
        x = np.full(x.size >> 1, x.max())
        t, s = (ar.rshift(max(c), ar.TABLE_SCALE - ar.MODEL_SCALE) for c in (ar.ROTATION_T, ar.ROTATION_S))
        sheared = x + self.round(at + ".shear1", t * x, ar.MODEL_SCALE)
        turned = x + self.round(at + ".shear2", s * sheared, ar.MODEL_SCALE)
        x = sheared + self.round(at + ".shear3", t * turned, ar.MODEL_SCALE)
        return self.round(at, np.concatenate([x, turned]), 5, 31)

    def scan(self, at: str, v: Bound, m: Bound, k: Bound) -> Bound:
        """v, m, k and the result |h| by head: |v| for the convex form, |v| + 2^k for the literal one (ARITHMETIC §7)."""
        count = self.config.d_inner * self.config.d_state
        if self.config.scan == "convex":
            self.round(at + ".change", 2 * m * v, k, count=count)
            return self.sum(at, v, count=count)
        h = v + (1 << k)
        self.round(at + ".kept", h << k, k, count=count, width=64)
        self.round(at + ".new", m * v, k, count=count, width=64)
        return self.sum(at, h, count=count)

    def sum(self, name: str, x: Bound, limit: int = (1 << 31) - 1, count: int | None = None) -> Bound:
        """The site of an exact sum, then perhaps a saturation."""
        top = int(x.max())
        self.sites.append(Site(name, "sum", count or x.size, top, 0, top, min(top, limit)))
        return np.minimum(x, limit)

    def round(
        self,
        name: str,
        x: Bound,
        s: npt.ArrayLike,
        limit: npt.ArrayLike = (1 << 31) - 1,
        *,
        plus: Bound | int = 0,
        least: int | None = None,
        count: int | None = None,
        width: int = 32,
        wide: bool = False,
    ) -> Bound:
        """The site of rshift(x, s) + plus, then perhaps a saturation to ±limit or to `least` … limit.

        Of rows or channels it records that with the most bits of result and shift.
        """
        out = ar.rshift(x, s) + plus
        after: Bound = np.maximum(np.minimum(out, limit), least or 0)
        shifts = np.broadcast_to(ar.ints(s), x.shape)
        i = int(np.argmax(ar.bitlen(out) + shifts))
        self.sites.append(
            Site(
                name,
                "round",
                count or x.size,
                largest=int(x.max()),
                shift=int(shifts[i]),
                out=int(out[i]),
                limit=int(after.max()),
                signed=least is None,
                width=width,
                wide=wide,
            )
        )
        return after
