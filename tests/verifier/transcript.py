"""The Fiat-Shamir transcript: SerializingChallenger32 over HashChallenger<u8, Blake3, 32>, and domain separators."""

from __future__ import annotations

from collections.abc import Sequence

import blake3

from .errors import require
from .field import EXT_DEGREE, Ext, P, base_to_bytes, ext_to_bytes


def keccak256(data: bytes, padding: int = 0x01) -> bytes:
    """Keccak-256 with the original padding byte 0x01 (SHA3-256 is the same function with 0x06)."""
    mask = (1 << 64) - 1
    rate = 136
    padded = bytearray(data) + bytes([padding])
    padded += bytes(-len(padded) % rate)
    padded[-1] |= 0x80
    lanes = [[0] * 5 for _ in range(5)]
    for start in range(0, len(padded), rate):
        for i in range(rate // 8):
            lanes[i % 5][i // 5] ^= int.from_bytes(padded[start + 8 * i : start + 8 * i + 8], "little")
        lfsr = 1
        for _ in range(24):
            columns = [c[0] ^ c[1] ^ c[2] ^ c[3] ^ c[4] for c in lanes]
            for x in range(5):
                rotated = columns[(x + 1) % 5]
                d = columns[x - 1] ^ ((rotated << 1 | rotated >> 63) & mask)
                lanes[x] = [lane ^ d for lane in lanes[x]]
            x, y, current = 1, 0, lanes[1][0]
            for t in range(24):
                x, y = y, (2 * x + 3 * y) % 5
                shift = (t + 1) * (t + 2) // 2 % 64
                current, lanes[x][y] = lanes[x][y], (current << shift | current >> (64 - shift)) & mask
            for y in range(5):
                row = [lanes[x][y] for x in range(5)]
                for x in range(5):
                    lanes[x][y] = row[x] ^ (~row[(x + 1) % 5] & mask & row[(x + 2) % 5])
            for j in range(7):
                if lfsr & 1:
                    lanes[0][0] ^= 1 << ((1 << j) - 1)
                lfsr = (lfsr << 1) ^ (0x171 if lfsr & 0x80 else 0)
    return b"".join(lanes[i % 5][i // 5].to_bytes(8, "little") for i in range(4))


class Transcript:
    """The challenger. State: bytes not yet hashed (or the last digest) and the unread rest of the last digest."""

    def __init__(self, label: bytes) -> None:
        self._input = bytearray(label)
        self._output = bytearray()

    def clone(self) -> Transcript:
        """An independent copy."""
        copy = Transcript(bytes(self._input))
        copy._output = bytearray(self._output)
        return copy

    # -- absorbing ------------------------------------------------------------------------------------------------

    def observe_bytes(self, data: bytes) -> None:
        """Append raw bytes; unread output is dropped (only if there is something to append)."""
        if data:
            self._output.clear()
            self._input += data

    def observe_digest(self, digest: bytes) -> None:
        """A Merkle root: its 32 bytes."""
        self.observe_bytes(digest)

    def observe_base(self, value: int) -> None:
        """A base-field element: 4 bytes, Montgomery form, little endian."""
        self.observe_bytes(base_to_bytes(value))

    def observe_ext(self, value: Ext) -> None:
        """An extension element: five base-field elements."""
        self.observe_bytes(ext_to_bytes(value))

    def observe_exts(self, values: Sequence[Ext]) -> None:
        """Extension elements in order, without a length."""
        for value in values:
            self.observe_ext(value)

    # -- sampling -------------------------------------------------------------------------------------------------

    def sample_byte(self) -> int:
        """The last unread byte of the digest; with none left, hash the input: the digest becomes input and output."""
        if not self._output:
            digest = blake3.blake3(bytes(self._input)).digest()
            self._input = bytearray(digest)
            self._output = bytearray(digest)
        return self._output.pop()

    def _sample_u32(self) -> int:
        return int.from_bytes(bytes(self.sample_byte() for _ in range(4)), "little")

    def sample_base(self) -> int:
        """31 bits by rejection; the accepted integer is the canonical (not the Montgomery) value."""
        while True:
            value = self._sample_u32() & 0x7FFFFFFF
            if value < P:
                return value

    def sample_ext(self) -> Ext:
        """Five base-field samples, lowest coefficient first."""
        return Ext([self.sample_base() for _ in range(EXT_DEGREE)])

    def sample_nonzero_ext(self) -> Ext:
        """Extension samples until one is not zero."""
        while True:
            value = self.sample_ext()
            if value != 0:
                return value

    def sample_bits(self, bits: int) -> int:
        """The low bits of four sampled bytes."""
        if not 0 <= bits < 31:
            raise ValueError("bit count out of range")
        return self._sample_u32() & ((1 << bits) - 1)

    def check_witness(self, bits: int, witness: int) -> bool:
        """Grinding: drop one sampled byte, absorb the witness, and the next `bits` bits must be zero. 0 bits: no-op."""
        if bits == 0:
            return True
        self.sample_byte()
        self.observe_base(witness)
        return self.sample_bits(bits) == 0

    def require_witness(self, bits: int, witness: int) -> None:
        """check_witness, or VerificationError."""
        require(self.check_witness(bits, witness), "proof-of-work witness fails")


# -- domain separators (p3_challenger::fs) ------------------------------------------------------------------------

TAG_BASE = f"Algebra({P}^1;{keccak256(b'p3-scalar-basis-v1').hex()})"
TAG_EXT = f"Algebra({P}^{EXT_DEGREE};{keccak256(b'p3-power-basis-v1:X^5+X^2-1').hex()})"


class Pattern:
    """The list of typed steps of a sub-protocol, whose text is hashed into the domain separator."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._depth = 0

    def _step(self, hierarchy: str, kind: str, label: str, length: str, tag: str) -> Pattern:
        if hierarchy == "End":
            self._depth -= 1
        self._lines.append("  " * self._depth + f"{hierarchy} {kind} {len(label)} {label} {length} {tag}")
        if hierarchy == "Begin":
            self._depth += 1
        return self

    def message_ext(self, label: str, count: int | None = None) -> Pattern:
        """A prover message of extension elements: one (None) or a fixed-length list."""
        return self._step("Atomic", "Message", label, "Scalar" if count is None else f"Fixed({count})", TAG_EXT)

    def message_opaque(self, label: str) -> Pattern:
        """A commitment."""
        return self._step("Atomic", "Message", label, "Scalar", "Opaque")

    def challenge_ext(self, label: str, count: int | None = None) -> Pattern:
        """An extension-field challenge."""
        return self._step("Atomic", "Challenge", label, "Scalar" if count is None else f"Fixed({count})", TAG_EXT)

    def challenge_uniform_bits(self, label: str, width: int, count: int) -> Pattern:
        """A list of query indices."""
        return self._step("Atomic", "Challenge", label, f"Fixed({count})", f"UniformBits({width})")

    def pow(self, label: str, bits: int) -> Pattern:
        """A grinding step; absent when bits is 0."""
        return self._step("Atomic", "Pow", label, f"Fixed({bits})", TAG_BASE) if bits else self

    def begin(self, label: str) -> Pattern:
        """Open a bracket."""
        return self._step("Begin", "Protocol", label, "None", "Marker")

    def end(self, label: str) -> Pattern:
        """Close a bracket."""
        return self._step("End", "Protocol", label, "None", "Marker")

    def render(self) -> str:
        """The text that is hashed."""
        count = len(self._lines)
        width = len(str(max(count - 1, 0)))
        header = f"Plonky3 Fiat-Shamir Transcript ({count} interactions)\n"
        return header + "".join(f"{i:0{width}d} {line}\n" for i, line in enumerate(self._lines))


def u64(value: int) -> bytes:
    """An instance chunk with a number: 8 bytes big endian."""
    return value.to_bytes(8, "big")


def seed_bytes(version: int, name: bytes, pattern: Pattern, instance: Sequence[bytes] = ()) -> bytes:
    """protocol id (64) || Keccak-256 of the pattern text || u32be length of the label || label || 0x80.

    The protocol id is version || name || zeros || length of the name; each instance chunk in the label is preceded by
    its length as u32be.
    """
    protocol_id = bytes([version]) + name + bytes(62 - len(name)) + bytes([len(name)])
    label = b"".join(len(chunk).to_bytes(4, "big") + chunk for chunk in instance)
    digest = keccak256(pattern.render().encode())
    return protocol_id + digest + len(label).to_bytes(4, "big") + label + b"\x80"


def observe_seed(transcript: Transcript, seed: bytes) -> None:
    """Absorb seed bytes as base-field elements (FieldUnit): the byte count, then 3-byte little-endian groups."""
    transcript.observe_base(len(seed))
    for start in range(0, len(seed), 3):
        transcript.observe_base(int.from_bytes(seed[start : start + 3], "little"))


def enter(transcript: Transcript, version: int, name: bytes, pattern: Pattern, instance: Sequence[bytes] = ()) -> None:
    """Begin a sub-protocol: absorb its domain separator."""
    observe_seed(transcript, seed_bytes(version, name, pattern, instance))
