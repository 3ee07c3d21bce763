"""Proofs as users meet them: what is proven verifies, whatever is changed does not, and every complaint is one line. The cryptography is tested in Rust and by
the second verifier."""

from __future__ import annotations

import dataclasses
import json
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mamba_integer import proof as pf
from mamba_integer.card import Card
from mamba_integer.cli import main
from mamba_integer.engine import Model, find_model
from mamba_integer.errors import ArgumentError, ModelFormatError, ProofError
from mamba_integer.model_file import serialize
from mamba_integer.proof import Proof, Prover, verify
from mamba_integer.random_model import random_model
from tests.models import ROOT, TINY_CONFIG, TINY_TOKENIZER, tiny_model_bytes

PROMPT = "Once upon"
VERIFIER = ROOT / "target/release/mamba-integer-verify"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its card and registration, made by the command line, and a proof of 12 tokens in segments of 8 steps."""
    path = tmp_path_factory.mktemp("proofs")
    (path / "tiny.gguf").write_bytes(tiny_model_bytes())
    assert main(["commit-model", str(path / "tiny.gguf"), "-o", str(path / "tiny.card")]) == 0
    arguments = ["prove", "--model", str(path / "tiny.gguf"), "--prompt", PROMPT, "--max-tokens", "12"]
    assert main([*arguments, "--segment-steps", "8", "-o", str(path / "story.proof")]) == 0
    return path


def parts_of(data: bytes) -> list[bytes]:
    lengths = struct.unpack("<3Q", data[12:36])
    parts, at = [], 36
    for length in lengths:
        parts.append(data[at : at + length])
        at += length
    return parts


def joined(parts: list[bytes]) -> bytes:
    return b"MI-PROOF" + struct.pack("<I3Q", 1, *map(len, parts)) + b"".join(parts)


def with_statement(data: bytes, **changes: Any) -> bytes:
    statement, card, body = parts_of(data)
    content = json.loads(statement) | changes
    return joined([json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode(), card, body])


def test_a_proof_verifies(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder / "story.proof"), "--model", str(folder / "tiny.card"), "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["valid"]
    assert out["reason"] == ""
    assert out["prompt"] == PROMPT
    assert len(out["tokens"]) == 12
    assert out["security_bits"] >= 100
    # What is proven is what the engine writes.
    model = Model.load(folder / "tiny.gguf")
    generation = model.generate(PROMPT, max_tokens=12)
    generation.finish()
    assert out["tokens"] == generation.tokens
    assert out["text"] == generation.text
    # By commitment alone, and through the model file beside its card.
    for name in (out["commitment"], str(folder / "tiny.gguf")):
        assert main(["verify", str(folder / "story.proof"), "--model", name]) == 0


def test_a_proof_of_another_model_is_refused_by_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder / "story.proof"), "--json"]) == 1  # against the shipped model
    out = json.loads(capsys.readouterr().out)
    assert not out["valid"]
    assert Card.read(folder / "tiny.card").commitment in out["reason"]


@pytest.mark.parametrize(
    "sampling", [{"temperature": 0}, {"temperature": 1.5, "top_k": 0, "seed": 3}, {"top_k": 5, "seed": 1 << 63}]
)
def test_every_way_of_sampling(folder: Path, sampling: dict[str, Any]) -> None:
    proof = pf.prove(folder / "tiny.gguf", PROMPT, max_tokens=6, segment_steps=8, **sampling)
    assert verify(proof, Card.read(folder / "tiny.card")).valid


def test_the_standalone_verifier_agrees(folder: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> tuple[int, dict[str, Any]]:
        done = subprocess.run([VERIFIER, *arguments, "--json"], capture_output=True, check=False)
        assert done.returncode < 2 or done.stderr.count(b"\n") == 1
        return done.returncode, json.loads(done.stdout or "{}")

    proof, card = folder / "story.proof", folder / "tiny.card"
    status, out = run(str(proof), "--model", str(card))
    assert (status, out["valid"]) == (0, True)
    assert out["tokens"] == list(Proof.read(proof).statement.tokens)
    assert run(str(proof), "--model", Card.read(card).commitment)[0] == 0
    assert run(str(proof), "--model", "0" * 64)[0] == 1
    changed = tmp_path / "changed.proof"
    changed.write_bytes(proof.read_bytes()[:-9] + bytes(9))
    assert run(str(changed), "--model", str(card))[0] == 1
    assert run(str(card), "--model", str(card))[0] == 2


def test_changed_statements_do_not_verify(folder: Path) -> None:
    data = (folder / "story.proof").read_bytes()
    card = Card.read(folder / "tiny.card")
    s = Proof(data).statement
    token = (s.tokens[3] + 1) % 256
    tokens = [*s.tokens[:3], token, *s.tokens[4:]]
    text = TINY_TOKENIZER.decode(tokens)
    sampling = {"temperature": s.sampling.temperature, "top_k": s.sampling.top_k, "seed": s.sampling.seed}
    changes: list[dict[str, Any]] = [
        {"tokens": tokens, "text": text},
        {"tokens": list(s.tokens[:-1]), "text": TINY_TOKENIZER.decode(s.tokens[:-1])},
        {"text": s.text + " "},
        {"prompt": "Once upoN", "prompt_tokens": [TINY_TOKENIZER.eot, *TINY_TOKENIZER.encode("Once upoN")]},
        {"prompt": "Once upon."},
        *({"sampling": sampling | {key: value + 1}} for key, value in sampling.items()),
        {"segments": [4, *s.segments[1:]]},
        {"segments": [*s.segments, 3]},
        {"segments": list(s.segments[:-1])},
        {"finish": "end"},
        {"commitment": "0" * 64},
    ]
    for change in changes:
        changed = with_statement(data, **change)
        result = verify(changed, card)
        assert not result.valid, change
        assert result.reason, change
        assert not any(word in result.reason for word in ("\n", "panick")), change


def test_changed_bytes_do_not_verify(folder: Path) -> None:
    data = (folder / "story.proof").read_bytes()
    card = Card.read(folder / "tiny.card")
    start = len(data) - len(parts_of(data)[2])
    for at in [*range(start, start + 64), *range(start + 64, len(data), len(data) // 150), len(data) - 1]:
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        assert not verify(changed, card).valid, at
    for changed in (data[:-1], data[: len(data) // 2], data + b"\0", b"", b"MI-PROOF", data[:8] + b"\2" + data[9:]):
        with pytest.raises(ProofError):
            verify(changed, card)


def test_the_registration_holds_for_its_card_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registration = folder / "tiny.registration"
    assert main(["verify", str(registration), "--model", str(folder / "tiny.card")]) == 0
    assert main(["verify", str(registration)]) == 1
    data = registration.read_bytes()
    for at in (12, len(data) // 2, len(data) - 1):
        changed = folder / "changed.registration"
        changed.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert main(["verify", str(changed), "--model", str(folder / "tiny.card"), "--json"]) == 1
        assert not json.loads(capsys.readouterr().out.splitlines()[-1])["valid"]


@pytest.mark.parametrize("name", ["tinystories", "tinystories-3m", "tinystories-instruct", "tinystories-ternary"])
def test_the_shipped_card_and_registration_are_of_the_shipped_model(name: str) -> None:
    card = Card.read(find_model(name).with_suffix(".card"))
    assert card == pf.commit(name)
    assert card.name == name
    pf.verify_registration(find_model(name).with_suffix(".registration").read_bytes(), card)


def test_an_interrupted_proof_is_taken_up_again(folder: Path, tmp_path: Path) -> None:
    prover = Prover(folder / "tiny.gguf")
    generation = prover.model.generate(PROMPT, max_tokens=12)
    generation.finish()

    def interrupt(event: dict[str, Any] | None) -> None:
        if event is not None:
            raise KeyboardInterrupt

    parts = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        prover.prove(generation, segment_steps=8, parts=parts, progress=interrupt)
    assert list(parts.glob("segment-*.part"))
    proof = prover.prove(generation, segment_steps=8, parts=parts)
    assert proof.report["segments_resumed"] >= 1
    assert verify(proof, prover.card).valid
    # A damaged part is proven again.
    part = next(iter(sorted(parts.glob("segment-*.part"))))
    part.write_bytes(part.read_bytes()[:-5])
    assert verify(prover.prove(generation, segment_steps=8, parts=parts), prover.card).valid
    pf.remove_parts(parts)
    assert not parts.exists()


def test_what_cannot_be_proven_is_refused_by_name(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "x.proof")
    tiny = str(folder / "tiny.gguf")
    assert main(["prove", "--model", tiny, "--prompt", PROMPT, "--top-p", "0.9", "-o", output]) == 2
    assert "top-p" in capsys.readouterr().err
    assert main(["prove", "--model", tiny, "--prompt", PROMPT]) == 2
    assert main(["prove", "--model", tiny, "--prompt", PROMPT, "--segment-steps", "7", "-o", output]) == 2
    assert main(["verify", str(folder / "tiny.gguf"), "--model", str(folder / "tiny.card")]) == 2
    assert main(["verify", str(folder / "none.proof")]) == 2
    assert main(["verify", str(folder / "story.proof"), "--model", "no-such-model"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    for change in ({"scan": "literal"}, {"rotation": True}):
        config = dataclasses.replace(TINY_CONFIG, **change)
        path = tmp_path / "other.gguf"
        path.write_bytes(serialize(random_model(config, 5, tokenizer=TINY_TOKENIZER.to_bytes())))
        with pytest.raises(ProofError, match=next(iter(change))):
            Prover(path)
    assert not list(tmp_path.glob("x.proof*"))
    with pytest.raises((ArgumentError, ModelFormatError, OSError)):
        Prover(tmp_path / "none.gguf")


def test_receipts_are_proven(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny, receipt = str(folder / "tiny.gguf"), str(tmp_path / "r.json")
    assert main(["generate", "--model", tiny, "--prompt", PROMPT, "--max-tokens", "5", "--receipt", receipt]) == 0
    assert json.loads(Path(receipt).read_text())["model_commitment"] == Card.read(folder / "tiny.card").commitment
    assert main(["replay", receipt, "--model", tiny]) == 0
    output = str(tmp_path / "r.proof")
    assert main(["prove", "--model", tiny, "--from-receipt", receipt, "-o", output, "--json"]) == 0
    out = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert out["tokens"] == json.loads(Path(receipt).read_text())["tokens"]
    assert main(["verify", output, "--model", str(folder / "tiny.card")]) == 0


def test_info_and_estimate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(folder / "story.proof"), "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["prompt"] == PROMPT
    assert set(out["segments"]) == {8}
    assert out["protocol"] == 1
    assert main(["info", str(folder / "tiny.card")]) == 0
    assert "commitment" in capsys.readouterr().out
    arguments = [
        "prove",
        "--model",
        str(folder / "tiny.gguf"),
        "--prompt",
        PROMPT,
        "--max-tokens",
        "4",
        "--estimate",
        "--json",
    ]
    assert main(arguments) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["seconds"] > 0
    assert out["memory_bytes"] > 0
    assert out["proof_bytes"] > 0
