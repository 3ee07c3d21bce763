"""Does a model recite its training text? The longest run of words that each sampled story shares with it.

    python bench/parroting.py --data tinystories_train.txt [--model tinystories] [--samples 50] [--json]

Words are compared without case and punctuation. Runs of n words are found by 64-bit hashes, for n = 1, 2, 3 …
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mamba_integer import Model
from mamba_integer.tokenizer import read_text

Hashes = npt.NDArray[np.uint64]
OPENINGS = (
    "Once upon a time",
    "One day",
    "There was a",
    "Lily",
    "The little dog",
    "Tom and Sue",
    "In the forest",
    "A bird",
    "Mom said",
    "It was",
)


def words(text: str) -> list[str]:
    return re.findall(r"\w+(?:'\w+)?", text.lower())


def window_hashes(numbers: Hashes, n: int) -> Hashes:
    """Hash of every run of n words; numbers: a random 64-bit number for each word of a text."""
    total = np.zeros(max(len(numbers) - n + 1, 0), np.uint64)
    for i in range(n if len(total) else 0):
        total = total * np.uint64(0x9E3779B97F4A7C15) + numbers[i : i + len(total)]
    return total


class TrainingText:
    """Knows for each run length, once asked, the sorted hashes of all runs of that length."""

    def __init__(self, numbers: Hashes) -> None:
        self._numbers = numbers
        self._runs: dict[int, Hashes] = {}

    def shares(self, sample: Hashes, n: int) -> bool:
        """Does some run of n words of the sample stand in the training text?"""
        if n not in self._runs:
            self._runs[n] = np.sort(window_hashes(self._numbers, n))
        runs, wanted = self._runs[n], window_hashes(sample, n)
        at = np.minimum(np.searchsorted(runs, wanted), len(runs) - 1)
        return bool((runs[at] == wanted).any())

    def longest_shared_run(self, sample: Hashes) -> int:
        n = 0
        while n < len(sample) and self.shares(sample, n + 1):
            n += 1
        return n


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True, help="the training text")
    p.add_argument("--model", default="tinystories")
    p.add_argument("--samples", type=int, default=50)
    p.add_argument("--max-tokens", type=int, default=250)
    p.add_argument("--temperature", default="0.8")
    p.add_argument("--top-k", type=int, default=40)
    p.add_argument("--json", action="store_true")
    a = p.parse_args()
    model = Model.load(a.model)
    train_words = words(read_text(a.data))
    vocabulary = {w: i for i, w in enumerate(dict.fromkeys(train_words))}
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 1 << 63, len(vocabulary), dtype=np.uint64)
    train = TrainingText(codes[np.array([vocabulary[w] for w in train_words])])
    results = []
    for seed in range(a.samples):
        prompt = OPENINGS[seed % len(OPENINGS)]
        pieces = model.generate(prompt, max_tokens=a.max_tokens, temperature=a.temperature, top_k=a.top_k, seed=seed)
        story = words(prompt + "".join(piece.text for piece in pieces))
        fresh = rng.integers(
            0, 1 << 63, len(story), dtype=np.uint64
        )  # words that the training text lacks match nothing
        sample = np.array([codes[vocabulary[w]] if w in vocabulary else f for w, f in zip(story, fresh, strict=True)])
        run = train.longest_shared_run(sample)
        results.append({"seed": seed, "prompt": prompt, "words": len(story), "longest_shared_run": run})
        if sys.stderr.isatty():
            print(f"\r{seed + 1}/{a.samples}", end="", file=sys.stderr, flush=True)
    runs = np.array([r["longest_shared_run"] for r in results])
    lengths = np.array([r["words"] for r in results])
    summary = {
        "samples": len(runs),
        "words_median": int(np.median(lengths)),
        "longest_run_max": int(runs.max()),
        "longest_run_median": float(np.median(runs)),
        "longest_share_of_a_story": round(float((runs / lengths).max()), 3),
    }
    if a.json:
        print(json.dumps({**summary, "results": results}))
    else:
        print("\n".join(f"{k:>26}  {v}" for k, v in summary.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
