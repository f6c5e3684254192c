"""An AuditEvent as the DICOM audit message that syslog repositories take.

Spec: DICOM PS3.15 A.5.1 (the RELAX NG schema's order of elements); IHE ITI TF-2 3.20
"""

import base64
import re
from collections.abc import Mapping
from typing import Any, Final
from xml.etree.ElementTree import Element, SubElement, tostring

_RFC_3881: Final = "RFC-3881"
_PATIENT_NUMBER: Final = ("2", _RFC_3881, "Patient Number")
_URI: Final = ("12", _RFC_3881, "URI")
_SEARCH: Final = ("10", _RFC_3881, "Search Criteria")
_STUDY: Final = ("110180", "DCM", "Study Instance UID")
_SYSTEMS: Final = {"http://dicom.nema.org/resources/ontology/DCM": "DCM"}
# XML 1.0 has no place for these, escaped or not.
_ILLEGAL: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


def dicom_message(resource: Mapping[str, Any]) -> bytes:
    """Return the XML of one AuditEvent as `audit.balp` makes it, UTF-8, on one line."""
    message = Element("AuditMessage")
    _event(message, resource)
    for agent in resource["agent"]:
        _participant(message, agent)
    source = resource["source"]
    identification = SubElement(
        message,
        "AuditSourceIdentification",
        _attributes(AuditEnterpriseSiteID=source["site"], AuditSourceID=source["observer"]["display"]),
    )
    for type_ in source["type"]:
        _code(identification, "AuditSourceTypeCode", type_)
    for entity in resource["entity"]:
        _object(message, entity)
    text: bytes = tostring(message, encoding="utf-8", xml_declaration=True)
    return text.replace(b"\n", b"")


def _event(message: Element, resource: Mapping[str, Any]) -> None:
    event = SubElement(
        message,
        "EventIdentification",
        _attributes(
            EventActionCode=resource["action"],
            EventDateTime=resource["recorded"],
            EventOutcomeIndicator=resource["outcome"],
        ),
    )
    _code(event, "EventID", resource["type"])
    for subtype in resource.get("subtype", ()):
        _code(event, "EventTypeCode", subtype)
    if "outcomeDesc" in resource:
        SubElement(event, "EventOutcomeDescription").text = _clean(resource["outcomeDesc"])
    for purpose in resource.get("purposeOfEvent", ()):
        _code(event, "PurposeOfUse", purpose["coding"][0])


def _participant(message: Element, agent: Mapping[str, Any]) -> None:
    network = agent.get("network")
    attributes = {"UserID": _who(agent["who"]), "UserIsRequestor": str(agent["requestor"]).lower()}
    if network is not None:
        attributes["NetworkAccessPointID"] = network["address"]
        attributes["NetworkAccessPointTypeCode"] = network["type"]
    participant = SubElement(message, "ActiveParticipant", _attributes(**attributes))
    for coding in agent["type"]["coding"]:
        _code(participant, "RoleIDCode", coding)


def _object(message: Element, entity: Mapping[str, Any]) -> None:
    what = entity.get("what", {})
    role = entity.get("role", {}).get("code")
    is_ours = entity["type"]["code"] == "XrequestId"
    attributes = {
        "ParticipantObjectID": _who(what) or "query",
        "ParticipantObjectTypeCode": "4" if is_ours else entity["type"]["code"],
    }
    if role is not None:
        attributes["ParticipantObjectTypeCodeRole"] = role
    found = SubElement(message, "ParticipantObjectIdentification", _attributes(**attributes))
    code, system, text = _id_type(entity, role)
    SubElement(
        found,
        "ParticipantObjectIDTypeCode",
        {"csd-code": code, "codeSystemName": system, "originalText": text},
    )
    if "query" in entity:
        SubElement(found, "ParticipantObjectQuery").text = entity["query"]
    else:
        SubElement(found, "ParticipantObjectName").text = "X-Request-Id" if is_ours else ""
    for detail in entity.get("detail", ()):
        value = base64.b64encode(detail["valueString"].encode()).decode("ascii")
        SubElement(found, "ParticipantObjectDetail", _attributes(type=detail["type"], value=value))


def _id_type(entity: Mapping[str, Any], role: str | None) -> tuple[str, str, str]:
    if role == "1":
        return _PATIENT_NUMBER
    if "query" in entity:
        return _SEARCH
    is_study = entity.get("what", {}).get("identifier", {}).get("system") == "urn:dicom:uid"
    return _STUDY if is_study else _URI


def _who(reference: Mapping[str, Any]) -> str:
    identifier = reference.get("identifier", {}).get("value")
    return str(reference.get("reference") or identifier or reference.get("display") or "")


def _code(parent: Element, name: str, coding: Mapping[str, str]) -> None:
    system = _SYSTEMS.get(coding["system"], coding["system"])
    text = coding.get("display", coding["code"])
    SubElement(parent, name, {"csd-code": coding["code"], "codeSystemName": system, "originalText": text})


def _attributes(**named: str) -> dict[str, str]:
    return {name: _clean(value) for name, value in named.items()}


def _clean(text: str) -> str:
    return _ILLEGAL.sub("\ufffd", text)
