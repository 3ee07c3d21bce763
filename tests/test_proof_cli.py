"""The proof verbs at their edges: what is reported, interrupted, refused by name, and said alike by the verifier that needs no Python."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mamba_integer import proof as pf
from mamba_integer import receipt
from mamba_integer.card import Card
from mamba_integer.cli import main
from mamba_integer.engine import Model, find_model
from mamba_integer.errors import ArgumentError, ProofError
from mamba_integer.model_file import serialize
from mamba_integer.proof import Proof, Prover, verify
from mamba_integer.random_model import random_model
from tests.models import ROOT, TINY_CONFIG, TINY_TOKENIZER, tiny_model_bytes

PROMPT = "Once upon"
VERIFIER = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/mamba-integer-verify"
VERIFY_KEYS = {
    "valid",
    "reason",
    "commitment",
    "model",
    "text",
    "tokens",
    "prompt",
    "security_bits",
    "registration",
    "seconds",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its card, and a proof of three tokens."""
    path = tmp_path_factory.mktemp("proofs")
    (path / "tiny.gguf").write_bytes(tiny_model_bytes())
    pf.commit(path / "tiny.gguf").write(path / "tiny.card")
    pf.prove(path / "tiny.gguf", PROMPT, max_tokens=3).write(path / "story.proof")
    return path


def prove_arguments(folder: Path, output: Path, *more: object) -> list[str]:
    return ["prove", "--model", str(folder / "tiny.gguf"), "--prompt", PROMPT, "-o", str(output), *map(str, more)]


def canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def test_what_prove_reports(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "x.proof"
    assert main(prove_arguments(folder, output, "--max-tokens", 3, "--no-resume", "--json")) == 0
    out = json.loads(capsys.readouterr().out)
    assert {"proof", "bytes", "text", "tokens", "prompt_tokens", "commitment", "segments", "seconds"} <= set(out)
    assert {"seconds_per_token", "memory_peak_bytes", "security_bits"} <= set(out)
    assert {"generate", *pf.STAGES, "total"} <= set(out["seconds"])
    assert out["bytes"] == output.stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["x.proof"]


def test_an_interrupt_ends_the_command_at_once_and_keeps_what_is_done(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.proof"
    arguments = prove_arguments(folder, output, "--max-tokens", 20, "--segment-steps", 8)
    command = [sys.executable, "-m", "mamba_integer", *arguments]
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline().startswith("segment 1 of ")
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert all(line.startswith("segment ") for line in err.splitlines()), err
    assert not output.exists()
    assert list(Path(f"{output}.parts").glob("segment-*.part"))
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["segments_resumed"] >= 1
    assert [path.name for path in tmp_path.iterdir()] == ["x.proof"]
    assert verify(output, folder / "tiny.card").valid


def test_a_row_that_no_circuit_holds_is_named(tmp_path: Path) -> None:
    # 127 · 127 · 180 · 255 lies between 2^29 and 2^30: the engine computes it, a proof cannot.
    config = dataclasses.replace(TINY_CONFIG, head_dim=60)
    model = random_model(config, 5, tokenizer=TINY_TOKENIZER.to_bytes())
    tensors = dict(model.tensors)
    for name, value in (("blk.1.out_proj.weight", 127), ("blk.1.out_proj.mul", 255)):
        tensors[name] = (0 * tensors[name].astype(int) + value).astype(tensors[name].dtype)
    path = tmp_path / "wide.gguf"
    path.write_bytes(serialize(dataclasses.replace(model, tensors=tensors)))
    assert Model.load(path).name
    with pytest.raises(ProofError, match=r"blk\.1\.out_proj: row 0 may reach"):
        Prover(path)


def test_generations_and_receipts_that_cannot_be_proven_are_refused_by_name(folder: Path) -> None:
    tiny = Model.load(folder / "tiny.gguf")
    whole = tiny.generate(PROMPT, max_tokens=12, seed=1)
    stop = whole.finish()[2:4]
    asked: list[tuple[dict[str, Any], str, str]] = [
        ({"stop": stop}, "a stop string", "stop strings"),
        ({"top_p": 0.5}, "top_p", "top_p"),
    ]
    for options, reason, of_receipt in asked:
        generation = tiny.generate(PROMPT, max_tokens=12, seed=1, **options)
        generation.finish()
        with pytest.raises(ProofError, match=reason):
            pf.prove(tiny, generation)
        with pytest.raises(ProofError, match=f"the receipt's {of_receipt}"):
            pf.prove(tiny, receipt.make(tiny, generation))
    with pytest.raises(ProofError, match="top_k 262144"):
        pf.prove(tiny, PROMPT, max_tokens=2, top_k=1 << 18)
    false = dataclasses.replace(receipt.make(tiny, whole), logits_digest="0" * 64)
    with pytest.raises(ProofError, match="the receipt is not valid: logits_digest"):
        pf.prove(tiny, false)


def test_a_stop_string_that_was_not_met_does_not_matter(folder: Path) -> None:
    tiny = Model.load(folder / "tiny.gguf")
    generation = tiny.generate(PROMPT, max_tokens=3, stop="never there")
    generation.finish()
    proof = pf.prove(tiny, receipt.make(tiny, generation))
    assert proof.statement.text == generation.text
    assert verify(proof, folder / "tiny.card").valid


def test_receipts_name_the_commitment_and_replay_compares_it(folder: Path, tmp_path: Path) -> None:
    tiny = Model.load(folder / "tiny.gguf")
    generation = tiny.generate(PROMPT, max_tokens=3)
    generation.finish()
    made = receipt.make(tiny, generation)
    assert made.model_commitment == Card.read(folder / "tiny.card").commitment
    assert receipt.replay(made, tiny).valid
    false = receipt.replay(dataclasses.replace(made, model_commitment="0" * 64), tiny)
    assert not false.valid
    assert false.reason.startswith("model_commitment: the receipt has ")
    elsewhere = tmp_path / "tiny.gguf"
    elsewhere.write_bytes(tiny_model_bytes())
    alone = Model.load(elsewhere)
    assert "there is no card" in receipt.replay(made, alone).reason
    generation = alone.generate(PROMPT, max_tokens=3)
    generation.finish()
    assert receipt.make(alone, generation).model_commitment is None


def test_text_from_a_file_does_not_command_the_terminal(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.proof"
    pf.prove(folder / "tiny.gguf", "Once\x1b[31m\nred", max_tokens=2).write(path)
    for arguments in (["info", str(path)], ["verify", str(path), "--model", str(folder / "tiny.card")]):
        assert main(arguments) == 0
        out = capsys.readouterr().out
        assert "\x1b" not in out
        assert "Once\\x1b[31m" in out


def test_a_broken_card_is_named(folder: Path, tmp_path: Path) -> None:
    card = (folder / "tiny.card").read_bytes()
    path = tmp_path / "broken.card"
    for data in (b"", card[:-1], card + b" ", card.replace(b'"protocol":1', b'"protocol":2'), b"{}"):
        path.write_bytes(data)
        with pytest.raises(ProofError, match=r"broken\.card: card"):
            verify(folder / "story.proof", path)
    # Another root is another model, and no model's weights give it.
    content = json.loads(card)
    content["root"] = content["root"][1:] + content["root"][:1]
    path.write_bytes(canonical(content))
    assert not verify(folder / "story.proof", path).valid
    beside = tmp_path / "tiny.gguf"
    beside.write_bytes(tiny_model_bytes())
    path.rename(tmp_path / "tiny.card")
    with pytest.raises(ProofError, match="the card beside .* has the commitment"):
        Prover(beside)


def test_the_estimate_is_of_the_right_size(folder: Path) -> None:
    prover = Prover(folder / "tiny.gguf")
    generation = prover.model.generate(PROMPT, max_tokens=3)
    generation.finish()
    proof, estimate = Proof.read(folder / "story.proof"), prover.estimate(generation)
    assert estimate["segments"] == list(proof.statement.segments)
    assert 0.8 < estimate["proof_bytes"] / len(proof.data) < 1.25
    assert estimate["security_bits"] == verify(proof, prover.card).security_bits


def test_bench_prove(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "prove", "--model", str(folder / "tiny.gguf"), "--tokens", "4"]) == 0
    out = json.loads(capsys.readouterr().out.splitlines()[-1])
    figures = out["peers"]["mamba-integer"]
    for name in ("seconds_per_token", "x_generation", "proof_bytes", "verify_ms", "memory_MiB", "seconds_lookups"):
        assert figures[f"4 tokens, {name}"] > 0


def test_the_standalone_verifier_says_the_same(folder: Path, tmp_path: Path) -> None:
    proof, card = folder / "story.proof", folder / "tiny.card"

    def run(*arguments: object) -> tuple[int, str, str]:
        done = subprocess.run([VERIFIER, *map(str, arguments)], capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    changed = tmp_path / "changed.proof"
    data = bytearray(proof.read_bytes())
    data[-100] ^= 1
    changed.write_bytes(data)
    for path, model, valid in (
        (proof, card, True),
        (proof, Card.read(card).commitment, True),
        (proof, "0" * 64, False),
        (changed, card, False),
    ):
        status, out, err = run(path, "--model", model, "--json")
        theirs, ours = json.loads(out), verify(path, model).to_json()
        assert (status, err, theirs["valid"]) == (0 if valid else 1, "", valid)
        assert set(theirs) == set(ours) == VERIFY_KEYS
        assert {**theirs, "seconds": 0} == {**ours, "seconds": 0}
        assert run(path, "--model", model)[1].startswith("valid: " if valid else "NOT VALID: ")
    # The registration: beside the card, given, another's, none.
    beside, elsewhere, other = folder / "tiny.registration", tmp_path / "mine", find_model("tinystories")
    assert not verify(proof, card).registration
    elsewhere.write_bytes(Prover(folder / "tiny.gguf").register())
    broken, theirs_registered = tmp_path / "broken.registration", other.with_suffix(".registration")
    data = bytearray(elsewhere.read_bytes())
    data[-100] ^= 1
    broken.write_bytes(data)
    for given, model, registration, reason in (
        (elsewhere, card, "checked", ""),
        (elsewhere, Card.read(card).commitment, "checked", ""),
        (None, card, "not checked", ""),
        (broken, card, "not checked", f"registration {broken}: "),
        (theirs_registered, card, "not checked", f"registration {theirs_registered}: "),
        (proof, card, "not checked", f"registration {proof}: "),
    ):
        status, out, err = run(proof, "--model", model, "--json", *(("--registration", given) if given else ()))
        theirs, ours = json.loads(out), verify(proof, model, given).to_json()
        assert {**theirs, "seconds": 0} == {**ours, "seconds": 0}
        assert (status, err, ours["valid"], ours["registration"]) == (int(bool(reason)), "", not reason, registration)
        assert ours["reason"].startswith(reason)
    for content, registration in ((elsewhere.read_bytes(), "checked"), (bytes(data), "not checked")):
        beside.write_bytes(content)
        theirs, ours = json.loads(run(proof, "--model", card, "--json")[1]), verify(proof, card).to_json()
        assert theirs["registration"] == ours["registration"] == registration
        assert theirs["valid"] == ours["valid"] == (registration == "checked")
        assert str(beside) in ours["reason"] or ours["valid"]
        assert main(["verify", str(proof), "--model", str(card)]) == (0 if ours["valid"] else 1)
    beside.unlink()
    with pytest.raises(ArgumentError, match="no-such-file"):
        verify(proof, card, tmp_path / "no-such-file")
    assert run(proof, "--model", card, "--registration", tmp_path / "no-such-file")[0] == 2
    for arguments in ((), (proof,), (card, "--model", card), (proof, "--model", proof), (proof, "--model"), ("--x",)):
        status, out, err = run(*arguments)
        assert (status, out) == (2, "")
        assert re.fullmatch(r"mamba-integer-verify: error: [^\n]+\n", err), err
    assert run("--help")[0] == run("--version")[0] == 0
