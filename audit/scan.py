"""One reading of the log from its first event to its last: each event's own hash, its link, the tree over all."""

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

from sqlalchemy import func, select, text
from sqlmodel import Session

from rayhook.audit.leaf import GENESIS, HASHED, Event, event_mac, is_hashed, stored_leaf, values_hash
from rayhook.audit.merkle import Frontier
from rayhook.audit.models import AUDIT_ENTITY, AUDIT_EVENT, AUDIT_TOMBSTONE
from rayhook.audit.report import MAX_PROBLEMS, Problem, ProblemKind
from rayhook.audit.tombstone import Tombstone, tombstones
from rayhook.auth.keys import Keyring

_BATCH = 2000
_MAX_LOOKUPS = 20
_MAX_STEPS = 5
_NAMES = (*HASHED, "hash", "mac")
_SEQ = HASHED.index("seq")
_PREVIOUS = HASHED.index("previous_hash")
_TIME = HASHED.index("recorded_at")
_ENTITIES = HASHED.index("entity_index")
_HASH, _MAC = len(HASHED), len(HASHED) + 1

Row = Sequence[Any]


@dataclass(frozen=True, slots=True)
class Sealed:
    """The signed sizes and roots to compare with, and the purges whose tombstones count as leaves."""

    roots: Mapping[int, frozenset[str]]
    purges: frozenset[int]

    @classmethod
    def of(cls, heads: Iterable[tuple[int, str]], purges: frozenset[int]) -> "Sealed":
        roots: dict[int, set[str]] = {}
        for size, root in heads:
            roots.setdefault(size, set()).add(root)
        return cls({size: frozenset(of_size) for size, of_size in roots.items()}, purges)


def rows(session: Session) -> Iterator[Row]:
    """Yield the columns of every event as the database driver gives them: a million a quarter minute."""
    query = text(f"SELECT {', '.join(_NAMES)} FROM audit_event ORDER BY seq")  # noqa: S608 - our own names
    result = session.connection().execute(query, execution_options={"yield_per": _BATCH})
    for batch in result.partitions():
        yield from batch


