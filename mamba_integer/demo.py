"""`mamba-integer demo`: a story from the C++ engine, every logit and choice of it again from the NumPy reference, compared bit for bit, then a proof of the
whole story and its verification."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mamba_integer.engine import Generation, Logits, Model, find_model
from mamba_integer.errors import ArgumentError, ModelFormatError
from mamba_integer.model_file import IntegerModel, read_model
from mamba_integer.proof import Prover, verify
from mamba_integer.reference import Reference

TEMPERATURE = "0.7"
TOP_K = 40
WIDTH = 100  # columns of a story on the screen


def demo(
    name: str,
    prompt: str,
    seed: int,
    max_tokens: int,
    standalone: Path | None,
    proof_path: Path | None = None,
    *,
    as_json: bool = False,
) -> int:
    """Prints a story, whether engine and reference agree on it, and whether its proof holds. 0 if they agree on every logit and token (and `standalone`, if
    given, too) and the proof, which is written to `proof_path`, is verified; else 1."""
    say: Callable[[str], None] = (lambda text: None) if as_json else (lambda text: print(text, flush=True))
    path = find_model(name)
    model, weights = Model.load(path), read_model(path)
    if model.digest != weights.digest:
        raise ModelFormatError(f"{path}: changed while it was read")
    c = model.config
    parameters = sum(tensor.size for tensor in weights.tensors.values())
    generation = model.generate(prompt, max_tokens=max_tokens, temperature=TEMPERATURE, top_k=TOP_K, seed=seed)

    say("Mamba-Integer: a language model computed in integers only, the same bits on every machine.")
    say(
        f"Model {model.name!r}: {c.n_layers} layers, {parameters:,} {c.weights} parameters, digest {model.digest[:16]}…"
    )
    say(f"The C++ engine writes (temperature {TEMPERATURE}, top-k {TOP_K}, seed {seed}):\n")
    writer = WrappedWriter(None if as_json else sys.stdout)
    writer.write(prompt)
    for piece in generation:
        writer.write(piece.text)
    writer.finish()
    say(f"\n{len(generation.tokens)} tokens at {generation.tokens_per_second:,.0f} tokens a second.\n")

    inputs = [*generation.prompt_tokens, *generation.tokens[:-1]]
    say(f"The NumPy reference computes the same {len(inputs)} positions and choices from spec/ARITHMETIC.md …")
    began = time.perf_counter()
    logits = reference_logits(weights, inputs)
    digest = hashlib.sha256(logits.astype("<i4").tobytes()).hexdigest()
    tokens = reference_choices(weights, generation, logits)
    seconds = time.perf_counter() - began
    agree = digest == generation.logits_digest and tokens == generation.tokens
    out: dict[str, Any] = {
        **generation.to_json(),
        "model_digest": model.digest,
        "reference_digest": digest,
        "reference_tokens": tokens,
        "reference_seconds": round(seconds, 2),
    }
    if agree:
        say(
            f"Engine and reference agree on every logit ({logits.size:,} of {logits.size:,}) and every token, in {seconds:.1f} s."
        )
        say(f"SHA-256 of the logits: {digest}")
    else:
        say(f"ENGINE AND REFERENCE DIFFER: {difference(model, inputs, logits, generation.tokens, tokens)}.")

    if standalone is not None:
        same = run_standalone(standalone, path, generation, prompt, max_tokens)
        agree = agree and same
        out["standalone_agrees"] = same
        said = "the same text and digest" if same else "DIFFERENT BITS"
        say(f"{standalone}, the same engine as a program without Python: {said}.")

    proven = prove_story(model, generation, name if path != Path(name) else None, proof_path, say)
    agree = agree and proven["valid"]
    out["proof"] = proven
    out["agree"] = agree
    if as_json:
        print(json.dumps(out, ensure_ascii=False))
    return 0 if agree else 1


def prove_story(
    model: Model, generation: Generation, shipped: str | None, path: Path | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Proves that the model chose the tokens just printed, checks the proof with nothing but the model's card, and writes it to `path` if there is one.
    Whoever verifies it again names the model: a shipped one by its name, others by their commitment."""
    say("\nNow the proof that this model, on this prompt, chose exactly these tokens …")
    prover = Prover(model)
    proof = prover.prove(generation, progress=lambda event: _say_segment(event, say))
    checked = verify(proof, prover.card)
    valid = checked.valid and list(proof.statement.tokens) == generation.tokens
    seconds = proof.report["seconds"]["total"]
    say(
        f"Proven in {seconds:.1f} s ({seconds / len(generation.tokens):.3f} s a token), {len(proof.data):,} bytes, "
        f"{proof.report['memory_peak_bytes'] / 2**30:.1f} GiB at most."
    )
    if valid:
        say(
            f"Verified without the weights in {1000 * checked.seconds:.0f} ms: the proven tokens are the {len(generation.tokens)} printed ones."
        )
    else:
        say(f"THE PROOF DOES NOT HOLD: {checked.reason or 'it is about other tokens'}.")
    if path is not None:
        proof.write(path)
        command = ["mamba-integer", "verify", str(path), "--model", shipped or prover.card.commitment]
        say(f"The proof is in {path}: {shlex.join(command)}")
    return {
        "valid": valid,
        "reason": checked.reason,
        "bytes": len(proof.data),
        "prove_seconds": round(seconds, 2),
        "verify_seconds": round(checked.seconds, 4),
        "security_bits": checked.security_bits,
    }


