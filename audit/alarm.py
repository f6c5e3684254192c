"""Telling the log of stored values that did not open, from wherever that is noticed.

It may be noticed in the middle of a transaction, which must not wait for another: the event follows by itself.
"""

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.auth.database_types import Sessions
from rayhook.auth.keys import Keyring
from rayhook.fhir.correlation import request_id
from rayhook.fhir.errors import code_of

_log = structlog.get_logger()
_MOST = 1000  # a database full of altered values is told of by its first thousand


class DecryptionAlarm:
    """Writes one event for each value that `keyring` could not open while `listening`."""

    def __init__(self, keyring: Keyring, sessions: Sessions, audit: AuditLog) -> None:
        self._keyring = keyring
        self._sessions = sessions
        self._audit = audit
        self._due: queue.Queue[AuditEntry | None] = queue.Queue(_MOST)
        self._writer: threading.Thread | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        self._writer = thread = threading.Thread(target=self._write, name="audit-decryption", daemon=True)
        thread.start()
        self._keyring.told_of_refusals = self._notice
        try:
            yield
        finally:
            self._keyring.told_of_refusals = None
            self._due.put(None)
            thread.join()

    def _notice(self, table: str, column: str, row: str) -> None:
        _log.error("decryption_failed", table=table, column=column)
        if threading.current_thread() is self._writer:
            return  # it is the telling itself that failed: it would be told of for ever
        entry = AuditEntry(
            AuditKind.AUTH_DECRYPTION_FAILED,
            Outcome.SERIOUS_FAILURE,
            agent="rayhook",
            detail={"column": f"{table}.{column}", "row": row, "code": "decryption_failed"},
            request_id=request_id.get(),
        )
        try:
            self._due.put_nowait(entry)
        except queue.Full:
            _log.exception("decryption_alarm_overrun")

    def _write(self) -> None:
        while (entry := self._due.get()) is not None:
            try:
                with self._sessions() as session:
                    self._audit.record(session, entry)
                    session.commit()
            except Exception as error:  # noqa: BLE001 - nobody else tells
                _log.error("decryption_alarm_unwritten", code=code_of(error))
