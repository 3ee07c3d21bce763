"""`tokenizer.json`, the file of the Python package tokenizers, read without trust and written. It knows JSON, not how text is encoded."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from mamba_integer.errors import TokenizerError

MAX_BYTES = 1 << 28

# The split of this project's tokenizer (cl100k_base in today's tiktoken), in the regular expressions that the package tokenizers understands: it has no
# possessive quantifiers, and its $ is the end of a line.
PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+\z|\s*[\r\n]|\s+(?!\S)|\s"
)
# The older form, which many files have. It differs in one case: white space at the end of a text with a newline within it is two chunks by it, one
# by ours.
OLDER_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


class Contents(NamedTuple):
    """A byte-level BPE.

    vocabulary: tokens, a character for each byte, and ids, perhaps the special tokens among them; merges in order, each a list of two tokens or a string
    of both with a space between them; special: names and ids; which form of the pattern. `read` does not look into vocabulary and merges: the tokenizer
    does.
    """

    vocabulary: dict[str, int]
    merges: list[list[str] | tuple[str, str] | str]
    special: dict[str, int]
    older_pattern: bool = False


def write(contents: Contents) -> bytes:
    """The contents as a file."""
    vocabulary, merges, special, older_pattern = contents
    added = [
        {
            "id": token,
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for name, token in special.items()
    ]
    split = {
        "type": "Split",
        "pattern": {"Regex": OLDER_PATTERN if older_pattern else PATTERN},
        "behavior": "Isolated",
        "invert": False,
    }
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": dict(sorted((vocabulary | special).items(), key=lambda token: token[1])),
            "merges": merges,
        },
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def read(file: bytes) -> Contents:
    """What `write` was given. Raises TokenizerError for what is not such a file, or would encode in another way than this project's tokenizer."""
    if len(file) > MAX_BYTES:
        raise _not(f"it has more than {MAX_BYTES} bytes")
    try:
        content = json.loads(file)
    except (ValueError, RecursionError) as error:
        raise _not(f"it is not JSON ({type(error).__name__})") from None
    model = _object(_object(content, "the file").get("model"), "model")
    if model.get("type", "BPE") != "BPE":
        raise _not("its model is not BPE")
    for key in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback"):
        if model.get(key):
            raise _not(f"its model has {key}")
    if content.get("normalizer") is not None:
        raise _not("it has a normalizer")
    pattern = _split(content.get("pre_tokenizer"))
    vocabulary = _object(model.get("vocab"), "model.vocab")
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise _not("model.merges is not a list")
    special = _special(content.get("added_tokens", []))
    if model.get("ignore_merges") and len(vocabulary.keys() - special.keys()) - 256 > len(merges):
        # With it, a chunk that is a token is this token even if no merge makes it.
        raise _not("its model has ignore_merges and tokens that no merge makes")
    return Contents(vocabulary, merges, special, pattern == OLDER_PATTERN)


def _not(cause: str) -> TokenizerError:
    return TokenizerError(f"this tokenizer.json is not one that this tokenizer can be: {cause}")


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _not(f"{name} is not an object")
    return value


def _split(value: Any) -> str:
    """The pattern."""
    parts = [value]
    if isinstance(value, dict) and value.get("type") == "Sequence":
        parts = value.get("pretokenizers") or []
    match parts:
        case [
            {"type": "Split", "pattern": {"Regex": str() as pattern}, "behavior": "Isolated", **split},
            {"type": "ByteLevel", "use_regex": False, **level},
        ]:
            if pattern not in (PATTERN, OLDER_PATTERN):
                raise _not("it splits by another pattern than that of GPT-4")
            if split.get("invert") or level.get("add_prefix_space", True):
                raise _not("it inverts the split or adds a space")
            return pattern
        case _:
            raise _not("its pre_tokenizer is not a split by GPT-4's pattern and ByteLevel without one")


def _special(value: Any) -> dict[str, int]:
    if not isinstance(value, list):
        raise _not("added_tokens is not a list")
    special: dict[str, int] = {}
    for token in value:
        added = _object(token, "an added token")
        name, number = added.get("content"), added.get("id")
        if not isinstance(name, str) or not name:
            raise _not("an added token has no content")
        if type(number) is not int or not 0 <= number < 1 << 32:
            raise _not(f"the id of {name!r} is not a number below 2^32")
        for key in ("single_word", "lstrip", "rstrip"):
            if added.get(key):
                raise _not(f"the added token {name!r} has {key}")
        if name in special:
            raise _not(f"the token {name!r} is added twice")
        special[name] = number
    return special
