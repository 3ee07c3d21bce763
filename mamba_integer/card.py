"""Cards: the public facts about a model that can prove what it writes, and where they are found (spec/PROTOCOL.md, section 6).

A card holds the model's shape, tokenizer and the root of the commitment to its weights, but no weights. Its commitment, one string, is what a proof is
checked against. Whoever takes a card from someone else believes them that the weights behind it are the model that they mean.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mamba_integer import _native
from mamba_integer.engine import MODEL_SUFFIX, Model, model_folders
from mamba_integer.errors import ArgumentError, ProofError
from mamba_integer.files import write_atomically

CARD_SUFFIX = ".card"
REGISTRATION_SUFFIX = ".registration"
MAX_BYTES = 1 << 26  # of a card
_COMMITMENT = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True)
class Card:
    """A card. `data` is its file, byte for byte. Raises ProofError if it is not a card of this protocol version, or of a model that cannot be proven."""

    data: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.data) > MAX_BYTES:
            raise ProofError(f"card: longer than {MAX_BYTES} bytes")
        _ = self.commitment

    @cached_property
    def commitment(self) -> str:
        """SHA-256 over the card: 64 hexadecimal digits that name model and weights."""
        return _native.read_card(self.data)

    @cached_property
    def content(self) -> dict[str, Any]:
        """The keys of PROTOCOL.md: protocol, spec, name, model_digest, tokenizer, root, shape."""
        content: dict[str, Any] = json.loads(self.data)
        return content

    @property
    def name(self) -> str:
        return str(self.content["name"])

    @property
    def model_digest(self) -> str:
        return str(self.content["model_digest"])

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Card:
        """Reads a card file. Raises ProofError, which names the file."""
        try:
            with Path(path).open("rb") as file:
                return cls(file.read(MAX_BYTES + 1))
        except OSError as error:
            reason = error.strerror or str(error)
        except ProofError as error:
            reason = str(error)
        raise ProofError(f"{os.fspath(path)}: {reason}")

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the file; it appears complete or not at all. Raises ArgumentError when it cannot be written."""
        try:
            write_atomically(path, self.data)
        except OSError as error:
            raise ArgumentError(f"{os.fspath(path)}: {error.strerror or error}") from None


def shipped_cards() -> dict[str, Path]:
    """Names of the shipped models that have a card, and the cards' files."""
    found: dict[str, Path] = {}
    for folder in model_folders():
        for path in sorted(folder.glob(f"*{CARD_SUFFIX}")):
            found.setdefault(path.name.removesuffix(CARD_SUFFIX), path)
    return found


def find_commitment(name: str | os.PathLike[str]) -> str:
    """The commitment of the model that a user names: by a shipped model's name, a card file, a model file beside its card, or the 64 digits themselves.

    Raises ArgumentError when there is no such card, ProofError when it is broken.
    """
    return find_named(name)[0]


def find_named(name: str | os.PathLike[str]) -> tuple[str, Path | None]:
    """As `find_commitment`, with the card's file; None where the user gave the 64 digits."""
    text = os.fspath(name)
    if _COMMITMENT.fullmatch(text):
        return text.lower(), None
    path = Path(text)
    if text.endswith(MODEL_SUFFIX):
        card = path.with_suffix(CARD_SUFFIX)
        if not card.is_file():
            raise ArgumentError(
                f"{text}: a card is needed, not a model file (make one: mamba-integer commit-model {text} -o {card})"
            )
        return _card_of_file(path, card).commitment, card
    if text.endswith(CARD_SUFFIX) or os.sep in text or (os.altsep and os.altsep in text):
        if not path.is_file():
            raise ArgumentError(f"{text}: no such card")
        return Card.read(path).commitment, path
    shipped = shipped_cards()
    if text in shipped:
        return Card.read(shipped[text]).commitment, shipped[text]
    if path.is_file():
        return Card.read(path).commitment, path
    names = ", ".join(shipped) or "none"
    raise ArgumentError(
        f"no card of a model {text!r} (shipped models with a card: {names}; a path names a card, 64 digits a commitment)"
    )


def card_of(model: Model) -> Card | None:
    """The card beside a model's file, if it is there and of this model. Raises ProofError if it is broken."""
    path = model.path.with_suffix(CARD_SUFFIX) if model.path is not None else None
    if path is None or not path.is_file():
        return None
    card = Card.read(path)
    return card if card.model_digest == model.digest else None


def _card_of_file(model: Path, card: Path) -> Card:
    found = card_of(Model.load(model))
    if found is None:
        raise ProofError(f"{card}: it is the card of another model than {model}")
    return found


def known_as(commitment: str) -> list[str]:
    """Names of the shipped models with this commitment."""
    names = []
    for name, path in shipped_cards().items():
        try:
            if Card.read(path).commitment == commitment:
                names.append(name)
        except ProofError:  # a broken card is no model's; `find_commitment` says so to whoever names it
            continue
    return names
