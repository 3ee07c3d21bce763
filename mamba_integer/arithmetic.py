"""The executable form of spec/ARITHMETIC.md: every primitive on NumPy integers, in the order and the words of the document.

Nothing here is ever a float, and nothing divides: Newton's iteration with a final correction finds the integers that the spec defines by inequalities.
Values are int64 whatever width the spec gives them, and arrays of any integer dtype are taken; any other dtype is refused (TypeError). Functions work
element by element and broadcast; leading axes `...` are batch axes. "Q8" says that the integer x stands for x / 2^8. This module knows nothing of models,
files or training.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

# ---- §1 Notation -----------------------------------------------------------------------------------------------------


def ints(x: npt.ArrayLike) -> Ints:
    """`x` as int64. TypeError for anything but integers, OverflowError beyond int64."""
    a = np.asarray(x)
    if a.dtype.kind not in "iu":
        raise TypeError(f"integers are needed, not {a.dtype}")
    if a.dtype == np.uint64 and a.size and int(a.max()) >> 63:
        raise OverflowError("beyond int64")
    return a.astype(np.int64, copy=False)


def within(name: str, x: npt.ArrayLike, low: int, high: int) -> Ints:
    """`x` as int64 if low ≤ x ≤ high everywhere; ValueError with the name of the value otherwise."""
    a = ints(x)
    if a.size and (int(a.min()) < low or int(a.max()) > high):
        raise ValueError(f"{name} must be from {low} to {high}; it has {int(a.min())} … {int(a.max())}")
    return a


def rshift(x: npt.ArrayLike, s: npt.ArrayLike) -> Ints:
    """floor((x + 2^(s−1)) / 2^s), the rounding shift: halves go up; x for s = 0."""
    x, s = ints(x), ints(s)
    return (x + ((1 << s) >> 1)) >> s


def sat(x: npt.ArrayLike, bits: int) -> Ints:
    """`x` clamped to ±(2^(bits−1) − 1): the least number of two's complement never occurs."""
    top = (1 << (bits - 1)) - 1
    return np.minimum(np.maximum(ints(x), -top), top)


def bitlen(v: npt.ArrayLike) -> Ints:
    """The least b with v < 2^b, for 0 ≤ v < 2^63: the number of powers of two that are not above v."""
    return ints(np.searchsorted(1 << np.arange(63), within("v", v, 0, (1 << 63) - 1), side="right"))


# ---- §2 Square roots -------------------------------------------------------------------------------------------------


def rsqrt(v: npt.ArrayLike) -> tuple[Ints, Ints]:
    """(y, j) for 1 ≤ v < 2^32: 1/√v ≈ y · 2^(−16−j), y² · u ≤ 2^62 < (y+1)² · u with u = v << 2(15−j) in [2^30, 2^32).

    Three steps y ← y + y · (1 − u·y²/2^62) / 2 from a line within 8.6% of the answer: the relative error goes to 1.1%, 2·10^-4 and 6·10^-8, from below
    after the first step, and every shift rounds down. So y is never too large and at most one too small.
    """
    v = within("v", v, 1, (1 << 32) - 1)
    j = (bitlen(v) - 1) >> 1
    u = v << (2 * (15 - j))
    y = 69888 - 39 * (u >> 22)
    for _ in range(3):
        y = y + ((y * (((1 << 62) - y * y * u) >> 31)) >> 32)
    return y + ((y + 1) * (y + 1) * u <= 1 << 62), j


def isqrt(v: npt.ArrayLike) -> Ints:
    """floor(√v) for 0 ≤ v < 2^32."""
    v = within("v", v, 0, (1 << 32) - 1)
    return _isqrt(v, *rsqrt(np.maximum(v, 1)))


def _isqrt(v: Ints, y: Ints, j: Ints) -> Ints:
    """isqrt(v), given rsqrt(v): v · y · 2^(−16−j) falls short of √v by less than 2, so two corrections suffice."""
    s = (v * y) >> (16 + j)
    for _ in range(2):
        s = s + ((s + 1) * (s + 1) <= v)
    return s


