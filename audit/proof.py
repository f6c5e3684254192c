"""Proofs about single events and about two states of the log, checked without the database.

Spec: RFC 6962 2.1.1 (audit paths), 2.1.2 (consistency proofs); RFC 9162 2.1.3.2 and 2.1.4.2 (their verification).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import select
from sqlmodel import Session

from rayhook.audit.checkpoint import Checkpoint, TreeHead
from rayhook.audit.handover import HandOver, stored_hand_overs, trusted_keys
from rayhook.audit.leaf import HASHED, event_hash, stored_leaf
from rayhook.audit.merkle import Frontier, node_hash
from rayhook.audit.models import AUDIT_EVENT, AUDIT_TOMBSTONE
from rayhook.fhir.errors import InvalidRequest, NotFound

_FORM = "rayhook-audit-proof-v1"
_SEALED = tuple(column.name for column in AUDIT_EVENT.columns if column.name.endswith("_sealed"))


@dataclass(frozen=True, slots=True)
class Proof:
    """That `event` (as stored, sealed values in hexadecimal) is number `seq` of the log that `checkpoint` states.

    `since` with `consistency` proves also that this log only grew since an older checkpoint.
    `hand_overs` lead from the pinned key to the one that signed.
    """

    seq: int
    event: dict[str, Any]
    path: tuple[str, ...]
    checkpoint: Checkpoint
    hand_overs: tuple[HandOver, ...] = ()
    since: Checkpoint | None = None
    consistency: tuple[str, ...] = ()

    def to_json(self) -> str:
        return json.dumps({"form": _FORM, **asdict(self)}, sort_keys=True, indent=2)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Proof":
        """Raise InvalidRequest for what is no proof."""
        try:
            content = json.loads(text)
            since = content["since"] if content["form"] == _FORM else content[_FORM]
            return cls(
                seq=content["seq"],
                event=content["event"],
                path=tuple(content["path"]),
                checkpoint=_checkpoint(content["checkpoint"]),
                hand_overs=tuple(HandOver(**one) for one in content["hand_overs"]),
                since=None if since is None else _checkpoint(since),
                consistency=tuple(content["consistency"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InvalidRequest("the file is no proof of this form", code="proof_unreadable") from error

    def problems(self, public_key: Ed25519PublicKey) -> list[str]:
        """Return what does not hold, in words; empty where everything is proved."""
        try:
            return list(self._problems(public_key))
        except (KeyError, TypeError, ValueError):
            return ["the proof is damaged"]

    def _problems(self, public_key: Ed25519PublicKey) -> list[str]:
        found = []
        keys = trusted_keys(public_key, self.hand_overs)
        head = self.checkpoint.tree_head
        if not keys.verifies(head.size, self.checkpoint.is_signed_by):
            found.append("the checkpoint is not signed by the pinned key")
        leaf = event_hash(_raw(self.event))
        if self.event["seq"] != self.seq:
            found.append("the event has another number")
        path = tuple(map(bytes.fromhex, self.path))
        if not is_included(bytes.fromhex(leaf), self.seq - 1, head.size, path, bytes.fromhex(head.root)):
            found.append("the event is not in the tree of the checkpoint")
        if self.since is not None:
            found += self._inconsistencies(keys.verifies(self.since.tree_head.size, self.since.is_signed_by))
        return found

    def _inconsistencies(self, is_signed: bool) -> list[str]:
        assert self.since is not None
        older, newer = self.since.tree_head, self.checkpoint.tree_head
        path = tuple(map(bytes.fromhex, self.consistency))
        roots = bytes.fromhex(older.root), bytes.fromhex(newer.root)
        found = [] if is_signed else ["the older checkpoint is not signed by the pinned key"]
        if not is_consistent(older.size, newer.size, path, *roots):
            found.append("the log was rewritten since the older checkpoint")
        return found


def prove(session: Session, seq: int, checkpoint: Checkpoint, *, since: Checkpoint | None = None) -> Proof:
    """Return the proof of one event under `checkpoint`.

    Raises NotFound for an event that is not there, InvalidRequest for one newer than the checkpoint.
    """
    head = checkpoint.tree_head
    row = session.execute(select(AUDIT_EVENT).where(AUDIT_EVENT.c.seq == seq)).mappings().first()
    if row is None:
        raise NotFound(f"there is no event {seq}; it may have been purged", code="event_not_found")
    if not 1 <= seq <= head.size:
        raise InvalidRequest("no checkpoint covers the event yet", code="event_unsealed", expression="seq")
    leaves = read_leaves(session, head.size)
    consistency = () if since is None else consistency_path(since.tree_head.size, leaves)
    return Proof(
        seq=seq,
        event={name: _told(row[name]) for name in (*HASHED, "hash")},
        path=tuple(node.hex() for node in inclusion_path(seq - 1, leaves)),
        checkpoint=checkpoint,
        hand_overs=tuple(stored_hand_overs(session)),
        since=since,
        consistency=tuple(node.hex() for node in consistency),
    )


def read_leaves(session: Session, size: int) -> list[bytes]:
    """Return the first `size` leaves of the tree, those of purged events among them."""
    events = select(AUDIT_EVENT.c.seq, AUDIT_EVENT.c.hash).where(AUDIT_EVENT.c.seq <= size)
    tombstones = select(AUDIT_TOMBSTONE.c.seq, AUDIT_TOMBSTONE.c.hash).where(AUDIT_TOMBSTONE.c.seq <= size)
    return [stored_leaf(hash_) for _, hash_ in session.execute(events.union(tombstones).order_by("seq"))]


def root_of(leaves: Sequence[bytes]) -> bytes:
    return Frontier().grown(leaves).root()


def inclusion_path(index: int, leaves: Sequence[bytes]) -> tuple[bytes, ...]:
    """Return PATH(index, leaves), the leaf's neighbour first. Spec: RFC 6962 2.1.1."""
    if len(leaves) == 1:
        return ()
    split = _split(len(leaves))
    if index < split:
        return (*inclusion_path(index, leaves[:split]), root_of(leaves[split:]))
    return (*inclusion_path(index - split, leaves[split:]), root_of(leaves[:split]))


