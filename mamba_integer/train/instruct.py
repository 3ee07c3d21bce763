"""Requests and answers for instruction tuning, made from stories, and rows that hold them.

A request is plain text, and what is asked for follows its last line:

    Words: happy, tree, run          Instruction: What is the chemical symbol for mercury?
    Features: dialogue               Input: some text that it refers to
    First sentence: Tom had a cat.   Answer:
    Story:

Lines may be left out, but for the last; their order is fixed. A story's words and features are found by counting, without a language model: the words are
in the story and the features are as FEATURES defines them, nothing is guessed. There is no summary among them, as none can be had so.
This module knows nothing of models and needs no PyTorch.
"""

from __future__ import annotations

import bisect
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mamba_integer.errors import ArgumentError
from mamba_integer.tokenizer import END_OF_TEXT, Tokenizer
from mamba_integer.train.data import Batch, Document

_WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)*")
_SENTENCE = re.compile(r'[^\n]*?[.!?]+"?(?=\s|$)')
_SAD = re.compile(r"\b(?:sad|sadly|cried|cry|crying|scared|sorry|angry|lost|lonely|never)\b", re.IGNORECASE)
_HAPPY = re.compile(
    r"\b(?:happy|happily|happier|smiled|smiling|laughed|fun|joy|proud|loved|friends|hugged|safe)\b", re.IGNORECASE
)

# Words of function that are not among the very most frequent; a request for them says nothing about a story.
_FUNCTION = frozenset(
    _WORD.findall("""about after again all along already also although always am and another any anymore anyone anything are around as away because been before
    behind being below beside between both but by can cannot could did do does doing done down each either else enough even ever every everyone
    everything few for from had has have he her here hers herself him himself his how if in inside instead into is it its itself just later let lots
    many may maybe might more most much must my myself near need never next no nor not nothing now off often oh on once one only onto or other others
    our out outside over own quite really same she should since so some someone something soon still such than that the their them themselves then
    there these they thing things this those though through till to together too toward towards until under up upon us very was way we well were what
    when where which while who whole whom whose why will with without would yes yet you your yourself""")
)


def spelled(text: str) -> list[str]:
    """The words of a text as they are written."""
    return _WORD.findall(text)


def uses(text: str, word: str) -> bool:
    """Does the text have the word, in just this form but for capitals?"""
    return word in {w.lower() for w in spelled(text)}


def sentences(text: str) -> list[str]:
    return [s.strip() for s in _SENTENCE.findall(text)]


def _length(least: int, most: int) -> Callable[[str], bool]:
    return lambda story: least <= len(spelled(story)) < most


def _happy_ending(story: str) -> bool:
    end = " ".join(sentences(story)[-2:])
    return bool(_HAPPY.search(end)) and not _SAD.search(end)


# What a request may ask for beside words, and when a story has it. Heuristics, each of which can be said in a line.
FEATURES: dict[str, Callable[[str], bool]] = {
    "dialogue": lambda story: story.count('"') >= 2,  # somebody is quoted
    "happy ending": _happy_ending,  # a glad word and no sad one in the last two sentences
    "moral": lambda story: bool(re.search(r"\b(?:moral|lesson|learned that)\b", story)),
    "short": _length(0, 120),  # words
    "long": _length(220, 1 << 30),
}


def story_request(words: Sequence[str] = (), features: Sequence[str] = (), first_sentence: str = "") -> str:
    """The text of a request for a story."""
    lines = [
        f"Words: {', '.join(words)}\n" if words else "",
        f"Features: {', '.join(features)}\n" if features else "",
        f"First sentence: {first_sentence}\n" if first_sentence else "",
    ]
    return "".join(lines) + "Story:\n"


def question(instruction: str, given: str = "") -> str:
    """The text of any other request."""
    return f"Instruction: {instruction}\n" + (f"Input: {given}\n" if given else "") + "Answer:\n"


