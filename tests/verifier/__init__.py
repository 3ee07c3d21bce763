"""An independent, slow and readable verifier for the Plonky3 0.8.0 sub-protocols that the proof system uses."""

from .errors import VerificationError

__all__ = ["VerificationError"]
