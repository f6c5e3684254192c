"""Our Subscription in an EHR: to make, read, renew and delete it, and to ask for what it missed.

Spec: HL7 Subscriptions R5 Backport 1.1.0, "Errors", operations $status and $events; FHIR R4 Subscription
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import structlog

from rayhook.auth.arrival_sources import SubscriptionSource
from rayhook.auth.registry import EHR
from rayhook.fhir.client import FHIRClient
from rayhook.fhir.errors import InvalidRequest, NotFound, UpstreamError
from rayhook.fhir.references import is_fhir_id
from rayhook.fhir.subscription import Notification, SubscriptionRequest, read_notification
from rayhook.fhir.transport import Transport
from rayhook.inference.authority import Authority
from rayhook.inference.job_table import Authorization

_DEADLINE_S: Final = 10.0
_SEARCH_DEADLINE_S: Final = 60.0
_MAX_PAGES: Final = 50

Answer = TypeVar("Answer")
Resource = dict[str, Any]

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class EHRSubscriptions:
    """The Subscriptions that we have at one EHR, by our own token. `endpoint` is where notifications come to.

    base_url: the FHIR base that they are at, of those of the EHR.
    """

    ehr: EHR
    base_url: str
    endpoint: str
    transport: Transport
    authority: Authority
    clock: Callable[[], float] = time.time

    @property
    def registered(self) -> SubscriptionSource:
        if self.ehr.arrivals.subscription is None:
            raise InvalidRequest(
                "this EHR has no [ehr.subscription] in the registry", code="subscription_not_registered"
            )
        return self.ehr.arrivals.subscription

    def request(self) -> SubscriptionRequest:
        ends_at = datetime.fromtimestamp(self.clock() + self.registered.lifetime_s, UTC)
        return SubscriptionRequest(
            topic=self.registered.topic,
            endpoint=self.endpoint,
            secret=self.registered.secret.newest(),
            ends_at=ends_at,
            heartbeat_s=self.registered.heartbeat_s,
            filter_by=self.registered.filter_by,
        )

    def create(self) -> Resource:
        resource = self.request().resource()
        return self._ask(
            lambda client: client.create(resource, if_none_exist=None, deadline_s=_DEADLINE_S), "c"
        )

    def renew(self, subscription_id: str) -> Resource:
        """Put the Subscription anew, with a later end: the EHR shakes hands again."""
        resource = self.request().resource(subscription_id)
        return self._ask(lambda client: client.update(resource, deadline_s=_DEADLINE_S), "u")

    def ours(self) -> list[Resource]:
        """Return those that send to our endpoint."""
        parameters = [("url", self.endpoint)]
        found = self._ask(
            lambda client: client.search("Subscription", parameters, deadline_s=_DEADLINE_S), "s"
        )
        return [one for one in found if _endpoint(one) == self.endpoint]

    def delete(self, subscription_id: str) -> None:
        self._ask(lambda client: client.delete("Subscription", subscription_id, deadline_s=_DEADLINE_S), "d")

    def status(self, subscription_id: str) -> Notification | None:
        """Return the answer of $status, None where the EHR does not offer it."""
        return self._operation(subscription_id, "$status")

    def read(self, subscription_id: str) -> Resource:
        return self._ask(
            lambda client: client.read("Subscription", subscription_id, deadline_s=_DEADLINE_S), "r"
        )

    def events(self, subscription_id: str, numbers: range) -> Notification | None:
        """Return those events once more, None where the EHR does not offer it."""
        query = f"eventsSinceNumber={numbers[0]}&eventsUntilNumber={numbers[-1]}&content=id-only"
        return self._operation(subscription_id, f"$events?{query}")

    def studies_since(self, instant: float, *, on_truncated: Callable[[], object]) -> list[Resource]:
        """Return the ImagingStudies that changed since, the oldest change first."""
        since = datetime.fromtimestamp(instant, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        parameters = [("_lastUpdated", f"ge{since}"), ("_sort", "_lastUpdated"), ("_count", "100")]
        found = self._ask(
            lambda client: client.search(
                "ImagingStudy",
                parameters,
                deadline_s=_SEARCH_DEADLINE_S,
                max_pages=_MAX_PAGES,
                on_truncated=on_truncated,
            ),
            "s",
            resource_type="ImagingStudy",
        )
        return [one for one in found if one.get("resourceType") == "ImagingStudy"]

    def _operation(self, subscription_id: str, operation: str) -> Notification | None:
        if not is_fhir_id(subscription_id):
            return None
        path = f"Subscription/{subscription_id}/{operation}"
        try:
            answer = self._ask(lambda client: client.query(path, deadline_s=_DEADLINE_S), "r")
            return read_notification(answer)
        except (InvalidRequest, NotFound, UpstreamError) as error:
            # One that is away altogether is noticed by what comes next.
            log.info("subscription_operation_failed", operation=operation.partition("?")[0], code=error.code)
            return None

    def _ask(
        self, step: Callable[[FHIRClient], Answer], interaction: str, *, resource_type: str = "Subscription"
    ) -> Answer:
        def ask(token: Authorization | None) -> Answer:
            return step(
                FHIRClient(
                    self.transport,
                    self.base_url,
                    self.ehr.fhir_origins,
                    None if token is None else token.access_token,
                )
            )

        return self.authority.call(
            self.ehr, None, lambda scopes: scopes.permits("system", resource_type, interaction), ask
        )


def endpoint_url(public_base_url: str, ehr_id: str) -> str:
    return f"{public_base_url}/fhir/subscriptions/{ehr_id}"


def _endpoint(subscription: Resource) -> str | None:
    channel = subscription.get("channel")
    endpoint = channel.get("endpoint") if isinstance(channel, dict) else None
    return endpoint if isinstance(endpoint, str) else None
