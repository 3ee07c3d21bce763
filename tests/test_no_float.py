"""The executable spec and the reference stay integer: no float, no division, no module that could bring one in."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "mamba_integer"
ALLOWED = {"__future__", "numpy", "numpy.typing"}
ALSO_ALLOWED = {"reference": {"collections.abc", "dataclasses", "typing", "mamba_integer.arithmetic"}}
FORBIDDEN_NAMES = {
    "float",
    "complex",
    "divmod",
    "pow",
    "round",
    "eval",
    "exec",
    "math",
    "cmath",
    "fractions",
    "decimal",
}
INTEGER_NUMPY = {
    *(
        "abs",
        "arange",
        "argmax",
        "argsort",
        "array",
        "asarray",
        "broadcast_to",
        "concatenate",
        "cumsum",
        "einsum",
        "empty",
        "full_like",
    ),
    *(
        "int32",
        "int64",
        "maximum",
        "minimum",
        "moveaxis",
        "searchsorted",
        "sign",
        "sort",
        "split",
        "stack",
        "uint64",
        "where",
        "zeros",
    ),
}


def problems(tree: ast.Module, allowed: set[str]) -> list[str]:
    found = []
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for child in node.body
    }
    for node in ast.walk(tree):
        where = f"line {getattr(node, 'lineno', 0)}: "
        if isinstance(node, ast.Constant) and isinstance(node.value, (float, complex)):
            found.append(f"{where}the number {node.value}")
        if isinstance(node, (ast.Div, ast.FloorDiv, ast.Mod, ast.Pow)):
            found.append(f"operator {type(node).__name__}")
        if isinstance(node, ast.Name) and node.id in FORBIDDEN_NAMES:
            found.append(f"{where}{node.id}")
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "np"
            and node.attr not in INTEGER_NUMPY
        ):
            found.append(f"{where}np.{node.attr}")
        if isinstance(node, ast.Attribute) and node.attr in {"mean", "std", "var", "dot", "prod"}:
            found.append(f"{where}.{node.attr}")
        if isinstance(node, (ast.Import, ast.ImportFrom)) and id(node) not in typing_only:
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif node.module == "mamba_integer":
                names = [f"mamba_integer.{alias.name}" for alias in node.names]
            else:
                names = [node.module or "."]
            found += [f"{where}import {name}" for name in names if name not in allowed]
    return found


@pytest.mark.parametrize("module", ["arithmetic", "reference"])
def test_source_is_integer_only(module: str) -> None:
    tree = ast.parse((PACKAGE / f"{module}.py").read_text("utf-8"))
    assert problems(tree, ALLOWED | ALSO_ALLOWED.get(module, set())) == []


@pytest.mark.parametrize(
    "line", ["x = 1.5", "x = a / b", "x = a // b", "x = a % b", "np.sqrt(x)", "import math", "float(x)", "x.mean()"]
)
def test_the_check_would_notice(line: str) -> None:
    assert problems(ast.parse(line), ALLOWED)


def test_reference_does_not_load_the_engine() -> None:
    code = "import sys, mamba_integer.reference, mamba_integer.model_file; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=PACKAGE.parent
    ).stdout.split()
    assert not {"mamba_integer._native", "mamba_integer.engine", "torch"} & set(modules)
