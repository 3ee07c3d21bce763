"""Integers only, seen from below: the machine code that generation reaches holds no floating-point arithmetic, no integer division, and no call to a
library helper that would do either in its place.

The objects are built with the flags of engine/CMakeLists.txt and disassembled. The loader (model.cpp, file.cpp, bytes.cpp) is not among them: it runs once, and
converts numbers to text in its messages. What is allowed although it names a floating-point type: moving data. `movaps`, `movups`, `movsd`, `shufps`,
`unpcklps`, `xorps`, `andps` and AArch64's `fmov` copy, permute or combine bits whatever they mean, and compilers use them on integers.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
from pathlib import Path

import pytest

ENGINE = Path(__file__).parents[1] / "engine"
# What mi_session_… and mi_sha256 reach.
OBJECTS = (
    *(
        "ops",
        "ops_avx2",
        "ops_avx512",
        "ops_neon",
        "kernels",
        "cpu",
        "device",
        "pool",
        "session",
        "state",
        "sampler",
        "capi",
        "sha256",
    ),
)

_SCALAR_OR_PACKED = r"(?:ss|sd|sh|ps|pd|ph)"
FORBIDDEN = {
    "x86_64": {
        # SSE and AVX; integer arithmetic on the same registers begins with p (paddd, pmaddwd).
        "floating-point arithmetic": rf"v?(?:add|sub|mul|div|sqrt|rcp|rsqrt|min|max|round|hadd|hsub|addsub|dp){_SCALAR_OR_PACKED}",
        "floating-point comparison": rf"v?(?:u?comi|cmp[a-z_]*){_SCALAR_OR_PACKED}",
        "conversion to or from floating point": r"v?cvt\w+",
        "AVX-512 floating point": r"v(?:getexp|getmant|scalef|range|reduce|rndscale|fixupimm|rcp14|rcp28|rsqrt14|rsqrt28|exp2|dpbf16)\w*",
        "x87 or fused multiply-add": r"v?f\w+",  # nothing else begins with f
        "integer division": r"i?div[bwlq]?",
    },
    "aarch64": {
        "floating-point arithmetic": r"f(?!mov$)\w+|bf(?:dot|mmla|mlal[bt]|cvt\w*)",  # bfi, bfxil and bfc move bit fields
        "conversion from integers": r"[su]cvtf",
        "integer division": r"[su]div",
    },
}
# Helpers of libgcc and compiler-rt, as they are named everywhere and on ARM, and the mathematical functions of libm.
HELPERS = re.compile(
    r"__u?(?:div|mod|divmod)[qhsdt]i[34]"
    r"|__aeabi_(?:u?idiv\w*|u?ldiv\w*|[fd](?:add|sub|rsub|mul|div|neg|cmp\w+|2\w+)|cfcmp\w+|cdcmp\w+|u?[il]2[fd]|h2f\w*)"
    r"|__(?:add|sub|mul|div|neg|cmp|eq|ne|lt|le|gt|ge|unord|pow\w)[hsdtxk]f\w*"
    r"|__(?:float|floatun|fix|fixuns|extend|trunc)[a-z]{4}\d*"
    r"|l?l?div|(?:sqrt|cbrt|pow|exp2?|log(?:2|10)?|sin|cos|tan|fma|fmod|floor|ceil|l?l?round|ldexp|frexp)[fl]?"
)
_PREFIXES = re.compile(r"^(?:(?:data16|addr32|lock|rep[nez]*|bnd|notrack|rex\S*|[c-gs]s) )+")


def machine_of(listing: str) -> str:
    """Which of FORBIDDEN's machines `objdump -d` says that its listing is of."""
    found = re.search(r"file format \S*?(x86-64|aarch64)", listing)
    assert found, "objdump lists code of a machine that this test does not know"
    return found.group(1).replace("-", "_")


def instructions(listing: str) -> list[tuple[str, str]]:
    """(mnemonic, whole line) of every instruction in an `objdump -d --no-show-raw-insn` listing."""
    found = []
    for line in listing.splitlines():
        head, tab, text = line.partition(":\t")
        if tab and re.fullmatch(r" *[0-9a-f]+", head):
            found.append((_PREFIXES.sub("", text).split()[0], line.strip()))
    return found


