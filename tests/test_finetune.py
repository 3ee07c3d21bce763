"""Instruction tuning: the requests, the rows, and runs."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import instruct as bench
from bench import thread
from mamba_integer import export
from mamba_integer.cli import main
from mamba_integer.engine import Model, find_model
from mamba_integer.errors import ArgumentError, CheckpointError
from mamba_integer.evaluate import document_nats
from mamba_integer.model_file import read_model
from mamba_integer.nn import build_model, fused
from mamba_integer.tokenizer import documents, read_text
from mamba_integer.train import finetune, loop, pretrain
from mamba_integer.train.base import load_base
from mamba_integer.train.checkpoint import CHECKPOINT, load_checkpoint, restore
from mamba_integer.train.data import Document
from mamba_integer.train.instruct import (
    FEATURES,
    ContentWords,
    Examples,
    PackedBatches,
    Pair,
    question,
    read_pairs,
    request_for,
    sentences,
    spelled,
    story_request,
    uses,
)
from mamba_integer.train.parallel import World
from tests.models import ROOT, SAMPLE, TINY_TOKENIZER, VALID
from tests.test_train import CONFIG, files, interrupt_at, quiet  # noqa: F401  (files is a fixture)

STORIES = documents(read_text(SAMPLE))
WORDS = ContentWords(STORIES)
EOT = TINY_TOKENIZER.eot


# ---- requests ------------------------------------------------------------------------------------------------------------------------------------


@given(st.integers(0, len(STORIES) - 1), st.integers(0, 1 << 32))
def test_what_is_asked_for_is_in_the_story(story: int, seed: int) -> None:
    text = STORIES[story]
    pair = request_for(text, WORDS, np.random.default_rng(seed))
    assert pair.answer == text
    *lines, last = pair.request.removesuffix("\n").split("\n")
    assert last == "Story:"
    asked = dict(line.split(": ", 1) for line in lines)
    assert list(asked) == [name for name in ("Words", "Features", "First sentence") if name in asked]
    words = asked["Words"].split(", ") if "Words" in asked else []
    features = asked["Features"].split(", ") if "Features" in asked else []
    assert len(set(words)) == len(words) <= 5
    assert all(uses(text, word) for word in words)
    assert all(FEATURES[name](text) for name in features)
    assert text.startswith(asked.get("First sentence", ""))
    assert pair.request == story_request(words, features, asked.get("First sentence", ""))


def test_content_words_are_no_names_no_common_words_and_no_slips() -> None:
    texts = [
        f"The frog met Anna. {'A pebble, Anna said. ' * (i < 5)}It is {'odd' if i else 'uniqueish'} here."
        for i in range(9)
    ]
    assert ContentWords(texts, common=0, rare=3).words == {"frog", "met", "pebble", "said", "odd"}
    assert ContentWords(texts, common=5, rare=3).words < {"frog", "met", "pebble", "said", "odd"}
    assert "lily" not in WORDS.words
    assert "the" not in WORDS.words


def test_words_are_compared_whole() -> None:
    assert uses("Run, Tom!", "run")
    assert not uses("He was running.", "run")
    assert spelled("Tom's dog didn't") == ["Tom's", "dog", "didn't"]


def test_features_are_what_they_say() -> None:
    assert sentences('"Hi!" he said. They ran.\nThe end') == ['"Hi!"', "he said.", "They ran."]
    assert FEATURES["dialogue"]('"Hi", he said.')
    assert not FEATURES["dialogue"]("He said hi.")
    assert FEATURES["happy ending"]("He cried. They all smiled. The end was near.")
    assert not FEATURES["happy ending"]("They were happy. He was sad. He went home. It rained.")
    assert not FEATURES["happy ending"]("They smiled. But he was sad.")
    assert FEATURES["moral"]("He learned that sharing is good.")
    assert [FEATURES["short"]("a " * 119), FEATURES["short"]("a " * 120)] == [True, False]
    assert [FEATURES["long"]("a " * 219), FEATURES["long"]("a " * 220)] == [False, True]


def test_questions() -> None:
    assert question("What?") == "Instruction: What?\nAnswer:\n"
    assert question("What?", "This.") == "Instruction: What?\nInput: This.\nAnswer:\n"


def test_pairs_are_read(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        '{"instruction": "Say hi", "input": "", "output": "Hi", "source": "x"}\n\n{"instruction": "A", "output": "B"}'
    )
    assert read_pairs(path) == [Pair("Instruction: Say hi\nAnswer:\n", "Hi"), Pair("Instruction: A\nAnswer:\n", "B")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b"[" * 100_000, "not JSON"),
        (b'{"output": "x"}', "'instruction' is missing"),
        (b'{"instruction": "x"}', "'output' is missing"),
        (b'{"instruction": "x", "output": 3}', "'output' is not text"),
        (b'{"instruction": "x", "output": " "}', "'output' is empty"),
        (b'{"instruction": "x", "output": "y", "input": []}', "'input' is not text"),
        (b'{"instruction": "x", "output": "<|endoftext|>"}', "'output' contains"),
        (b'{"instruction": "x\\ud800", "output": "y"}', "'instruction' is not valid Unicode"),
        (b"\xff\xfe{}", "not UTF-8"),
    ],
)
def test_bad_pairs_are_named_by_file_and_line(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b'{"instruction": "a", "output": "b"}\n' + line + b"\n")
    with pytest.raises(ArgumentError, match=r"pairs\.jsonl:2: ") as error:
        read_pairs(path)
    assert message in str(error.value)


def test_no_pairs(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ArgumentError, match="holds no instruction"):
        read_pairs(tmp_path / "empty")
    with pytest.raises(ArgumentError, match="none: No such file"):
        read_pairs(tmp_path / "none")


# ---- examples and rows ---------------------------------------------------------------------------------------------------------------------------


def test_examples_are_a_function_of_seed_and_index() -> None:
    def make(seed: int) -> Examples:
        return Examples(STORIES[:30], TINY_TOKENIZER, seed, plain=0.3, pairs=[Pair("Q\n", "A")], other=0.2, words=WORDS)

    examples = make(1)
    forward = [examples[i] for i in range(90)]
    again = make(1)
    assert [again[i] for i in reversed(range(90))] == forward[::-1]
    assert [make(2)[i] for i in range(5)] != forward[:5]
    for i, document in enumerate(forward):
        pair = examples.pair(i)
        assert TINY_TOKENIZER.decode(document.tokens[: document.prompt]) == pair.request
        assert TINY_TOKENIZER.decode(document.tokens[document.prompt :]) == pair.answer
    kinds = [examples.pair(i).request[:1] for i in range(900)]
    assert 0.15 < kinds.count("Q") / 900 < 0.25
    assert 0.19 < kinds.count("") / 900 < 0.29  # 0.3 of the other 0.8


def test_what_a_request_names_is_marked_where_the_story_first_uses_it() -> None:
    examples, marked = Examples(STORIES, TINY_TOKENIZER, 3, words=WORDS), 0
    for i in range(200):
        pair, document = examples.pair(i), examples[i]
        assert all(j >= document.prompt for j in document.wanted)
        words = re.findall(r"\w+", pair.answer)
        for word in pair.words:
            # A run of marked tokens decodes to the word, a space before it and whatever else its first and last token hold.
            at = next(m.start() for m in re.finditer(r"\w+", pair.answer) if m.group() == word)
            tokens = document.tokens[document.prompt :]
            ends = np.cumsum([len(TINY_TOKENIZER.decode_bytes([t])) for t in tokens])
            first = int(np.searchsorted(ends, len(pair.answer[:at].encode()), side="right"))
            last = int(np.searchsorted(ends, len(pair.answer[: at + len(word)].encode()), side="left"))
            assert set(range(first, last + 1)) <= {j - document.prompt for j in document.wanted}
            assert word in words
            marked += 1
        assert (not pair.words) == (not document.wanted)
    assert marked > 200


def test_what_a_request_names_weighs_more() -> None:
    """Also where the end of a row cuts it off."""
    examples = [Document([1, 2, 3, 4, 5, 6], 2, (3, 5)), Document([7] * 20, 1, (4, 19))]
    batches = PackedBatches(lambda i: examples[i % 2], 0, 1, 10, wanted=8.0)
    assert batches[0][1].tolist() == [[0, 0, 1, 8, 1, 8, 1, 0, 0, 0]]
    assert batches[1][1].tolist() == [[0, 1, 1, 1, 8, 1, 1, 1, 1, 1]]


def test_every_story_has_its_turn_in_an_epoch() -> None:
    examples = Examples(STORIES[:30], TINY_TOKENIZER, 0, words=WORDS)
    for epoch in range(2):
        assert {examples.pair(30 * epoch + i).answer for i in range(30)} == set(STORIES[:30])
    assert [examples.pair(i).answer for i in range(30)] != [examples.pair(30 + i).answer for i in range(30)]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=30), st.integers(20, 60))
def test_rows_hold_whole_examples_and_weigh_answers_alone(sizes: list[tuple[int, int]], length: int) -> None:
    """Ids: 2i for the request of example i, 2i + 1 for its answer, so that a row says where each of its tokens comes from."""
    eot = 1 << 20

    def example(index: int) -> Document:
        prompt, answer = sizes[index % len(sizes)]
        return Document([2 * index] * prompt + [2 * index + 1] * answer, prompt)

    if all(prompt >= length for prompt, _ in sizes):
        with pytest.raises(ArgumentError, match="no request fits"):
            PackedBatches(example, eot, 2, length)
        return
    batches = PackedBatches(example, eot, 2, length)
    seen: list[int] = []
    for step in range(6):
        tokens, weights = batches[step]
        assert tokens.shape == (2, length + 1)
        assert weights.shape == (2, length)
        for row, weight in zip(tokens.tolist(), weights.tolist(), strict=True):
            assert row[0] == eot
            at, expected = 0, [0.0] * length
            while at < length and row[at + 1] != eot:
                index = row[at + 1] // 2
                document = example(index)
                n = len(document.tokens)
                room = length - at
                assert row[at + 1 : at + 1 + n] == document.tokens[:room], (
                    "the example, whole or up to the end of the row"
                )
                assert n < room or at == 0, "only the first of a row may be cut"
                expected[at + document.prompt : at + n + 1] = [1.0] * len(expected[at + document.prompt : at + n + 1])
                seen.append(index)
                at += n + 1
            if all(p + a for p, a in sizes):  # an empty example cannot be told from padding here
                assert weight == expected
    assert len(set(seen)) == len(seen), "no example twice"
    again = PackedBatches(example, eot, 2, length)
    for step in (5, 2, 3):
        assert all(
            np.array_equal(a, b) for a, b in zip(again[step], PackedBatches(example, eot, 2, length)[step], strict=True)
        )


# ---- runs ----------------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tuning(files: pretrain.TrainConfig, tmp_path: Path) -> finetune.FinetuneConfig:  # noqa: F811
    """Settings that start from a small trained run."""
    pretrain.train(CONFIG, files, tmp_path / "base", quiet)
    (tmp_path / "pairs.jsonl").write_text('{"instruction": "Who?", "output": "The dog."}\n')
    return finetune.FinetuneConfig(
        base=str(tmp_path / "base"), data=files.data, valid=files.valid, instructions=str(tmp_path / "pairs.jsonl"),
        context=64, tokens=12 * 2 * 64, batch=2, warmup=2, log_every=3, valid_every=5, valid_documents=3, threads=1,
    )  # fmt: skip


def test_a_resumed_run_equals_an_uninterrupted_one(tuning: finetune.FinetuneConfig, tmp_path: Path) -> None:
    whole = finetune.finetune(tuning, tmp_path / "whole", quiet)
    stopped = finetune.finetune(tuning, tmp_path / "parts", interrupt_at(6))  # type: ignore[arg-type]
    assert stopped == {"complete": False, "step": 6}
    resumed = finetune.finetune(tuning, tmp_path / "parts", quiet)
    a, _ = load_checkpoint(tmp_path / "whole" / CHECKPOINT)
    b, _ = load_checkpoint(tmp_path / "parts" / CHECKPOINT)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert whole["answer_nats_per_token"] == resumed["answer_nats_per_token"]
    base, _ = load_checkpoint(tmp_path / "base" / CHECKPOINT)
    assert not torch.equal(a["model.embedding"], base["model.embedding"])
    lines = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "valid_answer_loss" in line] == [5, 10, 12]


def test_tuning_starts_from_the_base_and_ends_in_a_model_file(tuning: finetune.FinetuneConfig, tmp_path: Path) -> None:
    """Of one step with no learning rate to speak of, the base is left."""
    still = dataclasses.replace(tuning, tokens=128, lr=1e-12)
    summary = finetune.finetune(still, tmp_path / "still", quiet)
    base = json.loads((tmp_path / "base" / "summary.json").read_text())
    assert summary["nats_per_token"] == pytest.approx(base["nats_per_token"], abs=1e-5)
    finetune.finetune(dataclasses.replace(tuning, lr=1e-2, tokens=40 * 128), tmp_path / "run", quiet)
    model = export.export(tmp_path / "run", tmp_path / "tuned.gguf", "tuned")
    assert model.config.context_length == 64
    assert Model.load(tmp_path / "tuned.gguf").generate("Words: dog\nStory:\n", max_tokens=5).finish()


def test_tuning_teaches_requests(tuning: finetune.FinetuneConfig, tmp_path: Path) -> None:
    summary = finetune.finetune(dataclasses.replace(tuning, lr=1e-2, tokens=80 * 128), tmp_path / "run", quiet)
    assert summary["answer_nats_per_token"] < 1.5
    untuned = finetune.finetune(dataclasses.replace(tuning, lr=1e-12, tokens=128), tmp_path / "still", quiet)
    assert summary["answer_nats_per_token"] < untuned["answer_nats_per_token"] - 0.5


def test_two_processes_tune_as_one(
    tuning: finetune.FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tolerance is that of tests/test_parallel.py, and so is what is done about products in bfloat16."""
    monkeypatch.setattr(fused, "_BFLOAT16_PRODUCTS", False)
    monkeypatch.setenv("MAMBA_INTEGER_TRAIN_PRODUCTS", "float32")
    one = finetune.finetune(tuning, tmp_path / "one", quiet)
    named = {
        k.replace("_", "-"): getattr(tuning, k) for k in tuning.__dataclass_fields__ if k not in ("base", "arithmetic")
    }
    options = [
        text
        for k, v in {"run-dir": tmp_path / "two", "from": tuning.base, **named}.items()
        for text in (f"--{k}", str(v))
    ]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "mamba_integer.train", "finetune", *options, "--json"],
        cwd=ROOT, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    two = json.loads(done.stdout)
    for name in ("nats_per_token", "answer_nats_per_token"):
        assert two[name] == pytest.approx(one[name], abs=1e-3)


