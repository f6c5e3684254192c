"""Sealing anew, while everybody works on, whatever an older key of the keyring has sealed.

A value is replaced only where it is still the one that was read: who wrote meanwhile has won. How far it came is
committed together with each batch, so that a run that was killed goes on where its last batch ended.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog
from sqlalchemy import LargeBinary, bindparam, case, func, literal, select, update
from sqlalchemy.exc import ProgrammingError
from sqlmodel import Session

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.auth.data_key import MARK
from rayhook.auth.database_types import Sessions
from rayhook.auth.encryption import PREFIX_BYTES, key_of, key_prefix
from rayhook.auth.key_tables import KeyRotationRow
from rayhook.auth.keys import Keyring
from rayhook.deploy.key_use import note_uses
from rayhook.deploy.sealed_columns import SEALED_COLUMNS, SealedColumn
from rayhook.fhir.errors import Forbidden, RayhookError, ServiceUnavailable

BATCH: Final = 500
ROWS_PER_S: Final = 2000.0

_MOST_PASSES: Final = 5
_PAUSES_S: Final = (0.5, 2.0, 8.0)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ColumnNeed:
    """How many values of a column need each key of the keyring, by its id; `data_keys`: those under a data key.

    `unknown`: by none of the two; they cannot be read by anybody.
    """

    column: SealedColumn
    keys: dict[int, int]
    data_keys: int = 0
    unknown: int = 0

    def under(self, key_id: int) -> int:
        return self.keys.get(key_id, 0)


@dataclass(frozen=True, slots=True)
class Done:
    """What one run came to. `refused` values could not be opened and are left as they are."""

    rewritten: int = 0
    refused: int = 0
    left: int = 0

    def __add__(self, other: "Done") -> "Done":
        return Done(self.rewritten + other.rewritten, self.refused + other.refused, self.left + other.left)


@dataclass(frozen=True, slots=True)
class _Batch:
    read: int
    rewritten: int
    refused: int


def needs(
    session: Session, known: Iterable[int], columns: Sequence[SealedColumn] = SEALED_COLUMNS
) -> list[ColumnNeed]:
    """Read the first bytes of every sealed value, and count which key each needs."""
    _take_time(session)
    keys = frozenset(known)
    return [_need(session, column, keys) for column in columns]


@dataclass(frozen=True, slots=True)
class Reencryption:
    """`rows_per_s` is how many values are sealed anew in a second at most, so that others have their turn."""

    sessions: Sessions
    keyring: Keyring
    audit: AuditLog
    agent: str
    batch: int = BATCH
    rows_per_s: float = ROWS_PER_S
    columns: Sequence[SealedColumn] = SEALED_COLUMNS
    clock: Callable[[], float] = time.time

    def run(self, told: Callable[[SealedColumn, int], None] = lambda _column, _rows: None) -> Done:
        """Seal everything anew that an older key of the keyring has sealed, except for what is hashed.

        told: the column, and how many of its values the last batch has rewritten.
        """
        target = self.keyring.sealing_key
        older = self.keyring.opening_keys - {target}
        done = Done()
        for column in self.columns:
            if not column.is_hashed and older:
                done += self._column(column, target, older, told)
        return done

    def _column(
        self,
        column: SealedColumn,
        target: int,
        older: frozenset[int],
        told: Callable[[SealedColumn, int], None],
    ) -> Done:
        """Go through the column until none is left: a process may have written with the old key meanwhile."""
        rewritten = refused = left = 0
        for _ in range(_MOST_PASSES):
            refused = 0
            for batch in self._batches(column, target, older):
                rewritten, refused = rewritten + batch.rewritten, refused + batch.refused
                told(column, batch.rewritten)
            left = self._end_of_pass(column, older, refused)
            if left <= refused:
                break
        return Done(rewritten, refused, left)

    def _batches(self, column: SealedColumn, target: int, older: frozenset[int]) -> Iterator[_Batch]:
        while True:
            begun = time.monotonic()
            batch = self._patiently(column, target, older)
            yield batch
            if batch.read < self.batch:
                return
            time.sleep(max(0.0, batch.read / self.rows_per_s - (time.monotonic() - begun)))

    def _patiently(self, column: SealedColumn, target: int, older: frozenset[int]) -> _Batch:
        """Do one batch; again, if the database chose it as the one to give way, or was away for a moment."""
        for pause_s in _PAUSES_S:
            try:
                return self._committed(column, target, older)
            except ServiceUnavailable as error:
                log.warning("reencryption_waits", column=str(column), code=error.code)
                time.sleep(pause_s)
        return self._committed(column, target, older)

    def _committed(self, column: SealedColumn, target: int, older: frozenset[int]) -> _Batch:
        try:
            with self.sessions() as session:
                batch = self._rewrite(session, column, target, older)
                session.commit()
        except ProgrammingError as error:
            raise Forbidden(
                f"{column}: this role of the database may not change it; use the owner's DATABASE_URL",
                code="database_role",
            ) from error
        return batch

    def _rewrite(self, session: Session, column: SealedColumn, target: int, older: frozenset[int]) -> _Batch:
        progress = self._progress(session, column, target)
        query = (
            select(column.row, column.column)
            .where(column.row > progress.position, _prefix(column).in_(_prefixes(older)))
            .order_by(column.row)
            .limit(self.batch)
        )
        rows = session.execute(query).all()
        changes = [change for row in rows if (change := self._change(session, column, *row)) is not None]
        rewritten = _replace(session, column, changes)
        refused = len(rows) - len(changes)
        if rows:
            progress.position = str(rows[-1][0])
        progress.rewritten, progress.refused = progress.rewritten + rewritten, progress.refused + refused
        progress.updated_at = self.clock()
        session.add(progress)
        note_uses(session, self.keyring)
        return _Batch(len(rows), rewritten, refused)

    def _change(
        self, session: Session, column: SealedColumn, row: str, stored: bytes
    ) -> dict[str, Any] | None:
        """Return what to put in the place of a value; None for one that does not open, which is told of."""
        place = {"table": column.table.name, "column": column.name, "row": str(row)}
        try:
            sealed = self.keyring.seal(self.keyring.open_untrusted(stored, **place), **place)
        except RayhookError as error:
            detail = {"column": str(column), "row": str(row), "code": error.code}
            kind = AuditKind.AUTH_DECRYPTION_FAILED
            entry = AuditEntry(kind, Outcome.SERIOUS_FAILURE, agent=self.agent, detail=detail)
            self.audit.record(session, entry)
            return None
        return {"of_row": row, "is_now": stored, "is_then": sealed}

    def _progress(self, session: Session, column: SealedColumn, target: int) -> KeyRotationRow:
        """Return how far it came; from the start where that was for another key, or was finished."""
        found = session.get(KeyRotationRow, (column.table.name, column.name), with_for_update=True)
        if found is None:
            found = KeyRotationRow(
                table_name=column.table.name, column_name=column.name, key_id=target, updated_at=self.clock()
            )
        if found.key_id != target or found.finished_at is not None:
            found.key_id, found.finished_at = target, None
            found.position, found.rewritten, found.refused = "", 0, 0
        return found

    def _end_of_pass(self, column: SealedColumn, older: frozenset[int], refused: int) -> int:
        """Return how many values are left; with none but those that do not open, the column is finished."""
        with self.sessions() as session:
            _take_time(session)
            counting = select(func.count()).select_from(column.table)
            left = session.execute(counting.where(_prefix(column).in_(_prefixes(older)))).scalar_one()
            progress = session.get(KeyRotationRow, (column.table.name, column.name), with_for_update=True)
            if progress is not None:
                progress.position = ""
                progress.finished_at = self.clock() if left <= refused else None
                session.add(progress)
            session.commit()
        log.info("column_reencrypted", column=str(column), left=left, refused=refused)
        return int(left)


def _replace(session: Session, column: SealedColumn, changes: list[dict[str, Any]]) -> int:
    """Replace each value that is still the one that was read; return how many were."""
    if not changes:
        return 0
    statement = (
        update(column.table)
        .where(column.row == bindparam("of_row"), column.column == bindparam("is_now"))
        .values({column.name: bindparam("is_then")})
    )
    return session.connection().execute(statement, changes).rowcount


def _need(session: Session, column: SealedColumn, known: frozenset[int]) -> ColumnNeed:
    mark = literal(MARK, LargeBinary)
    begins = case(
        (func.substr(column.column, 1, len(MARK), type_=LargeBinary) == mark, mark), else_=_prefix(column)
    )
    query = select(begins.label("begins"), func.count()).where(column.column.is_not(None)).group_by("begins")
    keys: Counter[int] = Counter()
    data_keys = unknown = 0
    for found, count in session.execute(query):
        key_id = key_of(bytes(found))
        if bytes(found) == MARK:
            data_keys += count
        elif key_id in known:
            keys[key_id] += count
        else:
            unknown += count
    return ColumnNeed(column, dict(keys), data_keys, unknown)


def _prefix(column: SealedColumn) -> Any:
    return func.substr(column.column, 1, PREFIX_BYTES, type_=LargeBinary)


def _prefixes(keys: Iterable[int]) -> list[bytes]:
    return [key_prefix(key_id) for key_id in sorted(keys)]


def _take_time(session: Session) -> None:
    """Reading a whole table may take longer than what anybody waits for."""
    if session.get_bind().dialect.name == "postgresql":
        session.connection().exec_driver_sql("SET LOCAL statement_timeout = 0")
