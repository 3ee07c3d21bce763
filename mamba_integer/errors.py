"""What can go wrong, as exceptions. Messages name the cause and say what was expected."""

from __future__ import annotations


class MambaIntegerError(Exception):
    """Base of every error that this package raises on purpose."""


class ModelFormatError(MambaIntegerError):
    """A model file breaks spec/FORMAT.md, or its weights the bounds of spec/ARITHMETIC.md."""


class TokenizerError(MambaIntegerError):
    """A tokenizer file or a text that the tokenizer refuses."""


class ReceiptError(MambaIntegerError):
    """A receipt breaks spec/FORMAT.md, or cannot hold what was asked for."""


class ProofError(MambaIntegerError):
    """A file that is no proof or no card, or a model or generation that cannot be proven."""


class EncryptedError(MambaIntegerError):
    """A key, a ciphertext or a message of encrypted inference that is not what it should be, or a side that is gone."""


class CheckpointError(MambaIntegerError):
    """A training checkpoint is damaged or belongs to another run."""


class ParallelError(MambaIntegerError):
    """Another process of a training run failed, or has another state than this one."""


class DeviceError(MambaIntegerError):
    """A device other than the CPU, or the library that computes there, is missing or failed."""


class ArgumentError(MambaIntegerError, ValueError):
    """A value that a caller passed is outside its range."""