def test_a_run_of_another_base_or_verb_is_not_resumed(
    tuning: finetune.FinetuneConfig,
    files: pretrain.TrainConfig,  # noqa: F811
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    finetune.finetune(dataclasses.replace(tuning, tokens=128), run, quiet)
    pretrain.train(CONFIG, dataclasses.replace(files, seed=1, tokens=64), tmp_path / "other", quiet)
    with pytest.raises(CheckpointError, match="another task"):
        finetune.finetune(dataclasses.replace(tuning, base=str(tmp_path / "other")), run, quiet)
    with pytest.raises(CheckpointError, match="another task"):
        pretrain.train(dataclasses.replace(CONFIG, context_length=64), files, run, quiet)
    with pytest.raises(ArgumentError, match="another directory"):
        finetune.finetune(tuning, tmp_path / "base", quiet)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--from", "missing"), "missing"),
        (("--from", "missing.gguf"), "missing.gguf"),
        (("--data", "missing.txt"), "missing.txt"),
        (("--instructions", "missing.jsonl"), "missing.jsonl"),
        (("--plain", "1.5"), "--plain must be from 0 to 1"),
        (("--context", "0"), "--context must be at least 1"),
    ],
)
def test_bad_input_is_one_line(
    tuning: finetune.FinetuneConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: tuple[str, str],
    message: str,
) -> None:
    given_ = {"--from": tuning.base, "--data": tuning.data, "--valid": tuning.valid, "--run": str(tmp_path / "run")}
    arguments = [text for option in {**given_, change[0]: change[1]}.items() for text in option]
    assert main(["finetune", *arguments]) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("mamba-integer: error: ")
    assert message in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["tinystories", "tinystories-ternary"])
