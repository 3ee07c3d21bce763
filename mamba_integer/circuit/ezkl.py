"""Driving EZKL, which is installed separately: a folder with a circuit becomes keys, a witness, a proof and a verdict.

Every step runs in a process of its own, so that its memory is given back, its panics are messages, and what it took can be said. The structured reference
string is made here, by `gen_srs`: whoever makes one could forge proofs, so these are for measuring; a deployment takes one from a ceremony.

Settings, for integer circuits: scale 0; inputs private, outputs public, weights fixed in the key. `ignore_range_check_inputs_outputs`, as the circuit checks
its witnesses itself. `disable_freivalds`, because of what docs/CIRCUITS.md says about the results of matrix products in 23.0.5.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from mamba_integer.circuit import available
from mamba_integer.circuit.graph import SOUND, Graph
from mamba_integer.errors import ProofError
from mamba_integer.files import write_atomically

VERSION = "23.0.5"
BLINDING = 10  # rows that EZKL keeps for blinding, generously
FIELD = 21888242871839275222246405745257275088548364400416034343698204186575808495617  # of bn254's scalars
ONNX, SETTINGS, COMPILED, INPUT, WITNESS = "circuit.onnx", "settings.json", "circuit.ezkl", "input.json", "witness.json"
STATEMENT, PROOF, VERIFYING_KEY, PROVING_KEY = "statement.json", "proof.json", "verifying.key", "proving.key"


@dataclass(frozen=True)
class Usage:
    """What a step took: CPU seconds of user and system, by the clock, and the most memory, in bytes."""

    cpu: float
    wall: float
    memory: int


@dataclass(frozen=True)
class Verdict:
    valid: bool
    reason: str
    statement: dict[str, Any] = field(default_factory=dict)


def export(graph: Graph, folder: str | os.PathLike[str], **about: Any) -> dict[str, Any]:
    """Writes circuit, input with witnesses, and statement; gives the statement. about: what the circuit is of, kept in it."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    onnx = graph.model().SerializeToString()
    statement = {
        **about,
        "table_bits": graph.table_bits,
        "circuit": hashlib.sha256(onnx).hexdigest(),
        **{name: value.tolist() for name, value in graph.outputs.items() if name != "checks"},
    }
    write_atomically(path / ONNX, onnx)
    inputs = {"input_data": [value.reshape(-1).tolist() for value in graph.inputs.values()]}
    write_atomically(path / INPUT, json.dumps(inputs).encode())
    write_atomically(path / STATEMENT, (json.dumps(statement) + "\n").encode())
    return statement


def settings(folder: str | os.PathLike[str], logrows: int, *, inner_columns: int = 2) -> dict[str, Any]:
    """Lays an integer circuit out; gives EZKL's settings. logrows caps the rows: EZKL adds columns until the cells fit."""
    options = {
        "input_visibility": "private",
        "input_scale": 0,
        "param_scale": 0,
        "logrows": logrows,
        "num_inner_cols": inner_columns,
        "disable_freivalds": True,
        "ignore_range_check_inputs_outputs": True,
    }
    step(folder, "settings", options)
    return read_settings(folder)


def read_settings(folder: str | os.PathLike[str]) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((Path(folder) / SETTINGS).read_bytes())
    return values


def least_logrows(values: dict[str, Any], cap: int | None = None) -> int:
    """The least logrows at which all cells fit into one block of columns, or `cap`, but never too few for the table of limbs."""
    table = int(values["total_dynamic_col_size"])
    wanted = int(values["num_rows"] + BLINDING - 1).bit_length()
    return max(min(wanted, cap or wanted), (table + BLINDING - 1).bit_length() if table else 0)


def prove(folder: str | os.PathLike[str], cap: int | None = 17) -> dict[str, Usage]:
    """Keys, witness and proof of an exported circuit; what each step took. Proves nothing that the circuit does not say: `verify` has the rest to check."""
    available("ezkl")
    values = settings(folder, cap or 17)
    logrows = least_logrows(values, cap)
    settings(folder, logrows)
    return {name: step(folder, name) for name in ("compile", "srs", "setup", "witness", "prove")}


