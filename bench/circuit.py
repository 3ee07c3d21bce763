"""The integer block and the float block in EZKL, and the nearest that our own prover proves: sizes, keys, CPU time, memory, proofs.

Each cell is measured once and kept in a folder, so that an interrupted run goes on. Prints the table of docs/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.common import machine
from mamba_integer.circuit import available, ezkl, report
from mamba_integer.errors import ArgumentError
from mamba_integer.files import write_atomically

KINDS = ("integer", "float", "ours")
SHAPES = {"16": (16, 4, 4), "32": (32, 8, 4), "64": (64, 16, 8)}


def run(options: argparse.Namespace) -> dict[str, Any]:
    available("onnx", "ezkl")
    cache: Path = options.cache
    cells: dict[str, dict[str, Any]] = {}
    for name in options.cells.split(","):
        if name == "sizes":
            for shape in SHAPES.values():
                for kind in ("integer", "float"):
                    _cell(cells, cache, kind, shape, prove=False)
            continue
        shape, _, kind = name.partition("-")
        if shape not in SHAPES or kind not in ("", *KINDS):
            raise ArgumentError(
                f"--cells: {name!r} is not sizes or one of {', '.join(SHAPES)}, alone or with -{', -'.join(KINDS)}"
            )
        for one in (kind,) if kind else KINDS:
            if one == "ours":
                _ours(cells, cache, SHAPES[shape])
            else:
                _cell(cells, cache, one, SHAPES[shape], prove=True)
    print(table(cells) if not options.json else "", end="")
    return {"bench": "circuit", "unit": "", "peers": {}, "cells": cells, "machine": machine()}


def _kept(cells: dict[str, dict[str, Any]], folder: Path, name: str) -> dict[str, Any]:
    file = folder / "result.json"
    cells[name] = json.loads(file.read_bytes()) if file.is_file() else {}
    return cells[name]


def _keep(folder: Path, values: dict[str, Any]) -> None:
    write_atomically(folder / "result.json", json.dumps(values, indent=1).encode())


def _cell(cells: dict[str, dict[str, Any]], cache: Path, kind: str, shape: report.Shape, *, prove: bool) -> None:
    name = f"{kind} {' / '.join(map(str, shape))}"
    folder = cache / f"{kind}-{'-'.join(map(str, shape))}"
    folder.mkdir(parents=True, exist_ok=True)
    values = _kept(cells, folder, name)
    if "rows" not in values:
        print(f"{name}: laying out", file=sys.stderr, flush=True)
        values.update(report.prepare(shape, kind, folder))
        _keep(folder, values)
    if not prove or "proof_bytes" in values:
        return
    logrows = values["logrows_capped"]
    reference, shared = folder / f"{logrows}.srs", cache / f"{logrows}.srs"
    if shared.is_file() and not reference.is_file():
        os.link(shared, reference)
    for step in ("compile", "srs", "setup", "witness", "prove", "verify"):
        if step not in values:
            print(f"{name}: {step}", file=sys.stderr, flush=True)
            values[step] = asdict(ezkl.step(folder, step))
            _keep(folder, values)
    if not shared.is_file():
        os.link(reference, shared)
    if kind == "integer":
        verdict = ezkl.verify(folder)
        if not verdict.valid:
            raise ArgumentError(f"{name}: {verdict.reason}")
    proof = json.loads((folder / ezkl.PROOF).read_bytes())
    values["proof_bytes"] = (
        len(bytes(proof["proof"])) if isinstance(proof["proof"], list) else len(proof["proof"]) // 2 - 1
    )
    for file, key in ((ezkl.PROVING_KEY, "proving_key_bytes"), (ezkl.VERIFYING_KEY, "verifying_key_bytes")):
        values[key] = (folder / file).stat().st_size
    (folder / ezkl.PROVING_KEY).unlink()  # gigabytes
    _keep(folder, values)


def _ours(cells: dict[str, dict[str, Any]], cache: Path, shape: report.Shape) -> None:
    """Our own prover on a model of one such layer and a vocabulary of 257: as many steps as the block has tokens, all of the generation, choices included."""
    name = f"mamba-integer prove {' / '.join(map(str, shape))}"
    folder = cache / f"ours-{'-'.join(map(str, shape))}"
    folder.mkdir(parents=True, exist_ok=True)
    values = _kept(cells, folder, name)
    if values:
        return
    from mamba_integer.engine import Model
    from mamba_integer.model_file import write_model
    from mamba_integer.proof import Prover, memory_peak, verify
    from mamba_integer.random_model import random_model
    from mamba_integer.tokenizer import Tokenizer

    def cpu() -> float:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime

    print(f"{name}: proving", file=sys.stderr, flush=True)
    Tokenizer.train("a", vocab_size=257).save(folder / "tokenizer")
    file = folder / "model.gguf"
    write_model(file, random_model(report.config(shape), 0, tokenizer=(folder / "tokenizer").read_bytes()))
    model = Model.load(file)
    began = cpu()
    prover = Prover(model, threads=1)
    registered = cpu()
    generation = model.generate("a", max_tokens=shape[2] - 1, temperature=0)
    generation.finish()
    steps = len(generation.prompt_tokens) + len(generation.tokens) - 1
    assert steps == shape[2], "the random model ended its text early"
    proving = cpu()
    proof = prover.prove(generation, segment_steps=8)
    proven = cpu()
    checks = 20
    for _ in range(checks):
        if not verify(proof, prover.card).valid:
            raise ArgumentError(f"{name}: the proof does not hold")
    values |= {
        "steps": steps,
        "commit_cpu": registered - began,
        "prove_cpu": proven - proving,
        "verify_cpu": (cpu() - proven) / checks,
        "memory": memory_peak(),
        "proof_bytes": len(proof.data),
        "security_bits": proof.report["security_bits"],
    }
    _keep(folder, values)


def table(cells: dict[str, dict[str, Any]]) -> str:
    """Markdown, as in docs/RESULTS.md."""
    lines = [
        "| d_model / d_state / tokens | rows | assignments | logrows | logrows, advice columns capped | function lookups | range checks | dynamic lookups |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, c in cells.items():
        if "rows" in c:
            lookups = f"{len(c['function_lookups'])}" + (
                f" ({', '.join(c['function_lookups'])})" if c["function_lookups"] else ""
            )
            capped = f"{c['logrows_capped']}, {c['advice_columns']}"
            figures = (
                f"{c['rows']:,}",
                f"{c['assignments']:,}",
                c["logrows"],
                capped,
                lookups,
                len(c["range_checks"]),
                c["dynamic_lookups"],
            )
            lines.append(f"| {name} | {' | '.join(map(str, figures))} |")
    lines += [
        "",
        "| proven | setup, CPU s, GiB | proving key, GB | verifying key, kB | witness and prove, CPU s | GiB | verify, CPU s | proof, kB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, c in cells.items():
        if "proving_key_bytes" in c:
            setup, witness, prove, verify = (c[step] for step in ("setup", "witness", "prove", "verify"))
            lines.append(
                f"| {name} | {setup['cpu']:.0f}, {setup['memory'] / 2**30:.1f} | {c['proving_key_bytes'] / 1e9:.2f} | {c['verifying_key_bytes'] / 1e3:.0f} "
                f"| {witness['cpu'] + prove['cpu']:.1f} | {prove['memory'] / 2**30:.1f} | {verify['cpu']:.2f} | {c['proof_bytes'] / 1e3:.1f} |"
            )
        elif "steps" in c:
            lines.append(
                f"| {name} (whole model, {c['security_bits']:.0f} bits) | commit {c['commit_cpu']:.3f} | none | none | {c['prove_cpu']:.2f} "
                f"| {c['memory'] / 2**30:.1f} | {c['verify_cpu']:.3f} | {c['proof_bytes'] / 1e3:.0f} |"
            )
    return "\n".join(lines) + "\n"
