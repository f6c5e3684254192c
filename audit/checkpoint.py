"""Signed statements of how long the log was, and the file outside the database that keeps them."""

import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import Row, insert, select
from sqlmodel import Session

from rayhook.audit.merkle import Frontier
from rayhook.audit.models import AUDIT_CHECKPOINT

_CONTEXT = "rayhook-audit-checkpoint-v1"
_LAST_BYTES = 4096
_PRINTED = "rayhook-audit "


@dataclass(frozen=True, slots=True)
class TreeHead:
    """At `signed_at` the log had `size` events, the last with hash `head`, under the tree hash `root`."""

    size: int
    root: str
    head: str
    signed_at: str

    def statement(self) -> bytes:
        """Return the bytes to sign. Spec: RFC 8785."""
        return rfc8785.dumps({"context": _CONTEXT, **asdict(self)})


@dataclass(frozen=True, slots=True)
class Checkpoint:
    tree_head: TreeHead
    signature: str

    def is_signed_by(self, key: Ed25519PublicKey) -> bool:
        try:
            key.verify(bytes.fromhex(self.signature), self.tree_head.statement())
        except (InvalidSignature, TypeError, ValueError, rfc8785.CanonicalizationError):
            return False
        return True


@dataclass(frozen=True, slots=True)
class SealedTree:
    """A checkpoint as the database keeps it: with the tree's right edge, to grow on from."""

    checkpoint: Checkpoint
    frontier: Frontier

    def is_sound(self, key: Ed25519PublicKey) -> bool:
        head = self.checkpoint.tree_head
        return (
            self.checkpoint.is_signed_by(key)
            and self.frontier.size == head.size
            and self.frontier.root().hex() == head.root
        )

    def store(self, session: Session) -> None:
        values = {
            **asdict(self.checkpoint.tree_head),
            "frontier": " ".join(subtree.hex() for subtree in self.frontier.subtrees),
            "signature": self.checkpoint.signature,
        }
        session.execute(insert(AUDIT_CHECKPOINT).values(values))


def stored_trees(session: Session) -> list[SealedTree]:
    """Return all checkpoints in the database, the oldest first."""
    query = select(AUDIT_CHECKPOINT).order_by(AUDIT_CHECKPOINT.c.id)
    return [_tree_of(row) for row in session.execute(query)]


def latest_tree(session: Session) -> SealedTree | None:
    query = select(AUDIT_CHECKPOINT).order_by(AUDIT_CHECKPOINT.c.id.desc()).limit(1)
    row = session.execute(query).first()
    return None if row is None else _tree_of(row)


def _tree_of(row: Row[Any]) -> SealedTree:
    tree_head = TreeHead(size=row.size, root=row.root, head=row.head, signed_at=row.signed_at)
    return SealedTree(Checkpoint(tree_head, row.signature), _frontier(row.size, row.frontier))


def _frontier(size: int, text: str) -> Frontier:
    try:
        return Frontier(size, tuple(map(bytes.fromhex, text.split())))
    except ValueError:
        return Frontier()


class Witness(Protocol):
    """A place outside the database that keeps statements; None is one that cannot be read.

    Raises OSError where there is nothing.
    """

    def checkpoints(self) -> Iterator[Checkpoint | None]: ...


@dataclass(frozen=True, slots=True)
class Anchor:
    """An append-only file of checkpoints, one JSON object a line.

    It is best kept where whoever may write to the database may not write.
    """

    path: Path

    def append(self, checkpoint: Checkpoint) -> None:
        """Add `checkpoint` durably, unless it is the last line already.

        A last line without its end is the trace of a power cut: it never stated anything and is dropped.
        """
        line = checkpoint_line(checkpoint)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = file.seek(0, os.SEEK_END)
            start = file.seek(max(0, size - _LAST_BYTES))
            tail = file.read()
            whole = tail.rfind(b"\n") + 1
            if tail[:whole].endswith(line):
                return
            file.truncate(start + whole)
            file.seek(0, os.SEEK_END)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def last(self) -> Checkpoint | None:
        """Return what the last whole line states, without reading the others.

        Raises OSError where there is no such file.
        """
        with self.path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_BYTES))
            lines = file.read().split(b"\n")
        return parse_checkpoint(lines[-2]) if len(lines) > 1 else None

    def checkpoints(self) -> Iterator[Checkpoint | None]:
        """Yield what each line states, None for a line that cannot be read.

        Raises OSError where there is no such file.
        """
        *lines, _unfinished = self.path.read_bytes().split(b"\n")
        return map(parse_checkpoint, lines)


def printed(checkpoint: Checkpoint) -> str:
    """Return the statement as one line to print and to file: size, moment, root, last event's hash, signature."""
    head = checkpoint.tree_head
    return f"{_PRINTED}{head.size} {head.signed_at} {head.root} {head.head} {checkpoint.signature}"


def _printed(line: str) -> dict[str, Any]:
    size, signed_at, root, head, signature = line.removeprefix(_PRINTED).split()
    return {"size": int(size), "signed_at": signed_at, "root": root, "head": head, "signature": signature}


def checkpoint_line(checkpoint: Checkpoint) -> bytes:
    content = {**asdict(checkpoint.tree_head), "signature": checkpoint.signature}
    return json.dumps(content, sort_keys=True).encode() + b"\n"


def parse_checkpoint(line: bytes | str) -> Checkpoint | None:
    """Return what a line states, of an anchor or of a printed digest; None for any other."""
    try:
        content = _printed(line) if isinstance(line, str) and line.startswith(_PRINTED) else json.loads(line)
        signature = content.pop("signature")
        return Checkpoint(TreeHead(**content), signature)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
