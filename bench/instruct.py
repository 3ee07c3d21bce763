"""Does a tuned model do what it is asked? How often stories have the words that a request names, before and after tuning.

    python bench/instruct.py --base tinystories --tuned my-instruct.gguf [--requests 100] [--json]

Requests are made from held-out stories: three words of each, of a band of frequency below that of common words, so that a story seldom has them by chance.
A story is what the model writes after the request, same sampling for all; a line that repeats the request (`Words: …`) is not counted, and a word counts only
in just the form asked for. Four rates stand beside each other:

    tuned, asked          the tuned model's stories, their own request's words
    base, asked           the base model's, given the same request
    tuned, another's      the tuned model's stories, the words of another request: what tuning and the words' frequency give without being asked
    base, unasked         the base model's stories from "Once upon a time": what it writes anyway

and, for features, the share of stories with dialogue when it is asked for and when a request names words alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from mamba_integer import Model
from mamba_integer.evaluate import ProgressBar
from mamba_integer.tokenizer import documents, read_text
from mamba_integer.train.instruct import FEATURES, ContentWords, story_request, uses

ROOT = Path(__file__).resolve().parents[1]
COUNT = 3  # words a request


def held_out_requests(stories: list[str], words: ContentWords, count: int, seed: int) -> list[list[str]]:
    """Words of `count` stories, a function of the seed; stories that have fewer than COUNT words of the band are left out."""
    rng = np.random.default_rng(seed)
    known = [found for story in stories if len(found := words.of(story)) >= COUNT]
    chosen = rng.permutation(len(known))[:count]
    return [[known[i][j] for j in rng.permutation(len(known[i]))[:COUNT]] for i in chosen]


def counted(text: str) -> str:
    """What of a generated text counts as the story."""
    return "\n".join(
        line for line in text.split("\n") if not line.startswith(("Words:", "Features:", "First sentence:"))
    )


def rate(stories: list[str], requests: list[list[str]]) -> dict[str, float]:
    """Share of requested words used, and of stories that use all of theirs."""
    used = np.array([[uses(story, word) for word in words] for story, words in zip(stories, requests, strict=True)])
    return {"words_used": round(float(used.mean()), 4), "all_used": round(float(used.all(1).mean()), 4)}


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--base", default="tinystories", help="model before tuning: a shipped name or a file")
    p.add_argument("--tuned", required=True, help="model after tuning")
    p.add_argument("--data", type=Path, default=ROOT / "data/tinystories_valid.txt", help="held-out stories")
    p.add_argument(
        "--frequencies",
        type=Path,
        default=ROOT / "data/tinystories_sample.txt",
        help="text whose frequencies say which words are common and which are names",
    )
    p.add_argument("--common", type=int, default=300, help="leave out this many of the most frequent words")
    p.add_argument("--requests", type=int, default=100)
    p.add_argument("--max-tokens", type=int, default=250)
    p.add_argument("--temperature", default="0.8")
    p.add_argument("--top-k", type=int, default=40)
    p.add_argument("--json", action="store_true")
    a = p.parse_args()
    base, tuned = Model.load(a.base), Model.load(a.tuned)
    band = ContentWords(documents(read_text(a.frequencies)), common=a.common)
    requests = held_out_requests(documents(read_text(a.data)), band, a.requests, seed=0)
    bar = ProgressBar("stories", 4 * len(requests), sys.stderr)

    def tell(model: Model, prompts: list[str]) -> list[str]:
        stories = []
        for seed, prompt in enumerate(prompts):
            generation = model.generate(
                prompt, max_tokens=a.max_tokens, temperature=a.temperature, top_k=a.top_k, seed=seed
            )
            stories.append(counted(generation.finish()))
            bar.advance(1)
        return stories

    asked = [story_request(words) for words in requests]
    told = tell(tuned, asked)
    by_base = tell(base, asked)
    unasked = tell(base, ["Once upon a time"] * len(requests))
    with_dialogue = tell(tuned, [story_request(words, ["dialogue"]) for words in requests])
    bar.close()
    others = requests[1:] + requests[:1]
    rates = {
        "tuned, asked": rate(told, requests),
        "base, asked": rate(by_base, requests),
        "tuned, another's": rate(told, others),
        "base, unasked": rate(unasked, requests),
    }
    dialogue = {
        "asked": round(float(np.mean([FEATURES["dialogue"](story) for story in with_dialogue])), 4),
        "not asked": round(float(np.mean([FEATURES["dialogue"](story) for story in told])), 4),
    }
    result = {
        "bench": "instruct",
        "requests": len(requests),
        "words_a_request": COUNT,
        "sampling": {"temperature": a.temperature, "top_k": a.top_k, "max_tokens": a.max_tokens, "seeds": "0, 1, 2 …"},
        "base": base.digest,
        "tuned": tuned.digest,
        "rates": rates,
        "dialogue": dialogue,
    }
    if a.json:
        result["stories"] = [
            {"words": w, "tuned": t, "base": b} for w, t, b in zip(requests, told, by_base, strict=True)
        ]
    else:
        for name, values in rates.items():
            print(f"{name:<18} {values['words_used']:6.1%} of the words; {values['all_used']:6.1%} of stories use all")
        print(
            f"{'dialogue':<18} {dialogue['asked']:6.1%} of stories asked for it; {dialogue['not asked']:6.1%} of others"
        )
    print(json.dumps(result, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
