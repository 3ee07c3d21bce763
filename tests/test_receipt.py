"""Receipts: what is written replays; whatever is changed is found and named; nothing that a file can hold does more than be refused."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mamba_integer import receipt as rc
from mamba_integer.cli import main
from mamba_integer.engine import PART, Model
from mamba_integer.errors import ArgumentError, MambaIntegerError, ReceiptError
from mamba_integer.model_file import serialize
from mamba_integer.receipt import Receipt, make, read, replay, write
from mamba_integer.sampling import Sampling
from tests.models import TINY_TOKENIZER, tiny_model, tiny_model_bytes

GOLDEN = Path(__file__).with_name("receipt.json")
# The golden receipt is this generation by the model of tests/models.py: text that JSON must escape, every sampling integer in use, ended by the end token.
GOLDEN_OPTIONS: dict[str, Any] = {
    "prompt": 'A "→ 🙂\\ cat\n\t\x01\x7f',
    "max_tokens": 100,
    "temperature": "1.5",
    "top_k": 200,
    "top_p": "0.97",
    "seed": (1 << 64) - 3,
    "stop": ["never there", "naïve\u2028"],
}

Content = dict[str, Any]
Change = Callable[[Content], None]


def make_of(model: Model, **options: Any) -> Receipt:
    generation = model.generate(**options)
    generation.finish()
    return make(model, generation)


@functools.cache
def the_tiny_model() -> Model:
    return Model.from_bytes(tiny_model_bytes())


@pytest.fixture
def tiny() -> Model:
    return the_tiny_model()


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    path.write_bytes(tiny_model_bytes())
    return path


@pytest.fixture
def good(tiny: Model) -> Receipt:
    """Ended by its limit after 16 tokens."""
    receipt = make_of(tiny, prompt="Once upon a", max_tokens=16, temperature=1, top_k=200, top_p="0.9", seed=3)
    assert receipt.finish_reason == "limit"
    return receipt


def content_of(receipt: Receipt) -> Content:
    content: Content = json.loads(receipt.to_bytes())
    return content


def canonical(content: Content) -> bytes:
    """As spec/FORMAT.md says, not as receipt.py does it."""

    def text(value: str) -> str:
        short = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r", '"': '\\"', "\\": "\\\\"}
        return '"' + "".join(short.get(c, c if c >= " " else f"\\u{ord(c):04x}") for c in value) + '"'

    def of(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ",".join(f"{text(k)}:{of(value[k])}" for k in sorted(value)) + "}"
        if isinstance(value, list):
            return "[" + ",".join(map(of, value)) + "]"
        return "null" if value is None else text(value) if isinstance(value, str) else str(value)

    return of(content).encode("utf-8")


def sealed(content: Content) -> Content:
    """With the digest that its other keys have."""
    rest = {name: value for name, value in content.items() if name != "digest"}
    return {**rest, "digest": hashlib.sha256(b"mamba-integer-receipt-1" + canonical(rest)).hexdigest()}


# ---- what is true ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "finish_reason"),
    [
        ({"max_tokens": 1}, "limit"),
        ({"max_tokens": 30, "temperature": 0}, "limit"),
        ({"max_tokens": 400, "temperature": 2, "seed": 0}, "end"),
        ({"max_tokens": 30, "stop": ["no", "e", " "], "seed": 5}, "stop"),
        ({"max_tokens": 30, "temperature": 64, "top_k": 3, "top_p": "0.5", "seed": 1 << 63}, "limit"),
        ({"max_tokens": 7, "prompt": "x" * 4 * PART}, "limit"),
    ],
    ids=str,
)
def test_round_trip(tiny: Model, tmp_path: Path, options: dict[str, Any], finish_reason: str) -> None:
    receipt = make_of(tiny, **{"prompt": "Once", **options})
    assert receipt.finish_reason == finish_reason
    path = tmp_path / "receipt.json"
    write(path, receipt)
    back = read(path)
    assert (back, back.digest, back.stated_digest) == (receipt, receipt.digest, receipt.digest)
    assert path.read_bytes() == receipt.to_bytes()
    assert replay(back, tiny) == replay(receipt, tiny) == rc.Replay(True, "")
    assert content_of(receipt) == sealed(content_of(receipt))
    assert receipt.to_bytes() == canonical(content_of(receipt)) + b"\n"


def test_prompts_given_as_tokens(tiny: Model) -> None:
    text = make_of(tiny, prompt="The cat", max_tokens=5)
    assert make_of(tiny, prompt=tiny.encode("The cat"), max_tokens=5) == text
    nothing = make_of(tiny, prompt=[TINY_TOKENIZER.eot], max_tokens=5)
    assert nothing.prompt == ""
    assert replay(Receipt.from_bytes(nothing.to_bytes()), tiny).valid
    eot = TINY_TOKENIZER.eot
    merged = TINY_TOKENIZER.decode_bytes([256])
    assert tiny.encode(merged.decode()) == [eot, 256]
    for tokens in ([65], [eot, 200], [eot, eot], [eot, *merged]):
        with pytest.raises(ArgumentError, match="prompt's tokens"):
            make_of(tiny, prompt=tokens, max_tokens=2)


def test_what_makes_no_receipt(tiny: Model) -> None:
    generation = tiny.generate("a", max_tokens=3)
    next(generation)
    with pytest.raises(ArgumentError, match="not ended"):
        make(tiny, generation)
    generation.finish()
    with pytest.raises(ArgumentError, match="another model"):
        make(Model.from_bytes(tiny_model_bytes()), generation)
    for stop in (["x"] * 65, ["x" * 1025], ["\ud800"]):
        with pytest.raises(ReceiptError, match="stop"):
            make_of(tiny, prompt="a", max_tokens=1, stop=stop)
    with pytest.raises(ReceiptError, match="max_tokens"):
        make_of(tiny, prompt="a", max_tokens=1 << 20_000, stop="e", seed=5)


def test_the_golden_receipt(tiny: Model) -> None:
    receipt = read(GOLDEN)
    assert replay(receipt, tiny) == rc.Replay(True, "")
    assert receipt.finish_reason == "end"
    assert make_of(tiny, **GOLDEN_OPTIONS).to_bytes() == GOLDEN.read_bytes()
    assert receipt.digest == "93a96918b51e2c4b4d8b2f828101964b14b6470a42452a0261ec40845bfa875d"


def test_layout_is_free(tiny: Model, good: Receipt) -> None:
    content = dict(reversed(content_of(good).items()))
    for layout in ({"indent": 2}, {"ensure_ascii": True}):
        receipt = Receipt.from_bytes(json.dumps(content, **layout).encode())  # type: ignore[arg-type]
        assert receipt == good
        assert replay(receipt, tiny).valid


def test_values_that_decide_nothing_may_differ(tiny: Model) -> None:
    greedy = make_of(tiny, prompt="The", max_tokens=9, temperature=0)
    other = dataclasses.replace(greedy, sampling=dataclasses.replace(greedy.sampling, seed=99, top_k=7))
    assert replay(other, tiny).valid
    assert other.digest != greedy.digest
    ended = read(GOLDEN)
    assert replay(dataclasses.replace(ended, max_tokens=(1 << 64) - 1, stated_digest=None), tiny).valid


# ---- what is not true --------------------------------------------------------------------------------------------------------------------------


def put(name: str, value: Any) -> Change:
    return lambda content: content.__setitem__(name, value)


def sampling(name: str, value: int) -> Change:
    return lambda content: content["sampling"].__setitem__(name, value)


def flip(name: str) -> Change:
    def change(content: Content) -> None:
        content[name] = ("1" if content[name][0] == "0" else "0") + content[name][1:]

    return change


def other_prompt(content: Content) -> None:
    content["prompt"] = "Once upon the"
    content["prompt_tokens"] = [TINY_TOKENIZER.eot, *TINY_TOKENIZER.encode("Once upon the")]


CHANGES: dict[str, tuple[Change, str]] = {
    "model name": (put("model_name", "gpt-7"), r"model_name: .*'gpt-7'.*'random-5'"),
    "model digest": (flip("model_digest"), "model_digest: "),
    "tokenizer digest": (flip("tokenizer_digest"), "tokenizer_digest: "),
    "commitment": (put("model_commitment", "abc"), "model_commitment: "),
    "prompt": (put("prompt", "Once upon b"), "prompt: its token "),
    "longer prompt": (put("prompt", "Once upon a time"), "prompt: its token .* absent"),
    "special token in the prompt": (put("prompt", "<|endoftext|>"), r"prompt: .*endoftext"),
    "prompt token": (lambda c: c["prompt_tokens"].__setitem__(1, 7), "prompt: its token 1 is .* it is 7"),
    "prompt token left out": (lambda c: c["prompt_tokens"].pop(), "prompt: its token .* absent"),
    "prompt token outside the vocabulary": (
        lambda c: c["prompt_tokens"].append(1 << 31),
        "prompt: its token .* absent",
    ),
    "prompt and its tokens": (other_prompt, "(tokens|logits_digest): "),
    "seed": (sampling("seed", 4), r"(sampling|tokens): .*seed, temperature, top_k or top_p"),
    "temperature": (sampling("temperature", 1 << 21), r"(sampling|tokens): .*seed, temperature, top_k or top_p"),
    "greedy": (sampling("temperature", 0), r"(sampling|tokens): .*seed, temperature, top_k or top_p"),
    "top_k": (sampling("top_k", 3), r"(sampling|tokens): .*seed, temperature, top_k or top_p"),
    "top_p": (sampling("top_p", 2000), r"(sampling|tokens): .*seed, temperature, top_k or top_p"),
    "lower max_tokens": (put("max_tokens", 15), "max_tokens: it is 15, but there are 16 tokens"),
    "higher max_tokens": (put("max_tokens", 17), "finish_reason: limit, but max_tokens is 17 and there are 16"),
    "finish_reason end": (put("finish_reason", "end"), "finish_reason: .*end.* by limit"),
    "finish_reason stop": (put("finish_reason", "stop"), "finish_reason: .*stop.* by limit"),
    "finish_reason and max_tokens": (
        lambda c: c.update(finish_reason="end", max_tokens=99),
        "finish_reason: end, but generation does not end",
    ),
    "token left out": (lambda c: c["tokens"].pop(), "finish_reason: limit, but max_tokens is 16 and there are 15"),
    "token left out, with its limit": (
        lambda c: c.update(tokens=c["tokens"][:-1], max_tokens=15),
        "text: from character",
    ),
    "token added": (lambda c: c["tokens"].append(7), "max_tokens: it is 16, but there are 17"),
    "token outside the vocabulary": (
        lambda c: c["tokens"].__setitem__(2, TINY_TOKENIZER.vocab_size),
        "tokens: token 2 is 320, outside",
    ),
    "tokens swapped": (lambda c: c["tokens"].sort(), r"tokens: token \d+ is "),
    "text": (lambda c: c.update(text=c["text"][:5] + "#" + c["text"][6:]), "text: from character 5 "),
    "text added": (lambda c: c.update(text=c["text"] + " end"), r"text: from character \d+ the receipt has ' end'"),
    "empty text": (put("text", ""), "text: from character 0 "),
    "logits digest": (flip("logits_digest"), "logits_digest: "),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_is_found_and_named(tiny: Model, good: Receipt, name: str) -> None:
    change, reason = CHANGES[name]
    content = content_of(good)
    change(content)
    assert content != content_of(good)
    receipt = Receipt.from_bytes(canonical(sealed(content)))
    assert receipt.digest == receipt.stated_digest
    result = replay(receipt, tiny)
    assert not result.valid
    assert re.match(reason, result.reason), result.reason
    # The same with the old digest: what differs is still named, rather than the digest alone.
    assert replay(Receipt.from_bytes(canonical(content)), tiny) == result


def test_every_token_counts(tiny: Model, good: Receipt) -> None:
    for at, token in enumerate(good.tokens):
        for other in ((token + 1) % TINY_TOKENIZER.vocab_size, TINY_TOKENIZER.eot):
            tokens = (*good.tokens[:at], other, *good.tokens[at + 1 :])
            result = replay(dataclasses.replace(good, tokens=tokens), tiny)
            assert not result.valid
            assert result.reason.startswith(f"tokens: token {at} is {other} ("), result.reason
            assert f"the engine chooses {token} (" in result.reason


def test_which_of_tokens_and_sampling_is_wrong(tiny: Model, good: Receipt) -> None:
    other = dataclasses.replace(good, sampling=Sampling(temperature=1 << 20, seed=77))
    result = replay(other, tiny)
    assert result.reason.startswith("sampling: token 0 is "), result.reason


def test_a_stop_string_that_comes_too_early_or_never(tiny: Model, good: Receipt) -> None:
    stopped = make_of(
        tiny, prompt="Once upon a", max_tokens=16, temperature=1, top_k=200, top_p="0.9", seed=3, stop=[good.text[6:8]]
    )
    assert stopped.finish_reason == "stop"
    assert replay(stopped, tiny).valid
    for change, reason in (
        ({"stop": ()}, "finish_reason: stop, but generation does not end"),
        ({"stop": (good.text[0],)}, "stop: a stop string ends generation after 1 tokens"),
        ({"text": good.text[:8]}, "text: from character 6 "),
    ):
        result = replay(dataclasses.replace(stopped, **change), tiny)  # type: ignore[arg-type]
        assert re.match(reason, result.reason), result.reason


def test_tokens_after_the_end_token(tiny: Model) -> None:
    ended = read(GOLDEN)
    more = dataclasses.replace(ended, tokens=(*ended.tokens, 7), stated_digest=None)
    assert re.match(rf"tokens: token {len(ended.tokens) - 1} ends generation", replay(more, tiny).reason)
    fewer = dataclasses.replace(ended, tokens=ended.tokens[:-1], stated_digest=None)
    assert re.match("finish_reason: end, but generation does not end", replay(fewer, tiny).reason)


def test_the_digest_alone(tiny: Model, good: Receipt) -> None:
    content = content_of(good)
    flip("digest")(content)
    result = replay(Receipt.from_bytes(canonical(content)), tiny)
    assert (result.valid, result.reason[:8]) == (False, "digest: ")


def test_another_model(good: Receipt) -> None:
    """One weight is another: refused by its digest; and with that forged, by what it computes."""
    weights = tiny_model()
    tensors = {name: np.array(tensor) for name, tensor in weights.tensors.items()}
    tensors["blk.1.conv.bias"][0] += 64
    other = Model.from_bytes(serialize(dataclasses.replace(weights, tensors=tensors)))
    result = replay(good, other)
    assert not result.valid
    assert result.reason.startswith("model_digest: ")
    assert good.model_digest in result.reason
    assert other.digest in result.reason
    forged = replay(dataclasses.replace(good, model_digest=other.digest), other)
    assert re.match("tokens: |logits_digest: ", forged.reason), forged.reason


# ---- what is no receipt --------------------------------------------------------------------------------------------------------------------------

MALFORMED: dict[str, tuple[Change, str]] = {
    "unknown key": (put("author", "me"), "unknown key 'author'"),
    "unknown sampling key": (lambda c: c["sampling"].update(min_p=1), "sampling has the unknown key 'min_p'"),
    "another format": (put("format", "gguf"), "not a receipt"),
    "another version": (put("format_version", 2), "format_version is 2; this release reads 1"),
    "true for version 1": (put("format_version", True), "format_version is True"),
    "another spec": (put("spec_version", 7), "spec_version is 7"),
    "true for max_tokens": (put("max_tokens", True), "max_tokens must be an integer .* not True"),
    "no tokens allowed": (put("max_tokens", 0), "max_tokens"),
    "max_tokens beyond 64 bits": (put("max_tokens", 1 << 64), "max_tokens must .* not 18446744073709551616"),
    "max_tokens of many digits": (put("max_tokens", 10**4000), "max_tokens must .* not 1000"),
    "float": (put("max_tokens", 16.0), r"max_tokens must .* not 16\.0"),
    "NaN": (put("max_tokens", float("nan")), "max_tokens must .* not NaN"),
    "infinite seed": (lambda c: c["sampling"].update(seed=float("inf")), r"sampling\.seed must .* not Infinity"),
    "seed beyond 64 bits": (lambda c: c["sampling"].update(seed=1 << 64), r"sampling\.seed"),
    "negative seed": (lambda c: c["sampling"].update(seed=-1), r"sampling\.seed must .* not -1"),
    "hot": (lambda c: c["sampling"].update(temperature=(1 << 22) + 1), r"sampling\.temperature"),
    "top_k beyond 32 bits": (lambda c: c["sampling"].update(top_k=1 << 32), r"sampling\.top_k"),
    "top_p 0": (lambda c: c["sampling"].update(top_p=0), r"sampling\.top_p"),
    "top_p true": (lambda c: c["sampling"].update(top_p=True), r"sampling\.top_p"),
    "sampling is no object": (put("sampling", [1]), "sampling must be an object, not an array"),
    "no prompt tokens": (put("prompt_tokens", []), "prompt_tokens is empty"),
    "no tokens": (put("tokens", []), "tokens is empty"),
    "tokens are text": (put("tokens", "1 2"), "tokens must be an array, not '1 2'"),
    "token is text": (lambda c: c["tokens"].__setitem__(3, "5"), r"tokens\[3\] must be an integer .* not '5'"),
    "token is true": (lambda c: c["tokens"].__setitem__(3, True), r"tokens\[3\]"),
    "token is nothing": (lambda c: c["tokens"].__setitem__(3, None), r"tokens\[3\]"),
    "token is negative": (lambda c: c["tokens"].__setitem__(3, -1), r"tokens\[3\]"),
    "token is a list": (lambda c: c["tokens"].__setitem__(3, [1]), r"tokens\[3\] must .* not an array"),
    "prompt is nothing": (put("prompt", None), "prompt must be a string, not None"),
    "text is a number": (put("text", 5), "text must be a string, not 5"),
    "half a surrogate": (put("text", "a\ud800"), r"text is not valid Unicode \(character 1"),
    "stop is text": (put("stop", "x"), "stop must be an array"),
    "empty stop string": (put("stop", ["a", ""]), r"stop\[1\]"),
    "long stop string": (put("stop", ["a" * 1025]), r"stop\[0\] must have 1 to 1024"),
    "too many stop strings": (put("stop", ["a"] * 65), "stop has 65"),
    "stop string is a number": (put("stop", [1]), r"stop\[0\]"),
    "finish_reason": (put("finish_reason", "max_tokens"), "finish_reason must be end, limit or stop, not 'max_tokens'"),
    "finish_reason is a list": (put("finish_reason", []), "finish_reason"),
    "commitment is a number": (put("model_commitment", 0), "model_commitment must be a string"),
    "uppercase digest": (
        lambda c: c.update(model_digest=c["model_digest"].upper()),
        "model_digest must be 64 lowercase",
    ),
    "short digest": (lambda c: c.update(logits_digest=c["logits_digest"][:-1]), "logits_digest must be 64 lowercase"),
    "digest with a newline": (lambda c: c.update(digest=c["digest"] + "\n"), "digest must be 64 lowercase"),
    "control characters in a message": (put("finish_reason", "\x1b[2J\n"), r"not '\\x1b\[2J\\n'"),
    **{
        f"without {name}": (lambda c, name=name: c.pop(name), f"lacks the key '{name}'")  # type: ignore[misc]
        for name in ("format_version", "spec_version", "model_commitment", "tokens", "stop", "digest", "sampling")
    },
    "without format": (lambda c: c.pop("format"), "not a receipt"),
    "without a seed": (lambda c: c["sampling"].pop("seed"), "sampling lacks the key 'seed'"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_values_are_refused_by_name(good: Receipt, name: str) -> None:
    change, reason = MALFORMED[name]
    content = content_of(good)
    change(content)
    with pytest.raises(ReceiptError, match=reason) as refused:
        Receipt.from_bytes(json.dumps(content).encode())
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", r"not UTF-8 \(byte 0\)"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        ('{"format":1}'.encode("utf-16"), "not UTF-8"),
        (b"[]", "not a receipt"),
        (b"{}", "not a receipt"),
        (b"null", "not a receipt"),
        (b"1" * 100_000, "not a receipt"),
        (b"[" * 200_000, "nested"),
        (b'{"a":' * 200_000, "nested"),
        (b'{"a":1,"a":1}', "'a' stands twice"),
        (b'{"format":"mamba-integer-receipt","format":"mamba-integer-receipt"}', "'format' stands twice"),
        (b'{"format":"mamba-integer-receipt","format_version":1e0}', "format_version is 1e0"),
        (b'{"format":"mamba-integer-receipt","spec_version":-0}', "spec_version is -0"),
        (b" " * (rc.MAX_BYTES + 1), "longer than 67108864 bytes"),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_what_is_no_receipt_at_all(data: bytes, reason: str) -> None:
    with pytest.raises(ReceiptError, match=reason):
        Receipt.from_bytes(data)


def test_truncations_and_flips_never_pass(tiny: Model, good: Receipt) -> None:
    data = good.to_bytes()
    for size in range(len(data) - 1):  # without its newline it is the same receipt
        with pytest.raises(ReceiptError):
            Receipt.from_bytes(data[:size])
    for at in range(len(data) - 1):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        try:
            receipt = Receipt.from_bytes(bytes(changed))
        except ReceiptError:
            continue
        assert not replay(receipt, tiny).valid, f"byte {at}"


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 66), 1 << 66) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(data=st.data())
def test_any_value_under_any_key(data: st.DataObject) -> None:
    content = json.loads(GOLDEN.read_bytes())
    place = data.draw(st.sampled_from([content, content["sampling"], content["tokens"]]))
    name = data.draw(st.sampled_from(range(len(place)) if isinstance(place, list) else sorted(place)))  # type: ignore[arg-type]
    place[name] = data.draw(values)
    try:
        receipt = Receipt.from_bytes(json.dumps(content).encode())
    except ReceiptError:
        return
    assert receipt.digest == sealed(content)["digest"]
    result = replay(dataclasses.replace(receipt, stated_digest=None), the_tiny_model())
    assert result.valid == (not result.reason)


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=60).map(str.encode) | values.map(lambda v: json.dumps(v).encode()))
def test_any_bytes(data: bytes) -> None:
    with pytest.raises(ReceiptError):
        Receipt.from_bytes(data)


# ---- files ---------------------------------------------------------------------------------------------------------------------------------------


def test_writing_is_atomic(good: Receipt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "receipt.json"
    path.write_text("what was there")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ArgumentError, match=r"receipt\.json: No space left"):
            write(path, good)
    assert path.read_text() == "what was there"
    assert list(tmp_path.iterdir()) == [path]
    write(path, good)
    assert read(path) == good
    link = tmp_path / "link.json"
    link.symlink_to(path)
    write(link, dataclasses.replace(good, text="other"))
    assert link.is_symlink()
    assert read(path).text == "other"
    for place in (tmp_path, tmp_path / "none" / "r.json", "/dev/null"):
        with pytest.raises(ArgumentError, match=re.escape(str(place))):
            write(place, good)


# ---- the command line ------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return call


Run = Callable[..., tuple[int, str, str]]


def test_generate_and_replay(run: Run, tiny_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "receipt.json"
    options = ("generate", "--model", tiny_file, "--prompt", "Once", "--max-tokens", 9, "--seed", 4, "--stop", "zzz")
    plain = run(*options)
    assert run(*options, "--receipt", path) == plain
    first = path.read_bytes()
    status, out, err = run(*options, "--receipt", path, "--json")
    assert (status, err) == (0, "")
    assert path.read_bytes() == first
    result, without = json.loads(out), json.loads(run(*options, "--json")[1])
    assert set(result) == set(without)
    content = json.loads(first)
    for key in ("text", "tokens", "prompt_tokens", "model_digest", "logits_digest"):
        assert content[key] == result[key] == without[key]
    assert content["sampling"] == {"temperature": 52429, "top_k": 40, "top_p": 65536, "seed": 4}
    assert content["stop"] == ["zzz"]

    status, out, err = run("replay", path, "--model", tiny_file)
    assert (status, err) == (0, "")
    assert out.startswith("valid: ")
    assert content["digest"] in out
    assert run("replay", path, "--model", tiny_file, "--json") == (0, '{"valid": true, "reason": ""}\n', "")

    content["tokens"][2] ^= 1
    path.write_text(json.dumps(content))
    status, out, err = run("replay", path, "--model", tiny_file)
    assert (status, err) == (1, "")
    assert out.startswith("NOT VALID: tokens: token 2 is ")
    status, out, err = run("replay", path, "--model", tiny_file, "--json")
    assert (status, err) == (1, "")
    result = json.loads(out)
    assert set(result) == {"valid", "reason"}
    assert result["valid"] is False


def test_the_model_is_the_users_choice(run: Run) -> None:
    status, out, _ = run("replay", GOLDEN)  # the shipped model by default, whatever the receipt names
    assert status == 1
    assert out.startswith("NOT VALID: model_digest: ")
    assert "tinystories" in out


def test_mistakes(run: Run, tiny_file: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_bytes(GOLDEN.read_bytes()[:100])
    generate = ("generate", "--model", tiny_file, "--prompt", "Once")
    for arguments, word in (
        (("replay",), "FILE"),
        (("replay", broken), "broken.json: not JSON"),
        (("replay", broken, "--json"), "broken.json: not JSON"),
        (("replay", tmp_path / "gone.json"), "gone.json: No such file"),
        (("replay", tmp_path), tmp_path.name),
        (("replay", tiny_file), "not UTF-8"),
        (("replay", GOLDEN, "--model", "gpt-7"), "gpt-7"),
        (("replay", GOLDEN, "--model", broken), "broken.json"),
        ((*generate, "--receipt", tmp_path / "none" / "r.json"), "r.json"),
        ((*generate, "--receipt", tmp_path), tmp_path.name),
        ((*generate, "--receipt", tmp_path / "r.json", "--stop", "x" * 2000), "stop[0]"),
        ((*generate, "--receipt", tmp_path / "r.json", "--stop", os.fsdecode(b"caf\xe9")), "stop[0]"),
    ):
        status, out, err = run(*arguments)
        assert (status, out) == (2, ""), arguments
        assert re.fullmatch(r"mamba-integer: error: [^\n]+\n", err), err
        assert word in err
    assert sorted(tmp_path.iterdir()) == [broken]


def test_errors_are_the_packages_own() -> None:
    assert issubclass(ReceiptError, MambaIntegerError)