class ContentWords:
    """The words that requests ask for: of a band of frequency, in place of knowing nouns, verbs and adjectives.

    Of the words of some texts, by the number of texts that have them: not the `common` most frequent, none that fewer than `rare` texts have (slips and
    odd names), no word of function, none of fewer than three letters, and no names: what is written with a capital more often than not.
    """

    def __init__(self, texts: Iterable[str], common: int = 120, rare: int | None = None) -> None:
        having: Counter[str] = Counter()  # texts that have it
        written: Counter[str] = Counter()  # how often it is written, and how often with a capital
        capitals: Counter[str] = Counter()
        count = 0
        for text in texts:
            found = spelled(text)
            low = [w.lower() for w in found]
            having.update(set(low))
            written.update(low)
            capitals.update(w.lower() for w in found if w[0].isupper())
            count += 1
        if rare is None:
            rare = max(3, count // 2000)
        ranked = sorted(having, key=lambda w: (-having[w], w))
        self.words = frozenset(
            w
            for w in ranked[common:]
            if having[w] >= rare
            and len(w) >= 3
            and "'" not in w
            and 2 * capitals[w] < written[w]
            and w not in _FUNCTION
        )

    def of(self, story: str) -> list[str]:
        """Those that a story has in small letters, each once, in the order of the alphabet."""
        return sorted({w for w in spelled(story) if w in self.words})


@dataclass(frozen=True)
class Pair:
    """A request and its answer, as text, and the words of the answer that the request names."""

    request: str
    answer: str
    words: tuple[str, ...] = ()


def read_pairs(path: str | os.PathLike[str]) -> list[Pair]:
    """Pairs from a JSONL file of objects with `instruction`, `output` and perhaps `input`. Raises ArgumentError naming file and line."""
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise ArgumentError(f"{os.fspath(path)}: {error.strerror or error}") from None
    pairs = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                pairs.append(_pair(line))
            except ValueError as error:
                raise ArgumentError(f"{os.fspath(path)}:{number}: {error}") from None
    if not pairs:
        raise ArgumentError(f"{os.fspath(path)}: holds no instruction")
    return pairs


def _pair(line: bytes) -> Pair:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    values = {"instruction": row.get("instruction"), "input": row.get("input", ""), "output": row.get("output")}
    for name, value in values.items():
        if not isinstance(value, str):
            raise ValueError(f"{name!r} is missing" if value is None else f"{name!r} is not text")
        if name != "input" and not value.strip():
            raise ValueError(f"{name!r} is empty")
        if END_OF_TEXT in value:
            raise ValueError(f"{name!r} contains {END_OF_TEXT}")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name!r} is not valid Unicode") from None
    return Pair(question(values["instruction"], values["input"]), values["output"])


def request_for(story: str, words: ContentWords, rng: np.random.Generator) -> Pair:
    """A request that this story answers: up to five of its words, some of its features, now and then its first sentence."""
    known = words.of(story)
    chosen = [known[i] for i in rng.permutation(len(known))[: rng.integers(1, 6)]] if rng.random() < 0.9 else []
    features = [name for name, has in FEATURES.items() if rng.random() < 0.4 and has(story)]
    first = (sentences(story) or [""])[0] if rng.random() < 0.15 else ""
    return Pair(story_request(chosen, features, first), story, tuple(chosen))


