"""An event as a FHIR R4 AuditEvent by IHE Basic Audit Log Patterns.

Built by template: a delivery of thousands validates nothing, the tests do. A profile is claimed only where the
act succeeded, since BALP describes successes alone.

Spec: IHE BALP 1.1.3; FHIR R4 AuditEvent; RFC 6750 (no token is ever named, only its `jti`)
"""

import base64
import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from rayhook.audit.balp_forms import FORMS, OTHER, Coding, Form, Way
from rayhook.audit.events import Outcome
from rayhook.audit.review import AuditRecord

_ROLE: Final = "http://terminology.hl7.org/CodeSystem/object-role"
_ENTITY_TYPE: Final = "http://terminology.hl7.org/CodeSystem/audit-entity-type"
_PARTICIPATION: Final = "http://terminology.hl7.org/CodeSystem/v3-ParticipationType"
_REASON: Final = "http://terminology.hl7.org/CodeSystem/v3-ActReason"
_BALP_ENTITY: Final = "https://profiles.ihe.net/ITI/BALP/CodeSystem/BasicAuditEntityType"
_SOURCE_TYPE: Final = "http://terminology.hl7.org/CodeSystem/security-source-type"
_PERSON = Coding(_ENTITY_TYPE, "1", "Person")
_SYSTEM_OBJECT = Coding(_ENTITY_TYPE, "2", "System Object")
_OTHER = Coding(_ENTITY_TYPE, "4", "Other")
_PATIENT_ROLE = Coding(_ROLE, "1", "Patient")
_QUERY_ROLE = Coding(_ROLE, "24", "Query")
_JTI: Final = "urn:ietf:params:oauth:jti:"
_REFERENCE = re.compile(r"[A-Z][A-Za-z]{1,63}/[A-Za-z0-9.-]{1,64}")
_PEOPLE = ("Patient/", "Person/", "Practitioner/", "PractitionerRole/", "RelatedPerson/")
_PURPOSES = {
    "BTG": "break the glass",
    "HLEGAL": "legal",
    "HOPERAT": "healthcare operations",
    "HRESCH": "healthcare research",
    "HSYSADMIN": "health system administration",
    "PATRQT": "patient requested",
    "TREAT": "treatment",
}


@dataclass(frozen=True, slots=True)
class Observer:
    """Who tells: this installation. `fhir_bases` are those of the EHRs by their id."""

    name: str
    address: str
    version: str
    fhir_bases: Mapping[str, str] = field(default_factory=dict)

    @property
    def tag_system(self) -> str:
        return f"{self.address.rstrip('/')}/audit"


def audit_event(record: AuditRecord, observer: Observer) -> dict[str, Any]:
    """Return the resource. Its id is the event's hash: the same event is the same resource, however often sent."""
    form = FORMS.get(record.kind, OTHER)
    resource: dict[str, Any] = {
        "resourceType": "AuditEvent",
        "id": record.hash,
        "meta": {"tag": [{"system": observer.tag_system, "code": record.hash}]},
        "type": form.type.as_json(),
    }
    profile = _profile(record, form)
    if profile is not None:
        resource["meta"]["profile"] = [profile]
    if form.subtype is not None:
        resource["subtype"] = [form.subtype.as_json()]
    resource["action"] = form.action
    resource["recorded"] = record.recorded_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    resource["outcome"] = str(record.outcome.value)
    if record.outcome is not Outcome.SUCCESS:
        reason = record.detail.get("code") or record.detail.get("reason")
        resource["outcomeDesc"] = reason or "not done"
    resource["purposeOfEvent"] = [_purpose(record)]
    resource["agent"] = list(_agents(record, form, observer))
    resource["source"] = {
        "site": observer.name,
        "observer": {"display": _software(observer)},
        "type": [Coding(_SOURCE_TYPE, "4", "Application Server").as_json()],
    }
    resource["entity"] = list(_entities(record, form, observer))
    return resource


def _profile(record: AuditRecord, form: Form) -> str | None:
    """Return what can be claimed: a patient's pattern needs the patient, what was touched, and both ends."""
    if form.profile is None or record.outcome is not Outcome.SUCCESS or record.patient_id is None:
        return None
    if form.is_query:
        return form.profile if record.context.get("query") else None
    return form.profile if _data(record) else None


def _data(record: AuditRecord) -> list[str]:
    """Return what was touched, the patient's own record apart where it is not all there is."""
    patient = f"Patient/{record.patient_id}"
    return [entity for entity in record.entities if entity != patient] or list(record.entities)


def _agents(record: AuditRecord, form: Form, observer: Observer) -> Iterable[dict[str, Any]]:
    us = {"display": _software(observer)}
    their_name = record.client_id or record.agent or "unknown"
    is_person = _is_person(record)
    if form.way is Way.INBOUND:
        address = record.context.get("client_address") or "unknown"
        yield _end(form.client, {"identifier": {"value": their_name}}, address, is_requestor=not is_person)
        yield _end(form.server, us, observer.address)
    elif form.way is Way.OUTBOUND:
        base = observer.fhir_bases.get(record.ehr_id or "", "")
        peer = record.context.get("peer") or base or record.ehr_id or "unknown"
        yield _end(form.client, us, observer.address, is_requestor=not is_person)
        yield _end(form.server, {"display": record.ehr_id or peer}, peer)
    else:
        yield _end(form.client, us, observer.address, is_requestor=not is_person)
    if is_person:
        yield _user(record, form, observer)


