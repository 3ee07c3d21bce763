"""One layer, and the whole model, of ARITHMETIC §8 and §9 as an integer circuit, for several tokens from the zero state.

The values come from `arithmetic`, line by line as in reference.py; what is new is what proves each of them. Floors of floors are one floor, so a layer has
fewer rounding sites than the spec has lines: squareplus, its change of scale and its saturation are one, without a square root on the way (`_squareplus`).
Models of the convex scan without rotation can be exported: the shipped ones are such.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mamba_integer import arithmetic as ar
from mamba_integer.circuit.graph import Graph, Term, Wire
from mamba_integer.errors import ArgumentError
from mamba_integer.model_file import IntegerModel
from mamba_integer.reference import Reference

RESIDUAL = (1 << 17) - 1


def supported(model: IntegerModel) -> None:
    """ArgumentError, which says why, for a model that cannot be exported."""
    c = model.config
    for name, only in (("scan", "convex"), ("rotation", False)):
        if getattr(c, name) != only:
            raise ArgumentError(
                f"{model.name}: a circuit can be made for {name} = {only!r} only, not {getattr(c, name)!r}"
            )


def block(model: IntegerModel, layer: int, r: ar.Ints, table_bits: int = 15) -> Graph:
    """The circuit of a layer: residuals r [T, D], int, Q8, of the first T tokens; outputs `input` = r, `output` [T, D] and `checks`."""
    supported(model)
    if not 0 <= layer < model.config.n_layers:
        raise ArgumentError(f"{model.name} has layers 0 … {model.config.n_layers - 1}, no layer {layer}")
    r = ar.within("the residual", r, -RESIDUAL, RESIDUAL)
    g = Graph(table_bits)
    wire = g.input("r", r, -RESIDUAL, RESIDUAL)
    g.output("input", wire)
    g.output("output", _layer(g, model, layer, wire))
    g.finish()
    return g


def whole(model: IntegerModel, tokens: ar.Ints, table_bits: int = 15) -> Graph:
    """The circuit of the whole model on its first T tokens: outputs `input` = tokens [T], `output` = logits [T, V] and `checks`."""
    supported(model)
    tokens = ar.within("token", tokens, 0, model.config.vocab_size - 1)
    g = Graph(table_bits)
    wire = g.input("tokens", tokens, 0, model.config.vocab_size - 1)
    g.output("input", wire)
    e = model.tensors["token_embd.weight"].astype(np.int64)
    limit = 127 * model.embed_mul
    D = model.config.d_model
    rows = g.reshape(g.sum_of([(D, g.reshape(wire, -1, 1))], g.scalars(range(D))), -1)
    r = g.reshape(g.mul(g.look_up(g.constant(e.reshape(-1)), rows), model.embed_mul), -1, D)
    r = Wire(r.name, r.value, -limit, limit)
    for layer in range(model.config.n_layers):
        r = _layer(g, model, layer, r)
    u = _norm(g, r, model.tensors["output_norm.scale"], model.config.norm_mantissa)
    g.output("output", g.einsum("tk,kv->tv", u, g.constant(e.T)))
    g.finish()
    return g


def of_tokens(
    model: IntegerModel, tokens: Sequence[int], layer: int | None, table_bits: int
) -> tuple[Graph, dict[str, Any]]:
    """The circuit of a layer, or of the whole model, on tokens; and what it is of. The residual that a layer receives is the reference's."""
    supported(model)
    about = {"model": model.name, "model_digest": model.digest, "layer": layer, "tokens": len(tokens)}
    if layer is None:
        return whole(model, np.array(tokens), table_bits), about
    residuals: list[ar.Ints] = []
    site = f"blk.{layer - 1}.resid" if layer else "embed"

    def keep(_: int, name: str, values: npt.NDArray[np.int32]) -> None:
        if name == site:
            residuals.append(values.astype(np.int64))

    Reference(model, keep).logits(tokens)
    if not residuals:
        raise ArgumentError(f"{model.name} has layers 0 … {model.config.n_layers - 1}, no layer {layer}")
    return block(model, layer, np.stack(residuals), table_bits), about