def test_a_model_file_can_be_tuned(name: str) -> None:
    """What training starts from has the loss of the file, and exported at once it is the same model: ternary to the bit, int8 but for the rounding of a
    few rows."""
    path = find_model(name)
    model, base = read_model(path), load_base(path)
    net = build_model(base.config)
    restore(base.state, net)
    texts = documents(read_text(VALID))[:4]
    items = [Document(ids) for ids in base.tokenizer.encode_batch(texts)]
    engine = Model.load(path)
    nats = sum(document_nats(engine, item.tokens) for item in items) / sum(len(item.tokens) + 1 for item in items)
    exact = model.config.weights == "ternary"
    assert loop.validate(net, items, base.tokenizer.eot, World()) == pytest.approx(nats, rel=1e-6 if exact else 0.002)
    exported = export.export_state(dict(net.state_dict()), model.config, base.tokenizer, "again", {})
    if exact:
        assert exported.in_proj_shift == model.in_proj_shift
        assert exported.out_proj_shift == model.out_proj_shift
        assert all(np.array_equal(exported.tensors[k], v) for k, v in model.tensors.items())
    again = export.import_state(exported)
    for name, value in export.import_state(model).items():
        step = value.abs().amax(-1, keepdim=True) / 127 if name.endswith("_proj") else torch.zeros(())
        assert ((again[name] - value).abs() <= 0.51 * step).all(), name