class Scan:
    """What has been seen so far; `take` and `take_tombstone` come in the order of the numbers."""

    def __init__(self, sealed: Sealed, keyring: Keyring | None) -> None:
        self._sealed_at = sealed
        self._keyring = keyring
        self._frontier = Frontier()
        self._leaves: list[bytes] = []
        self._last_hash = GENESIS
        self._last_time = ""
        self._sealed = 0
        self._has_differed = False
        self._regrown: tuple[int, Problem] | None = None
        self.size = 0
        self.purged = 0
        self.entities = 0
        self.problems: list[Problem] = []
        self.notes: list[Problem] = []
        self.edited: dict[int, Event] = {}

    def read(self, session: Session) -> None:
        """Go through the whole log, or as far as the first thousand problems."""
        for one in _merged(session):
            if isinstance(one, Tombstone):
                self.take_tombstone(one)
            else:
                self.take(one)
            if len(self.problems) >= MAX_PROBLEMS:
                return
        self._check_entities(session)

    def take_tombstone(self, tombstone: Tombstone) -> None:
        seq = tombstone.seq
        if tombstone.purge_id not in self._sealed_at.purges or seq <= self.size:
            return
        self._report_gap(seq)
        self.purged += 1
        self._advance(seq, tombstone.hash)

    def take(self, row: Row) -> None:
        seq = row[_SEQ]
        if not isinstance(seq, int) or seq <= self.size:
            is_copy = row[_HASH] == self._last_hash
            self._report(self.size, ProblemKind.DUPLICATED if is_copy else ProblemKind.INSERTED)
            return
        is_next = not self._report_gap(seq)
        self._check_content(row, seq, is_linked=not is_next or row[_PREVIOUS] == self._last_hash)
        recorded_at = row[_TIME]
        if recorded_at.__class__ is str:
            if recorded_at < self._last_time:
                self.notes.append(Problem(seq, ProblemKind.CLOCK_MOVED_BACK))
            self._last_time = recorded_at
        if row[_ENTITIES]:
            self.entities += len(set(str(row[_ENTITIES]).split()))
        self._advance(seq, row[_HASH])

    def _report_gap(self, seq: int) -> bool:
        if seq == self.size + 1:
            return False
        self.problems.append(Problem(self.size + 1, ProblemKind.DELETED, last=seq - 1))
        return True

    def _check_content(self, row: Row, seq: int, *, is_linked: bool) -> None:
        if not _is_row_hashed(row):
            self.edited[len(self.problems)] = dict(zip(_NAMES, row, strict=True))
            self._report(seq, ProblemKind.EDITED)
        elif not is_linked and not self._is_reported(seq - 1):
            self._report(max(seq - 1, 1), ProblemKind.REHASHED)
        if self._keyring is not None and row[_MAC] != event_mac(self._keyring, str(row[_HASH])):
            self._report(seq, ProblemKind.FORGED)

    def _advance(self, seq: int, hash_: Any) -> None:
        self.size = seq
        self._last_hash = hash_
        self._leaves.append(stored_leaf(hash_))
        if seq in self._sealed_at.roots:
            self._compare_root(seq)

    def _compare_root(self, size: int) -> None:
        """Report events that hang together but were not signed, where nothing nearer has been reported."""
        self._frontier = self._frontier.grown(self._leaves)
        self._leaves.clear()
        if self._sealed_at.roots[size] != {self._frontier.root().hex()}:
            self._report_regrown(size)
        self._sealed = size

    def _report_regrown(self, size: int) -> None:
        """Once a root differs all later ones do: it is one problem, which reaches to the last of them."""
        if self._regrown is not None:
            index, problem = self._regrown
            self.problems[index] = replace(problem, last=size)
        elif not self._has_differed and not any(
            self._sealed < problem.seq <= size for problem in self.problems
        ):
            problem = Problem(size, ProblemKind.REGROWN, first=self._sealed + 1, last=size)
            self._regrown = len(self.problems), problem
            self.problems.append(problem)
        self._has_differed = True

    def _check_entities(self, session: Session) -> None:
        """The index of entities adds nothing to the log; it must only leave nothing out."""
        missing = text(
            "SELECT seq FROM audit_event WHERE entity_index IS NOT NULL AND seq NOT IN "
            "(SELECT seq FROM audit_entity) ORDER BY seq LIMIT 1000"
        )
        found = list(session.execute(missing).scalars())
        count = session.execute(select(func.count()).select_from(AUDIT_ENTITY)).scalar_one()
        if self.problems:
            found = [seq for seq in found if all(problem.seq != seq for problem in self.problems)]
        elif count < self.entities and not found:
            found = [0]
        self.problems += [Problem(seq, ProblemKind.UNINDEXED) for seq in found]

    def _report(self, seq: int, kind: ProblemKind) -> None:
        self.problems.append(Problem(seq, kind))

    def _is_reported(self, seq: int) -> bool:
        """Tell whether it is known what befell the event; that it was not written here says only by whom."""
        told = (problem for problem in reversed(self.problems) if problem.kind is not ProblemKind.FORGED)
        last = next(told, None)
        return last is not None and last.span[1] >= seq


def _merged(session: Session) -> Iterator[Row | Tombstone]:
    if session.execute(select(AUDIT_TOMBSTONE.c.seq).limit(1)).first() is None:
        return rows(session)
    return (
        one
        for _, _, one in heapq.merge(
            _numbered_rows(session), _numbered_tombstones(session), key=itemgetter(0, 1)
        )
    )


def _numbered_rows(session: Session) -> Iterator[tuple[float, int, Row | Tombstone]]:
    for row in rows(session):
        yield (row[_SEQ] if isinstance(row[_SEQ], int) else float("inf"), 0, row)


def _numbered_tombstones(session: Session) -> Iterator[tuple[float, int, Row | Tombstone]]:
    for tombstone in tombstones(session):
        yield (tombstone.seq, 1, tombstone)


def _is_row_hashed(row: Row) -> bool:
    try:
        return bool(values_hash(row[:_HASH]) == row[_HASH])
    except ValueError:
        return False


def name_displaced(session: Session, scan: Scan) -> list[Problem]:
    """Return the problems, those events told apart from the edited that are whole but in another's place."""
    problems = list(scan.problems)
    for index, event in list(scan.edited.items())[:_MAX_LOOKUPS]:
        kind = _displacement(session, event)
        if kind is not None:
            problems[index] = Problem(problems[index].seq, kind)
    return problems


def _displacement(session: Session, event: Event) -> ProblemKind | None:
    home = _home(session, event)
    if home is None or not is_hashed({**event, "seq": home}):
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
        if is_hashed(dict(previous)):
            return int(previous["seq"]) + steps
        event = dict(previous)
    return None
