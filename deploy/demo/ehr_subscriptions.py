"""The demo EHR's topic: imaging studies, told of by rest-hook to who subscribed.

Spec: HL7 Subscriptions R5 Backport 1.1.0, FHIR R4: handshake, heartbeat, id-only notifications, $status, $events
"""

import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import structlog

from rayhook.deploy.demo.ehr_faults import EHRFaults
from rayhook.deploy.demo.ehr_store import Resource, ResourceStore
from rayhook.fhir.errors import NotFound, RayhookError
from rayhook.fhir.r4 import encode_json
from rayhook.fhir.transport import Transport, origin_of

TOPIC: Final = "urn:rayhook:demo:topic:imaging-study"

_BACKPORT = "http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition"
_DEADLINE_S = 5.0
_TRIES = 3
_PAUSE_S = 0.5
_TICK_S = 0.25
_DATA_TYPE: Final = "ImagingStudy"

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Channel:
    """What one Subscription was told, or should have been: `events` are references, the first is number 1."""

    events: list[str] = field(default_factory=list)
    spoken_at: float = 0.0


@dataclass(frozen=True, slots=True)
class _Task:
    subscription_id: str
    type: str
    number: int | None = None


class Notifier:
    """Tells subscribers of studies, from a thread of its own, in the order in which they came."""

    def __init__(
        self,
        store: ResourceStore,
        *,
        base_url: str,
        transport: Transport,
        faults: EHRFaults,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._base_url = base_url
        self._transport = transport
        self._faults = faults
        self._clock = clock
        self._channels: dict[str, _Channel] = {}
        self._tasks: queue.SimpleQueue[_Task] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        store.listeners.append(self._changed)

    def close(self) -> None:
        """Tell nothing more; what is being told ends first."""
        with self._lock:
            self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def status(self, subscription_id: str) -> Resource:
        """Spec: operation backport-subscription-status."""
        subscription = self._store.read("Subscription", subscription_id)
        return self._bundle(subscription, "query-status", (), bundle_type="searchset")

    def events(self, subscription_id: str, since: int, until: int) -> Resource:
        """Spec: operation backport-subscription-events."""
        if self._faults.no_events_operation:
            raise NotFound("the operation is switched off by a test")
        subscription = self._store.read("Subscription", subscription_id)
        last = min(until, len(self._channel(subscription_id).events))
        return self._bundle(subscription, "query-event", range(since, last + 1))

    def _changed(self, resource: Resource) -> None:
        if resource["resourceType"] == "Subscription" and resource.get("status") == "requested":
            self._put(_Task(str(resource["id"]), "handshake"))
        if resource["resourceType"] != _DATA_TYPE:
            return
        for subscription in self._store.search("Subscription", []):
            if subscription.get("criteria") == TOPIC and subscription.get("status") in {"active", "error"}:
                channel = self._channel(str(subscription["id"]))
                with self._lock:
                    channel.events.append(f"{_DATA_TYPE}/{resource['id']}")
                    number = len(channel.events)
                self._put(_Task(str(subscription["id"]), "event-notification", number))

    def _put(self, task: _Task) -> None:
        self._tasks.put(task)
        with self._lock:
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._work, name="demo-subscriptions", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while not self._closed.is_set():
            try:
                self._do(self._tasks.get(timeout=_TICK_S))
            except queue.Empty:
                self._beat()

    def _do(self, task: _Task) -> None:
        try:
            subscription = self._store.read("Subscription", task.subscription_id)
        except NotFound:
            return
        if task.type == "event-notification" and self._faults.lost_notifications > 0:
            self._faults.lost_notifications -= 1
            return
        if task.type == "event-notification" and subscription.get("status") != "active":
            return
        numbers = () if task.number is None else (task.number,)
        was_sent = self._send(subscription, self._bundle(subscription, task.type, numbers))
        if task.type == "handshake" or not was_sent:
            self._store.seed([{**subscription, "status": "active" if was_sent else "error"}])

    def _beat(self) -> None:
        """Send a heartbeat on every channel that was silent for its period."""
        for subscription in self._store.search("Subscription", [("status", "active")]):
            channel = self._channel(str(subscription["id"]))
            if self._clock() - channel.spoken_at >= _heartbeat_s(subscription):
                self._send(subscription, self._bundle(subscription, "heartbeat", ()))

    def _send(self, subscription: Resource, bundle: Resource) -> bool:
        endpoint, channel = subscription["channel"]["endpoint"], self._channel(str(subscription["id"]))
        channel.spoken_at = self._clock()
        headers = {"Content-Type": "application/fhir+json"}
        for line in subscription["channel"].get("header", []):
            name, _, value = line.partition(": ")
            headers[name] = value
        for _ in range(_TRIES):
            if self._closed.is_set():
                return False
            try:
                answer = self._transport.request(
                    "POST",
                    endpoint,
                    allowed_origins=frozenset({origin_of(endpoint)}),
                    deadline_s=_DEADLINE_S,
                    headers=headers,
                    content=encode_json(bundle),
                )
            except RayhookError as error:
                log.warning("demo_notification_failed", code=error.code)
            else:
                if 200 <= answer.status < 300:  # noqa: PLR2004 - RFC 9110
                    return True
                log.warning("demo_notification_refused", status=answer.status)
            self._closed.wait(_PAUSE_S)
        return False

    def _channel(self, subscription_id: str) -> _Channel:
        with self._lock:
            return self._channels.setdefault(subscription_id, _Channel())

    def _bundle(
        self, subscription: Resource, kind: str, numbers: Iterable[int], *, bundle_type: str = "history"
    ) -> Resource:
        """Spec: profile backport-subscription-notification-r4."""
        events = self._channel(str(subscription["id"])).events
        told = [(number, events[number - 1]) for number in numbers]
        name = f"Subscription/{subscription['id']}"
        parameters: list[dict[str, Any]] = [
            {"name": "subscription", "valueReference": {"reference": f"{self._base_url}/{name}"}},
            {"name": "topic", "valueCanonical": subscription["criteria"]},
            {"name": "status", "valueCode": subscription["status"]},
            {"name": "type", "valueCode": kind},
            {"name": "events-since-subscription-start", "valueString": str(len(events))},
        ]
        parameters += [
            {
                "name": "notification-event",
                "part": [
                    {"name": "event-number", "valueString": str(number)},
                    {"name": "focus", "valueReference": {"reference": f"{self._base_url}/{focus}"}},
                ],
            }
            for number, focus in told
        ]
        status_url = f"urn:uuid:{uuid.uuid4()}"
        status = {
            "resourceType": "Parameters",
            "meta": {"profile": [f"{_BACKPORT}/backport-subscription-status-r4"]},
            "parameter": parameters,
        }
        asked = {"method": "GET", "url": f"{self._base_url}/{name}/$status"}
        entries = [
            {"fullUrl": status_url, "resource": status, "request": asked, "response": {"status": "200"}}
        ]
        entries += [
            {
                "fullUrl": f"{self._base_url}/{focus}",
                "request": {"method": "PUT", "url": focus},
                "response": {"status": "200"},
            }
            for _, focus in told
        ]
        timestamp = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds")
        return {"resourceType": "Bundle", "type": bundle_type, "timestamp": timestamp, "entry": entries}


def _heartbeat_s(subscription: Resource) -> float:
    extensions = subscription["channel"].get("extension", [])
    periods = (
        one["valueUnsignedInt"] for one in extensions if one["url"].endswith("backport-heartbeat-period")
    )
    return float(next(periods, 86_400))
