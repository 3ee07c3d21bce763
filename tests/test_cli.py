"""The command line: results, exit statuses, and one clear line for every mistake a user can make."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mamba_integer.cli import build_parser, main
from mamba_integer.engine import Model
from tests.models import TINY_TOKENIZER, tiny_model_bytes, with_u32

ROOT = Path(__file__).resolve().parents[1]
VALID = ROOT / "data/tinystories_valid.txt"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model: fast, and independent of the shipped one."""
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    path.write_bytes(tiny_model_bytes())
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return call


def check_mistake(result: tuple[int, str, str], *words: str) -> None:
    status, out, err = result
    assert status == 2
    assert out == ""
    assert re.fullmatch(r"mamba-integer: error: [^\n]+\n", err), err
    assert "Traceback" not in err
    for word in words:
        assert word in err, err


Run = Callable[..., tuple[int, str, str]]


# ---- what works ----------------------------------------------------------------------------------------------------------------------------------


def test_generate_streams_prompt_and_text(run: Run, tiny: Path) -> None:
    arguments = ("generate", "--model", tiny, "--prompt", "Once upon", "--max-tokens", "20", "--seed", "3")
    status, out, err = run(*arguments)
    assert (status, err) == (0, "")
    assert out.startswith("Once upon")
    assert run(*arguments) == (status, out, err)
    result = json.loads(run(*arguments, "--json")[1])
    assert out == f"Once upon{result['text']}\n"


def test_generate_json(run: Run, tiny: Path) -> None:
    status, out, _ = run("generate", "--model", tiny, "--prompt", "Once", "--max-tokens", "7", "--json", "--logprobs")
    assert status == 0
    result: dict[str, Any] = json.loads(out)
    assert {"text", "tokens", "prompt_tokens", "model_digest", "logits_digest", "tokens_per_second"} <= set(result)
    model = Model.load(tiny)
    assert result["model_digest"] == model.digest
    assert result["prompt_tokens"] == model.encode("Once")
    assert len(result["tokens"]) == len(result["logprobs"]) <= 7
    assert all(p <= 0 for p in result["logprobs"])
    assert re.fullmatch("[0-9a-f]{64}", result["logits_digest"])


def test_generate_greedy_ignores_the_seed(run: Run, tiny: Path) -> None:
    texts = {
        run("generate", "--model", tiny, "--prompt", "The", "--temperature", "0", "--max-tokens", "9", "--seed", s)[1]
        for s in (1, 2)
    }
    assert len(texts) == 1


def test_eval(run: Run, tiny: Path) -> None:
    status, out, err = run("eval", "--model", tiny, "--data", VALID, "--max-documents", 2, "--json")
    assert (status, err) == (0, "")
    result = json.loads(out)
    assert {"nats_per_token", "perplexity", "bits_per_byte", "tokens", "bytes"} <= set(result)
    assert result["bytes"] < 5000
    status, out, _ = run("eval", "--model", tiny, "--data", VALID, "--max-documents", 2)
    assert f"{result['nats_per_token']:.4f}" in out


def test_info(run: Run, tiny: Path) -> None:
    result = json.loads(run("info", tiny, "--json")[1])
    assert result["model_digest"] == Model.load(tiny).digest
    assert result["format_version"] == result["spec_version"] == 1
    assert result["bytes"] == tiny.stat().st_size
    status, out, _ = run("info", tiny)
    assert status == 0
    assert result["model_digest"] in out


def test_info_bounds(run: Run, tiny: Path) -> None:
    status, out, _ = run("info", tiny, "--bounds")
    assert status == 0
    assert "in_proj" in out
    assert json.loads(run("info", tiny, "--bounds", "--json")[1])["bounds"]