def _say_segment(event: dict[str, Any] | None, say: Callable[[str], None]) -> None:
    if event is not None:
        say(f"  segment {event['segment'] + 1} of {event['segments']}")


def reference_logits(weights: IntegerModel, tokens: Sequence[int]) -> Logits:
    """Logits after each of T tokens by the reference, int32 [T, V]."""
    return Reference(weights).logits(tokens)


def reference_choices(weights: IntegerModel, generation: Generation, logits: Logits) -> list[int]:
    """The tokens that the reference's sampler chooses from the last rows of logits [T, V], one for each generated token."""
    reference = Reference(weights)
    rows = logits[-len(generation.tokens) :]
    return [reference.sample(row, generation.sampling, step) for step, row in enumerate(rows)]


def difference(model: Model, inputs: Sequence[int], logits: Logits, tokens: list[int], theirs: list[int]) -> str:
    """Where engine and reference first differ, in words."""
    wrong = np.argwhere(model.logits(inputs) != logits)
    if len(wrong):
        position, token = wrong[0].tolist()
        return f"{len(wrong)} of {logits.size} logits, first at position {position}, token {token}"
    step = next((i for i, (a, b) in enumerate(zip(tokens, theirs, strict=True)) if a != b), None)
    return (
        "the engine gave other logits the second time" if step is None else f"in the choice of generated token {step}"
    )


def run_standalone(program: Path, model: Path, generation: Generation, prompt: str, max_tokens: int) -> bool:
    """Whether the standalone program, asked for the same, gives the same text, tokens and digest of all logits."""
    options = {
        "--model": os.fspath(model.resolve()),
        "--prompt": prompt,
        "--max-tokens": str(max_tokens),
        "--temperature": TEMPERATURE,
        "--top-k": str(TOP_K),
        "--seed": str(generation.sampling.seed),
    }
    command = [os.fspath(program.resolve()), "--json", *(f"{name}={value}" for name, value in options.items())]
    try:
        done = subprocess.run(command, capture_output=True, check=True)
        theirs = json.loads(done.stdout)
    except OSError as error:
        raise ArgumentError(f"{program}: {error.strerror}") from None
    except (subprocess.CalledProcessError, ValueError) as error:
        raise ArgumentError(f"{program}: {error}") from None
    ours = generation.to_json()
    return all(theirs.get(key) == ours[key] for key in ("text", "tokens", "prompt_tokens", "logits_digest"))


class WrappedWriter:
    """Writes a stream of text to a terminal in lines of at most WIDTH columns, each word as soon as it is whole."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._column = 0
        self._word = ""

    def write(self, text: str) -> None:
        for char in text:
            if char in " \n":
                self._put_word()
                if char == "\n":
                    self._put("\n")
                    self._column = 0
                elif self._column:
                    self._word = " "
            else:
                self._word += char
        if self._stream is not None:
            self._stream.flush()

    def finish(self) -> None:
        self._put_word()
        self._put("\n")

    def _put_word(self) -> None:
        if self._column + len(self._word) > WIDTH and self._column:
            self._put("\n")
            self._word = self._word.lstrip(" ")
            self._column = 0
        self._put(self._word)
        self._column += len(self._word)
        self._word = ""

    def _put(self, text: str) -> None:
        if self._stream is not None:
            self._stream.write(text)