def _hypotenuse(c: npt.ArrayLike) -> tuple[Ints, Ints, Ints, Ints]:
    """(c, s, y, j) for int16 c, Q8: s = isqrt(c² + 2^18), that is √(x² + 4) in Q8, above |c|; (y, j) = rsqrt(c² + 2^18)."""
    c = within("c", c, -(1 << 15), (1 << 15) - 1)
    v = c * c + (1 << 18)
    y, j = rsqrt(v)
    return c, _isqrt(v, y, j), y, j


def sigmoid12(c: npt.ArrayLike) -> Ints:
    """q of scale 12, 0 … 4095, for int16 c, Q8: q · 2s ≤ (s + c) · 2^12 < (q + 1) · 2s.

    The reciprocal root of c² + 2^18 stands in for 1/s and gives q at most 10 too small; the rest is found bit by bit.
    """
    c, s, y, j = _hypotenuse(c)
    q = ((s + c) * y) >> (5 + j)
    for step in (8, 4, 2, 1):
        q = q + np.where((q + step) * 2 * s <= (s + c) << 12, step, 0)
    return q


def squareplus(c: npt.ArrayLike) -> Ints:
    """(x + √(x² + 4)) / 2 in Q8, 0 … 2^15, for int16 c, Q8."""
    c, s, _, _ = _hypotenuse(c)
    return (c + s) >> 1


# ---- §3 Activations --------------------------------------------------------------------------------------------------


def act(c: npt.ArrayLike, form: str) -> tuple[Ints, int]:
    """(a, f): the activation of int16 c, Q8, as integers of scale f, for form `silu` or `squareplus`."""
    if form == "silu":
        return ints(c) * sigmoid12(c), 20
    if form == "squareplus":
        return squareplus(c) - 256, 8
    raise ValueError(f"unknown activation {form!r}")


# ---- §4 BitShift norm ------------------------------------------------------------------------------------------------


def norm(x: npt.ArrayLike, g: npt.ArrayLike, mantissa: int = 8) -> tuple[Ints, Ints, Ints]:
    """(out, j, μ): out int8 Q5 [..., d], shift j and mantissa μ [...], for |x| < 2^17 [..., d] and g int8 Q6 [d] or [1]; mantissa 8 or 0."""
    x = within("x", x, 1 - (1 << 17), (1 << 17) - 1)
    S = (1 << 14) + (x * x).sum(-1)
    j = (bitlen(S) - 15) >> 1
    mu = rsqrt(S >> 2 * j << 16)[0] >> 8 if mantissa else np.full_like(S, 128)
    n = rshift(x << 4, j[..., None])
    e = x.shape[-1].bit_length() >> 1
    return sat(rshift(n * mu[..., None] * ints(g), 20 - e), 8), j, mu


# ---- §5 BitLinear ----------------------------------------------------------------------------------------------------


def matmul(x: npt.ArrayLike, W: npt.ArrayLike) -> Ints:
    """Σ_k W[o,k] · x[..., k], accumulated in int32, for x [..., K] and W [O, K] of int8 range, K ≤ 2^16."""
    narrow = [np.asarray(a).astype(np.int32, casting="same_kind", copy=False) for a in (x, W)]  # TypeError for floats
    return ints(np.einsum("...k,ok->...o", *narrow))


def bitlinear(x: npt.ArrayLike, W: npt.ArrayLike, m: npt.ArrayLike, s: int) -> Ints:
    """int16 Q8 [..., O] for x int8 [..., K], W int8 [O, K], multipliers m [O], 1 … 255, and shift s."""
    return requantise(matmul(x, W), m, s)


def requantise(acc: npt.ArrayLike, m: npt.ArrayLike, s: int) -> Ints:
    """The second line of `bitlinear`: int16 Q8 [..., O] for sums acc int32 [..., O], multipliers m [O], 1 … 255, and shift s."""
    return sat(rshift(ints(acc) * ints(m), s), 16)


# ---- §6 Convolution step ---------------------------------------------------------------------------------------------