def digest_of(model: IntegerModel, statement: Mapping[str, Any]) -> str:
    """The circuit that a statement should name if it is of this model: its digest, which does not depend on the input. ArgumentError for no such circuit."""
    try:
        inputs, layer, table_bits = np.array(statement["input"]), statement["layer"], statement["table_bits"]
        if statement["model_digest"] != model.digest:
            raise ArgumentError(
                f"the statement is of the model {statement['model_digest']}, not of {model.name} {model.digest}"
            )
        graph = whole(model, inputs, table_bits) if layer is None else block(model, layer, inputs, table_bits)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ArgumentError(f"the statement is not one of a circuit: {error!r}") from None
    return hashlib.sha256(graph.model().SerializeToString()).hexdigest()


def _layer(g: Graph, model: IntegerModel, i: int, r: Wire) -> Wire:
    c = model.config
    w = {name.split(".", 2)[2]: t.astype(np.int64) for name, t in model.tensors.items() if name.startswith(f"blk.{i}.")}
    T, E, N, H = r.shape[0], c.d_inner, c.d_state, c.n_heads

    u = _norm(g, r, w["norm1.scale"], c.norm_mantissa)
    projected = _bitlinear(g, u, w["in_proj.weight"], w["in_proj.mul"], model.in_proj_shift[i])
    columns = np.split(np.arange(c.d_in_proj), [E, E + c.d_conv])
    z, xBC, dt = (g.take(projected, index, 1) for index in columns)

    conv = _convolution(g, xBC, w["conv.weight"], w["conv.bias"])
    x = _activation(g, g.take(conv, np.arange(E), 1), c.activation, 5, 8)
    BC = _activation(g, g.take(conv, np.arange(E, E + 2 * N), 1), c.activation, 3, 6)
    B, C = g.take(BC, np.arange(N), 1), g.take(BC, np.arange(N, 2 * N), 1)

    m = _modulation(g, dt, w["scan.A"], w["scan.base"])
    y = _scan(g, x, B, C, m, w["scan.k"], w["scan.skip"], H)
    gate = _activation(g, z, c.gate, 8, 15)

    product = g.mul(y, gate)
    o = _rounded(g, [(g.scale(6), product)], 0, 6, product.value, (product.low, product.high), 18)
    v = _norm(g, o, w["norm2.scale"], c.norm_mantissa)
    added = _bitlinear(g, v, w["out_proj.weight"], w["out_proj.mul"], model.out_proj_shift[i])
    total = r.value + added.value
    bounds = (r.low + added.low, r.high + added.high)
    assert r.shape == (T, c.d_model)
    return g.clamped([(1, r), (1, added)], 0, 0, bounds, (-RESIDUAL, RESIDUAL), total)


def _rounded(
    g: Graph,
    terms: Sequence[Term],
    constant: int | ar.Ints,
    s: int,
    exact: ar.Ints,
    bounds: tuple[int, int],
    bits: int,
) -> Wire:
    """sat(rshift(x, s)) for x = Σ terms / scale + constant; exact and bounds are x's."""
    top, half = (1 << (bits - 1)) - 1, (1 << s) >> 1
    offset = (np.asarray(constant) + half) * g.scale(s)
    limits = tuple((b + half) >> s for b in bounds)
    shift = int(offset) if offset.ndim == 0 else g.constant(offset)
    return g.clamped(terms, shift, s, (limits[0], limits[1]), (-top, top), ar.rshift(exact, s))


