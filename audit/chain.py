"""The hash chain of the log, and the check that nobody has touched it.

Every event's hash covers its content and the hash before it; signed checkpoints cover the whole tree. The
verifier trusts neither the database nor a key beside it: the public key and the anchor file come from outside.

Spec: RFC 8785 (canonical JSON), RFC 6962 2.1 (tree), RFC 8032 (Ed25519).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import select
from sqlalchemy.exc import DatabaseError
from sqlmodel import Session

from rayhook.audit.checkpoint import Anchor, Checkpoint, TreeHead, stored_trees
from rayhook.audit.merkle import Frontier, leaf_hash
from rayhook.audit.models import AUDIT_EVENT
from rayhook.auth.keys import Keyring
from rayhook.fhir.errors import ServiceUnavailable

GENESIS: Final = "0" * 64
CHECKPOINT_EVERY: Final = 100
MAC_PURPOSE: Final = "audit_event.mac"
MAX_PROBLEMS: Final = 1000
_MAX_LOOKUPS = 20
_MAX_STEPS = 5
_BATCH = 1000
_HASHED = tuple(column.name for column in AUDIT_EVENT.columns if column.name not in {"hash", "mac"})

Event = Mapping[str, Any]


def event_hash(event: Event) -> str:
    """Return the RFC 6962 leaf hash of the event's canonical JSON, bytes written as hex.

    Names are ASCII and numbers are integers: for these the standard encoder writes what RFC 8785 asks, in a
    quarter of the time (a property test compares them). Raises ValueError for a value that no event has.
    """
    content = {name: _scalar(event[name]) for name in _HASHED}
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return leaf_hash(text.encode()).hex()


def _scalar(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    if value is None or type(value) in {int, str}:
        return value
    raise ValueError(f"an audit event holds no {type(value).__name__}")


class ProblemKind(StrEnum):
    """What a tampered log looks like.

    rehashed: the event has a hash of its own content, which is not the one that its successor follows.
    regrown: the events hang together, but are not those that the checkpoint at `seq` was signed over.
    forged: the event was not written with this installation's keys.
    """

    ANCHOR_DAMAGED = "anchor_damaged"
    ANCHOR_MISSING = "anchor_missing"
    CHECKPOINT_FORGED = "checkpoint_forged"
    CHECKPOINT_MISSING = "checkpoint_missing"
    CLOCK_MOVED_BACK = "clock_moved_back"
    DELETED = "deleted"
    DUPLICATED = "duplicated"
    EDITED = "edited"
    FORGED = "forged"
    INSERTED = "inserted"
    REGROWN = "regrown"
    REHASHED = "rehashed"
    REORDERED = "reordered"
    TRUNCATED = "truncated"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Problem:
    """`seq` is the event's; for a checkpoint its size, for a line of the anchor file its number."""

    seq: int
    kind: ProblemKind


@dataclass(frozen=True, slots=True)
class ChainReport:
    """What `verify` found.

    `sealed_size` events lie under a signed checkpoint. `problems` end after the first thousand.
    `notes` are oddities of an untouched log, such as a clock that moved back.
    """

    intact: bool
    size: int
    sealed_size: int
    problems: tuple[Problem, ...]
    notes: tuple[Problem, ...] = ()


def verify(
    session: Session, public_key: Ed25519PublicKey, anchor_path: Path, *, keyring: Keyring | None = None
) -> ChainReport:
    """Read the whole log and compare it with its checkpoints in the database and in the anchor file.

    `public_key` is the one that the caller has pinned. With `keyring`, events must also have been written by
    this installation, which leaves only the cutting off of events newer than the last checkpoint unseen.
    """
    problems, tree_heads = _read_checkpoints(session, public_key, Anchor(anchor_path))
    scan = _Scan({(head.size, head.root) for head in tree_heads}, keyring)
    try:
        for event in _events(session):
            scan.take(event)
            if len(scan.problems) >= MAX_PROBLEMS:
                break
        problems += _name_displaced(session, scan)
    except (DatabaseError, ServiceUnavailable):
        problems += [*scan.problems, Problem(scan.size + 1, ProblemKind.UNREADABLE)]
    sealed_size = max((head.size for head in tree_heads), default=0)
    problems += _end_problems(scan.size, sealed_size)
    return ChainReport(
        intact=not problems,
        size=scan.size,
        sealed_size=sealed_size,
        problems=tuple(problems[:MAX_PROBLEMS]),
        notes=tuple(scan.notes[:MAX_PROBLEMS]),
    )


def _events(session: Session) -> Iterator[Event]:
    names = AUDIT_EVENT.columns.keys()
    query = select(AUDIT_EVENT).order_by(AUDIT_EVENT.c.seq)
    for row in session.execute(query, execution_options={"yield_per": _BATCH}):
        yield dict(zip(names, row, strict=True))


def _end_problems(size: int, sealed_size: int) -> list[Problem]:
    if size < sealed_size:
        return [Problem(size + 1, ProblemKind.TRUNCATED)]
    due = size - size % CHECKPOINT_EVERY
    return [Problem(due, ProblemKind.CHECKPOINT_MISSING)] if sealed_size < due else []


def _read_checkpoints(
    session: Session, public_key: Ed25519PublicKey, anchor: Anchor
) -> tuple[list[Problem], set[TreeHead]]:
    """Return what is wrong with the checkpoints, and all statements that are validly signed."""
    stored = stored_trees(session)
    sound = {tree.checkpoint for tree in stored if tree.is_sound(public_key)}
    problems = [
        Problem(tree.checkpoint.tree_head.size, ProblemKind.CHECKPOINT_FORGED)
        for tree in stored
        if tree.checkpoint not in sound
    ]
    anchored, anchor_problems = _read_anchor(anchor, public_key, is_expected=bool(stored))
    missing = sorted(checkpoint.tree_head.size for checkpoint in anchored - sound)
    problems += anchor_problems + [Problem(size, ProblemKind.CHECKPOINT_MISSING) for size in missing]
    return problems, {checkpoint.tree_head for checkpoint in sound | anchored}