def conv4(p: npt.ArrayLike, w: npt.ArrayLike, b: npt.ArrayLike) -> Ints:
    """int16 Q8 [...] for the last four inputs p int16 Q8 [..., 4], oldest first, taps w int8 Q6 [..., 4] and bias b int16 Q8 [...]."""
    return sat(rshift((ints(w) * ints(p)).sum(-1), 6) + ints(b), 16)


# ---- §7 Selective scan -----------------------------------------------------------------------------------------------


def modulation(dt: npt.ArrayLike, A: npt.ArrayLike, base: npt.ArrayLike, k: npt.ArrayLike, scan: str) -> Ints:
    """m [..., H], the share m / 2^k of the state that is replaced: dt, base int16 Q8, A Q4 relative to 2^−k, 1 … 2^19, k 8 … 15."""
    mod = np.minimum(np.maximum((1 << 8) + ints(dt) + ints(base), 1 << 5), 1 << 10)
    top = 255 if scan == "convex" else (1 << ints(k)) - 1
    return np.minimum(np.maximum(rshift(mod * ints(A), 12), 1), top)


def scan_step(h: npt.ArrayLike, v: npt.ArrayLike, m: npt.ArrayLike, k: npt.ArrayLike, scan: str) -> Ints:
    """The next state, Q14, from state h, input v = (x · B) << 6 (Q14, |v| < 2^18), m and k, for scan `convex` or `literal`."""
    h, v, m, k = ints(h), ints(v), ints(m), ints(k)
    if scan == "convex":
        return h + rshift(m * (v - h), k)
    if scan == "literal":
        return rshift(h * ((1 << k) - m), k) + rshift(m * v, k)
    raise ValueError(f"unknown scan {scan!r}")


def scan_output(h: npt.ArrayLike, C: npt.ArrayLike, skip: npt.ArrayLike, x: npt.ArrayLike) -> Ints:
    """y int16 Q8 [...] from state h Q14 [..., N], C six-bit Q3 [..., N], skip int8 Q6 and x int8 Q5 [...]."""
    return sat(rshift((ints(C) * ints(h)).sum(-1) + (ints(skip) * ints(x) << 6), 9), 16)


# ---- §10 Dyadic-Cayley rotation and transform ------------------------------------------------------------------------

