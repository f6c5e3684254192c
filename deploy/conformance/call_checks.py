"""Calls, prefetch, refusals: what a service takes, and what it does not."""

import uuid
from collections.abc import Callable
from typing import Any

from rayhook.deploy.conformance.discovery_checks import require_outcome
from rayhook.deploy.conformance.registry import check
from rayhook.deploy.conformance.target import (
    PATIENT,
    JSONObject,
    Skipped,
    Target,
    bundle,
    expect,
    read_json,
    require,
    study,
)

_OUTCOME: JSONObject = {
    "resourceType": "OperationOutcome",
    "issue": [{"severity": "error", "code": "exception"}],
}
_AUTHORIZATION: JSONObject = {
    "access_token": "conformance",
    "token_type": "Bearer",
    "expires_in": 300,
    "scope": "patient/ImagingStudy.rs",
    "subject": "rayhook",
    "patient": PATIENT,
}
_LIMIT_S = 0.5
_CALLS = 5


@check("R18", "R41", "R42")
def a_call_without_studies_brings_no_card(target: Target) -> None:
    require(target.answer(target.body())["cards"] == [], "there is a card about nothing")


@check("R4")
def answers_are_quick(target: Target) -> None:
    target.signer  # noqa: B018 - raises Skipped without a key
    target.answer(target.body())
    before = len(target.elapsed_s)
    for _ in range(_CALLS):
        target.answer(target.body())
    slowest = max(target.elapsed_s[before:])
    require(slowest < _LIMIT_S, f"the slowest of {_CALLS} took {slowest * 1000:.0f} ms")


@check("R20")
def a_hook_instance_may_come_again(target: Target) -> None:
    instance = str(uuid.uuid4())
    for _ in range(2):
        target.answer(target.body(hookInstance=instance))


@check("R20", "R21", "R22", "R37", "R19")
def malformed_members_are_refused_and_named(target: Target) -> None:
    for name, change in _MALFORMED.items():
        body = target.body()
        change(body)
        response = target.post(body)
        require(response.status_code == 400, f"{name}: answered {response.status_code}")  # noqa: PLR2004 - HTTP
        require_outcome(response)
        require("expression" in read_json(response)["issue"][0], f"{name}: the refusal names no field")


def _set(path: str, value: object) -> Callable[[JSONObject], None]:
    def change(body: JSONObject) -> None:
        *parents, last = path.split(".")
        place: Any = body
        for parent in parents:
            place = place[parent]
        place[last] = value

    return change


def _drop(name: str) -> Callable[[JSONObject], None]:
    return lambda body: body.pop(name)


_MALFORMED: dict[str, Callable[[JSONObject], None]] = {
    "another hook": _set("hook", "medication-prescribe"),
    "no context": _drop("context"),
    "no hook": _drop("hook"),
    "no hookInstance": _drop("hookInstance"),
    "hookInstance without UUID": _set("hookInstance", "1"),
    "userId without a type": _set("context.userId", "conformance"),
    "userId of another type": _set("context.userId", "Device/1"),
    "patientId with a type": _set("context.patientId", "Patient/1"),
    "patientId that climbs": _set("context.patientId", "../1"),
    "patientId with a query": _set("context.patientId", "1?_include=*"),
    "fhirAuthorization without fhirServer": _set("fhirAuthorization", _AUTHORIZATION),
    "fhirAuthorization as text": _set("fhirAuthorization", "token"),
    "token_type MAC": _set("fhirAuthorization", _AUTHORIZATION | {"token_type": "MAC"}),
    "expires_in as text": _set("fhirAuthorization", _AUTHORIZATION | {"expires_in": "300"}),
    "a token with a line break": _set("fhirAuthorization", _AUTHORIZATION | {"access_token": "a\r\nX: y"}),
}


@check("R21")
def unknown_services_are_not_found(target: Target) -> None:
    path = "/cds-services/there-is-no-such-service"
    expect(target.post(target.body(), path=path), 404)


@check("R23")
def extensions_do_no_harm(target: Target) -> None:
    body = target.body(extension={"org.example.conformance": {"a": [1]}})
    body["context"]["extension"] = {"org.example.conformance": {}}
    target.answer(body)


@check("R30")
def null_and_empty_bundles_are_data(target: Target) -> None:
    for studies in (None, bundle([]), {"resourceType": "Bundle", "type": "searchset"}):
        body = target.body()
        body["prefetch"]["imagingStudies"] = studies
        require(target.answer(body)["cards"] == [], "there is a card about nothing")


@check("R31", "R33")
def a_missing_key_is_412(target: Target) -> None:
    for key in ("patient", "imagingStudies"):
        body = target.body()
        del body["prefetch"][key]
        _expect_412(target, body)
    _expect_412(target, {name: value for name, value in target.body().items() if name != "prefetch"})


@check("R32")
def an_outcome_in_prefetch_is_no_data(target: Target) -> None:
    for found in (_OUTCOME, bundle([_OUTCOME])):
        body = target.body()
        body["prefetch"]["imagingStudies"] = found
        _expect_412(target, body)


def _expect_412(target: Target, body: JSONObject) -> None:
    response = target.post(body)
    expect(response, 412)
    require_outcome(response)


@check("R34")
def prefetch_alone_is_enough(target: Target) -> None:
    require(target.answer(target.body(studies=[study()]))["cards"], "a study brought no card")


@check("R39")
def scopes_of_both_versions_are_taken(target: Target) -> None:
    if target.request is None or "fhirAuthorization" not in target.request:
        raise Skipped("needs --request with a fhirAuthorization")
    for scope in (
        "patient/ImagingStudy.read patient/Endpoint.read",
        "patient/ImagingStudy.rs patient/Endpoint.r",
    ):
        authorization = target.request["fhirAuthorization"] | {"scope": scope}
        instance = str(uuid.uuid4())
        target.answer(target.request | {"fhirAuthorization": authorization, "hookInstance": instance})


@check("R6")
def refusals_are_OperationOutcomes(target: Target) -> None:  # noqa: N802 - FHIR's word
    for body in (b"{", b"[]", b"", b'{"hook": "patient-view", "hook": "patient-view"}'):
        response = target.post(body)
        expect(response, 400)
        require_outcome(response)


@check("R84")
def foreign_FHIR_servers_are_refused(target: Target) -> None:  # noqa: N802 - FHIR is written so
    for server in (
        "https://evil.example/fhir",
        "http://169.254.169.254/latest",
        "file:///etc/passwd",
        "https://",
    ):
        body = target.body(fhirServer=server, fhirAuthorization=_AUTHORIZATION)
        response = target.post(body)
        require(400 <= response.status_code < 500, f"{server}: answered {response.status_code}")  # noqa: PLR2004


@check("R84")
def another_patients_data_is_refused(target: Target) -> None:
    bodies = [
        target.body(studies=[study(subject={"reference": "Patient/somebody-else"})]),
        target.body(),
    ]
    bodies[1]["prefetch"]["patient"]["id"] = "somebody-else"
    for body in bodies:
        response = target.post(body)
        require(400 <= response.status_code < 500, f"answered {response.status_code}")  # noqa: PLR2004


@check("R84")
def oversized_bodies_are_refused(target: Target) -> None:
    expect(target.post(b'{"hook": "' + b"x" * (2 * 1024 * 1024) + b'"}'), 413)
    deep = target.body(extension={})
    nested: JSONObject = {}
    deep["extension"] = nested
    for _ in range(100):
        nested["a"] = nested = {}
    expect(target.post(deep), 400)
