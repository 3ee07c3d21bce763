"""The one exception that a rejected proof raises."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


class VerificationError(Exception):
    """The proof (not the caller) is wrong: malformed bytes, a failed check, or a wrong shape."""


def require(condition: bool, message: str) -> None:
    """Raise VerificationError unless the condition holds."""
    if not condition:
        raise VerificationError(message)


def present(value: T | None, message: str) -> T:
    """The value, or VerificationError if it is missing."""
    if value is None:
        raise VerificationError(message)
    return value