# ---- the bench -----------------------------------------------------------------------------------------------------------------------------------


def test_the_bench_counts_stories_and_not_echoes() -> None:
    assert bench.counted("Words: cat, dog\nOnce a cat ran.") == "Once a cat ran."
    assert bench.rate(["a cat", "a dog"], [["cat", "dog"], ["dog", "a"]]) == {"words_used": 0.75, "all_used": 0.5}
    requests = bench.held_out_requests(STORIES, WORDS, 20, seed=0)
    assert requests == bench.held_out_requests(STORIES, WORDS, 20, seed=0)
    assert all(len(set(words)) == 3 and set(words) <= WORDS.words for words in requests)
    assert all(any(all(uses(story, w) for w in words) for story in STORIES) for words in requests)


def test_the_bench_knows_names_and_follows_them() -> None:
    texts = ["One day, Tom and Ann ran, and Tom saw a Cat with Ann."] * 3 + [
        "The cat sat, and the cat ate, and I saw Bob."
    ]
    assert thread.names_of(texts) == {"Tom", "Ann"}, "Cat is small at times, Bob is in one text, I is none"
    names = frozenset({"Tom", "Ann", "Sue"})
    prompts = ["Tom and Ann found a pebble."] * 2
    told = [
        ["They ran ", "and ran. ", "Tom saw the pebble."],
        ["Sue came. ", "It was Sue. ", "Sue saw a kite and Ann."],
    ]
    rare = ContentWords(["pebble kite"] * 3, common=0)
    found = thread.measures(prompts, told, [True, False], names, rare)
    ratios = {"names_kept": 0.5, "strangers": 0.0, "things_kept": 0.5, "repeated": 0.0, "ended": 0.5}
    assert found == {measure: (ratio, 0.0) for measure, ratio in ratios.items()}, "one story has no spread"
    prompts[1] = "Tom and Ann found their pebble."
    found = thread.measures(prompts, told, [True, False], names, rare)
    half = round(0.5**1.5, 4)  # the standard error of one of two
    errors = {"names_kept": 0.0, "strangers": 0.0, "things_kept": half, "repeated": 0.0, "ended": half}
    assert found == {measure: (ratio, errors[measure]) for measure, ratio in ratios.items()}
    told[1] = ["They ran ", "and ran and ", "ran and ran and ran. Sue came."]
    found = thread.measures(prompts, told, [True, True], names, rare)
    assert [found[measure][0] for measure in ("names_kept", "strangers", "ended")] == [0.25, 0.5, 1.0]
    assert found["repeated"][0] == round(4 / 14, 4), (
        "5 runs of the first, 9 of the second, of which two stand there three times"
    )
