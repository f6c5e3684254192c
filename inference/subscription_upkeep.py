"""Looks after the subscriptions: what they missed, their silence, and their end.

Spec: HL7 Subscriptions R5 Backport 1.1.0, "Errors": a client that notices a gap asks $events, or searches
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import structlog
from sqlmodel import Session

from rayhook.audit.events import AuditKind
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.auth.database_types import Sessions
from rayhook.auth.keys import Keyring
from rayhook.auth.registry import EHR, EHRRegistry
from rayhook.fhir.errors import NotFound, RayhookError
from rayhook.fhir.references import Reference, is_fhir_id
from rayhook.fhir.transport import Transport
from rayhook.inference.arrival_source import (
    ArrivalSourceRow,
    ClaimedSource,
    Source,
    SourceKind,
    Sources,
    events_of,
    locked_source,
    opened_source,
    set_events,
)
from rayhook.inference.authority import Authority
from rayhook.inference.notification import SETTLE_S, UNNAMED, NotificationDesk, next_look, studies_in
from rayhook.inference.outbox import Backoff
from rayhook.inference.subscription import EHRSubscriptions, Resource, endpoint_url

AGENT: Final = "rayhook"
_LEASE_S: Final = 120.0
_MAX_ASKED: Final = 200
_BACKOFF: Final = Backoff(5.0, 300.0)
# Clocks differ, and a change may be seen later than the time that it bears.
_MARGIN_S: Final = 120.0
_FIRST_SEARCH_S: Final = 86_400.0
# A tuple, as what an EHR says can be a value that no set can be asked for.
_IN_ORDER: Final = ("active", "requested")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionUpkeep:
    """Each subscription is looked after by one process at a time. `public_base_url` is where EHRs reach us."""

    registry: EHRRegistry
    sessions: Sessions
    reading: Sessions
    keyring: Keyring
    audit: AuditLog
    transport: Transport
    authority: Authority
    public_base_url: str
    settle_s: float = SETTLE_S
    clock: Callable[[], float] = time.time

    def at(self, ehr: EHR, base_url: str | None = None) -> EHRSubscriptions:
        return EHRSubscriptions(
            ehr=ehr,
            base_url=base_url or ehr.fhir_base_urls[0],
            endpoint=endpoint_url(self.public_base_url, ehr.id),
            transport=self.transport,
            authority=self.authority,
            clock=self.clock,
        )

    def create(self, ehr: EHR, *, agent: str = AGENT) -> tuple[Resource, bool]:
        """Return our Subscription at the EHR, and whether it had to be made: one that is in order stays."""
        subscriptions = self.at(ehr)
        found = self._in_order(subscriptions)
        if found is not None:
            self._note_made(ehr, subscriptions.base_url, found, agent=agent, act="found")
            return found, False
        made = subscriptions.create()
        self._note_made(ehr, subscriptions.base_url, made, agent=agent, act="created")
        return made, True

    def _in_order(self, at: EHRSubscriptions) -> Resource | None:
        orderly = (one for one in at.ours() if one.get("status") in _IN_ORDER)
        return next((one for one in orderly if is_fhir_id(str(one.get("id")))), None)

    def delete(self, ehr: EHR, subscription_id: str, *, agent: str = AGENT) -> None:
        self.at(ehr).delete(subscription_id)
        with self.sessions() as session:
            row = locked_source(session, Source(ehr.id, SourceKind.SUBSCRIPTION, subscription_id))
            if row is not None:
                session.delete(row)
            self._record_change(session, ehr, subscription_id, agent=agent, act="deleted")
            session.commit()

    def run_due(self) -> int:
        """Look after what is due, and return how many subscriptions that were."""
        sources = Sources(self.sessions, self.reading, self.keyring, self.clock)
        due = sources.due(SourceKind.SUBSCRIPTION)
        for source in due:
            claimed = sources.claim(source, lease_s=_LEASE_S)
            if claimed is None:
                continue
            ehr = self.registry.by_id(source.ehr_id)
            if ehr is None or ehr.arrivals.subscription is None or not self.authority.has_own(ehr):
                sources.put_off(claimed, next_attempt_at=None, error_code="subscription_not_registered")
                continue
            try:
                self._look_after(sources, claimed, ehr)
            except RayhookError as error:
                log.warning("subscription_upkeep_failed", ehr=ehr.id, code=error.code)
                pause_s = _BACKOFF.pause_s(claimed.attempts)
                sources.put_off(claimed, next_attempt_at=self.clock() + pause_s, error_code=error.code)
        return len(due)

    def _look_after(self, sources: Sources, claimed: ClaimedSource, ehr: EHR) -> None:
        registered = ehr.arrivals.subscription
        assert registered is not None
        at = self.at(ehr, claimed.fhir_base_url)
        now = self.clock()
        if claimed.source.name != UNNAMED:
            is_silent = claimed.heard_at is None or now - claimed.heard_at >= 2 * registered.heartbeat_s
            if is_silent and not self._check(sources, claimed, at):
                return
            if claimed.ends_at is not None and claimed.ends_at - now <= registered.lifetime_s / 3:
                self._renew(at, claimed, act="renewed")
            self._ask_for_missing(sources, claimed, at)
        self._search(sources, claimed, at)

    def _check(self, sources: Sources, claimed: ClaimedSource, at: EHRSubscriptions) -> bool:
        """Ask how a silent subscription is; False where it was gone, and another one takes its place."""
        status = at.status(claimed.source.name)
        try:
            state = status.status if status is not None else at.read(claimed.source.name).get("status")
        except NotFound:
            self._replace(claimed, at)
            return False
        if state not in _IN_ORDER:
            self._renew(at, claimed, act="revived")
        with self.sessions() as session:
            row = sources.held(session, claimed)
            if row is not None:
                events = events_of(row)
                last = None if status is None else status.last_event
                # Without a count nobody knows what was told while we did not hear it.
                set_events(row, events.missed() if last is None else events.counted(last))
                row.heard_at = self.clock()
                session.add(row)
            session.commit()
        return True

    def _renew(self, at: EHRSubscriptions, claimed: ClaimedSource, *, act: str) -> None:
        renewed = at.renew(claimed.source.name)
        self._note_made(at.ehr, at.base_url, renewed, agent=AGENT, act=act)

    def _replace(self, claimed: ClaimedSource, at: EHRSubscriptions) -> None:
        """Let another Subscription take the place of one that the EHR does not know; what it missed is searched for.

        One of ours that is in order is enough: whatever is named to us, no second one is made beside it.
        """
        ours = self._in_order(at)
        made = ours or at.create()
        with self.sessions() as session:
            old = locked_source(session, claimed.source)
            if old is not None:
                session.delete(old)
                session.flush()
            row = self._note(session, at.ehr, at.base_url, made)
            set_events(row, events_of(row).missed())
            row.caught_up_at = row.caught_up_at if ours else claimed.caught_up_at
            row.next_attempt_at = self.clock()
            session.add(row)
            self._record_change(session, at.ehr, str(made.get("id")), agent=AGENT, act="replaced")
            session.commit()

    def _ask_for_missing(self, sources: Sources, claimed: ClaimedSource, at: EHRSubscriptions) -> None:
        """Have the missed events told once more; where that cannot be, they count as lost."""
        with self.sessions() as session:
            row = sources.held(session, claimed)
            missing = range(0) if row is None else events_of(row).missing
        if not missing:
            return
        answer = at.events(claimed.source.name, missing) if len(missing) <= _MAX_ASKED else None
        with self.sessions() as session:
            row = sources.held(session, claimed)
            if row is None:
                return
            events = events_of(row)
            if answer is not None and not answer.is_blind:
                studies = studies_in(at.ehr, answer, at.base_url)
                self._desk.announce(session, at.ehr, studies)
                self.audit.record(
                    session, _searched(at.ehr, studies, f"Subscription/{claimed.source.name}/$events")
                )
                events = events.heard(number for number in answer.events if number in missing)
            # What the EHR has no more of is not waited for any longer.
            set_events(row, events.given_up() if events.missing else events)
            session.add(row)
            session.commit()

    def _search(self, sources: Sources, claimed: ClaimedSource, at: EHRSubscriptions) -> None:
        """Search for what changed since nothing was missing, where something is; then give the source back."""
        with self.sessions() as session:
            row = sources.held(session, claimed)
            is_lost = row is not None and events_of(row).is_lost
        now = self.clock()
        found: list[Resource] = []
        truncated: list[bool] = []
        since = (claimed.caught_up_at or now - _FIRST_SEARCH_S) - _MARGIN_S
        if is_lost:
            found = at.studies_since(since, on_truncated=lambda: truncated.append(True))
        studies = [
            Reference("ImagingStudy", str(one["id"]), at.base_url)
            for one in found
            if is_fhir_id(str(one.get("id")))
        ]
        with self.sessions() as session:
            row = sources.held(session, claimed)
            if row is None:
                return
            if is_lost:
                self._desk.announce(session, at.ehr, studies)
                self.audit.record(session, _searched(at.ehr, studies, "ImagingStudy?_lastUpdated"))
                reached = _last_updated(found) if truncated else now
                if not truncated or reached <= since:
                    set_events(row, events_of(row).caught_up())
                row.caught_up_at = max(reached, claimed.caught_up_at or 0.0)
            registered = at.registered
            next_at = next_look(row, registered, now=now)
            sources.release(session, row, next_attempt_at=next_at)
            session.commit()

    def _note_made(self, ehr: EHR, base_url: str, subscription: Resource, *, agent: str, act: str) -> None:
        with self.sessions() as session:
            row = self._note(session, ehr, base_url, subscription)
            registered = ehr.arrivals.subscription
            assert registered is not None
            if row.lease_until is None:
                row.next_attempt_at = next_look(row, registered, now=self.clock())
            session.add(row)
            self._record_change(session, ehr, row.name, agent=agent, act=act)
            session.commit()

    def _note(self, session: Session, ehr: EHR, base_url: str, subscription: Resource) -> ArrivalSourceRow:
        row = opened_source(session, Source(ehr.id, SourceKind.SUBSCRIPTION, str(subscription.get("id"))))
        row.fhir_base_url, row.ends_at = base_url, _end_of(subscription)
        row.heard_at = row.heard_at or self.clock()
        row.caught_up_at = row.caught_up_at or self.clock()
        return row

    def _record_change(
        self, session: Session, ehr: EHR, subscription_id: str, *, agent: str, act: str
    ) -> None:
        entry = AuditEntry(
            AuditKind.FHIR_SUBSCRIPTION_CHANGED,
            ehr_id=ehr.id,
            agent=agent,
            entities=(f"Subscription/{subscription_id}",),
            detail={"act": act},
        )
        self.audit.record(session, entry)

    @property
    def _desk(self) -> NotificationDesk:
        return NotificationDesk(
            keyring=self.keyring, audit=self.audit, settle_s=self.settle_s, clock=self.clock
        )


def _searched(ehr: EHR, studies: Iterable[Reference], query: str) -> AuditEntry:
    return AuditEntry(
        AuditKind.FHIR_RESOURCE_SEARCHED,
        ehr_id=ehr.id,
        agent=AGENT,
        entities=tuple(f"ImagingStudy/{study.id}" for study in studies),
        query=query,
    )


def _end_of(subscription: Resource) -> float | None:
    """An EHR may grant less than was asked for."""
    return _instant(subscription.get("end"))


def _last_updated(resources: Iterable[Resource]) -> float:
    metas = (resource.get("meta") for resource in resources)
    instants = (_instant(meta.get("lastUpdated")) for meta in metas if isinstance(meta, dict))
    return max((instant for instant in instants if instant is not None), default=0.0)


def _instant(value: Any) -> float | None:
    try:
        found = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
