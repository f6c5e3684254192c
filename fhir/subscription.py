"""Topic-based subscriptions as the R4 backport has them: what we ask for, and how to read what then comes.

Spec: HL7 Subscriptions R5 Backport 1.1.0, "Notifications", "Payloads", "Topic-Based Subscriptions - FHIR R4";
FHIR R4B and R5 SubscriptionStatus
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, TypeVar

import msgspec

from rayhook.fhir.errors import InvalidRequest
from rayhook.fhir.references import Reference, parse_reference

_BACKPORT: Final = "http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition"
# Spec: R4 history; R5 subscription-notification; the answers of $status and $events.
_BUNDLE_TYPES = frozenset({"history", "searchset", "subscription-notification"})
_MAX_EVENT = 2**62

_Struct = TypeVar("_Struct", bound=msgspec.Struct)


# Spec: http://hl7.org/fhir/subscription-notification-type
class NotificationType(StrEnum):
    EVENT_NOTIFICATION = "event-notification"
    HANDSHAKE = "handshake"
    HEARTBEAT = "heartbeat"
    QUERY_EVENT = "query-event"
    QUERY_STATUS = "query-status"


@dataclass(frozen=True, slots=True)
class Notification:
    """What one notification says. `subscription` and `topic` are as the sender names them.

    `events` are the numbers of the events told of, as far as the sender numbers them.
    `last_event` is the number of events since the subscription began, `focuses` the resources named, each once.
    `status` is the subscription's: requested, active, error, off or entered-in-error.
    """

    type: NotificationType
    subscription: Reference
    status: str | None
    topic: str | None
    last_event: int | None
    events: tuple[int, ...]
    focuses: tuple[Reference, ...]

    @property
    def is_blind(self) -> bool:
        """Say whether something happened, and it is not told to what: the payload is `empty`."""
        return self.type in _TELL_OF_EVENTS and bool(self.events) and not self.focuses


_TELL_OF_EVENTS = frozenset({NotificationType.EVENT_NOTIFICATION, NotificationType.QUERY_EVENT})


class _Reference(msgspec.Struct):
    reference: str | None = None


class _Event(msgspec.Struct, rename="camel"):
    event_number: int | str | None = None
    focus: _Reference | None = None


class _Status(msgspec.Struct, rename="camel"):
    """SubscriptionStatus of R4B and R5. `eventsInNotification` was in drafts and says nothing new."""

    type: str
    subscription: _Reference
    status: str | None = None
    topic: str | None = None
    events_since_subscription_start: int | str | None = None
    notification_event: list[_Event] = []


class _Parameter(msgspec.Struct, rename="camel"):
    name: str
    value_canonical: str | None = None
    value_code: str | None = None
    value_integer: int | None = None
    value_reference: _Reference | None = None
    value_string: str | None = None
    value_unsigned_int: int | None = None
    value_uri: str | None = None
    part: list["_Parameter"] = []

    @property
    def text(self) -> str | None:
        return self.value_code or self.value_canonical or self.value_uri or self.value_string

    @property
    def number(self) -> int | str | None:
        numbers = (self.value_integer, self.value_unsigned_int, self.value_string)
        return next((number for number in numbers if number is not None), None)


class _Parameters(msgspec.Struct):
    parameter: list[_Parameter] = []


class _Request(msgspec.Struct):
    url: str | None = None


class _Entry(msgspec.Struct, rename="camel"):
    full_url: str | None = None
    resource: dict[str, Any] | None = None
    request: _Request | None = None


class _Bundle(msgspec.Struct, rename="camel"):
    resource_type: str
    type: str
    entry: list[_Entry] = []


def read_notification(json: object) -> Notification:
    """Read a notification Bundle, or an answer of `$status` or `$events`, of any payload content.

    Of a resource that came along only its type and id are taken: what it says is read from the EHR.
    Raises InvalidRequest, naming the element, where it is none.
    """
    bundle = _convert(json, _Bundle, "Bundle")
    if bundle.resource_type != "Bundle" or bundle.type not in _BUNDLE_TYPES:
        raise InvalidRequest("a notification has to be a Bundle of type history", expression="Bundle.type")
    if not bundle.entry or bundle.entry[0].resource is None:
        raise InvalidRequest(
            "the first entry has to be the subscription's status", expression="Bundle.entry[0].resource"
        )
    status = _status(bundle.entry[0].resource)
    named = (event.focus.reference for event in status.notification_event if event.focus is not None)
    carried = (text for entry in bundle.entry[1:] for text in _names_of(entry))
    return Notification(
        type=_type(status.type),
        subscription=_subscription(status.subscription),
        status=status.status,
        topic=status.topic,
        last_event=_number(status.events_since_subscription_start, "eventsSinceSubscriptionStart"),
        events=_events(status.notification_event),
        focuses=_references((*named, *carried)),
    )


def _status(resource: Mapping[str, Any]) -> _Status:
    """Spec: the R4 form is a Parameters resource of profile backport-subscription-status-r4."""
    found = resource.get("resourceType")
    if found == "SubscriptionStatus":
        return _convert(resource, _Status, "SubscriptionStatus")
    if found != "Parameters":
        raise InvalidRequest(
            "the first entry has to be Parameters or SubscriptionStatus",
            expression="Bundle.entry[0].resource",
        )
    parameters = _convert(resource, _Parameters, "Parameters").parameter
    named = {parameter.name: parameter for parameter in parameters}
    told = {name: named[name].text for name in ("status", "topic", "type") if name in named}
    subscription = named["subscription"].value_reference if "subscription" in named else None
    count = named.get("events-since-subscription-start")
    return _Status(
        type=told.get("type") or "",
        subscription=subscription or _Reference(),
        status=told.get("status"),
        topic=told.get("topic"),
        events_since_subscription_start=None if count is None else count.number,
        notification_event=[_event(one) for one in parameters if one.name == "notification-event"],
    )


def _event(parameter: _Parameter) -> _Event:
    parts = {part.name: part for part in parameter.part}
    number = parts["event-number"].number if "event-number" in parts else None
    return _Event(number, parts["focus"].value_reference if "focus" in parts else None)


def _names_of(entry: _Entry) -> Iterator[str | None]:
    yield entry.full_url
    yield None if entry.request is None else entry.request.url
    if entry.resource is not None:
        yield f"{entry.resource.get('resourceType')}/{entry.resource.get('id')}"


def _references(texts: Iterable[str | None]) -> tuple[Reference, ...]:
    """Return each resource once, with its base where any of its names has one."""
    found: dict[tuple[str, str], Reference] = {}
    for text in texts:
        try:
            reference = parse_reference(text or "")
        except InvalidRequest:
            continue
        key = (reference.type, reference.id)
        if key not in found or found[key].base is None:
            found[key] = reference
    return tuple(found.values())


def _type(text: str) -> NotificationType:
    try:
        return NotificationType(text)
    except ValueError as error:
        raise InvalidRequest("the status has no known type", expression="SubscriptionStatus.type") from error


def _subscription(element: _Reference) -> Reference:
    path = "SubscriptionStatus.subscription"
    try:
        reference = parse_reference(element.reference or "")
    except InvalidRequest as error:
        raise InvalidRequest("the status names no Subscription", expression=path) from error
    if reference.type != "Subscription":
        raise InvalidRequest("the status names no Subscription", expression=path)
    return reference


def _events(events: Iterable[_Event]) -> tuple[int, ...]:
    numbers = (_number(event.event_number, "notificationEvent.eventNumber") for event in events)
    return tuple(dict.fromkeys(number for number in numbers if number is not None))


def _number(value: int | str | None, element: str) -> int | None:
    """R4 writes it as a string, R5 as integer64, which JSON writes as a string too; drafts had numbers."""
    if value is None:
        return None
    text = str(value)
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= _MAX_EVENT):  # noqa: PLR2004 - of digits
        raise InvalidRequest("an event's number has to be one", expression=f"SubscriptionStatus.{element}")
    return int(text)


def _convert(json: object, struct: type[_Struct], resource_type: str) -> _Struct:
    """Msgspec's messages name the type and the path, never the value."""
    try:
        return msgspec.convert(json, struct)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"{resource_type}: {error}", expression=resource_type) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionRequest:
    """A subscription that we want an EHR to have. `secret` comes back in each notification's Authorization.

    `filter_by` is a search of the topic's resource that limits it, as "ImagingStudy?status=available".
    """

    topic: str
    endpoint: str
    secret: str
    ends_at: datetime
    heartbeat_s: int
    filter_by: str | None = None

    def resource(self, subscription_id: str | None = None) -> dict[str, Any]:
        """Return the R4 Subscription, with id-only notifications.

        Spec: profile backport-subscription
        """
        channel: dict[str, Any] = {
            "extension": [
                {"url": f"{_BACKPORT}/backport-heartbeat-period", "valueUnsignedInt": self.heartbeat_s},
                {"url": f"{_BACKPORT}/backport-max-count", "valuePositiveInt": 20},
            ],
            "type": "rest-hook",
            "endpoint": self.endpoint,
            "payload": "application/fhir+json",
            "_payload": {
                "extension": [{"url": f"{_BACKPORT}/backport-payload-content", "valueCode": "id-only"}]
            },
            "header": [f"Authorization: Bearer {self.secret}"],
        }
        resource: dict[str, Any] = {
            "resourceType": "Subscription",
            "meta": {"profile": [f"{_BACKPORT}/backport-subscription"]},
            "status": "requested",
            "end": self.ends_at.isoformat(timespec="seconds"),
            "reason": "Imaging studies are analysed as they arrive",
            "criteria": self.topic,
            "channel": channel,
        }
        if self.filter_by is not None:
            criteria = {"url": f"{_BACKPORT}/backport-filter-criteria", "valueString": self.filter_by}
            resource["_criteria"] = {"extension": [criteria]}
        return resource if subscription_id is None else resource | {"id": subscription_id}