# fmt: off
ROTATION_T = (
    0, 3294209, 6588480, 9882875, 13177456, 16472285, 19767425, 23062936, 26358882, 29655325, 32952326, 36249948,
    39548253, 42847304, 46147163, 49447892, 52749553, 56052210, 59355926, 62660762, 65966781, 69274047, 72582623,
    75892571, 79203955, 82516838, 85831284, 89147356, 92465117, 95784632, 99105965, 102429179, 105754339, 109081509,
    112410754, 115742138, 119075726, 122411583, 125749775, 129090366, 132433423, 135779010, 139127195, 142478042,
    145831619, 149187992, 152547227, 155909392, 159274554, 162642780, 166014138, 169388696, 172766522, 176147685,
    179532253, 182920295, 186311880, 189707079, 193105960, 196508594, 199915050, 203325401, 206739717, 210158069,
    213580528, 217007167, 220438059, 223873274, 227312888, 230756972, 234205601, 237658849, 241116790, 244579498,
    248047050, 251519520, 254996985, 258479521, 261967205, 265460114, 268958326, 272461918, 275970970, 279485560,
    283005767, 286531673, 290063356, 293600899, 297144381, 300693886, 304249495, 307811292, 311379359, 314953781,
    318534642, 322122027, 325716021, 329316712, 332924185, 336538528, 340159828, 343788175, 347423657, 351066363,
    354716385, 358373814, 362038740, 365711256, 369391456, 373079432, 376775279, 380479093, 384190968, 387911001,
    391639290, 395375933, 399121027, 402874673, 406636971, 410408022, 414187927, 417976789, 421774712, 425581800,
    429398159, 433223893, 437059110, 440903918, 444758426,
)
ROTATION_S = (
    0, 6588356, 13176464, 19764076, 26350943, 32936819, 39521455, 46104602, 52686014, 59265442, 65842639, 72417357,
    78989349, 85558366, 92124163, 98686491, 105245103, 111799753, 118350194, 124896179, 131437462, 137973796,
    144504935, 151030634, 157550647, 164064728, 170572633, 177074115, 183568930, 190056834, 196537583, 203010932,
    209476638, 215934457, 222384147, 228825464, 235258165, 241682010, 248096755, 254502159, 260897982, 267283981,
    273659918, 280025552, 286380643, 292724951, 299058239, 305380268, 311690799, 317989595, 324276419, 330551034,
    336813204, 343062693, 349299266, 355522689, 361732726, 367929144, 374111709, 380280190, 386434353, 392573967,
    398698801, 404808624, 410903207, 416982319, 423045732, 429093217, 435124548, 441139496, 447137835, 453119340,
    459083786, 465030947, 470960600, 476872522, 482766489, 488642281, 494499676, 500338453, 506158392, 511959275,
    517740883, 523502998, 529245404, 534967884, 540670223, 546352205, 552013618, 557654248, 563273883, 568872310,
    574449320, 580004702, 585538248, 591049748, 596538995, 602005783, 607449906, 612871159, 618269338, 623644239,
    628995660, 634323400, 639627258, 644907034, 650162530, 655393548, 660599890, 665781362, 670937767, 676068911,
    681174602, 686254647, 691308855, 696337036, 701339000, 706314559, 711263525, 716185713, 721080937, 725949013,
    730789757, 735602987, 740388522, 745146182, 749875788, 754577161, 759250125,
)
ROTATION_FREQUENCIES = (
    163, 81, 40, 20, 10, 5, 2, 1, 115, 57, 28, 14, 7, 3, 1, 1, 137, 68, 34, 17, 8, 4, 2, 1, 97, 48, 24, 12, 6, 3, 1,
    1,
)
# fmt: on

TABLE_SCALE = 30  # of ROTATION_T = tan(θ/2) and ROTATION_S = sin θ, θ = 2πj/1024, j = 0 … 128
MODEL_SCALE = 13  # of rotations inside the model: the largest at which the prover's rule holds for int16 inputs
EIGHTH = 128  # the angle of 45°


def wrap32(x: Ints) -> Ints:
    """`x` mod 2^32, within int32."""
    return ((x + (1 << 31)) & ((1 << 32) - 1)) - (1 << 31)


def _shears(angle: npt.ArrayLike, b: int) -> tuple[Ints, Ints, Ints]:
    """(quarter turns 0 … 3, t, s of scale b) of an angle in steps of 2π/1024: angle = 256 · quarters + j (mod 1024), −127 ≤ j ≤ 128."""
    turns = (ints(angle) + 127) >> 8
    j = ints(angle) - (turns << 8)
    t, s = (np.sign(j) * rshift(np.array(c)[np.abs(j)], TABLE_SCALE - b) for c in (ROTATION_T, ROTATION_S))
    return turns & 3, t, s


def rotate(x: npt.ArrayLike, y: npt.ArrayLike, angle: npt.ArrayLike, b: int = MODEL_SCALE) -> tuple[Ints, Ints]:
    """The pair of int32 (x, y) rotated by 2π·angle/1024: exact quarter turns, then three shears of scale b (13 … 30), all mod 2^32."""
    quarters, t, s = _shears(angle, b)
    x, y = within("x", x, -(1 << 31), (1 << 31) - 1), within("y", y, -(1 << 31), (1 << 31) - 1)
    x, y = np.where(quarters & 1, -y, x), np.where(quarters & 1, x, y)
    x, y = (wrap32(np.where(quarters & 2, -z, z)) for z in (x, y))
    x = wrap32(x - rshift(t * y, b))
    y = wrap32(y + rshift(s * x, b))
    return wrap32(x - rshift(t * y, b)), y