def forbidden_instructions(listing: str) -> list[str]:
    rules = {what: re.compile(pattern) for what, pattern in FORBIDDEN[machine_of(listing)].items()}
    return [
        f"{what}: {line}"
        for mnemonic, line in instructions(listing)
        for what, pattern in rules.items()
        if pattern.fullmatch(mnemonic)
    ]


def forbidden_symbols(undefined: list[str]) -> list[str]:
    return [name for name in undefined if HELPERS.fullmatch(name)]


# ---- tools -----------------------------------------------------------------------------------------------------------


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(map(str, command))}\n{done.stderr}"
    return done.stdout


def release_flags() -> list[str]:
    """The flags that CMakeLists.txt gives to every source, and those that its properties stand for."""
    cmake = (ENGINE / "CMakeLists.txt").read_text()
    options = re.search(r"^add_compile_options\((-O3 [^)]*)\)", cmake, re.MULTILINE)
    assert options, "CMakeLists.txt no longer has its line of release flags"
    flags = options.group(1).split()
    assert not {"-ffast-math", "-Ofast", "-march=native"} & set(flags)
    return [*flags, "-std=c++20", "-fPIC", "-fvisibility=hidden", "-DNDEBUG"]


def compile_object(source: Path, target: Path, flags: list[str]) -> Path:
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    run(*compiler, *flags, f"-I{ENGINE / 'include'}", f"-I{ENGINE / 'src'}", "-c", source, "-o", target)
    return target


def problems(binary: Path) -> list[str]:
    """All that is wrong with an object file."""
    listing = run("objdump", "-d", "--no-show-raw-insn", binary)
    assert len(instructions(listing)) > 3, "objdump listed next to nothing"
    undefined = [line.split()[-1] for line in run("nm", "-u", binary).splitlines() if line.strip()]
    return forbidden_instructions(listing) + [f"calls {name}" for name in forbidden_symbols(undefined)]


pytestmark = pytest.mark.skipif(
    platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"),
    reason="knows the instructions of x86-64 and AArch64 as GNU binutils print them",
)


# ---- tests -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OBJECTS)
def test_object_computes_in_integers(name: str, tmp_path: Path) -> None:
    binary = compile_object(ENGINE / "src" / f"{name}.cpp", tmp_path / f"{name}.o", release_flags())
    assert problems(binary) == []


def test_no_source_is_overlooked() -> None:
    """A new source must be put on one side: reached by generation, or part of the loader."""
    assert {path.stem for path in (ENGINE / "src").glob("*.cpp")} == {*OBJECTS, "model", "file", "bytes"}


def test_checker_sees_what_it_should(tmp_path: Path) -> None:
    source = tmp_path / "guilty.cpp"
    source.write_text(
        """
        struct Four { float a, b, c, d; };
        void copy(Four *to, const Four *from) { *to = *from; }
        float product(float a, float b) { return a * b; }
        float convert(int a) { return static_cast<float>(a); }
        int quotient(int a, int b) { return a / b; }
        __int128 wide_quotient(__int128 a, __int128 b) { return a / b; }
        """
    )
    found = problems(compile_object(source, tmp_path / "guilty.o", ["-std=c++20", "-O3"]))
    for what in ("floating-point arithmetic", "conversion", "integer division", "calls __divti3"):
        assert any(problem.startswith(what) for problem in found), (what, found)
    assert not any("mov" in problem.split("\t")[-1].split()[0] for problem in found), found

    source.write_text(
        "struct Four { float a, b, c, d; }; void copy(Four *to, const Four *from) { *to = *from; }"
        "unsigned tenth(unsigned a) { return a / 10; } int sum(const int *a) { int s = 0; for (int i = 0; i < 64; ++i) s += a[i]; return s; }"
    )
    assert problems(compile_object(source, tmp_path / "innocent.o", ["-std=c++20", "-O3"])) == []


