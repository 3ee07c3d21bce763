#!/usr/bin/env python3
"""Reads the machine code of a CUDA library: check_cuda.py [LIBRARY], by default build/cuda/libmamba_integer_cuda.so. No GPU needed.

Prints registers, spilled bytes and shared memory of every kernel, and exits with status 1 if an instruction of any kernel is not one of the
integer, memory or control instructions below, or if a kernel spills. So no kernel adds, multiplies or converts in floating point, and none divides:
nvcc makes of a division by a variable a conversion and a reciprocal (I2F, MUFU). cuobjdump and nvdisasm are those of $CUDA_HOME, of PATH, or
of the extra "cuda".
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "build/cuda/libmamba_integer_cuda.so"
TARGETS = ("sm_80", "sm_89", "sm_90")

# Instructions of sm_80 to sm_90 that move, compare and compute integers and predicates; those that begin with U do it once a warp.
INTEGER = """
IMAD IADD3 IABS ISETP IMNMX LEA LOP3 SHF SHL SHR SEL PRMT IDP IMMA REDUX FLO POPC BREV BMSK SGXT XMAD LOP IADD IMUL VABSDIFF VABSDIFF4
VIADD VIMNMX VIADDMNMX VIMNMX3 VIADD3 PLOP3 R2P P2R
UIMAD UIADD3 UISETP ULOP3 USHF USEL UPRMT ULEA UFLO UPOPC UPLOP3 UR2UP UMOV UBMSK USGXT UVIADD UVIMNMX UBREV UP2UR
"""
MEMORY = "LD LDG LDS LDC LDL LDSM ST STG STS STL ULDC ATOMS ATOM ATOMG RED CCTL MEMBAR ERRBAR FENCE SHFL MATCH VOTE VOTEU QSPC"
CONTROL = """
MOV S2R S2UR CS2R R2UR BRA BRX JMP CALL RET EXIT BSSY BSYNC BREAK BMOV WARPSYNC YIELD NOP BAR DEPBAR NANOSLEEP ENDCOLLECTIVE KILL BPT RPCMOV
ACQBULK UCGABAR_ARV UCGABAR_WAIT
"""
ALLOWED = frozenset(f"{INTEGER} {MEMORY} {CONTROL}".split())
FLOAT = re.compile(
    r"F(?:ADD|MUL|FMA|SETP|SET|MNMX|SEL|CHK|RND|SWZADD|ADD32I|MUL32I|FMA32I|CMP)|D(?:ADD|MUL|FMA|SETP|MNMX|MMA)|H(?:ADD2|MUL2|FMA2|SETP2|SET2|MNMX2|MMA)"
    r"|(?:BMMA|QMMA|HGMMA|QGMMA)|MUFU|U?I2F|U?I2FP|U?F2I|F2F|F2FP|F2IP|R2F|RRO|UF\w+"
)
# nvcc loads constants with the multiplier of halves: -0 times 0 plus the constant. Nothing is rounded, no register is read.
CONSTANT = re.compile(r"HFMA2(?:\.MMA)?(?:\.BF16_V2)? R\d+, -RZ, RZ, \S+, \S+")


@dataclass
class Kernel:
    """One kernel of one target. `spilled` counts bytes of stack and of local memory; `wrong`: instructions that should not be there, in words."""

    name: str
    target: str
    instructions: list[str] = field(default_factory=list)
    registers: int = 0
    spilled: int = 0
    shared: int = 0

    @property
    def wrong(self) -> list[str]:
        found = []
        for text in self.instructions:
            mnemonic = re.split(r"[. ]", text)[0]
            if CONSTANT.fullmatch(text) or mnemonic in ALLOWED:
                continue
            what = "floating point" if FLOAT.fullmatch(mnemonic) else "not on the list of integer instructions"
            found.append(f"{self.target} {self.name}: {what}: {text}")
        return found

    def has(self, mnemonic: str) -> bool:
        return any(re.split(r"[. ]", text)[0] == mnemonic for text in self.instructions)


def short(mangled: str) -> str:
    """A kernel's own name: what the linker's name has between the file's mark and its arguments, template arguments in words."""
    found = re.search(r"_GLOBAL__N__\w+?_cu_[0-9a-f]{8}_?\d*?(\d+)([a-z]\w+)", mangled)
    if not found:
        return mangled
    digits, rest = found[1], found[2]
    for n in (int(digits[i:]) for i in range(len(digits))):
        if 0 < n <= len(rest) and re.fullmatch(r"[a-z_]+", rest[:n]) and (n == len(rest) or rest[n] in "IEP"):
            arguments = rest[n:].split("EEv")[0] if rest[n : n + 1] == "I" else ""
            words = re.findall(r"Ternary|Int8|Requantised|Residual|Logits|4ScanE\d|10ActivationE\d|Li\d+", arguments)
            return rest[:n] + (f"<{', '.join(map(_word, words))}>" if words else "")
    return mangled