def rotate_inverse(x: npt.ArrayLike, y: npt.ArrayLike, angle: npt.ArrayLike, b: int = MODEL_SCALE) -> tuple[Ints, Ints]:
    """The pair that `rotate` takes to (x, y), exactly: its steps undone in reverse order."""
    quarters, t, s = _shears(angle, b)
    x, y = within("x", x, -(1 << 31), (1 << 31) - 1), within("y", y, -(1 << 31), (1 << 31) - 1)
    x = wrap32(x + rshift(t * y, b))
    y = wrap32(y - rshift(s * x, b))
    x = wrap32(x + rshift(t * y, b))
    x, y = (np.where(quarters & 2, -z, z) for z in (x, y))
    return wrap32(np.where(quarters & 1, y, x)), wrap32(np.where(quarters & 1, -x, y))


def rotate_heads(v: npt.ArrayLike, position: int) -> Ints:
    """B or C, int16 Q8 [..., N], rotated for a position: pairs (i, i + N/2) by f_i · position steps of 2π/1024."""
    v = ints(v)
    half = v.shape[-1] >> 1
    angle = np.array([(f * position) & 1023 for f in ROTATION_FREQUENCIES[:half]])
    return np.concatenate(rotate(v[..., :half], v[..., half:], angle), axis=-1)


def _levels(n: int) -> list[tuple[int, Ints]]:
    """(block size, twiddle angles [size/2]) of the transform's stages, the largest block first. ValueError unless n = 2 … 2^10 is a power of two."""
    m = n.bit_length() - 1
    if n != 1 << m or not 1 <= m <= 10:
        raise ValueError(f"the transform's length must be a power of two from 2 to 1024, not {n}")
    return [(1 << r, -np.arange(1 << (r - 1)) << (10 - r)) for r in range(m, 0, -1)]


def _bit_reversal(n: int) -> Ints:
    """[n]: the numbers 0 … n − 1 in the order of their reversed bits."""
    order = np.zeros(1, np.int64)
    while len(order) < n:
        order = np.concatenate([2 * order, 2 * order + 1])
    return order


def cayley_transform(re: npt.ArrayLike, im: npt.ArrayLike) -> tuple[Ints, Ints]:
    """The unitary Fourier transform Σ_k z_k e^(−2πi·lk/n) / √n of int32 complex [..., n], n = 2 … 2^10, by rotations alone: exactly invertible.

    Stage by stage, blocks of `size` are halved: the butterfly (a, b) → ((a + b)/√2, (a − b)/√2) is the 45° rotation with its results swapped, of real
    and imaginary parts separately; the differences are then turned by their twiddle angles.
    """
    re, im = ints(re), ints(im)
    shape, n = re.shape, re.shape[-1]
    for size, angles in _levels(n):
        half = size >> 1
        re, im = (z.reshape(*shape[:-1], -1, size) for z in (re, im))
        (re_diff, re_sum), (im_diff, im_sum) = (
            rotate(z[..., :half], z[..., half:], EIGHTH, TABLE_SCALE) for z in (re, im)
        )
        re_diff, im_diff = rotate(re_diff, im_diff, angles, TABLE_SCALE)
        re, im = np.concatenate([re_sum, re_diff], -1), np.concatenate([im_sum, im_diff], -1)
    order = _bit_reversal(n)
    return re.reshape(shape)[..., order], im.reshape(shape)[..., order]


def cayley_transform_inverse(re: npt.ArrayLike, im: npt.ArrayLike) -> tuple[Ints, Ints]:
    """The int32 complex [..., n] that `cayley_transform` takes to (re, im), exactly."""
    re, im = ints(re), ints(im)
    shape, n = re.shape, re.shape[-1]
    order = _bit_reversal(n)
    re, im = re[..., order], im[..., order]
    for size, angles in reversed(_levels(n)):
        half = size >> 1
        re, im = (z.reshape(*shape[:-1], -1, size) for z in (re, im))
        re_diff, im_diff = rotate_inverse(re[..., half:], im[..., half:], angles, TABLE_SCALE)
        re = np.concatenate(rotate_inverse(re_diff, re[..., :half], EIGHTH, TABLE_SCALE), -1)
        im = np.concatenate(rotate_inverse(im_diff, im[..., :half], EIGHTH, TABLE_SCALE), -1)
    return re.reshape(shape), im.reshape(shape)