def listing(machine: str, *lines: str) -> str:
    body = "\n".join(f"  {4 * i:x}:\t{line}" for i, line in enumerate(lines))
    return f"x.o:     file format elf64-{machine}\n\n0000000000000000 <f>:\n{body}\n"


@pytest.mark.parametrize(
    ("machine", "line"),
    [
        *[
            ("x86-64", line)
            for line in (
                "addss  %xmm1,%xmm0",
                "vaddpd %ymm1,%ymm0,%ymm2",
                "mulsd  (%rax),%xmm0",
                "divps  %xmm1,%xmm0",
                "vsqrtsd %xmm0,%xmm0,%xmm0",
                "rcpps  %xmm1,%xmm0",
                "comiss %xmm1,%xmm0",
                "vucomisd %xmm1,%xmm0",
                "cmpltps %xmm1,%xmm0",
                "maxss  %xmm1,%xmm0",
                "cvtsi2sd %eax,%xmm0",
                "cvttss2si %xmm0,%rax",
                "vcvtdq2ps %ymm0,%ymm0",
                "vfmadd231ps %ymm0,%ymm1,%ymm2",
                "flds   (%rax)",
                "fmulp  %st,%st(1)",
                "idiv   %ecx",
                "divq   (%rsp)",
            )
        ],
        *[
            ("littleaarch64", line)
            for line in (
                "fadd\td0, d0, d1",
                "fmla\tv0.4s, v1.4s, v2.4s",
                "fcmp\ts0, s1",
                "fcvtzs\tw0, s0",
                "scvtf\td0, w0",
                "ucvtf\ts0, s0",
                "sdiv\tw0, w0, w1",
                "udiv\tx0, x0, x1",
            )
        ],
    ],
)
def test_flags(machine: str, line: str) -> None:
    assert len(forbidden_instructions(listing(machine, line))) == 1


@pytest.mark.parametrize(
    ("machine", "line"),
    [
        *[
            ("x86-64", line)
            for line in (
                "movaps %xmm0,(%rax)",
                "movsd  (%rax),%xmm0",
                "shufps $0x88,%xmm1,%xmm0",
                "xorps  %xmm0,%xmm0",
                "paddd  %xmm1,%xmm0",
                "pmaddwd %xmm1,%xmm0",
                "vpmulld %ymm0,%ymm1,%ymm2",
                "rep stos %rax,%es:(%rdi)",
                "cmpsb  %es:(%rdi),%ds:(%rsi)",
                "cs nopw 0x0(%rax,%rax,1)",
                "data16 cs nopw 0x0(%rax,%rax,1)",
                "sub    $0x8,%rsp",
                "cmpl   $0x7f,(%rax)",
                "call   1b0 <_ZN2mi6divideEv>",
            )
        ],
        *[
            ("littleaarch64", line)
            for line in ("fmov\td0, x0", "smlal\tv0.4s, v1.4h, v2.4h", "bfi\tw0, w1, #2, #3", "mul\tw0, w0, w1")
        ],
    ],
)
def test_allows(machine: str, line: str) -> None:
    assert forbidden_instructions(listing(machine, line)) == []


def test_helper_names() -> None:
    guilty = [
        *(
            "__divdi3",
            "__udivmodti4",
            "__umodsi3",
            "__aeabi_idivmod",
            "__aeabi_uldivmod",
            "__aeabi_fmul",
            "__aeabi_ui2d",
        ),
        *(
            "__muldf3",
            "__addsf3",
            "__floatsidf",
            "__floatunditf",
            "__fixunsdfsi",
            "__extendsfdf2",
            "__ltdf2",
            "sqrtf",
            "ldiv",
        ),
    ]
    assert forbidden_symbols(guilty) == guilty
    innocent = [
        "memcpy",
        "__clzdi2",
        "__aeabi_lmul",
        "__multi3",
        "__gxx_personality_v0",
        "_Znwm",
        "__ashrdi3",
        "__aeabi_memcpy",
    ]
    assert forbidden_symbols(innocent) == []
