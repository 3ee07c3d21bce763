"""KoalaBear and its quintic extension, multilinear equality, interpolation.

Base-field elements are plain Python ints in canonical form, 0 <= x < P. The Montgomery form x * 2^32 mod P exists only
in bytes: base_to_bytes and base_from_bytes are the only places that know it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from .errors import VerificationError

P = 2**31 - 2**24 + 1
TWO_ADICITY = 24
# An element of order 2^24: the generator that p3-koala-bear uses (checked in the tests: order exactly 2^24).
TWO_ADIC_ROOT = 0x6AC49F88
EXT_DEGREE = 5
EXT_ORDER: int = P**EXT_DEGREE
# log2 of that, rounded up: what the WHIR parameter derivation calls EF::bits().
EXT_BITS = EXT_ORDER.bit_length()

_MONTY_R = pow(2, 32, P)
_MONTY_R_INV = pow(_MONTY_R, -1, P)


def base_to_bytes(x: int) -> bytes:
    """A base-field element in bytes: its Montgomery form, 4 bytes, little endian."""
    return (x * _MONTY_R % P).to_bytes(4, "little")


def base_from_bytes(data: bytes) -> int:
    """Inverse of base_to_bytes; refuses integers >= P."""
    raw = int.from_bytes(data, "little")
    if raw >= P:
        raise VerificationError("field element is not canonical")
    return raw * _MONTY_R_INV % P


def two_adic_generator(bits: int) -> int:
    """The generator of the subgroup of order 2^bits: TWO_ADIC_ROOT squared (24 - bits) times."""
    if not 0 <= bits <= TWO_ADICITY:
        raise ValueError("no subgroup of this order")
    return pow(TWO_ADIC_ROOT, 1 << (TWO_ADICITY - bits), P)


class Ext:
    """An element of F[X] / (X^5 + X^2 - 1): five coefficients, lowest first. Immutable; ints mix in."""

    __slots__ = ("c",)

    def __init__(self, coefficients: Sequence[int]) -> None:
        self.c = tuple(coefficients)

    @staticmethod
    def of(x: int) -> Ext:
        """Embed a base-field element."""
        return Ext((x % P, 0, 0, 0, 0))

    def __add__(self, other: Ext | int) -> Ext:
        a0, a1, a2, a3, a4 = self.c
        if isinstance(other, int):
            return Ext(((a0 + other) % P, a1, a2, a3, a4))
        b0, b1, b2, b3, b4 = other.c
        return Ext(((a0 + b0) % P, (a1 + b1) % P, (a2 + b2) % P, (a3 + b3) % P, (a4 + b4) % P))

    __radd__ = __add__

    def __neg__(self) -> Ext:
        return Ext([-a % P for a in self.c])

    def __sub__(self, other: Ext | int) -> Ext:
        a0, a1, a2, a3, a4 = self.c
        if isinstance(other, int):
            return Ext(((a0 - other) % P, a1, a2, a3, a4))
        b0, b1, b2, b3, b4 = other.c
        return Ext(((a0 - b0) % P, (a1 - b1) % P, (a2 - b2) % P, (a3 - b3) % P, (a4 - b4) % P))

    def __rsub__(self, other: int) -> Ext:
        return -self + other

    def __mul__(self, other: Ext | int) -> Ext:
        a0, a1, a2, a3, a4 = self.c
        if isinstance(other, int):
            return Ext((a0 * other % P, a1 * other % P, a2 * other % P, a3 * other % P, a4 * other % P))
        b0, b1, b2, b3, b4 = other.c
        # The product has degree 8; X^5 = 1 - X^2, X^6 = X - X^3, X^7 = X^2 - X^4, X^8 = X^3 - X^5 = X^3 + X^2 - 1.
        t5 = a1 * b4 + a2 * b3 + a3 * b2 + a4 * b1
        t6 = a2 * b4 + a3 * b3 + a4 * b2
        t7 = a3 * b4 + a4 * b3
        t8 = a4 * b4
        return Ext(
            (
                (a0 * b0 + t5 - t8) % P,
                (a0 * b1 + a1 * b0 + t6) % P,
                (a0 * b2 + a1 * b1 + a2 * b0 - t5 + t7 + t8) % P,
                (a0 * b3 + a1 * b2 + a2 * b1 + a3 * b0 - t6 + t8) % P,
                (a0 * b4 + a1 * b3 + a2 * b2 + a3 * b1 + a4 * b0 - t7) % P,
            )
        )

    __rmul__ = __mul__

    def __pow__(self, exponent: int) -> Ext:
        result, square = ONE, self
        while exponent:
            if exponent & 1:
                result = result * square
            square = square * square
            exponent >>= 1
        return result

    def inverse(self) -> Ext:
        """1 / self, by Fermat; ZeroDivisionError for zero."""
        if self == ZERO:
            raise ZeroDivisionError("inverse of zero")
        return self ** (EXT_ORDER - 2)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, int):
            return self.c == (other % P, 0, 0, 0, 0)
        return isinstance(other, Ext) and self.c == other.c

    def __hash__(self) -> int:
        return hash(self.c)

    def __repr__(self) -> str:
        return f"Ext{self.c}"


ZERO = Ext((0, 0, 0, 0, 0))
ONE = Ext((1, 0, 0, 0, 0))
Point = Sequence[Ext]


def ext_to_bytes(x: Ext) -> bytes:
    """An extension element in bytes: its five coefficients in order."""
    return b"".join(base_to_bytes(c) for c in x.c)


def element_to_bytes(x: Ext | int) -> bytes:
    """A base-field or an extension element in bytes."""
    return base_to_bytes(x) if isinstance(x, int) else ext_to_bytes(x)


def powers(x: Ext, start: int = 0) -> Iterator[Ext]:
    """x^start, x^(start+1), ..."""
    current = x**start
    while True:
        yield current
        current = current * x


def product(factors: Iterable[Ext]) -> Ext:
    """The product of the factors, ONE for none."""
    result = ONE
    for factor in factors:
        result = result * factor
    return result


def eval_eq(p: Sequence[Ext | int], q: Point) -> Ext:
    """eq(p, q) = prod (p_i q_i + (1 - p_i)(1 - q_i))."""
    if len(p) != len(q):
        raise ValueError("points of different length")
    return product(y * x * 2 - x - y + 1 for x, y in zip(p, q, strict=True))


def eq_table(point: Point) -> list[Ext]:
    """eq(point, b) for all b in {0,1}^n; coordinate 0 is the most significant bit of the index."""
    table = [ONE]
    for x in point:
        high = [t * x for t in table]
        table = [v for t, h in zip(table, high, strict=True) for v in (t - h, h)]
    return table


def eval_multilinear(values: Sequence[Ext | int], point: Point) -> Ext:
    """The multilinear extension of a table at a point; coordinate 0 is the most significant index bit."""
    if len(values) != 1 << len(point):
        raise ValueError("table length is not 2^n")
    current = list(values)
    for x in point:
        half = len(current) // 2
        # x on the left, so that ints of base-field tables work in the first round.
        current = [x * (hi - lo) + lo for lo, hi in zip(current[:half], current[half:], strict=True)]
    return current[0] if isinstance(current[0], Ext) else Ext.of(current[0])


def eval_next(point: Point, row: Point) -> Ext:
    """The multilinear 'repeat-last successor' kernel: sum over i of eq(point, i) * eq(row, min(i + 1, 2^n - 1))."""
    carry, done, omega = ONE, ZERO, ONE
    for x, y in zip(reversed(point), reversed(row), strict=True):
        eq = y * x * 2 - x - y + 1
        done = done * eq + carry * (1 - x) * y
        carry = carry * x * (1 - y)
        omega = omega * x * y
    return done + omega


def eval_select(var: int, point: Point) -> Ext:
    """prod_i (1 + r_i (var^(2^(n-1-i)) - 1)): the powers 1, var, var^2, ... as a multilinear polynomial at `point`."""
    result = ONE
    for r in reversed(point):
        result = result * (r * (var - 1) + 1)
        var = var * var % P
    return result


def expand_from_univariate(x: Ext, num_variables: int) -> list[Ext]:
    """(x^(2^(n-1)), ..., x^4, x^2, x)."""
    point = []
    for _ in range(num_variables):
        point.append(x)
        x = x * x
    return point[::-1]


def hypercube_point(index: int, num_variables: int) -> list[int]:
    """The bits of the index, most significant first."""
    return [index >> (num_variables - 1 - i) & 1 for i in range(num_variables)]


def horner(coefficients: Sequence[Ext], x: int | Ext) -> Ext:
    """sum coefficients[i] * x^i."""
    result = ZERO
    for c in reversed(coefficients):
        result = result * x + c
    return result


def interpolate_at(values: Sequence[Ext], r: Ext) -> Ext:
    """The polynomial of degree < len(values) with values h(0), h(1), ..., at r (Lagrange, no division by r)."""
    n = len(values)
    result = ZERO
    for i in range(n):
        denominator = 1
        numerator = ONE
        for j in range(n):
            if j != i:
                denominator = denominator * (i - j) % P
                numerator = numerator * (r - j)
        result = result + values[i] * numerator * pow(denominator, -1, P)
    return result
