"""Verifying the log beside everything else: one at a time, with its progress, and its result in the log itself."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import structlog
from sqlalchemy import select
from sqlmodel import Session

from rayhook.audit.chain import verify
from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.models import AUDIT_EVENT
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.audit.report import ChainReport, report_detail
from rayhook.audit.review import AuditSearch, search
from rayhook.audit.scan import Scan
from rayhook.auth.database_types import Sessions
from rayhook.auth.keys import Keyring
from rayhook.fhir.errors import RayhookError

_VERIFIED: Final = AuditKind.AUDIT_CHAIN_VERIFIED

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LastVerification:
    """`found` are the numbers by what befell them ("changed", "missing", ...), as text."""

    seq: int
    at: datetime
    by: str | None
    intact: bool
    detail: Mapping[str, str]

    @property
    def found(self) -> dict[str, str]:
        counts = {"events", "sealed", "purged", "problems", "how"}
        return {verdict: numbers for verdict, numbers in self.detail.items() if verdict not in counts}


class Verifier:
    """Verifies with our own public key and, where there is one, the anchor file."""

    def __init__(self, sessions: Sessions, reading: Sessions, keyring: Keyring, audit: AuditLog) -> None:
        self._sessions = sessions
        self._reading = reading
        self._keyring = keyring
        self._audit = audit
        self._lock = threading.Lock()
        self._scan: Scan | None = None
        self._failed = False

    @property
    def is_running(self) -> bool:
        return self._lock.locked()

    @property
    def has_failed(self) -> bool:
        """Say that the last one came to no result, for the database did not answer."""
        return self._failed

    @property
    def progress(self) -> int:
        """Return how many events have been read."""
        scan = self._scan
        return 0 if scan is None else scan.size

    def start(self, *, agent: str, request_id: str | None = None) -> bool:
        """Begin, and return at once; False where one is under way already."""
        if not self._lock.acquire(blocking=False):
            return False
        threading.Thread(
            target=self._run, args=(agent, request_id), name="audit-verification", daemon=True
        ).start()
        return True

    def run(self, *, agent: str) -> ChainReport | None:
        """Verify now; None where one is under way already."""
        if not self._lock.acquire(blocking=False):
            return None
        return self._run(agent, None)

    def _run(self, agent: str, request_id: str | None) -> ChainReport | None:
        try:
            self._failed = False
            with self._reading() as session:
                report = verify(
                    session,
                    self._keyring.audit_public_key,
                    self._audit.anchor,
                    keyring=self._keyring,
                    started=self._note,
                )
            self._record(report, agent, request_id)
        except RayhookError as error:
            self._failed = True
            log.warning("audit_verification_failed", code=error.code)
            return None
        finally:
            self._scan = None
            self._lock.release()
        return report

    def _note(self, scan: Scan) -> None:
        self._scan = scan

    def _record(self, report: ChainReport, agent: str, request_id: str | None) -> None:
        if not report.intact:
            log.error("audit_not_intact", problems=len(report.problems))
        anchored = (
            "checkpoints, keyring" if self._audit.anchor is None else "checkpoints, keyring, anchor file"
        )
        entry = AuditEntry(
            _VERIFIED,
            Outcome.SUCCESS if report.intact else Outcome.MAJOR_FAILURE,
            agent=agent,
            detail={**report_detail(report), "how": anchored},
            request_id=request_id,
            purpose="HOPERAT",
        )
        with self._sessions() as session:
            self._audit.record(session, entry)
            session.commit()


def is_alarmed(session: Session) -> bool:
    """Say whether the newest verification found that the log is not intact."""
    query = (
        select(AUDIT_EVENT.c.outcome)
        .where(AUDIT_EVENT.c.kind == _VERIFIED.value)
        .order_by(AUDIT_EVENT.c.recorded_at.desc(), AUDIT_EVENT.c.seq.desc())
        .limit(1)
    )
    outcome = session.execute(query).scalar()
    return outcome is not None and outcome != Outcome.SUCCESS.value


def last_verification(session: Session, keyring: Keyring) -> LastVerification | None:
    page = search(session, keyring, AuditSearch(kinds=(_VERIFIED,)), limit=1, is_lenient=True)
    if not page.records:
        return None
    one = page.records[0]
    return LastVerification(one.seq, one.recorded_at, one.agent, one.outcome is Outcome.SUCCESS, one.detail)