def verify(folder: str | os.PathLike[str], model_circuit: str | None = None) -> Verdict:
    """Whether the proof holds and its public numbers are what the statement says, `checks` included, without which the proof shows nothing.

    model_circuit: digest of the circuit that the verifier has exported from the model that it names; the statement's must be that.
    """
    available("ezkl")
    path = Path(folder)
    statement = read_statement(path)
    try:
        instances = json.loads((path / PROOF).read_bytes())["instances"]
        public = [integer(felt) for column in instances for felt in column]
        named = np.concatenate([np.array(statement[name]).reshape(-1) for name in ("input", "output")]).tolist()
        circuit = hashlib.sha256((path / ONNX).read_bytes()).hexdigest()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ProofError(f"{path}: not a proof with its statement: {error!r}") from None
    if statement.get("circuit") != circuit or model_circuit not in (None, circuit):
        return Verdict(False, "the circuit is not the one that the statement names", statement)
    if tuple(public[len(named) :]) != SOUND:
        return Verdict(
            False, f"the public checks are {public[len(named) :]}, not {list(SOUND)}: a witness is wrong", statement
        )
    if public[: len(named)] != named:
        return Verdict(False, "the proof is of other inputs or outputs than the statement's", statement)
    try:
        step(folder, "verify")
    except ProofError as error:
        return Verdict(False, f"EZKL refuses the proof: {error}", statement)
    return Verdict(True, "", statement)


def read_statement(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """ProofError if the folder has none."""
    path = Path(folder) / STATEMENT
    try:
        statement = json.loads(path.read_bytes())
    except ValueError as error:
        raise ProofError(f"{path}: {error}") from None
    if not isinstance(statement, dict):
        raise ProofError(f"{path}: not a statement")
    return statement


def integer(felt: str) -> int:
    """A field element of EZKL's files (hexadecimal, least byte first) as the integer nearest to 0 that it stands for."""
    value = int.from_bytes(bytes.fromhex(felt.removeprefix("0x")), "little")
    return value - FIELD if value > FIELD >> 1 else value


# ---- steps -----------------------------------------------------------------------------------------------------------


def step(folder: str | os.PathLike[str], name: str, options: dict[str, Any] | None = None) -> Usage:
    """Runs one step of EZKL in another process. ProofError with its last words if it fails."""
    import subprocess
    import tempfile
    import time

    available("ezkl")
    with tempfile.TemporaryFile() as output:
        began = time.monotonic()
        arguments = [
            sys.executable,
            "-m",
            "mamba_integer.circuit.ezkl",
            os.fspath(folder),
            name,
            json.dumps(options or {}),
        ]
        root = os.fspath(Path(__file__).resolve().parents[2])
        paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        child = subprocess.Popen(arguments, stdout=output, stderr=output, env={**os.environ, "PYTHONPATH": paths})
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - began
        if child.returncode != 0:
            output.seek(0)
            words = output.read().decode(errors="replace").strip().splitlines()
            raise ProofError(f"EZKL, {name}: {words[-1] if words else f'exit status {child.returncode}'}")
    return Usage(used.ru_utime + used.ru_stime, wall, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def _main(arguments: Sequence[str]) -> None:
    """The process of one step."""
    ezkl: Any = import_module("ezkl")  # its stubs do not say what it does
    folder, name, options = Path(arguments[0]), arguments[1], json.loads(arguments[2])

    def at(file: str) -> str:
        return os.fspath(folder / file)

    def srs() -> str:
        return at(f"{read_settings(folder)['run_args']['logrows']}.srs")

    if name == "settings":
        values = ezkl.PyRunArgs()
        for key, value in options.items():
            setattr(values, key, value)
        done = ezkl.gen_settings(at(ONNX), at(SETTINGS), py_run_args=values)
    elif name == "calibrate":
        done = ezkl.calibrate_settings(at(INPUT), at(ONNX), at(SETTINGS), "resources", **options)
    elif name == "compile":
        done = ezkl.compile_circuit(at(ONNX), at(COMPILED), at(SETTINGS))
    elif name == "srs":
        done = Path(srs()).is_file() or ezkl.gen_srs(srs(), read_settings(folder)["run_args"]["logrows"]) is None
    elif name == "setup":
        done = ezkl.setup(at(COMPILED), at(VERIFYING_KEY), at(PROVING_KEY), srs_path=srs())
    elif name == "witness":
        done = ezkl.gen_witness(at(INPUT), at(COMPILED), at(WITNESS))
    elif name == "prove":
        done = ezkl.prove(at(WITNESS), at(COMPILED), at(PROVING_KEY), at(PROOF), srs_path=srs())
    else:
        done = ezkl.verify(at(PROOF), at(SETTINGS), at(VERIFYING_KEY), srs_path=srs())
    if not done:
        sys.exit(f"{name} did not succeed")


if __name__ == "__main__":
    _main(sys.argv[1:])
