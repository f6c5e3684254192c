"""Events to an audit record repository as a FHIR feed.

Spec: IHE ITI TF-2 3.20 (ITI-20, FHIR Feed); FHIR R4 http.html#ccreate, #transaction
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rayhook.audit.balp import Observer, audit_event
from rayhook.audit.delivery import DeliveryFailed
from rayhook.audit.review import AuditRecord
from rayhook.fhir.errors import RayhookError
from rayhook.fhir.transport import Transport, origin_of

_FHIR_JSON: Final = "application/fhir+json"
_DONE: Final = ("200", "201")
_OK: Final = frozenset({200, 201})


@dataclass(frozen=True, slots=True)
class FHIRFeed:
    """`token_file` holds the repository's bearer token; read each time, so that it can be replaced."""

    transport: Transport = field(repr=False)
    base_url: str
    observer: Observer
    token_file: Path | None = None
    deadline_s: float = 30.0
    target: str = "events:fhir"

    def send(self, items: Sequence[AuditRecord]) -> int:
        """Return how many of the first items are there now: after one that was refused, none counts.

        An event that is sent once more is the same: the repository looks for its tag before it creates it.
        """
        bundle = {
            "resourceType": "Bundle",
            "type": "batch",
            "entry": [self._entry(audit_event(record, self.observer)) for record in items],
        }
        done = 0
        for entry in self._post(bundle):
            if not str(entry.get("response", {}).get("status", "")).startswith(_DONE):
                break
            done += 1
        if done == 0 and items:
            raise DeliveryFailed("event_refused")
        return min(done, len(items))

    def _entry(self, resource: dict[str, Any]) -> dict[str, Any]:
        tag = resource["meta"]["tag"][0]
        return {
            "resource": resource,
            "request": {
                "method": "POST",
                "url": "AuditEvent",
                "ifNoneExist": f"_tag={tag['system']}|{tag['code']}",
            },
        }

    def _post(self, bundle: Mapping[str, Any]) -> list[dict[str, Any]]:
        headers = {"Content-Type": _FHIR_JSON, "Accept": _FHIR_JSON}
        if self.token_file is not None:
            headers["Authorization"] = f"Bearer {self.token_file.read_text().strip()}"
        try:
            response = self.transport.request(
                "POST",
                self.base_url,
                allowed_origins=frozenset({origin_of(self.base_url)}),
                deadline_s=self.deadline_s,
                headers=headers,
                content=json.dumps(bundle).encode(),
            )
        except RayhookError as error:
            raise DeliveryFailed(error.code) from error
        if response.status not in _OK:
            raise DeliveryFailed(f"status_{response.status}")
        try:
            return list(json.loads(response.body)["entry"])
        except (KeyError, TypeError, ValueError) as error:
            raise DeliveryFailed("answer_unreadable") from error
