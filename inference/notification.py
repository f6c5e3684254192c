"""What an EHR's notification changes: studies to look at, and how far its subscription was heard.

No notification is believed in more than that something happened to a resource: what, is read from the EHR.
Spec: HL7 Subscriptions R5 Backport 1.1.0, "Notifications", "Handling Errors"
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from sqlmodel import Session

from rayhook.audit.events import AuditKind
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.auth.arrival_sources import SubscriptionSource
from rayhook.auth.keys import Keyring
from rayhook.auth.registry import EHR
from rayhook.fhir.errors import InvalidRequest, Unprocessable
from rayhook.fhir.references import Reference
from rayhook.fhir.subscription import Notification, NotificationType
from rayhook.inference.arrival import Arrival, ArrivalWay, announce
from rayhook.inference.arrival_source import (
    ArrivalSourceRow,
    Source,
    SourceKind,
    events_of,
    opened_source,
    set_events,
)
from rayhook.inference.event_number import EventNumbers

# Notifications overtake each other: what is missing may be about to come.
GRACE_S: Final = 5.0
SETTLE_S: Final = 2.0
# The source of those that come without a body, as plain R4 subscriptions send them.
UNNAMED: Final = ""

_EVENTS = frozenset({NotificationType.EVENT_NOTIFICATION, NotificationType.QUERY_EVENT})
_OUT_OF_ORDER = frozenset({"entered-in-error", "error", "off"})


@dataclass(frozen=True, slots=True, kw_only=True)
class NotificationDesk:
    """Takes notifications in, in the caller's transaction: the answer may go out when it is committed."""

    keyring: Keyring
    audit: AuditLog
    settle_s: float = SETTLE_S
    clock: Callable[[], float] = field(default=time.time)

    def take_in(self, session: Session, ehr: EHR, notification: Notification) -> None:
        """Raise InvalidRequest or Unprocessable for one that is not of a subscription of ours at this EHR."""
        registered = _registered(ehr)
        base_url = _base_of(ehr, notification.subscription, ehr.fhir_base_urls[0])
        if base_url is None:
            raise InvalidRequest(
                "the Subscription is not at a FHIR base of this EHR",
                expression="SubscriptionStatus.subscription",
            )
        if notification.topic not in (None, registered.topic):
            raise Unprocessable(
                "the notification is of another topic than is registered",
                code="topic_not_registered",
                expression="SubscriptionStatus.topic",
            )
        row = opened_source(session, Source(ehr.id, SourceKind.SUBSCRIPTION, notification.subscription.id))
        row.fhir_base_url = base_url
        before = events_of(row)
        is_repeated = _is_repeated(before, notification)
        studies = () if is_repeated else tuple(_studies(ehr, notification.focuses, base_url))
        self.announce(session, ehr, studies)
        self._note(row, registered, _after(before, notification), notification)
        session.add(row)
        if notification.type is not NotificationType.HEARTBEAT:
            self.audit.record(session, _received(ehr, notification, studies, is_repeated=is_repeated))

    def take_in_empty(self, session: Session, ehr: EHR) -> None:
        """Take in a notification that says nothing at all: there is something to be searched for."""
        registered = _registered(ehr)
        row = opened_source(session, Source(ehr.id, SourceKind.SUBSCRIPTION, UNNAMED))
        set_events(row, events_of(row).missed())
        now = self.clock()
        row.fhir_base_url, row.heard_at = ehr.fhir_base_urls[0], now
        row.next_attempt_at = next_look(row, registered, now=now)
        session.add(row)
        detail = {"type": "empty"}
        kind = AuditKind.FHIR_NOTIFICATION_RECEIVED
        self.audit.record(session, AuditEntry(kind, ehr_id=ehr.id, agent="Subscription", detail=detail))

    def announce(self, session: Session, ehr: EHR, studies: Iterable[Reference]) -> None:
        for study in sorted(studies, key=str):
            arrival = Arrival(
                ehr_id=ehr.id,
                way=ArrivalWay.SUBSCRIPTION,
                imaging_study_id=study.id,
                fhir_base_url=study.base,
            )
            announce(session, self.keyring, arrival, settle_s=self.settle_s, clock=self.clock)

    def _note(
        self,
        row: ArrivalSourceRow,
        registered: SubscriptionSource,
        events: EventNumbers,
        notification: Notification,
    ) -> None:
        now = self.clock()
        set_events(row, events)
        row.heard_at = now
        if not events.is_behind:
            row.caught_up_at = now
        row.next_attempt_at = next_look(row, registered, now=now)
        if notification.status in _OUT_OF_ORDER:
            row.next_attempt_at = now


def next_look(row: ArrivalSourceRow, registered: SubscriptionSource, *, now: float) -> float | None:
    """Return when to look after a subscription: what it lacks, its silence, or its end."""
    times = []
    events = events_of(row)
    if events.is_behind:
        times.append(now + (GRACE_S if events.missing else SETTLE_S))
    if row.name != UNNAMED:
        times.append((row.heard_at or now) + 2 * registered.heartbeat_s)
        if row.ends_at is not None:
            times.append(row.ends_at - registered.lifetime_s / 3)
    return min(times, default=None)


def studies_in(ehr: EHR, notification: Notification, base_url: str) -> tuple[Reference, ...]:
    """Return the ImagingStudies of this EHR that a notification names, each with its FHIR base."""
    return tuple(_studies(ehr, notification.focuses, base_url))


def _studies(ehr: EHR, focuses: Iterable[Reference], base_url: str) -> Iterable[Reference]:
    for focus in focuses:
        base = _base_of(ehr, focus, base_url)
        if focus.type == "ImagingStudy" and base is not None:
            yield Reference(focus.type, focus.id, base)


def _base_of(ehr: EHR, reference: Reference, default: str) -> str | None:
    base = default if reference.base is None else reference.base
    return base if base in ehr.fhir_base_urls else None


def _registered(ehr: EHR) -> SubscriptionSource:
    registered = ehr.arrivals.subscription
    if registered is None:
        raise InvalidRequest("no subscription is registered for this EHR", code="subscription_not_registered")
    return registered


def _is_repeated(before: EventNumbers, notification: Notification) -> bool:
    events = notification.events
    return notification.type in _EVENTS and bool(events) and all(map(before.knows, events))


def _after(before: EventNumbers, notification: Notification) -> EventNumbers:
    last = notification.last_event
    if notification.type is NotificationType.HANDSHAKE:
        return before.begun(last or 0)
    if notification.type not in _EVENTS:
        return before if last is None else before.counted(last)
    after = before.heard(notification.events)
    after = after if last is None else after.at_least(last)
    is_blind = notification.is_blind and not _is_repeated(before, notification)
    is_bare = not notification.events and not notification.focuses
    return after.missed() if is_blind or is_bare else after


def _received(
    ehr: EHR, notification: Notification, studies: tuple[Reference, ...], *, is_repeated: bool
) -> AuditEntry:
    detail = {"type": notification.type.value, "studies": str(len(studies))}
    if notification.events:
        detail["events"] = ",".join(map(str, notification.events[:20]))
    if is_repeated:
        detail["repeated"] = "yes"
    subscription = f"Subscription/{notification.subscription.id}"
    return AuditEntry(
        AuditKind.FHIR_NOTIFICATION_RECEIVED,
        ehr_id=ehr.id,
        agent=subscription,
        entities=(subscription, *(f"ImagingStudy/{study.id}" for study in studies)),
        detail=detail,
    )
