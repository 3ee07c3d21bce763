"""What nvcc makes of the CUDA sources: every kernel of every target is integers only, divides nothing and spills nothing; and the check would see it.

Needs nvcc, of a toolkit or of the extra "cuda" (some 120 MB), but no GPU.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.models import shipped_model

ROOT = Path(__file__).resolve().parents[1]
KERNELS = {"embedding_kernel", "norm_kernel", "conv_kernel", "scan_kernel", "few_tokens", "many_tokens", "sampler_kernel", "activation_kernel",
           "gate_kernel"}  # fmt: skip


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_cuda", ROOT / "scripts/check_cuda.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_cuda"] = module
    spec.loader.exec_module(module)
    return module


check = load_script()


def nvcc() -> Path | None:
    if os.environ.get("NVCC"):
        return Path(os.environ["NVCC"])
    found = next((f / "nvcc" for f in check.tools() if (f / "nvcc").is_file()), None)
    return found or (Path(on_path) if (on_path := shutil.which("nvcc")) else None)


NVCC = nvcc()
needs_nvcc = pytest.mark.skipif(platform.system() != "Linux", reason="nvcc is for Linux")


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert NVCC is not None, "needs nvcc: the extra [cuda], which `make test` installs, or a CUDA toolkit"
    folder = tmp_path_factory.mktemp("cuda")
    environment = {**os.environ, "NVCC": str(NVCC)}
    done = subprocess.run(
        [str(ROOT / "scripts/build_cuda.sh"), str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "libmamba_integer_cuda.so"


@needs_nvcc
def test_kernels_are_integers_only(library: Path) -> None:
    kernels = check.read(library)
    print(check.table(kernels))
    assert check.problems(kernels) == []
    for target in check.TARGETS:
        here = [k for k in kernels if k.target == target]
        assert {k.name.split("<")[0] for k in here} == KERNELS
        assert len(here) == 32
        assert all(len(k.instructions) > 20 and k.registers > 5 for k in here)
        # What they are made for is there: integer tensor cores, dp4a, sums over a warp in one instruction.
        assert all(k.has("IMMA") for k in here if k.name.startswith("many_tokens"))
        assert all(k.has("IDP") and k.has("REDUX") for k in here if k.name.startswith("few_tokens"))


@needs_nvcc
def test_libraries_export_what_the_header_declares(library: Path) -> None:
    names = {"bitlinear", "bitshift_norm", "conv1d_step", "dyadic_mamba", "squareplus"}
    for name in names:
        symbols = subprocess.run(
            ["nm", "-D", "--defined-only", str(library.parent / f"lib{name}.so")],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert f" launch_{name}\n" in symbols
        assert " launch_error\n" in symbols
        assert not any(f" launch_{other}\n" in symbols for other in names - {name})


@needs_nvcc
def test_library_says_that_there_is_no_gpu(library: Path) -> None:
    environment = {**os.environ, "MAMBA_INTEGER_CUDA": str(library), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "mamba_integer", "generate", "--model", str(shipped_model()), "--prompt", "Hi", "--device", "cuda"],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("mamba-integer: error: device cuda: no GPU can be used: ")
    assert done.stderr.count("\n") == 1


@needs_nvcc
def test_checker_sees_what_it_should(tmp_path: Path) -> None:
    source = tmp_path / "guilty.cu"
    source.write_text(
        """
        __global__ void product(float *a) { a[threadIdx.x] *= 1.5f; }
        __global__ void wide(double *a) { a[threadIdx.x] += a[0]; }
        __global__ void quotient(int *a) { a[threadIdx.x] /= a[0]; }
        __global__ void converted(float *a, const int *b) { a[threadIdx.x] = static_cast<float>(b[threadIdx.x]); }
        __global__ void spilling(int *a, int n) {
            int b[64];
            for (int i = 0; i < 64; ++i) b[i] = a[i] * n;
            for (int i = 0; i < n; ++i) b[b[i & 63] & 63] += i;
            for (int i = 0; i < 64; ++i) a[i] = b[i];
        }
        __global__ void innocent(int *a) { a[threadIdx.x] = a[threadIdx.x] / 10 + (a[0] >> 3) * 77777; }
        """
    )
    binary = tmp_path / "guilty.cubin"
    subprocess.run([str(NVCC), "-cubin", "-arch=sm_80", "-O3", str(source), "-o", str(binary)], check=True)
    found = check.problems(check.read(binary))
    for name, what in (("product", "FMUL"), ("wide", "DADD"), ("quotient", "MUFU"), ("quotient", "I2F"), ("converted", "I2F"),
                       ("spilling", "spills 256 bytes")):  # fmt: skip
        assert any(name in line and what in line for line in found), (name, found)
    assert not any("innocent" in line for line in found), found


LISTING = """
	code for sm_80
		Function : _ZN2mi4cuda45_GLOBAL__N__9621df95_12_bitlinear_cu_f70a6b0d10few_tokensINS1_7TernaryELi4ENS1_6LogitsEEEv9mi_matrixPKaiT1_
        /*0000*/                   {} ;              /* 0x00000a00ff017624 */
"""


@pytest.mark.parametrize(
    "text",
    ["FADD R1, R2, R3", "FFMA.FTZ R1, R2, R3, R4", "@P0 DMUL R2, R4, R6", "HADD2 R1, R2, R3", "HFMA2 R1, R2, R3, R4", "MUFU.RCP R1, R2",
     "I2F.RP R1, R2", "@!P1 F2I.FTZ.U32.TRUNC.NTZ R1, R2", "HMMA.16816.F32 R4, R8, R12, R4", "HFMA2.MMA R1, -RZ, R2, 1, 1", "NEWTHING R1"],
)  # fmt: skip
def test_flags(text: str) -> None:
    assert len(check.problems(check.parse(LISTING.format(text), ""))) == 1


@pytest.mark.parametrize(
    "text",
    ["IMAD.WIDE R1, R2, R3, R4", "@P0 IADD3 R1, R2, R3, RZ", "IMMA.16832.S8.S8 R4, R8.ROW, R12.COL, R4", "IDP.4A.S8.S8 R1, R2, R3, R4",
     "HFMA2.MMA R1, -RZ, RZ, 0, 5.9604644775390625e-08", "@!UP0 UIADD3 UR4, UR5, UR6, URZ", "BAR.SYNC.DEFER_BLOCKING 0x0"],
)  # fmt: skip
def test_allows(text: str) -> None:
    kernels = check.parse(LISTING.format(text), "")
    assert len(kernels) == 1
    assert len(kernels[0].instructions) == 1
    assert kernels[0].name == "few_tokens<Ternary, 4, Logits>"
    assert check.problems(kernels) == []


def test_usage_is_read() -> None:
    name = LISTING.split("Function : ")[1].split("\n")[0]
    usage = f"arch = sm_80\n Function {name}:\n  REG:78 STACK:8 SHARED:64 LOCAL:16 CONSTANT[0]:408\n"
    (kernel,) = check.parse(LISTING.format("EXIT"), usage)
    assert (kernel.registers, kernel.spilled, kernel.shared) == (78, 24, 64)
    assert check.problems([kernel]) == ["sm_80 few_tokens<Ternary, 4, Logits>: spills 24 bytes"]
