"""A result as FHIR R4: DiagnosticReport, Observations, Device and Provenance, and their transaction."""

import base64
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import quote

from rayhook.auth.scopes import ScopeSet
from rayhook.fhir import codes
from rayhook.fhir.codes import BundleType, Coding, DiagnosticReportStatus
from rayhook.fhir.r4 import validate
from rayhook.inference.registry import Manifest
from rayhook.inference.report_device import build_device, build_provenance
from rayhook.inference.report_observation import Resource, Subject, build_observations
from rayhook.inference.report_text import conclusion, narrative, report_page, report_title
from rayhook.inference.statement import is_experimental
from rayhook.inference.study import StudyReference, StudyResult

WRITTEN_TYPES = ("Device", "DiagnosticReport", "Observation", "Provenance")


def build_resources(
    reference: StudyReference,
    result: StudyResult,
    manifest: Manifest | None,
    *,
    organization: str,
    is_in_sr: bool = False,
) -> list[Resource]:
    """Return the result's resources, in the order in which they refer to each other.

    is_in_sr: whether a DICOM structured report of the result is made too.
    They refer to each other as `Type/id`, and so to the EHR's Patient, ImagingStudy and ServiceRequest.
    Where no model answered they are `cancelled`, with a dataAbsentReason: never a report of nothing found.
    Raises InvalidRequest if one were not valid R4: it must not leave.
    """
    subject = Subject(reference, result, is_in_sr)
    observations = build_observations(subject, manifest)
    report = _report(subject, manifest, observations, organization=organization)
    resources = [*observations, report]
    if result.model is not None:
        device = build_device(result.model, manifest, organization=organization)
        provenance = build_provenance(
            subject, result.model, resources, manifest=manifest, organization=organization
        )
        resources = [device, *resources, provenance]
    for resource in resources:
        validate(resource)
    return resources


def transaction(resources: Iterable[Resource]) -> Resource:
    """Return a transaction of conditional creates: sent twice, it writes once.

    Spec: FHIR R4 http.html#transaction, http.html#ccreate; bundle.html#references
    """
    every = tuple(resources)
    full_urls = {f"{one['resourceType']}/{one['id']}": f"urn:uuid:{one['id']}" for one in every}
    return {
        "resourceType": "Bundle",
        "type": BundleType.TRANSACTION.value,
        "entry": [
            {
                "fullUrl": f"urn:uuid:{one['id']}",
                "resource": _relinked({key: value for key, value in one.items() if key != "id"}, full_urls),
                "request": {
                    "method": "POST",
                    "url": one["resourceType"],
                    "ifNoneExist": creation_condition(one),
                },
            }
            for one in every
        ],
    }


def may_write(scopes: ScopeSet) -> bool:
    """Return whether all that a result consists of may be created, in whatever context."""
    return all(scopes.permits(None, resource_type, "c") for resource_type in WRITTEN_TYPES)


def _report(
    subject: Subject, manifest: Manifest | None, observations: Sequence[Resource], *, organization: str
) -> Resource:
    """Return the DiagnosticReport; only a human makes it final.

    Spec: FHIR R4 DiagnosticReport; US Core, us-core-10 (effective); performer may not be a Device in R4
    """
    answered = subject.is_answered
    status = DiagnosticReportStatus.PRELIMINARY if answered else DiagnosticReportStatus.CANCELLED
    text = conclusion(subject.result, manifest)
    positive = list(_conclusion_codes(subject.result))
    title = report_title(subject.result.model)
    return {
        "resourceType": "DiagnosticReport",
        **subject.elements(subject.key("report")),
        "text": narrative(*text.splitlines()),
        "status": status.value,
        "category": [codes.RADIOLOGY_SECTION.concept(), codes.RADIOLOGY.concept()],
        "code": codes.DIAGNOSTIC_IMAGING_STUDY.concept(title),
        "performer": [{"type": "Organization", "display": organization}],
        "result": [{"reference": f"Observation/{one['id']}"} for one in observations],
        "imagingStudy": [{"reference": f"ImagingStudy/{subject.reference.imaging_study_id}"}],
        "conclusion": text,
        **({"conclusionCode": positive} if positive else {}),
        "presentedForm": [attachment(report_page(subject.result, manifest), title, subject.issued)],
    }


def _conclusion_codes(result: StudyResult) -> Iterator[Resource]:
    kind = "experimental AI" if is_experimental(result.model) else "AI"
    for finding in result.findings:
        if finding.positive:
            yield Coding(finding.system, finding.code, finding.display).concept(f"possible, found by {kind}")


def attachment(page: bytes, title: str, created: str) -> Resource:
    """Return the page as an Attachment; its hash is SHA-1 because R4 says so, not for security.

    Spec: FHIR R4 datatypes.html#Attachment
    """
    digest = hashlib.sha1(page, usedforsecurity=False).digest()
    return {
        "contentType": "text/html",
        "language": "en",
        "data": base64.b64encode(page).decode("ascii"),
        "size": len(page),
        "hash": base64.b64encode(digest).decode("ascii"),
        "title": title,
        "creation": created,
    }


def creation_condition(resource: Resource) -> str:
    """Return the search that finds an earlier copy: by identifier, or by tag where R4 has no identifier."""
    if "identifier" in resource:
        found = resource["identifier"][0]
        name, system, value = "identifier", found["system"], found["value"]
    else:
        tag = resource["meta"]["tag"][0]
        name, system, value = "_tag", tag["system"], tag["code"]
    return f"{name}={quote(f'{system}|{value}', safe='')}"


def _relinked(value: Any, full_urls: dict[str, str]) -> Any:
    """Return a copy in which references within the transaction are its fullUrls."""
    if isinstance(value, list):
        return [_relinked(member, full_urls) for member in value]
    if not isinstance(value, dict):
        return value
    copy = {key: _relinked(member, full_urls) for key, member in value.items()}
    if isinstance(copy.get("reference"), str):
        copy["reference"] = full_urls.get(copy["reference"], copy["reference"])
    return copy