def _end(role: Coding, who: dict[str, Any], address: str, *, is_requestor: bool = False) -> dict[str, Any]:
    return {
        "type": {"coding": [role.as_json()]},
        "who": who,
        "requestor": is_requestor,
        "network": {"address": address, "type": _network_type(address)},
    }


def _user(record: AuditRecord, form: Form, observer: Observer) -> dict[str, Any]:
    is_writing = form.action in {"C", "U", "D"}
    role = (
        Coding(_PARTICIPATION, "AUT", "author (originator)")
        if is_writing
        else Coding(_PARTICIPATION, "IRCP", "information recipient")
    )
    agent: dict[str, Any] = {
        "type": {"coding": [role.as_json()]},
        "who": _who(record, observer),
        "requestor": True,
        "purposeOfUse": [_purpose(record)],
    }
    jti = record.context.get("jti")
    if jti:
        agent["policy"] = [_JTI + jti]
    return agent


def _who(record: AuditRecord, observer: Observer) -> dict[str, Any]:
    agent = record.agent or "unknown"
    if _REFERENCE.fullmatch(agent):
        return {"reference": _absolute(agent, record, observer)}
    return {"identifier": {"value": agent}}


def _is_person(record: AuditRecord) -> bool:
    """A person by their FHIR reference, wherever it lies, or by an account of the staff."""
    agent = record.agent
    if agent is None or agent == record.client_id:
        return False
    return any(kind in agent for kind in _PEOPLE) or agent.startswith("urn:rayhook:staff:")


def _entities(record: AuditRecord, form: Form, observer: Observer) -> Iterable[dict[str, Any]]:
    if form.is_query and record.context.get("query"):
        yield _query(record.context["query"])
    elif form.is_query:
        yield _plain(_OTHER, None, {"identifier": {"value": record.kind.value}}, record.detail)
    else:
        yield from _touched(record, form, observer)
    if record.patient_id is not None:
        reference = _absolute(f"Patient/{record.patient_id}", record, observer)
        yield _plain(_PERSON, _PATIENT_ROLE, {"reference": reference})
    if form.is_query:
        for entity in record.entities:
            yield _plain(_OTHER, form.data_role, _what(entity, record, observer))
    if record.request_id:
        yield {
            "type": {"system": _BALP_ENTITY, "code": "XrequestId"},
            "what": {"identifier": {"value": record.request_id}},
        }


def _touched(record: AuditRecord, form: Form, observer: Observer) -> Iterable[dict[str, Any]]:
    """Yield the data; the first entity carries the detail, and where there is none one by itself does."""
    touched = _data(record)
    if not touched:
        yield _plain(_OTHER, None, {"identifier": {"value": record.kind.value}}, record.detail)
        return
    first, *others = touched
    yield _plain(_SYSTEM_OBJECT, form.data_role, _what(first, record, observer), record.detail)
    for entity in others:  # BALP has room for one "data" entity; what else was touched is told beside it
        yield _plain(_OTHER, form.data_role, _what(entity, record, observer))


def _plain(
    type_: Coding, role: Coding | None, what: dict[str, Any], detail: Mapping[str, str] | None = None
) -> dict[str, Any]:
    entity: dict[str, Any] = {"what": what, "type": type_.as_json()}
    if role is not None:
        entity["role"] = role.as_json()
    pairs = [{"type": name, "valueString": value} for name, value in (detail or {}).items() if name and value]
    if pairs:
        entity["detail"] = pairs
    return entity


def _query(query: str) -> dict[str, Any]:
    """The search as it was asked, in base64; readable text beside it would be PHI twice."""
    return {
        "type": _SYSTEM_OBJECT.as_json(),
        "role": _QUERY_ROLE.as_json(),
        "query": base64.b64encode(query.encode()).decode("ascii"),
    }


def _what(entity: str, record: AuditRecord, observer: Observer) -> dict[str, Any]:
    if entity.startswith("urn:oid:"):
        return {"identifier": {"system": "urn:dicom:uid", "value": entity}}
    if _REFERENCE.fullmatch(entity):
        return {"reference": _absolute(entity, record, observer)}
    return {"identifier": {"value": entity}}


def _absolute(reference: str, record: AuditRecord, observer: Observer) -> str:
    base = observer.fhir_bases.get(record.ehr_id or "")
    return reference if base is None else f"{base}/{reference}"


def _purpose(record: AuditRecord) -> dict[str, Any]:
    code = record.context.get("purpose") or "TREAT"
    return {"coding": [Coding(_REASON, code, _PURPOSES.get(code)).as_json()]}


def _software(observer: Observer) -> str:
    return f"Rayhook {observer.version}"


def _network_type(address: str) -> str:
    """Return 1 for a machine's name, 2 for an IP address, 5 for a URI.

    Spec: http://hl7.org/fhir/network-type
    """
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return "5" if "://" in address else "1"
    return "2"
