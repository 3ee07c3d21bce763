"""Do stories keep to a thread? Who and what a story begins with, against whom and what it speaks of towards its end.

    python bench/thread.py --model tinystories --model tinystories-ternary --names tinystories_train.txt [--stories 200] [--times 4] [--json]

A prompt is the beginning of a held-out story, up to the end of the sentence that reaches 30 tokens; a continuation is the 150 tokens after it, or fewer
where the story ends. Its end is its last third. Each prompt is continued several times. Beside the models stands what the held-out stories' writers wrote in
the same places. Behind ± stands the standard error of a ratio over stories (a story's continuations together), of another choice of stories and seeds.

    names kept     of the names in a prompt, those that are mentioned at the end
    strangers      names at the end that no one has mentioned before, a story
    things kept    of the other capital-free, rather rare words of a prompt, those that come again anywhere in the continuation
    repeated       of the runs of four words of a continuation, those that it has had before
    ended          stories that end within the 150 tokens

Names are words that `--names` has within sentences, with a capital nine times of ten. Pronouns are not followed: no writer names everybody all the time,
hence the comparison.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mamba_integer import Model
from mamba_integer.evaluate import ProgressBar
from mamba_integer.tokenizer import Tokenizer, documents, read_text
from mamba_integer.train.instruct import ContentWords

ROOT = Path(__file__).resolve().parents[1]
LEAST, LENGTH = 30, 150  # tokens: of a prompt, of a continuation
RUN = 4  # words


def words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text)


def names_of(texts: Iterable[str]) -> frozenset[str]:
    """Words that stand with a capital, within sentences, nine times of ten, and in at least three texts. "I" is none."""
    capitals: Counter[str] = Counter()
    small: Counter[str] = Counter()
    having: Counter[str] = Counter()
    for text in texts:
        found = re.findall(r"(?<=[a-z,;] )[^\W\d_]+", text)
        capitals.update(w for w in found if w[0].isupper())
        small.update(w.capitalize() for w in found if w[0].islower())
        having.update(set(found))
    return frozenset(w for w, n in capitals.items() if w != "I" and n >= 9 * small[w] and having[w] >= 3)


def prompt_of(story: str, tokenizer: Tokenizer) -> str | None:
    """The sentences of a story that first reach LEAST tokens; None if too little follows them."""
    for end in re.finditer(r"[.!?][\"”']?(?=\s)", story):
        prompt = story[: end.end()]
        if len(tokenizer.encode(prompt)) >= LEAST:
            return prompt if len(tokenizer.encode(story)) >= len(tokenizer.encode(prompt)) + LENGTH else None
    return None


def measures(
    prompts: list[str], continuations: list[list[str]], ended: list[bool], names: frozenset[str], rare: ContentWords
) -> dict[str, tuple[float, float]]:
    """The measures of the module's text, each with its standard error. A continuation is three thirds; one prompt may have several."""
    counts: dict[str, dict[str, np.ndarray]] = {}  # measure -> prompt -> (counted, of how many)

    def count(measure: str, prompt: str, counted: int, of: int) -> None:
        counts.setdefault(measure, {}).setdefault(prompt, np.zeros(2))[:] += counted, of

    for prompt, thirds, whether in zip(prompts, continuations, ended, strict=True):
        begun = set(words(prompt)) & names
        end = set(words(thirds[-1])) & names
        before = set(words(prompt + " " + " ".join(thirds[:-1])))
        whole = "".join(thirds)
        count("names_kept", prompt, len(begun & end), len(begun))
        count("strangers", prompt, len(end - before), 1)
        wanted = set(rare.of(prompt))
        count("things_kept", prompt, len(wanted & set(rare.of(whole))), len(wanted))
        low = words(whole.lower())
        seen = [tuple(low[i : i + RUN]) for i in range(len(low) - RUN + 1)]
        count("repeated", prompt, len(seen) - len(set(seen)), len(seen))
        count("ended", prompt, whether, 1)
    found = {}
    for measure, by_prompt in counts.items():
        counted, of = np.array(list(by_prompt.values())).T
        ratio = counted.sum() / max(of.sum(), 1)
        found[measure] = (
            round(float(ratio), 4),
            round(float(np.sqrt(((counted - ratio * of) ** 2).sum()) / max(of.sum(), 1)), 4),
        )
    return found


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", action="append", help="a shipped name or a file; may be given several times")
    p.add_argument("--data", type=Path, default=ROOT / "data/tinystories_valid.txt", help="held-out stories")
    p.add_argument(
        "--names",
        type=Path,
        default=ROOT / "data/tinystories_sample.txt",
        help="text that says which words are names, and which are rare",
    )
    p.add_argument("--stories", type=int, default=200, help="at most")
    p.add_argument("--times", type=int, default=4, help="continuations of a prompt by each model")
    p.add_argument("--temperature", default="0.8")
    p.add_argument("--top-k", type=int, default=40)
    p.add_argument("--json", action="store_true", help="no table, only the JSON line")
    a = p.parse_args()
    if a.stories < 1 or a.times < 1:
        p.error("--stories and --times are at least 1")
    models = {name: Model.load(name) for name in a.model or ["tinystories"]}
    tokenizer = next(iter(models.values())).tokenizer
    known = documents(read_text(a.names))
    names, rare = names_of(known), ContentWords(known, common=300)
    stories = documents(read_text(a.data))
    chosen = [(s, q) for s in stories if (q := prompt_of(s, tokenizer)) is not None][: a.stories]
    if not chosen:
        p.error(f"{a.data} has no story with {LENGTH} tokens after its first sentences")
    prompts = [q for _, q in chosen]
    bar = ProgressBar("stories", len(models) * len(prompts) * a.times, sys.stderr)

    def thirds(tokens: list[int]) -> list[str]:
        cuts = [round(i * len(tokens) / 3) for i in range(4)]
        return [tokenizer.decode(tokens[i:j]) for i, j in itertools.pairwise(cuts)]

    def told(model: Model) -> dict[str, tuple[float, float]]:
        continuations, ended = [], []
        for seed, prompt in enumerate(prompts * a.times):
            text = model.generate(
                prompt, max_tokens=LENGTH, temperature=a.temperature, top_k=a.top_k, seed=seed
            ).finish()
            tokens = tokenizer.encode(text)
            continuations.append(thirds(tokens))
            ended.append(len(tokens) < LENGTH - 5)  # encoding again may take a few tokens fewer
            bar.advance(1)
        return measures(prompts * a.times, continuations, ended, names, rare)

    written = [tokenizer.encode(story)[len(tokenizer.encode(q)) :] for story, q in chosen]
    rows = {name: told(model) for name, model in models.items()}
    rows["the writers"] = measures(
        prompts, [thirds(t[:LENGTH]) for t in written], [len(t) < LENGTH for t in written], names, rare
    )
    bar.close()
    for name, row in rows.items() if not a.json else ():
        kept, strangers, things, repeated, over = (f"{100 * x:4.1f} ± {100 * error:.1f}" for x, error in row.values())
        print(
            f"{name:<24} names kept {kept} %; strangers {strangers} in a hundred stories; things kept {things} %; repeated {repeated} %; ended {over} %"
        )
    sampling = {"temperature": a.temperature, "top_k": a.top_k, "seeds": "0, 1, 2 …"}
    digests = {name: model.digest for name, model in models.items()}
    print(
        json.dumps(
            {
                "bench": "thread",
                "stories": len(prompts),
                "times": a.times,
                "sampling": sampling,
                "models": digests,
                "measures": rows,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