def _word(argument: str) -> str:
    if argument.startswith("Li"):
        return argument[2:]
    forms = {"4ScanE0": "convex", "4ScanE1": "literal", "10ActivationE0": "silu", "10ActivationE1": "squareplus"}
    return forms.get(argument, argument)


def parse(code: str, usage: str) -> list[Kernel]:
    """The kernels in the output of `cuobjdump -sass` and `cuobjdump -res-usage`."""
    kernels: dict[tuple[str, str], Kernel] = {}
    target, current = "", None
    for line in code.splitlines():
        if found := re.match(r"\s*code for (sm_\w+)", line):
            target, current = found[1], None
        elif found := re.match(r"\s*Function : (\S+)", line):
            current = kernels.setdefault((target, found[1]), Kernel(short(found[1]), target))
        elif current and (found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line)):
            current.instructions.append(re.sub(r"^\{?\s*(?:@!?U?P\w+\s+)?", "", found[1]))
    name = ""
    for line in usage.splitlines():
        if found := re.match(r"\s*arch = (sm_\w+)", line):
            target = found[1]
        elif found := re.match(r"\s*Function (\S+):", line):
            name = found[1]
        elif (found := re.match(r"\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line)) and (
            target,
            name,
        ) in kernels:
            kernel = kernels[target, name]
            kernel.registers, kernel.spilled, kernel.shared = (
                int(found[1]),
                int(found[2]) + int(found[4]),
                int(found[3]),
            )
    return list(kernels.values())


def tools() -> Iterator[Path]:
    """Folders that may hold cuobjdump and nvdisasm, the first choice first."""
    if os.environ.get("CUDA_HOME"):
        yield Path(os.environ["CUDA_HOME"]) / "bin"
    if (on_path := shutil.which("cuobjdump")) is not None:
        yield Path(on_path).parent
    folders = [*sys.path, *map(str, sorted((ROOT / ".venv").glob("lib/python*/site-packages")))]
    for folder in folders:
        yield from sorted(Path(folder).glob("nvidia/cu*/bin"), reverse=True)


def read(library: Path) -> list[Kernel]:
    """The kernels of a library or object file. Raises FileNotFoundError without cuobjdump."""
    folder = next((f for f in tools() if (f / "cuobjdump").is_file()), None)
    if folder is None:
        raise FileNotFoundError("cuobjdump not found; install a CUDA toolkit, or: pip install 'mamba-integer[cuda]'")
    path = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"}  # where it looks for nvdisasm

    def dump(option: str) -> str:
        command = [str(folder / "cuobjdump"), option, str(library)]
        return subprocess.run(command, env=path, capture_output=True, text=True, check=True).stdout

    return parse(dump("-sass"), dump("-res-usage"))


def table(kernels: list[Kernel]) -> str:
    lines = [f"{'kernel':<36} {'target':<7} {'instructions':>12} {'registers':>9} {'spilled':>7} {'shared':>6}"]
    lines += [
        f"{k.name:<36} {k.target:<7} {len(k.instructions):>12} {k.registers:>9} {k.spilled:>7} {k.shared:>6}"
        for k in sorted(kernels, key=lambda k: (k.name, k.target))
    ]
    return "\n".join(lines)


def problems(kernels: list[Kernel]) -> list[str]:
    spills = [f"{k.target} {k.name}: spills {k.spilled} bytes" for k in kernels if k.spilled]
    return [line for k in kernels for line in k.wrong] + spills


def main() -> int:
    library = Path(sys.argv[1]) if len(sys.argv) > 1 else LIBRARY
    if not library.is_file():
        print(f"error: {library}: no such file (scripts/build_cuda.sh builds it)", file=sys.stderr)
        return 2
    try:
        kernels = read(library)
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(kernels))
    found = problems(kernels)
    for line in found:
        print(line, file=sys.stderr)
    print(f"{len(kernels)} kernels; {len(found)} problems")
    return 1 if found or not kernels else 0


if __name__ == "__main__":
    sys.exit(main())
