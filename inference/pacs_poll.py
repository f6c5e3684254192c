"""Asking a PACS, again and again, which studies are new or have more images than last time.

Spec: DICOM PS3.18 10.6 (Search Transaction); QIDO-RS has no "changed since", only dates and counts
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from rayhook.audit.events import AuditKind
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.auth.arrival_sources import PolledPACS
from rayhook.auth.database_types import Sessions
from rayhook.auth.keys import Keyring
from rayhook.auth.registry import EHR, EHRRegistry
from rayhook.fhir.errors import RayhookError, UpstreamRefused
from rayhook.fhir.references import is_uid, oid_uri
from rayhook.fhir.transport import Transport, origin_of
from rayhook.inference.arrival import Arrival, ArrivalWay, announce
from rayhook.inference.arrival_source import ClaimedSource, Source, SourceKind, Sources, opened_source
from rayhook.inference.authority import Authority
from rayhook.inference.dicom_json import JSONAttributes, search_studies
from rayhook.inference.outbox import Backoff

AGENT: Final = "rayhook"
SETTLE_S: Final = 2.0
_LEASE_S: Final = 300.0
_DEADLINE_S: Final = 30.0
_PAGE: Final = 100
_MAX_PAGES: Final = 100
_LONGEST_PAUSE_S: Final = 600.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class PACSPolling:
    """Each PACS is asked by one process at a time; what it had last time is kept, sealed."""

    registry: EHRRegistry
    sessions: Sessions
    reading: Sessions
    keyring: Keyring
    audit: AuditLog
    transport: Transport
    authority: Authority
    settle_s: float = SETTLE_S
    clock: Callable[[], float] = time.time

    def prepare(self) -> None:
        """Let every registered PACS be asked; one that is not registered any more is left alone."""
        with self.sessions() as session:
            for ehr in self.registry:
                for pacs in ehr.arrivals.polled:
                    row = opened_source(session, Source(ehr.id, SourceKind.POLL, pacs.id))
                    if row.next_attempt_at is None:
                        row.next_attempt_at = self.clock()
                        session.add(row)
            session.commit()

    def run_due(self) -> int:
        """Ask those whose time it is, and return how many that were."""
        sources = Sources(self.sessions, self.reading, self.keyring, self.clock)
        due = sources.due(SourceKind.POLL)
        for source in due:
            claimed = sources.claim(source, lease_s=_LEASE_S)
            if claimed is None:
                continue
            ehr = self.registry.by_id(source.ehr_id)
            polled = () if ehr is None else ehr.arrivals.polled
            pacs = next((one for one in polled if one.id == source.name), None)
            if ehr is None or pacs is None:
                sources.put_off(claimed, next_attempt_at=None, error_code="pacs_not_registered")
                continue
            try:
                self._poll(sources, claimed, ehr, pacs)
            except RayhookError as error:
                log.warning("pacs_poll_failed", ehr=ehr.id, pacs=pacs.id, code=error.code)
                pause_s = Backoff(pacs.every_s, max(pacs.every_s, _LONGEST_PAUSE_S)).pause_s(claimed.attempts)
                sources.put_off(claimed, next_attempt_at=self.clock() + pause_s, error_code=error.code)
        return len(due)

    def _poll(self, sources: Sources, claimed: ClaimedSource, ehr: EHR, pacs: PolledPACS) -> None:
        found = self._studies(ehr, pacs)
        seen = {_handle(uid): count for uid, count in found.items()}
        unseen = object()
        changed = sorted(
            uid for uid, count in found.items() if claimed.seen.get(_handle(uid), unseen) != count
        )
        with self.sessions() as session:
            row = sources.held(session, claimed)
            if row is None:
                return
            for uid in changed:
                arrival = Arrival(
                    ehr_id=ehr.id,
                    way=ArrivalWay.POLL,
                    study_instance_uid=uid,
                    dicomweb_url=pacs.dicomweb_url,
                    token_required=pacs.token_required,
                )
                announce(session, self.keyring, arrival, settle_s=self.settle_s, clock=self.clock)
            if changed:
                self.audit.record(session, _searched(ehr, pacs, changed))
            if seen != claimed.seen:
                sources.seal_seen(row, seen)
            row.heard_at = self.clock()
            sources.release(session, row, next_attempt_at=self.clock() + pacs.every_s)
            session.commit()
        if changed:
            log.info("pacs_polled", ehr=ehr.id, pacs=pacs.id, studies=len(found), changed=len(changed))

    def _studies(self, ehr: EHR, pacs: PolledPACS) -> dict[str, int | None]:
        """Return the number of images of each study of the last days, None where the PACS does not say."""
        today = datetime.fromtimestamp(self.clock(), UTC).date()
        # A study's date is that of the place where it was made: it may be tomorrow there.
        dates = (today - timedelta(days=pacs.days), today + timedelta(days=1))
        access_token = self._token(ehr, pacs)
        found: dict[str, int | None] = {}
        for page in range(_MAX_PAGES):
            answers = search_studies(
                self.transport,
                pacs.dicomweb_url,
                dates=dates,
                limit=_PAGE,
                offset=page * _PAGE,
                allowed_origins=frozenset({origin_of(pacs.dicomweb_url)}),
                access_token=access_token,
                deadline_s=_DEADLINE_S,
            )
            told = dict(filter(None, map(_study, answers)))
            is_new = not told.keys() <= found.keys()
            found |= told
            # A server that knows no offset sends the first page for ever.
            if len(answers) < _PAGE or not is_new:
                return found
        log.warning("pacs_poll_truncated", ehr=ehr.id, pacs=pacs.id, pages=_MAX_PAGES)
        return found

    def _token(self, ehr: EHR, pacs: PolledPACS) -> str | None:
        if not pacs.token_required:
            return None
        chosen = self.authority.choose(ehr, None, lambda _: True)
        if chosen is None:
            raise UpstreamRefused(
                "the PACS needs a token that the EHR did not give", code="authorization_missing"
            )
        return chosen.access_token


def _study(answer: JSONAttributes) -> tuple[str, int | None] | None:
    uid = answer.text("StudyInstanceUID")
    if uid is None or not is_uid(uid):
        return None
    return uid, answer.integer("NumberOfStudyRelatedInstances")


def _handle(uid: str) -> str:
    """Return what a study is remembered by: short, as there may be thousands."""
    return hashlib.sha256(uid.encode("ascii")).hexdigest()[:16]


def _searched(ehr: EHR, pacs: PolledPACS, changed: list[str]) -> AuditEntry:
    return AuditEntry(
        AuditKind.DICOMWEB_STUDIES_SEARCHED,
        ehr_id=ehr.id,
        agent=AGENT,
        entities=tuple(map(oid_uri, changed)),
        detail={"pacs": pacs.id, "studies": str(len(changed))},
        query="studies?StudyDate",
        peer=origin_of(pacs.dicomweb_url),
    )
