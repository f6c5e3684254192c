"""The CapabilityStatement of a server that says no more than what it does.

Spec: FHIR R4 capabilitystatement.html
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_SECURITY_SERVICE = "http://terminology.hl7.org/CodeSystem/restful-security-service"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchParameter:
    """`note` says where a parameter means less, or more, than the specification says."""

    kind: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceCapability:
    type: str
    interactions: Sequence[str]
    parameters: Mapping[str, SearchParameter]
    includes: Sequence[str] = ()
    revincludes: Sequence[str] = ()
    profiles: Sequence[str] = ()
    versioned: bool = False
    documentation: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCapability:
    """What a server is and does; `security` says in words who is let in."""

    url: str
    software: str
    version: str
    description: str
    published: str
    security: str
    resources: Sequence[ResourceCapability] = field(default=())


def capability_statement(server: ServerCapability) -> dict[str, Any]:
    return {
        "resourceType": "CapabilityStatement",
        "text": {
            "status": "generated",
            "div": f'<div xmlns="http://www.w3.org/1999/xhtml"><p>{server.description}</p></div>',
        },
        "name": server.software,
        "title": f"{server.software} {server.version}",
        "status": "active",
        "date": server.published,
        "kind": "instance",
        "software": {"name": server.software, "version": server.version},
        "implementation": {"description": server.description, "url": server.url},
        "fhirVersion": "4.0.1",
        "format": ["application/fhir+json", "json"],
        "rest": [
            {
                "mode": "server",
                "security": {
                    "cors": False,
                    "service": [{"coding": [{"system": _SECURITY_SERVICE, "code": "SMART-on-FHIR"}]}],
                    "description": server.security,
                },
                "resource": [_resource(one) for one in server.resources],
            }
        ],
    }


def _resource(one: ResourceCapability) -> dict[str, Any]:
    told: dict[str, Any] = {
        "type": one.type,
        "supportedProfile": list(one.profiles),
        "documentation": one.documentation,
        "interaction": [{"code": code} for code in one.interactions],
        "versioning": "versioned" if one.versioned else "no-version",
        "readHistory": one.versioned,
        "conditionalRead": "not-match",
        "searchInclude": list(one.includes),
        "searchRevInclude": list(one.revincludes),
        "searchParam": [
            {"name": name, "type": parameter.kind}
            | ({"documentation": parameter.note} if parameter.note else {})
            for name, parameter in one.parameters.items()
        ],
    }
    return {name: value for name, value in told.items() if value or value is False}