# ---- §11 Sampler -----------------------------------------------------------------------------------------------------

MAX_TEMPERATURE = 1 << 22  # 64 in Q16
LOG2_E = 94548  # Q16
TOP_P_OFF = 1 << 16


def philox4x32(counter: npt.ArrayLike, key: npt.ArrayLike) -> Ints:
    """Philox4x32-10 (Salmon et al. 2011): four 32-bit words [..., 4] from counter [..., 4] and key [..., 2]; all 0 … 2^32 − 1."""
    word = np.uint64((1 << 32) - 1)
    c0, c1, c2, c3 = np.moveaxis(within("counter", counter, 0, int(word)).astype(np.uint64), -1, 0)
    k0, k1 = np.moveaxis(within("key", key, 0, int(word)).astype(np.uint64), -1, 0)
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (p1 >> np.uint64(32)) ^ c1 ^ k0, p1 & word, (p0 >> np.uint64(32)) ^ c3 ^ k1, p0 & word
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & word, (k1 + np.uint64(0xBB67AE85)) & word
    return ints(np.stack([c0, c1, c2, c3], -1))


def inverse_temperature(temperature: int, embed_mul: int) -> int:
    """The largest C ≤ 2^32 − 1 with C · temperature ≤ embed_mul · log2(e) · 2^32, for temperature Q16, 1 … 2^22."""
    C = 0
    for bit in range(31, -1, -1):
        if (C + (1 << bit)) * temperature <= (embed_mul * LOG2_E) << 16:
            C += 1 << bit
    return C


def pow2neg(F: npt.ArrayLike) -> Ints:
    """≈ 2^16 · 2^(−F/2^16), Q16, for 0 ≤ F < 2^16: a cubic, within 5.7 units; 2^16 at 0, 2^15 at 2^16 − 1, never increasing."""
    F = within("F", F, 0, (1 << 16) - 1)
    inner = (F * ((15188 << 16) - 2616 * F)) >> 16
    return (1 << 16) - ((F * ((45341 << 16) - inner)) >> 32)


def sample(
    logits: npt.ArrayLike,
    embed_mul: int,
    logit_shift: int,
    temperature: int = 0,
    top_k: int = 0,
    top_p: int = TOP_P_OFF,
    seed: int = 0,
    step: int = 0,
) -> int:
    """The token that §11 chooses from logits [V], |logit| < 2^30. temperature Q16, 0 is greedy; top_k 0 is off; top_p Q16; seed and step 64 bits."""
    l = within("logits", logits, 1 - (1 << 30), (1 << 30) - 1)
    if temperature == 0:
        return int(np.argmax(l))  # the first of the largest
    if not (0 < temperature <= MAX_TEMPERATURE and 1 <= top_p <= TOP_P_OFF and top_k >= 0):
        raise ValueError(f"temperature {temperature}, top_k {top_k} or top_p {top_p} is out of range")
    candidates = np.sort(np.argsort(-l, kind="stable")[: top_k or len(l)])

    distance = (l.max() - l[candidates]) * inverse_temperature(temperature, embed_mul) >> logit_shift
    w = np.where(distance >> 16 > 16, 0, pow2neg(distance & 0xFFFF) >> np.minimum(distance >> 16, 17))
    if top_p < TOP_P_OFF:
        order = np.argsort(-w, kind="stable")
        running = np.cumsum(w[order])
        w[order[int(np.argmax(running << 16 >= top_p * running[-1])) + 1 :]] = 0

    word = philox4x32([step & 0xFFFFFFFF, step >> 32, 0, 0], [seed & 0xFFFFFFFF, seed >> 32])[0]
    running = np.cumsum(w)
    return int(candidates[np.argmax(running > ((word >> 2) * running[-1]) >> 30)])