class Examples:
    """Endless tuning examples: `examples[i]` is a function of (seed, i) and the data alone.

    Every epoch goes through the stories in another order and makes other requests of them. A `plain` share of the stories has no request before it, so that
    telling stories unasked is not unlearned; a share `other` of the examples is drawn from `pairs`.
    """

    def __init__(
        self,
        stories: Sequence[str],
        tokenizer: Tokenizer,
        seed: int,
        plain: float = 0.0,
        pairs: Sequence[Pair] = (),
        other: float = 0.0,
        words: ContentWords | None = None,
    ) -> None:
        if not stories:
            raise ArgumentError("there are no stories to make requests of")
        for name, share in (("plain", plain), ("instructions-share", other)):
            if not 0 <= share <= 1:
                raise ArgumentError(f"--{name} must be from 0 to 1, not {share}")
        self.stories, self.tokenizer, self.seed, self.plain = stories, tokenizer, seed, plain
        self.pairs, self.other = pairs, other if pairs else 0.0
        self.words = words or ContentWords(stories)
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    def pair(self, index: int) -> Pair:
        """The text of an example; the request of a plain story is empty."""
        epoch, i = divmod(index, len(self.stories))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(len(self.stories))
        rng = np.random.default_rng((self.seed, 1, index))
        if rng.random() < self.other:
            return self.pairs[int(rng.integers(len(self.pairs)))]
        story = self.stories[self._order[i]]
        return Pair("", story) if rng.random() < self.plain else request_for(story, self.words, rng)

    def __getitem__(self, index: int) -> Document:
        pair = self.pair(index)
        request = self.tokenizer.encode(pair.request)
        answer, spans = self.tokenizer.encode_with_offsets(pair.answer)
        begins = [begin for begin, _ in spans]
        wanted: list[int] = []
        for word in pair.words:
            if found := re.search(rf"\b{word}\b", pair.answer):  # where it is used first
                last = bisect.bisect_left(begins, found.end())
                wanted += range(bisect.bisect_right(begins, found.start()) - 1, last)
        return Document(request + answer, len(request), tuple(len(request) + i for i in wanted))


class PackedBatches:
    """Rows of whole examples, a function of the step alone; only answers and the tokens that end them weigh anything, and what a request asked for by name
    weighs `wanted` times as much as the rest.

    An example begins where a row does or another ends, never cut in front; one longer than a row loses its end. Of some examples at hand the longest that
    fits comes next, so few positions stay empty. A batch follows from all before it: getting one far ahead makes, and drops, those between.
    """

    HAND = 64  # examples at hand

    def __init__(
        self, examples: Callable[[int], Document], eot: int, batch: int, length: int, wanted: float = 1.0
    ) -> None:
        self.examples, self.eot, self.batch, self.length, self.wanted = examples, eot, batch, length, wanted
        self._restart()

    def _restart(self) -> None:
        self._step = 0
        self._coming = self._usable()
        self._hand = [next(self._coming) for _ in range(self.HAND)]

    def _usable(self) -> Iterator[Document]:
        """The examples, without those whose answer would be cut off whole."""
        index, dropped = 0, 0
        while True:
            example = self.examples(index)
            index += 1
            if example.prompt < self.length:
                dropped = 0
                yield example
            elif (dropped := dropped + 1) > 1000:
                raise ArgumentError(f"no request fits into a row of {self.length} tokens; give a longer --context")

    def __getitem__(self, step: int) -> Batch:
        if step < self._step:
            self._restart()
        while True:
            rows = [self._row() for _ in range(self.batch)]
            self._step += 1
            if self._step > step:
                tokens, weights = zip(*rows, strict=True)
                return np.stack(tokens), np.stack(weights)

    def _row(self) -> Batch:
        tokens = np.full(self.length + 1, self.eot, np.int64)
        weights = np.zeros(self.length, np.float32)
        at = 0
        while True:
            room = self.length - at  # an example takes its tokens and the one that begins it
            fitting = [i for i, e in enumerate(self._hand) if len(e.tokens) < room]
            if at == 0:
                chosen = 0  # the one that has waited longest
            elif fitting:
                chosen = max(fitting, key=lambda i: len(self._hand[i].tokens))
            else:
                return tokens, weights
            example = self._hand.pop(chosen)
            self._hand.append(next(self._coming))
            end = min(at + 1 + len(example.tokens), self.length + 1)
            tokens[at + 1 : end] = example.tokens[: end - at - 1]
            weights[at + example.prompt : end] = 1.0
            weights[[at + i for i in example.wanted if at + i < self.length]] = self.wanted
            at = end
            if at >= self.length:
                return tokens, weights
