"""The hash tree over the log, kept as its right edge so that it grows without being read again.

Spec: RFC 6962 2.1 (Merkle Hash Trees); the prefixes keep a leaf from being taken for a node.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

_LEAF = b"\x00"
_NODE = b"\x01"


def leaf_hash(data: bytes) -> bytes:
    return hashlib.sha256(_LEAF + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(_NODE + left + right).digest()


@dataclass(frozen=True, slots=True)
class Frontier:
    """A tree of `size` leaves: one root per set bit of `size`, the largest subtree first."""

    size: int = 0
    subtrees: tuple[bytes, ...] = ()

    def grown(self, leaves: Iterable[bytes]) -> "Frontier":
        """Return the tree with `leaves` (leaf hashes) added at its right."""
        size, subtrees = self.size, list(self.subtrees)
        for leaf in leaves:
            subtrees.append(leaf)
            # Equal neighbours merge as a binary counter carries: once per trailing one of the old size.
            carry = size
            while carry & 1:
                right = subtrees.pop()
                subtrees[-1] = node_hash(subtrees[-1], right)
                carry >>= 1
            size += 1
        return Frontier(size, tuple(subtrees))

    def root(self) -> bytes:
        if not self.subtrees:
            return hashlib.sha256(b"").digest()
        *rest, root = self.subtrees
        for subtree in reversed(rest):
            root = node_hash(subtree, root)
        return root
