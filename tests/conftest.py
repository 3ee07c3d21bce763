"""What several tests need: the CUDA library for no GPU."""

from __future__ import annotations

import os
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENGINE = ROOT / "engine"
CUDA_LIBRARY = "libmamba_integer_cuda.so"


def compile_for_host(folder: Path) -> Path:
    sources = sorted((ENGINE / "cuda").glob("*.cu"))
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    includes = [f"-I{ENGINE / part}" for part in ("include", "src", "cuda")]

    def build(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        options = ["-xc++", "-std=c++20", "-O1", "-fPIC", *includes]
        subprocess.run([*compiler, *options, "-c", str(source), "-o", str(target)], check=True)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(build, sources))
    subprocess.run([*compiler, "-shared", *map(str, objects), "-o", str(folder / CUDA_LIBRARY)], check=True)
    return folder / CUDA_LIBRARY


@pytest.fixture(scope="session")
def on_host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plug-in for no GPU: the one that the C++ tests have built, if it is up to date."""
    built = ROOT / "build/engine/on_host" / CUDA_LIBRARY
    sources = [p for part in ("cuda", "src", "include") for p in (ENGINE / part).iterdir()]
    if built.is_file() and built.stat().st_mtime > max(p.stat().st_mtime for p in sources):
        return built
    return compile_for_host(tmp_path_factory.mktemp("on_host"))