def _norm(g: Graph, x: Wire, scale: ar.Ints, mantissa: int) -> Wire:
    """§4, x [T, d]. One-hot bits say j; 2^(J−j) for the largest j that can occur makes the variable shift a constant one."""
    scale = scale.astype(np.int64)
    T, d = x.shape
    _, j, mu = ar.norm(x.value, scale, mantissa)
    largest = (1 << 14) + d * x.magnitude**2
    J = (largest.bit_length() - 15) >> 1

    S = g.add(g.einsum("td,td->t", x, x), 1 << 14)
    S = Wire(S.name, S.value, 1 << 14, largest)
    bits = g.witness((np.arange(J + 1) == j[:, None]).astype(np.int64), 0, 1)
    g.below(bits, 1)
    g.zero(g.sub(g.total(bits), 1))
    beta = g.einsum("tj,j->t", bits, g.scalars([1 << (J - i) for i in range(J + 1)]))
    beta = Wire(beta.name, beta.value, 1, 1 << J)

    # S' = S >> 2j = (S · beta²) >> 2J, within 2^14 … 2^16
    unit = g.scale(2 * J)
    wide = g.sum_of([(g.mul(S, unit), g.mul(beta, beta))])
    top = (1 << 16) - 1
    S1 = g.clamped([(1, wide)], 0, 2 * J, (1 << 14, top), (1 << 14, top), S.value >> (2 * j))
    g.nonnegative(g.sub(top, S1), top)

    mu_wire = g.reshape(g.scalars([128] * T), T, 1)
    if mantissa:
        # μ² S' ≤ 2^30 < (μ + 1)² S'
        mu_wire = g.witness(mu, 128, 256)
        g.nonnegative(g.sub(mu_wire, 128))
        square = g.mul(g.mul(mu_wire, mu_wire), S1)
        next_mu = g.add(mu_wire, 1)
        room = (1 << 24) + (1 << 16)
        g.nonnegative(g.sub(1 << 30, square), room)
        g.nonnegative(g.sub(g.mul(g.mul(next_mu, next_mu), S1), (1 << 30) + 1), room)
        mu_wire = g.reshape(mu_wire, T, 1)

    # n = rshift(x << 4, j): 16 x beta + 2^(J−1) = 2^J n + remainder
    unit = g.scale(J)
    exact = ar.rshift(x.value << 4, j[:, None])
    factor = g.reshape(g.mul(beta, 16 * unit), T, 1)
    limit = min((1 << 12) + 1, 16 * x.magnitude)
    half = (1 << J >> 1) * unit
    n = g.clamped([(factor, x)], half, J, (-limit, limit), (-limit, limit), exact)

    e = d.bit_length() >> 1
    s = 20 - e
    unit = g.scale(s)
    gains = g.mul(g.constant(scale * unit), mu_wire)
    product = n.value * (mu[:, None] if mantissa else 128) * scale
    bound = limit * (256 if mantissa else 128) * int(np.abs(scale).max())
    return _rounded(g, [(gains, n)], 0, s, product, (-bound, bound), 8)


