"""The integer model as a circuit for EZKL: an ONNX graph whose integers are exactly the spec's, and what a verifier must check besides the proof.

`graph` builds integer ONNX graphs with witnesses and range checks; `block` states ARITHMETIC §8 and §9 in them; `baseline` is the float block of the same
shape; `ezkl` drives the tool, which is installed separately (extra `[ezkl]`). docs/CIRCUITS.md says what the figures mean.
"""

from __future__ import annotations

import importlib.util

from mamba_integer.errors import ArgumentError


def available(*packages: str) -> None:
    """ArgumentError, which says what to install, if a package is missing."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ArgumentError(f"this needs {package}: pip install 'mamba-integer[ezkl]'")
