#!/usr/bin/env python3
"""Writes how tiktoken splits texts by the pattern of its cl100k_base, for tests/split.rs.

    pip install tiktoken==0.14.0 unicodedata2==16.0.0
    python3 tools/split_golden.py > tests/data/split_golden.txt

A line is a text: its chunks in hexadecimal, between spaces. The texts are chosen and random ones of what the pattern tells apart, and all code
points at which the class of a character changes.

With --every-code-point it writes many more lines, each code point in several places, too many to be kept:

    python3 tools/split_golden.py --every-code-point > /tmp/all.txt
    SPLIT_GOLDEN=/tmp/all.txt cargo test --release --test split
"""

import inspect
import itertools
import random
import re
import sys
from collections.abc import Iterable, Iterator

import tiktoken
import tiktoken_ext.openai_public
from unicode_tables import class_of

# Read from the source, because tiktoken.get_encoding would fetch the vocabulary.
PATTERN = re.search(r'"pat_str": r"""(.*?)"""', inspect.getsource(tiktoken_ext.openai_public.cl100k_base)).group(1)

CHOSEN = [
    "Hello, world! It's 12345 o'clock -- don't panic.\n\n\tOK?",
    "I'll've it'S she'D we'RE you'Ve I'M can'T 'tis 'LLama 'lL'vE'rE 'l 'v 'r '",
    "it'\u017f '\u017fo '\u017f\u017f \u017f' '\u212a",
    "x = {'a': [1, 22, 333, 4444]};\r\n    return x;\r\n\r\n",
    "one two  three   four    ",
    "  leading\n\n\n and\n  trailing \n  ",
    "\n", " \n", "\n ", "\n \n ", " \r\n\t", "\t\tx", "\u00a0x", "\u3000\u3000x", "a\u0085b\u2028c",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002 \u041f\u0440\u0438\u0432\u0435\u0442! \u0645\u0631\u062d\u0628\u0627 \u0967\u0968\u0969\u096a",
    "e\u0301 \u0928\u092e\u0938\u094d\u0924\u0947 \U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "\u00b2\u00bd\u2167\u3289 1\u00b22\u00bd",
    "<|endoftext|> $100.00 #tag @user a_b snake_case camelCase http://x.y/z?q=1&r=2",
    "\x00\x01\x7f\ufeff\ufffd\U0010ffff",
]  # fmt: skip
LETTERS = "aZ'sSdmtTlLvVeErR\u017f\u00e9\u4f60"
SPACES = " \t\n\r\u00a0\u3000"
OTHERS = "'!.$\u0301\U0001f600\x00"
NUMBERS = "17\u00b2\u0967"
RANDOM_TEXTS = 700


def splits(texts: list[str]) -> list[list[bytes]]:
    """The chunks of texts. Every part of every text is a token, so that a token is a chunk."""
    parts = {text[i:j].encode() for text in texts for i in range(len(text)) for j in range(i + 1, len(text) + 1)}
    parts |= {bytes([byte]) for byte in range(256)}
    tokens = sorted(parts)
    ids = {part: i for i, part in enumerate(tokens)}
    encoding = tiktoken.Encoding("parts", pat_str=PATTERN, mergeable_ranks=ids, special_tokens={})
    return [[tokens[token] for token in encoding.encode_ordinary(text)] for text in texts]


def code_points() -> Iterator[int]:
    return (c for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000)


def edges() -> Iterator[str]:
    """Texts that tell the class of the first and the last code point of every run of one class."""
    listed = list(code_points())
    classes = [class_of(c) for c in listed]
    for i, c in enumerate(listed):
        if i in (0, len(listed) - 1) or classes[i] != classes[i - 1] or classes[i] != classes[i + 1]:
            yield f"1{chr(c) * 2}!"


def random_texts() -> Iterator[str]:
    rng = random.Random(0)
    for _ in range(RANDOM_TEXTS):
        groups = rng.choices([LETTERS, SPACES, OTHERS, NUMBERS], k=rng.randint(1, 6))
        yield "".join(rng.choice(group) for group in groups for _ in range(rng.choice([1, 1, 2, 3, 5])))


def everywhere() -> Iterator[str]:
    for c in map(chr, code_points()):
        yield from (f"1{c}{c}!", f"'{c}a", f"'l{c}", f"'{c}e", f" {c}\n ")


def write(texts: Iterable[str], batch: int = 20000) -> None:
    texts = iter(texts)
    while some := list(itertools.islice(texts, batch)):
        for chunks in splits(some):
            print(" ".join(chunk.hex() for chunk in chunks))


if __name__ == "__main__":
    if sys.argv[1:] == ["--every-code-point"]:
        write(everywhere())
    else:
        write(dict.fromkeys([*CHOSEN, *random_texts(), *edges()]))
