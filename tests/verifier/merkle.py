"""Pruned binary Merkle multiproofs of one matrix, as MerkleTreeMmcs<.., 2, 32> with cap height 0 checks them."""

from __future__ import annotations

from collections.abc import Sequence

import blake3

from .errors import require


def hash_leaf(row: bytes) -> bytes:
    """BLAKE3 of the row: 4 Montgomery bytes per base-field element (5 elements per extension element)."""
    return blake3.blake3(row).digest()


def compress(left: bytes, right: bytes) -> bytes:
    """BLAKE3(left || right): not separated from leaves, which have another length."""
    return blake3.blake3(left + right).digest()


def verify_multiproof(
    root: bytes, height: int, indices: Sequence[int], rows: Sequence[bytes], siblings: Sequence[bytes]
) -> None:
    """Check rows[i] at indices[i] (repeats allowed, transcript order) of a tree with `height` leaves, a power of two.

    The proof holds exactly the sibling digests that the opened leaves do not determine, level by level from the leaves
    up, and inside a level by ascending node index.
    """
    if height < 1 or height & (height - 1):
        raise ValueError("height is not a power of two")
    require(len(rows) == len(indices), "number of opened rows differs from the number of queries")
    opened: dict[int, bytes] = {}
    for index, row in zip(indices, rows, strict=True):
        require(0 <= index < height, "query index out of range")
        require(opened.setdefault(index, row) == row, "one query index opened to two different rows")
    nodes = {index: hash_leaf(row) for index, row in sorted(opened.items())}
    rest = iter(siblings)
    while nodes and height > 1:
        parents: dict[int, bytes] = {}
        for index in sorted(nodes):
            parent = index // 2
            if parent in parents:
                continue
            sibling = nodes.get(index ^ 1)
            if sibling is None:
                sibling = next(rest, None)
                require(sibling is not None, "Merkle proof has too few digests")
            pair = (nodes[index], sibling) if index % 2 == 0 else (sibling, nodes[index])
            parents[parent] = compress(*pair)
        nodes = parents
        height //= 2
    require(next(rest, None) is None, "Merkle proof has too many digests")
    require(all(digest == root for digest in nodes.values()), "Merkle root does not match")
