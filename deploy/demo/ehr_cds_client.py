"""The demo EHR as a CDS client: it signs, asks Rayhook, and reads the cards.

Spec: CDS Hooks 2.0.1, "Calling a CDS Service", "Trusting CDS Clients"
"""

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl

from joserfc import jwt
from joserfc.jwk import ECKey

from rayhook.deploy.demo.ehr_authorization import AuthorizationServer
from rayhook.deploy.demo.ehr_bundle import SearchQuery, as_seen, search_bundle
from rayhook.deploy.demo.ehr_faults import EHRFaults
from rayhook.deploy.demo.ehr_scopes import READ_SCOPES, WRITE_SCOPES
from rayhook.deploy.demo.ehr_seed import PRACTITIONER_ID
from rayhook.deploy.demo.ehr_store import Resource, ResourceStore
from rayhook.deploy.demo.ehr_tokens import CLIENT_ID
from rayhook.fhir.errors import RayhookError, UpstreamError
from rayhook.fhir.transport import Transport, origin_of

_DEADLINE_S = 5.0
_TOKEN_LIFE_S = 300
_ASSERTION_LIFE_S = 60
_INDICATORS = frozenset({"info", "warning", "critical"})


@dataclass(frozen=True, slots=True)
class CardLink:
    label: str
    url: str
    smart: bool
    app_context: str | None


@dataclass(frozen=True, slots=True)
class Card:
    summary: str
    indicator: str
    detail: str
    source: str
    topic: str
    links: tuple[CardLink, ...]

    @property
    def in_progress(self) -> bool:
        """Rayhook names it in `source.topic`; another service's card would have to be read."""
        return self.topic == "in-progress"


@dataclass(frozen=True, slots=True)
class CDSAnswer:
    """`error` is set where the service gave no cards, so that silence is never read as "nothing found"."""

    cards: tuple[Card, ...]
    elapsed_ms: float
    error: str | None = None

    @property
    def in_progress(self) -> bool:
        return any(card.in_progress for card in self.cards)


@dataclass(frozen=True, slots=True)
class _Service:
    id: str
    prefetch: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class CDSClient:
    """`key` signs the calls; its public half is what Rayhook's registry points to."""

    issuer: str
    jwks_url: str
    cds_base_url: str
    key: ECKey
    transport: Transport
    store: ResourceStore
    authorization: AuthorizationServer
    faults: EHRFaults
    clock: Callable[[], float] = time.time

    def patient_view(self, patient_id: str) -> CDSAnswer:
        return self._call("patient-view", {"userId": _USER, "patientId": patient_id})

    def order_sign(self, patient_id: str, order: Resource) -> CDSAnswer:
        """Ask about a draft order, as an EHR does before the clinician's signature is final."""
        drafts = {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": order}]}
        context = {"userId": _USER, "patientId": patient_id, "draftOrders": drafts}
        return self._call("order-sign", context)

    def assertion(self, audience: str) -> str:
        """Return a JWT for one call: its `jti` is never used again."""
        now = int(self.clock())
        header = {"alg": "ES384", "kid": self.key.kid, "typ": "JWT", "jku": self.jwks_url}
        claims = {
            "iss": self.issuer,
            "aud": audience,
            "iat": now,
            "exp": now + _ASSERTION_LIFE_S,
            "jti": str(uuid.uuid4()),
        }
        return jwt.encode(header, claims, self.key, algorithms=["ES384"])

    def _call(self, hook: str, context: dict[str, Any]) -> CDSAnswer:
        begun = time.perf_counter()
        try:
            service = self._discover(hook)
            answer = CDSAnswer(self._ask(service, hook, context), 0.0)
        except RayhookError as error:
            answer = CDSAnswer((), 0.0, error.message)
        return replace(answer, elapsed_ms=(time.perf_counter() - begun) * 1000)

    def _discover(self, hook: str) -> _Service:
        url = f"{self.cds_base_url}/cds-services"
        found = self._json("GET", url, headers={"Authorization": f"Bearer {self.assertion(url)}"})
        for service in found.get("services", []):
            if service.get("hook") == hook:
                return _Service(service["id"], service.get("prefetch", {}))
        raise UpstreamError(f"no CDS service for the hook {hook}")

    def _ask(self, service: _Service, hook: str, context: dict[str, Any]) -> tuple[Card, ...]:
        url = f"{self.cds_base_url}/cds-services/{service.id}"
        headers = {"Authorization": f"Bearer {self.assertion(url)}", "Content-Type": "application/json"}
        body = json.dumps(self.request(service.prefetch, hook, context)).encode()
        return tuple(_card(card) for card in self._json("POST", url, headers=headers, body=body)["cards"])

    def request(self, templates: dict[str, str], hook: str, context: dict[str, Any]) -> dict[str, Any]:
        """Return the body of a call: context, a patient-bound token, and what was asked to be prefetched."""
        patient_id = context["patientId"]
        scopes = READ_SCOPES if self.faults.no_write_scope else (*READ_SCOPES, *WRITE_SCOPES)
        scope = " ".join(scopes)
        request: dict[str, Any] = {
            "hook": hook,
            "hookInstance": str(uuid.uuid4()),
            "fhirServer": self.authorization.issuer,
            "fhirAuthorization": {
                "access_token": self.authorization.issue(patient_id, scope),
                "token_type": "Bearer",
                "expires_in": _TOKEN_LIFE_S,
                "scope": scope,
                "subject": CLIENT_ID,
                "patient": patient_id,
            },
            "context": context,
        }
        if not self.faults.no_prefetch:
            request["prefetch"] = {
                key: self._prefetched(template, patient_id) for key, template in templates.items()
            }
        return request

    def _prefetched(self, template: str, patient_id: str) -> Resource:
        """Spec: CDS Hooks 2.0.1, "Prefetch Template"; only {{context.patientId}} is known here."""
        query = template.replace("{{context.patientId}}", patient_id)
        path, _, parameters = query.partition("?")
        if "/" in path:
            return as_seen(self.store.read(*path.split("/", 1)), self.faults)
        return search_bundle(
            self.store,
            SearchQuery(path, tuple(parse_qsl(parameters))),
            base_url=self.authorization.issuer,
            patient_id=patient_id,
            faults=self.faults,
        )

    def _json(
        self, method: str, url: str, *, headers: dict[str, str], body: bytes | None = None
    ) -> dict[str, Any]:
        response = self.transport.request(
            method,
            url,
            allowed_origins=frozenset({origin_of(self.cds_base_url)}),
            deadline_s=_DEADLINE_S,
            headers=headers,
            content=body,
        )
        if response.status != 200:  # noqa: PLR2004 - HTTP's own name for success
            raise UpstreamError(f"the CDS service answered {response.status}: {_diagnostics(response.body)}")
        found: dict[str, Any] = json.loads(response.body)
        return found


_USER = f"Practitioner/{PRACTITIONER_ID}"


def _card(card: dict[str, Any]) -> Card:
    indicator = card["indicator"]
    return Card(
        summary=card["summary"],
        indicator=indicator if indicator in _INDICATORS else "warning",
        detail=card.get("detail", ""),
        source=card["source"]["label"],
        topic=card["source"].get("topic", {}).get("code", ""),
        links=tuple(_link(link) for link in card.get("links", ())),
    )


def _link(link: dict[str, Any]) -> CardLink:
    return CardLink(link["label"], link["url"], link["type"] == "smart", link.get("appContext"))


def _diagnostics(body: bytes) -> str:
    try:
        return str(json.loads(body)["issue"][0]["diagnostics"])[:300]
    except (ValueError, KeyError, IndexError, TypeError):
        return "no reason given"