def consistency_path(size: int, leaves: Sequence[bytes]) -> tuple[bytes, ...]:
    """Return PROOF(size, leaves). Spec: RFC 6962 2.1.2."""
    if size == 0 or size >= len(leaves):
        return ()
    return _subproof(size, leaves, is_whole=True)


def _subproof(size: int, leaves: Sequence[bytes], *, is_whole: bool) -> tuple[bytes, ...]:
    if size == len(leaves):
        return () if is_whole else (root_of(leaves),)
    split = _split(len(leaves))
    if size <= split:
        return (*_subproof(size, leaves[:split], is_whole=is_whole), root_of(leaves[split:]))
    return (*_subproof(size - split, leaves[split:], is_whole=False), root_of(leaves[:split]))


def is_included(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Spec: RFC 9162 2.1.3.2."""
    if not 0 <= index < size:
        return False
    node, last = index, size - 1
    computed = leaf
    for sibling in path:
        if last == 0:
            return False
        if node & 1 or node == last:
            computed = node_hash(sibling, computed)
            while not node & 1 and node:
                node >>= 1
                last >>= 1
        else:
            computed = node_hash(computed, sibling)
        node >>= 1
        last >>= 1
    return last == 0 and computed == root


def is_consistent(
    older: int, newer: int, path: Sequence[bytes], older_root: bytes, newer_root: bytes
) -> bool:
    """Spec: RFC 9162 2.1.4.2."""
    if older == 0:
        return not path
    if older == newer:
        return not path and older_root == newer_root
    if not 0 < older < newer or not path:
        return False
    steps = [older_root, *path] if older & (older - 1) == 0 else list(path)
    node, last = older - 1, newer - 1
    while node & 1:
        node >>= 1
        last >>= 1
    old = new = steps[0]
    for step in steps[1:]:
        if last == 0:
            return False
        if node & 1 or node == last:
            old, new = node_hash(step, old), node_hash(step, new)
            while not node & 1 and node:
                node >>= 1
                last >>= 1
        else:
            new = node_hash(new, step)
        node >>= 1
        last >>= 1
    return last == 0 and old == older_root and new == newer_root


def _split(size: int) -> int:
    """Return the largest power of two below `size`."""
    return 1 << (size - 1).bit_length() - 1


def _checkpoint(content: dict[str, Any]) -> Checkpoint:
    return Checkpoint(TreeHead(**content["tree_head"]), content["signature"])


def _told(value: object) -> object:
    return value.hex() if isinstance(value, bytes) else value


def _raw(event: dict[str, Any]) -> dict[str, Any]:
    """Return the event as the database has it."""
    return {
        name: bytes.fromhex(value) if name in _SEALED and value is not None else value
        for name, value in event.items()
    }