def test_tokenizer(run: Run, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.bpe"
    status, out, _ = run("tokenizer", "train", "--data", VALID, "--vocab-size", 300, "-o", path, "--json")
    assert status == 0
    assert json.loads(out)["vocab_size"] == 300
    for choice in (("--tokenizer", path), ("--model", tiny)):
        text = "A big → 🙂 day.\n"
        tokens = json.loads(run("tokenizer", "encode", text, *choice, "--json")[1])["tokens"]
        assert run("tokenizer", "encode", text, *choice)[1].split() == [str(t) for t in tokens]
        assert json.loads(run("tokenizer", "decode", *tokens, *choice, "--json")[1])["text"] == text


def test_the_environment_names_model_folders(run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAMBA_INTEGER_MODELS", os.pathsep.join(["/nowhere", str(tiny.parent)]))
    assert json.loads(run("info", "tiny", "--json")[1])["file"] == str(tiny)


def test_demo(run: Run, tiny: Path) -> None:
    status, out, _ = run("demo", "--model", tiny, "--max-tokens", 12)
    assert status == 0
    assert "agree on every logit" in out
    result = json.loads(run("demo", "--model", tiny, "--max-tokens", 12, "--json")[1])
    assert result["agree"] is True
    assert result["reference_digest"] == result["logits_digest"]


def test_the_proof_of_the_demo_is_verified_as_it_says(run: Run, tiny: Path, tmp_path: Path) -> None:
    status, out, _ = run("demo", "--model", tiny, "--max-tokens", 3, "--proof", tmp_path / "a story.proof")
    assert status == 0
    (command,) = re.findall(r"The proof is in .*: (mamba-integer verify .*)", out)
    assert run(*shlex.split(command)[1:])[0] == 0


def test_demo_says_when_the_reference_differs(run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mamba_integer import demo

    honest = demo.reference_logits

    def off_by_one(*arguments: Any) -> Any:
        logits = honest(*arguments).copy()
        logits[5, 7] += 1
        return logits

    monkeypatch.setattr(demo, "reference_logits", off_by_one)
    status, out, _ = run("demo", "--model", tiny, "--max-tokens", 12)
    assert status == 1
    assert "DIFFER" in out
    assert "position 5" in out


@pytest.mark.parametrize("name", ["decode", "prefill", "tokenizer"])
def test_bench(run: Run, tiny: Path, name: str) -> None:
    status, out, _ = run("bench", name, "--model", tiny, "--seconds", 1)
    assert status == 0
    *table, last = out.splitlines()
    result = json.loads(last)
    assert result["bench"] == name
    assert result["peers"]["mamba-integer"]
    rows = sum(len(rates) for rates in result["peers"].values())
    rows += sum(len(forms) for forms in result.get("loading_cpu_ms_best", {}).values())
    rows += len(result.get("documents_by_threads_best_MB_per_second", {}))
    assert len(table) == rows


def test_version(run: Run) -> None:
    status, out, _ = run("--version")
    assert status == 0
    assert re.fullmatch(r"mamba-integer \d+\.\d+\.\d+\n", out)


def verbs() -> list[list[str]]:
    def walk(parser: Any, path: list[str]) -> list[list[str]]:
        found = [path]
        for action in parser._subparsers._group_actions if parser._subparsers else []:
            for name, child in action.choices.items():
                found += walk(child, [*path, name])
        return found

    return walk(build_parser(), [])


@pytest.mark.parametrize("verb", verbs(), ids=" ".join)
def test_every_verb_has_help_with_examples_and_json(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*verb, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    groups = (["tokenizer"], ["bench"], ["circuit"], ["encrypted"])
    if verb and verb not in groups:
        assert "--json" in text
    if verb not in (*groups, ["train"], ["export"]):
        assert "example" in text


# ---- users' mistakes -----------------------------------------------------------------------------------------------------------------------------


def test_no_verb(run: Run) -> None:
    check_mistake(run(), "verb")
    check_mistake(run("tokenizer"), "train, encode, decode")
    check_mistake(run("circuit"), "export, report, prove, verify")
    check_mistake(run("dance"), "dance")


def test_empty_prompt(run: Run, tiny: Path) -> None:
    check_mistake(run("generate", "--model", tiny, "--prompt", ""), "prompt is empty")
    check_mistake(run("demo", "--model", tiny, "--prompt", ""), "prompt is empty")


def test_unknown_model(run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAMBA_INTEGER_MODELS", str(tiny.parent))
    check_mistake(run("generate", "--model", "gpt-7", "--prompt", "Hi"), "gpt-7", "shipped models", "tiny")
    check_mistake(run("info", "no/such.gguf"), "no/such.gguf", "no such")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--temperature", "hot"),
        ("--temperature", "-1"),
        ("--temperature", "65"),
        ("--top-p", "0"),
        ("--top-p", "1.5"),
        ("--top-k", "-3"),
        ("--seed", "18446744073709551616"),
        ("--seed", "x"),
        ("--max-tokens", "0"),
        ("--max-tokens", "many"),
        ("--stop", ""),
        ("--device", "tpu"),
        ("--device", "cuda"),
        ("--threads", "0"),
    ],
)
def test_bad_generate_options(run: Run, tiny: Path, option: str, value: str) -> None:
    check_mistake(
        run("generate", "--model", tiny, "--prompt", "Hi", f"{option}={value}"), option.strip("-").split("-")[0]
    )


def test_special_token_in_a_prompt(run: Run, tiny: Path) -> None:
    check_mistake(run("generate", "--model", tiny, "--prompt", "a<|endoftext|>b"), "<|endoftext|>")


def test_text_that_is_not_utf8(run: Run, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "latin1.txt"
    path.write_bytes("Un café\n".encode("latin-1"))
    check_mistake(run("eval", "--model", tiny, "--data", path), "not UTF-8", "byte 6")
    check_mistake(run("tokenizer", "train", "--data", path, "--vocab-size", 300, "-o", tmp_path / "t"), "not UTF-8")
    check_mistake(run("generate", "--model", tiny, "--prompt", os.fsdecode(b"caf\xe9")), "not UTF-8")
    check_mistake(run("tokenizer", "encode", "--model", tiny, os.fsdecode(b"caf\xe9")), "not UTF-8")


def test_missing_and_empty_data(run: Run, tiny: Path, tmp_path: Path) -> None:
    check_mistake(run("eval", "--model", tiny, "--data", tmp_path / "gone.txt"), "gone.txt")
    (tmp_path / "empty.txt").write_text("<|endoftext|>\n\n<|endoftext|>\n")
    check_mistake(run("eval", "--model", tiny, "--data", tmp_path / "empty.txt"), "no document")
    check_mistake(run("eval", "--model", tiny, "--data", tmp_path), tmp_path.name)


def test_tokens_outside_the_vocabulary(run: Run, tiny: Path) -> None:
    check_mistake(run("tokenizer", "decode", "--model", tiny, TINY_TOKENIZER.vocab_size), "vocabulary")
    check_mistake(run("tokenizer", "decode", "--model", tiny, "4294967296"), "4294967296")
    check_mistake(run("tokenizer", "decode", "--model", tiny, "seven"), "seven")


def test_outputs_that_cannot_be_written(run: Run, tmp_path: Path) -> None:
    check_mistake(
        run("tokenizer", "train", "--data", VALID, "--vocab-size", 300, "-o", tmp_path / "no" / "t.bpe"), "t.bpe"
    )
    check_mistake(run("tokenizer", "train", "--data", VALID, "--vocab-size", 3, "-o", tmp_path / "t.bpe"), "3")


def model_damages() -> dict[str, tuple[Callable[[bytes], bytes], str]]:
    def flip(at: float) -> Callable[[bytes], bytes]:
        def damage(data: bytes) -> bytes:
            out = bytearray(data)
            out[int(at * len(data))] ^= 0x10
            return bytes(out)

        return damage

    def u32(key: str, value: int) -> Callable[[bytes], bytes]:
        return lambda data: with_u32(data, key, value)

    return {
        "empty": (lambda data: b"", ""),
        "text": (lambda data: b"Once upon a time" * 50, ""),
        "truncated header": (lambda data: data[:100], ""),
        "truncated in the middle": (lambda data: data[: len(data) // 2], ""),
        "one byte short": (lambda data: data[:-1], ""),
        "one byte more": (lambda data: data + b"\0", ""),
        "bit flipped in the first bytes": (flip(0), ""),
        "bit flipped in the middle": (flip(0.5), ""),
        "bit flipped near the end": (flip(0.99), ""),
        "oversized d_model": (u32("mamba_integer.d_model", 1 << 30), "d_model"),
        "oversized n_layers": (u32("mamba_integer.n_layers", 0xFFFFFFFF), "n_layers"),
        "oversized vocabulary": (u32("mamba_integer.vocab_size", 1 << 31), "vocab_size"),
        "zero heads": (u32("mamba_integer.n_heads", 0), "n_heads"),
        "another format version": (u32("mamba_integer.format_version", 2), "version"),
        "another spec version": (u32("mamba_integer.spec_version", 7), "version"),
    }


@pytest.mark.parametrize("damage", model_damages(), ids=str)
def test_damaged_models(run: Run, tiny: Path, tmp_path: Path, damage: str) -> None:
    change, word = model_damages()[damage]
    path = tmp_path / "damaged.gguf"
    path.write_bytes(change(tiny.read_bytes()))
    for arguments in (
        ("generate", "--prompt", "Hi", "--model", path),
        ("info", path),
        ("eval", "--data", VALID, "--model", path),
    ):
        check_mistake(run(*arguments), word)


def test_training_verbs_without_pytorch(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "torch" else find(name, *a))
    for verb in ("train", "export"):
        check_mistake(run(verb), "pip install 'mamba-integer[train]'")


# ---- the process ---------------------------------------------------------------------------------------------------------------------------------


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "mamba_integer", *map(str, arguments)]


def test_a_mistake_is_exit_status_2_in_a_real_process(tiny: Path) -> None:
    done = subprocess.run(
        command("generate", "--model", tiny, "--prompt", b"caf\xe9".decode("utf-8", "surrogateescape")),
        capture_output=True,
        text=True,
    )
    check_mistake((done.returncode, done.stdout, done.stderr), "not UTF-8")


def test_standard_input(tiny: Path) -> None:
    done = subprocess.run(command("tokenizer", "encode", "--model", tiny, "-"), input=b"caf\xe9", capture_output=True)
    assert done.returncode == 2
    done = subprocess.run(
        command("tokenizer", "encode", "--model", tiny, "-"), input="café".encode(), capture_output=True, check=True
    )
    assert TINY_TOKENIZER.decode([int(t) for t in done.stdout.split()]) == "café"


def test_a_reader_that_goes_away(tiny: Path) -> None:
    process = subprocess.Popen(
        command("generate", "--model", tiny, "--prompt", "Once", "--max-tokens", 100000),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) in (141, 0)


def test_interrupt_is_quiet(tiny: Path) -> None:
    # This model's greedy text goes on for ever, which the loop below would notice if it did not.
    with subprocess.Popen(
        command("generate", "--model", tiny, "--prompt", "The", "--temperature", "0", "--max-tokens", 2_000_000),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a shell's background jobs inherit that it is ignored
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.read(200)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
            assert (process.returncode, err) == (130, b"")
        finally:
            process.kill()


# ---- the standalone program ----------------------------------------------------------------------------------------------------------------------

STANDALONE = ROOT / "build/engine/mamba_infer"


def test_the_standalone_program_gives_the_same(run: Run, tiny: Path) -> None:
    for seed in range(8):
        options = (
            "--model",
            tiny,
            "--prompt",
            "Once upon a → time",
            "--seed",
            seed,
            "--max-tokens",
            40,
            "--temperature",
            f"1.{seed}",
            "--top-p",
            "0.97",
            "--json",
        )
        ours = json.loads(run("generate", *options)[1])
        theirs = json.loads(subprocess.run([STANDALONE, *map(str, options)], capture_output=True, check=True).stdout)
        for key in ("text", "tokens", "prompt_tokens", "model_digest", "logits_digest", "stop_reason"):
            assert ours[key] == theirs[key], key


def test_demo_compares_the_standalone_program(run: Run, tiny: Path, tmp_path: Path) -> None:
    status, out, _ = run("demo", "--model", tiny, "--max-tokens", 12, "--standalone", STANDALONE)
    assert status == 0
    assert "the same text and digest" in out
    liar = tmp_path / "liar"
    liar.write_text('#!/bin/sh\necho \'{"text": "", "tokens": []}\'\n')
    liar.chmod(0o755)
    status, out, _ = run("demo", "--model", tiny, "--max-tokens", 12, "--standalone", liar)
    assert status == 1
    assert "DIFFERENT BITS" in out
    check = run("demo", "--model", tiny, "--max-tokens", 12, "--standalone", tmp_path / "gone")
    assert check[0] == 2
    assert "gone" in check[2]


def test_the_standalone_program_says_mistakes_in_one_line(tiny: Path) -> None:
    for arguments in (
        ["--prompt", ""],
        ["--model", "gpt-7"],
        ["--model", str(tiny), "--temperature", "hot"],
        ["--model", str(VALID)],
    ):
        done = subprocess.run([STANDALONE, *arguments], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(r"mamba_infer: error: [^\n]+\n", done.stderr), done.stderr
