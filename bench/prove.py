"""Proving and verifying generations: seconds, where they go, bytes and memory, beside the plain generation of the same tokens."""

from __future__ import annotations

import argparse
import statistics
import sys
from typing import Any

from bench.common import result
from mamba_integer.engine import Model
from mamba_integer.errors import ArgumentError
from mamba_integer.proof import Prover, verify

PROMPT = "Once upon a time"


def run(options: argparse.Namespace) -> dict[str, Any]:
    try:
        # In order, because the memory that is measured is the most since the process began.
        lengths = sorted({int(n) for n in options.tokens.split(",")})
    except ValueError:
        raise ArgumentError(f"--tokens: numbers separated by commas are needed, not {options.tokens!r}") from None
    model = Model.load(options.model)
    prover = Prover(model, threads=options.threads)
    measured: dict[str, float] = {}
    for length in lengths:
        # The first seeds whose story is long enough: one that ends early would be another length.
        for seed in range(100):
            generation = model.generate(PROMPT, max_tokens=length, seed=seed)
            generation.finish()
            if len(generation.tokens) == length:
                break
        estimate = prover.estimate(generation)
        length = len(generation.tokens)
        proof = prover.prove(generation)
        report, seconds = proof.report, proof.report["seconds"]
        checks = [verify(proof, prover.card).seconds for _ in range(5)]
        figures = {
            "seconds": round(seconds["total"], 2),
            "seconds_per_token": round(seconds["total"] / length, 4),
            "estimated_seconds": estimate["seconds"],
            **{
                f"seconds_{name}": seconds[name]
                for name in ("witness", "commit", "lookups", "main", "second", "open", "model")
            },
            "x_generation": round(seconds["total"] / generation.seconds),
            "proof_bytes": len(proof.data),
            "verify_ms": round(1000 * statistics.median(checks), 1),
            "memory_MiB": round((report["memory_peak_bytes"] or 0) / 2**20),
            "security_bits": report["security_bits"],
        }
        measured |= {f"{length} tokens, {name}": value for name, value in figures.items()}
        print(f"{length} tokens: {seconds['total']:.1f} s", file=sys.stderr, flush=True)
    return result("prove", "", {"mamba-integer": measured}, model_digest=model.digest, threads=options.threads)