def _bitlinear(g: Graph, x: Wire, W: ar.Ints, m: ar.Ints, s: int) -> Wire:
    """§5. Two tokens share a dot product: Σ W·(x + B·x') is the sum of one and B times the sum of the other, told apart as all is less than B / 2."""
    T, t = x.shape[0], g.table_bits
    bound = int((np.abs(W).sum(1) * m).max()) * x.magnitude
    half = (1 << s) >> 1
    low, high = (half - bound) >> s, (half + bound) >> s
    for unit in (g.scale(s), 1):
        # |unit · (2^s · out + remainder − half)|, as far as the checks of out and remainder go, and the honest |unit · m · Σ|, are below B / 2 in all.
        limbs = -(-(high - low).bit_length() // t)
        checked = unit * (((max(-low, low + (1 << t * limbs)) + 1) << s) + half)
        B = 1 << (checked + unit * bound).bit_length() + 1
        if (
            T > 1
            and 0 < s <= t
            and limbs == 1
            and low > -(1 << 15)
            and high < 1 << 15
            and unit * bound * (B + 1) * 2 < 1 << 63
        ):
            break
    else:
        acc = g.einsum("tk,ok->to", x, g.constant(W))
        return _rounded(g, [(g.constant(m * g.scale(s)), acc)], 0, s, acc.value * m, (-bound, bound), 16)

    exact = ar.matmul(x.value, W) * m
    value = ar.rshift(exact, s)
    g.roundings += value.size
    out = g.witness(value, low, high)
    g.nonnegative(g.sub(out, low), high - low)
    remainder = g.witness(unit * (exact + half - (value << s)), 0, (unit << s) - 1)
    g.below(remainder, t if unit << s == 1 << t else s)

    def pair(w: Wire, filler: int) -> tuple[Wire, Wire]:
        """Tokens 0, 2, … and 1, 3, …; the last of an odd number has for its partner one whose input is 0."""
        first, second = g.take(w, np.arange(0, T, 2)), g.take(w, np.arange(1, T, 2))
        if T & 1:
            second = g.concatenate([second, g.reshape(g.scalars([filler] * w.shape[1]), 1, w.shape[1])])
        return first, second

    both = [pair(w, filler) for w, filler in ((x, 0), (out, 0), (remainder, unit * half))]
    packed = g.sum_of([(1, both[0][0]), (B, both[0][1])])
    acc = g.einsum("tk,ok->to", packed, g.constant(W))
    scale = -(unit << s)
    terms: list[Term] = [(g.constant(m * unit), acc), (scale, both[1][0]), (-1, both[2][0])]
    terms += [(scale * B, both[1][1]), (-B, both[2][1])]
    g.zero(g.sum_of(terms, unit * half * (B + 1)))
    return out


def _convolution(g: Graph, p: Wire, weight: ar.Ints, bias: ar.Ints) -> Wire:
    """§6: the bias goes under the floor."""
    T, channels = p.shape
    padded = g.concatenate([g.reshape(g.scalars([0] * channels), 1, channels), p], 0)
    taps = [g.take(padded, np.maximum(np.arange(T) - back + 1, 0)) for back in (3, 2, 1, 0)]
    unit = g.scale(6)
    terms = [(g.constant(weight[:, k] * unit), taps[k]) for k in range(4)]
    exact = sum(weight[:, k] * taps[k].value for k in range(4)) + (bias << 6)
    bound = int((np.abs(weight).sum(1) * p.magnitude + (np.abs(bias) << 6)).max())
    return _rounded(g, terms, bias << 6, 6, np.asarray(exact), (-bound, bound), 16)


def _activation(g: Graph, c: Wire, form: str, scale: int, bits: int) -> Wire:
    """sat(rshift(act(c), f − scale))."""
    return _squareplus(g, c, 8 - scale, bits) if form == "squareplus" else _silu(g, c, 20 - scale, bits)


def _silu(g: Graph, c: Wire, shift: int, bits: int) -> Wire:
    """s and q as §2 defines them: 0 ≤ c² + 2^18 − s² ≤ 2s, and 0 ≤ (s + c)·2^11 − q·s < s."""
    q, squared = ar.sigmoid12(c.value), c.value**2 + (1 << 18)
    hypotenuse = int(ar.isqrt(c.magnitude**2 + (1 << 18)))
    s = g.witness(ar.isqrt(squared), 1 << 9, hypotenuse)
    g.nonnegative(s)
    g.roundings += 2 * c.value.size
    rest = g.sum_of([(c, c), (-1, g.mul(s, s))], 1 << 18)
    g.nonnegative(rest, 2 * hypotenuse)
    g.nonnegative(g.sum_of([(2, s), (-1, rest)]), 2 * hypotenuse)
    sigmoid = g.witness(q, 0, 4095)
    g.nonnegative(sigmoid)
    rest = g.sum_of([(1 << 11, s), (1 << 11, c), (-1, g.mul(sigmoid, s))])
    g.nonnegative(rest, hypotenuse)
    g.nonnegative(g.sum_of([(1, s), (-1, rest)], -1), hypotenuse)
    product = g.mul(c, sigmoid)
    every, _ = ar.act(np.arange(c.low, c.high + 1), "silu")
    return _rounded(g, [(g.scale(shift), product)], 0, shift, product.value, (int(every.min()), int(every.max())), bits)


def _squareplus(g: Graph, c: Wire, shift: int, bits: int) -> Wire:
    """sat(rshift(squareplus(c) − 2^8, shift)): with s = √(c² + 2^18), the X = floor((c + s − K) / 2^q), q = shift + 1.

    For f = 2^q·X + K that is f − c ≤ s < f − c + 2^q. Squared: 0 ≤ d and d < 2^q·(2(f − c) + 2^q) for d = 2^18 + f·(2c − f). The second with the first gives
    f − c > −2^(q−1), and f − c + 2^q below s = 2^9 at least cannot be: so squaring loses nothing, and the integer X is the only one.
    """
    q, half = shift + 1, (1 << shift) >> 1
    K = 512 - 2 * half
    a = ar.squareplus(c.value) - 256
    exact = ar.rshift(a, shift)
    top = (1 << (bits - 1)) - 1
    bounds = tuple(int(ar.rshift(ar.squareplus(v) - 256, shift)) for v in (c.low, c.high))  # squareplus never falls
    low, high = bounds
    value = np.minimum(exact, top)
    out = g.witness(value, low, min(high, top))
    terms: list[Term] = [(1 << q, out)]
    g.roundings += value.size
    if high > top:
        over = g.witness(exact - value, 0, high - top)
        g.nonnegative(over)
        terms.append((1 << q, over))
        g.close(over, g.sub(top, out), top - low)
    else:
        g.nonnegative(g.sub(out, low), high - low)
    f = g.sum_of(terms, K)
    d = g.add(g.mul(f, g.sum_of([(2, c), (-1, f)])), 1 << 18)
    hypotenuse = int(ar.isqrt(c.magnitude**2 + (1 << 18))) + 1
    room = (hypotenuse << (q + 1)) + (1 << 2 * q)
    g.nonnegative(d, room)
    g.nonnegative(g.sum_of([(2 << q, f), (-(2 << q), c), (-1, d)], (1 << 2 * q) - 1), room)
    return out


def _modulation(g: Graph, dt: Wire, A: ar.Ints, base: ar.Ints) -> Wire:
    """m of §7 for the convex scan, [T, H]."""
    low, high = 1 << 5, 1 << 10
    inner = (1 << 8) + dt.value + base
    bounds = ((1 << 8) + dt.low + int(base.min()), (1 << 8) + dt.high + int(base.max()))
    mod = g.clamped([(1, dt)], g.constant(base + (1 << 8)), 0, bounds, (low, high), inner)
    unit = g.scale(12)
    exact = ar.rshift(mod.value * A, 12)
    largest = (high * int(A.max()) + (1 << 11)) >> 12
    return g.clamped([(g.constant(A * unit), mod)], unit << 11, 12, (0, largest), (1, 255), exact)


def _scan(g: Graph, x: Wire, B: Wire, C: Wire, m: Wire, k: ar.Ints, skip: ar.Ints, H: int) -> Wire:
    """§7: every state is a witness of two limbs, one rounding each; m is shared by the states of a head. y [T, E]."""
    (T, E), N, t = x.shape, B.shape[1], g.table_bits
    P = E // H
    heads = x.value.reshape(T, H, P)
    h = np.zeros((T + 1, H, P, N), np.int64)
    for token in range(T):
        v = (heads[token][..., None] * B.value[token]) << 6
        h[token + 1] = ar.scan_step(h[token], v, m.value[token][:, None, None], k[:, None, None], "convex")
    # A state stays between 0 and the values that it is drawn to. It is kept less the lowest of them, so that it is not negative.
    corners = [64 * a * b for a in (x.low, x.high) for b in (B.low, B.high)]
    lowest, highest = min(0, *corners), max(0, *corners)
    raised = h[1:] - lowest
    top = highest - lowest
    high = g.witness(raised >> t, 0, top >> t)
    low = g.witness(raised & ((1 << t) - 1), 0, (1 << t) - 1)
    g.nonnegative(high)
    g.nonnegative(low)
    state = g.sum_of([(1 << t, high), (1, low)])
    start = g.reshape(g.scalars([-lowest] * (H * P * N)), 1, H, P, N)
    before = g.take(g.concatenate([start, state]), np.arange(T))

    # 2^k h' + remainder = m·64·x·B + (2^k − m)·h + 2^(k−1), all times 2^(t−k); raised states change the constant to 2^(k−1) − m·lowest.
    if int(k.max()) > t:
        raise ArgumentError(f"a scan with k = {int(k.max())} needs at least as many table bits")
    share = g.mul(m, g.scalars((1 << (t - k)).tolist()))
    inputs = g.mul(g.reshape(g.mul(share, 64), T, H, 1), g.reshape(x, T, H, P))
    keep = g.sub(1 << t, share)
    fixed = g.add(g.mul(share, -lowest), 1 << (t - 1))
    remainder = g.sum_of(
        [
            (g.reshape(inputs, T, H, P, 1), g.reshape(B, T, 1, 1, N)),
            (g.reshape(keep, T, H, 1, 1), before),
            (-(1 << t), state),
            (g.reshape(fixed, T, H, 1, 1), 1),
        ]
    )
    g.roundings += remainder.value.size
    g.below(remainder, t)

    contracted = g.einsum("tpn,tn->tp", g.reshape(state, T, E, N), C)
    total = g.reshape(g.total(C), T, 1)
    exact = (h[1:].reshape(T, E, N) * C.value[:, None]).sum(-1) + (np.repeat(skip, P) * x.value << 6)
    sums = [N * a * b for a in (lowest, highest) for b in (C.low, C.high)]
    through = [64 * int(k) * v for k in (skip.min(), skip.max()) for v in (x.low, x.high)]
    bounds = (min(sums) + min(through), max(sums) + max(through))
    unit = g.scale(9)
    terms: list[Term] = [(unit, contracted), (lowest * unit, total), (g.constant(np.repeat(skip, P) * 64 * unit), x)]
    return _rounded(g, terms, 0, 9, exact, bounds, 16)
