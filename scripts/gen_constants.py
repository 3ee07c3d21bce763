#!/usr/bin/env python3
"""Writes the constants of the Dyadic-Cayley rotation (spec/ARITHMETIC.md §10) to the three places that hold them; `--check` only compares.

Places: spec/ARITHMETIC.md and mamba_integer/arithmetic.py, between their marks, and engine/src/constants.hpp as a whole. Integers only: sine and cosine of
2π/1024 by halving a right angle eight times with exact square roots in Q192, then the addition theorem, then one rounding to Q30.
"""

from __future__ import annotations

import math
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STEPS = 1024  # angles a full turn
SCALE = 30
WORK = 192  # bits of the working precision
FREQUENCIES = [max(f >> i, 1) for f in (163, 115, 137, 97) for i in range(8)]


def cayley_constants() -> tuple[list[int], list[int]]:
    """(T, S): round(2^30 tan(θ/2)) and round(2^30 sin θ) for θ = 2πj/1024, j = 0 … 128."""
    one = 1 << WORK
    c, s = 0, one  # a quarter turn
    for _ in range(8):
        c, s = math.isqrt((one + c) << (WORK - 1)), math.isqrt((one - c) << (WORK - 1))
    cos, sin = [one], [0]
    for _ in range(128):
        cos.append((cos[-1] * c - sin[-1] * s) >> WORK)
        sin.append((sin[-1] * c + cos[-2] * s) >> WORK)
    tangents = [((y << (SCALE + 1)) // (one + x) + 1) >> 1 for x, y in zip(cos, sin, strict=True)]
    sines = [((y >> (WORK - SCALE - 1)) + 1) >> 1 for y in sin]
    return tangents, sines


def rows(values: list[int], indent: str, width: int = 116) -> str:
    return textwrap.fill(", ".join(map(str, values)) + ",", width, initial_indent=indent, subsequent_indent=indent)


def between(text: str, begin: str, end: str, content: str) -> str:
    """`text` with what lies between the lines `begin` and `end` replaced."""
    pattern = re.compile(f"(^{re.escape(begin)}\n).*?(^{re.escape(end)}$)", re.MULTILINE | re.DOTALL)
    new, n = pattern.subn(lambda m: m[1] + content + m[2], text)
    if n != 1:
        raise SystemExit(f"marks {begin!r} … {end!r} not found once")
    return new


def generated() -> dict[Path, str]:
    """Every file that holds the constants, with the contents it should have."""
    t, s = cayley_constants()
    spec, python = ROOT / "spec/ARITHMETIC.md", ROOT / "mamba_integer/arithmetic.py"
    block = f"```\nT =\n{rows(t, '  ', 140)}\nS =\n{rows(s, '  ', 140)}\nf =\n{rows(FREQUENCIES, '  ', 140)}\n```\n"
    tuples = "".join(
        f"{name} = (\n{rows(values, '    ')}\n)\n"
        for name, values in (("ROTATION_T", t), ("ROTATION_S", s), ("ROTATION_FREQUENCIES", FREQUENCIES))
    )
    header = f"""\
// Constants of the Dyadic-Cayley rotation, spec/ARITHMETIC.md section 10. Made by scripts/gen_constants.py.
#pragma once

#include <stdint.h>

namespace mi {{

// clang-format off

constexpr int kRotScale = {SCALE};      // of the two tables
constexpr int kRotModelScale = 13; // of the rotation inside the model: t = rshift(kRotT[j], kRotScale - kRotModelScale), s likewise

// round(2^30 tan(theta/2)), theta = 2 pi j / 1024
MI_TABLE int32_t kRotT[129] = {{
{rows(t, "    ")}
}};

// round(2^30 sin(theta))
MI_TABLE int32_t kRotS[129] = {{
{rows(s, "    ")}
}};

// angle steps a position of pair i
MI_TABLE int32_t kRotFrequency[32] = {{
{rows(FREQUENCIES, "    ")}
}};

// clang-format on

}}  // namespace mi
"""
    return {
        spec: between(spec.read_text("utf-8"), "<!-- constants -->", "<!-- end of constants -->", block),
        python: between(python.read_text("utf-8"), "# fmt: off", "# fmt: on", tuples),
        ROOT / "engine/src/constants.hpp": header,
    }


def main() -> int:
    stale = [path for path, text in generated().items() if not path.exists() or path.read_text("utf-8") != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is not what scripts/gen_constants.py writes", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(generated()[path], "utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