def _read_anchor(
    anchor: Anchor, public_key: Ed25519PublicKey, *, is_expected: bool
) -> tuple[set[Checkpoint], list[Problem]]:
    try:
        lines = list(anchor.checkpoints())
    except OSError:
        return set(), [Problem(0, ProblemKind.ANCHOR_MISSING)] if is_expected else []
    sound = {line for line in lines if line is not None and line.is_signed_by(public_key)}
    return sound, [
        Problem(number, ProblemKind.ANCHOR_DAMAGED)
        for number, line in enumerate(lines, start=1)
        if line not in sound
    ]


class _Scan:
    """One reading of the log from its first event to its last."""

    def __init__(self, roots: set[tuple[int, str]], keyring: Keyring | None) -> None:
        self._roots: dict[int, set[str]] = {}
        for size, root in roots:
            self._roots.setdefault(size, set()).add(root)
        self._keyring = keyring
        self._frontier = Frontier()
        self._leaves: list[bytes] = []
        self._last_hash = GENESIS
        self._last_time = ""
        self._sealed = 0
        self._has_regrown = False
        self.size = 0
        self.problems: list[Problem] = []
        self.notes: list[Problem] = []
        self.edited: dict[int, Event] = {}

    def take(self, event: Event) -> None:
        seq = event["seq"]
        if not isinstance(seq, int) or seq <= self.size:
            is_copy = event["hash"] == self._last_hash
            self._report(self.size, ProblemKind.DUPLICATED if is_copy else ProblemKind.INSERTED)
            return
        is_next = seq == self.size + 1
        if not is_next:
            self._report(self.size + 1, ProblemKind.DELETED)
        self._check_content(event, seq, is_linked=not is_next or event["previous_hash"] == self._last_hash)
        self._check_clock(event, seq)
        self._advance(event, seq)

    def _check_content(self, event: Event, seq: int, *, is_linked: bool) -> None:
        if not _is_hashed(event):
            self.edited[len(self.problems)] = event
            self._report(seq, ProblemKind.EDITED)
        elif not is_linked and not self._is_reported(seq - 1):
            self._report(max(seq - 1, 1), ProblemKind.REHASHED)
        if self._keyring is not None and event["mac"] != event_mac(self._keyring, event["hash"]):
            self._report(seq, ProblemKind.FORGED)

    def _check_clock(self, event: Event, seq: int) -> None:
        recorded_at = str(event["recorded_at"])
        if recorded_at < self._last_time:
            self.notes.append(Problem(seq, ProblemKind.CLOCK_MOVED_BACK))
        self._last_time = recorded_at

    def _advance(self, event: Event, seq: int) -> None:
        self.size = seq
        self._last_hash = event["hash"]
        self._leaves.append(stored_leaf(event["hash"]))
        if seq in self._roots:
            self._compare_root(seq)

    def _compare_root(self, size: int) -> None:
        """Report events that hang together but were not signed, where nothing nearer has been reported."""
        self._frontier = self._frontier.grown(self._leaves)
        self._leaves.clear()
        if self._roots[size] != {self._frontier.root().hex()} and not self._has_regrown:
            self._has_regrown = True
            if not any(self._sealed < problem.seq <= size for problem in self.problems):
                self._report(size, ProblemKind.REGROWN)
        self._sealed = size

    def _report(self, seq: int, kind: ProblemKind) -> None:
        self.problems.append(Problem(seq, kind))

    def _is_reported(self, seq: int) -> bool:
        return bool(self.problems) and self.problems[-1].seq >= seq


def event_mac(keyring: Keyring, hash_: str) -> str:
    return keyring.blind_index(hash_, purpose=MAC_PURPOSE)


def _is_hashed(event: Event) -> bool:
    try:
        return bool(event_hash(event) == event["hash"])
    except ValueError:
        return False


def stored_leaf(text: object) -> bytes:
    """Return the stored hash; for one that is none, a leaf that no checkpoint has."""
    try:
        return bytes.fromhex(str(text))
    except ValueError:
        return b""


def _name_displaced(session: Session, scan: _Scan) -> list[Problem]:
    """Return the problems, those events told apart from the edited that are whole but in another's place."""
    problems = list(scan.problems)
    for index, event in list(scan.edited.items())[:_MAX_LOOKUPS]:
        kind = _displacement(session, event)
        if kind is not None:
            problems[index] = Problem(problems[index].seq, kind)
    return problems


def _displacement(session: Session, event: Event) -> ProblemKind | None:
    home = _home(session, event)
    if home is None or not _is_hashed({**event, "seq": home}):
        return None
    query = select(AUDIT_EVENT.c.hash).where(AUDIT_EVENT.c.seq == home)
    is_home = session.execute(query).scalar() == event["hash"]
    return ProblemKind.DUPLICATED if is_home else ProblemKind.REORDERED


def _home(session: Session, event: Event) -> int | None:
    """Return where the event belongs: as far after an event in its right place as the hashes lead back to it."""
    for steps in range(1, _MAX_STEPS + 1):
        if event["previous_hash"] == GENESIS:
            return steps
        query = select(AUDIT_EVENT).where(AUDIT_EVENT.c.hash == event["previous_hash"]).limit(1)
        previous = session.execute(query).mappings().first()
        if previous is None:
            return None
        if _is_hashed(dict(previous)):
            return int(previous["seq"]) + steps
        event = dict(previous)
    return None
