"""What our FHIR endpoint serves of one patient: every version of a result's resources, and the studies they are of.

Spec: FHIR R4 http.html#versions, references.html#literal
"""

import re
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Any

from sqlmodel import Session

from rayhook.auth.keys import Keyring
from rayhook.fhir import codes
from rayhook.fhir.codes import ImagingStudyStatus
from rayhook.fhir.references import DICOM_UID_SYSTEM, oid_uri
from rayhook.inference.dicom_links import LINKED, build_links
from rayhook.inference.dicom_table import StoreState, load_objects
from rayhook.inference.jobs import StoredJob, StoredResult, jobs_for_patient, results_for_patient
from rayhook.inference.signature import Signature, is_withdrawn, load_acts, load_signatures
from rayhook.inference.study import StudyReference

Resource = dict[str, Any]
Key = tuple[str, str]

_RELATIVE = re.compile(r"[A-Z][A-Za-z]+/[A-Za-z0-9.-]{1,64}")
_STUDIES = uuid.uuid5(uuid.NAMESPACE_URL, "urn:rayhook:imaging-study")


@dataclass(frozen=True, slots=True)
class Served:
    """One version of one resource, as it leaves. `at` is when it came to be, in seconds since the epoch."""

    resource: Resource
    version: int
    at: float

    @property
    def key(self) -> Key:
        return self.resource["resourceType"], self.resource["id"]

    @property
    def etag(self) -> str:
        """Spec: FHIR R4 http.html#versioning."""
        return f'W/"{self.version}"'


class PatientResources:
    """All that is served of one patient, the newest first; `versions` are each resource's, the oldest first."""

    def __init__(self, served: Iterable[Served]) -> None:
        self.versions: dict[Key, list[Served]] = defaultdict(list)
        for one in served:
            self.versions[one.key].append(one)

    def current(self, resource_type: str | None = None) -> list[Served]:
        found = [
            every[-1]
            for (kind, _), every in self.versions.items()
            if resource_type is None or kind == resource_type
        ]
        return sorted(found, key=lambda one: one.at, reverse=True)

    def read(self, resource_type: str, resource_id: str, version: str | None = None) -> Served | None:
        every = self.versions.get((resource_type, resource_id), [])
        if version is None:
            return every[-1] if every else None
        return next((one for one in every if str(one.version) == version), None)


def load_resources(
    session: Session, keyring: Keyring, ehr_id: str, patient_id: str, *, resource_type: str, organization: str
) -> PatientResources:
    """Read what is known of the patient: results and what was signed.

    DICOM objects, and studies with or without results, only where they are what is asked for: nothing includes them.
    """
    results = results_for_patient(session, keyring, ehr_id, patient_id)
    signed = {result_id for result_id, _, _ in load_acts(session, keyring, ehr_id, patient_id)}
    signatures = {one: load_signatures(session, keyring, one) for one in signed}
    if resource_type == "ImagingStudy":
        return PatientResources(_studies(results, jobs_for_patient(session, keyring, ehr_id, patient_id)))
    if resource_type == "DocumentReference":
        every = (
            _links(session, keyring, result, signatures.get(result.id, ()), organization=organization)
            for result in results
        )
        return PatientResources(chain.from_iterable(every))
    return PatientResources(_served(results, signatures))


def _links(
    session: Session,
    keyring: Keyring,
    result: StoredResult,
    signatures: Sequence[Signature],
    *,
    organization: str,
) -> Iterator[Served]:
    """Yield a DocumentReference for each DICOM object that the PACS has, and what it became with its report."""
    every = load_objects(session, keyring, result.id)
    stored = [one for one in every if one.state is StoreState.STORED and one.kind in LINKED]
    for version in (1, 2) if is_withdrawn(signatures) else (1,):
        links = build_links(
            result.reference,
            result.result,
            [(one.kind, one.names) for one in stored],
            organization=organization,
            is_withdrawn=version > 1,
        )
        for link, one in zip(links, stored, strict=True):
            told = told_from_here(link, frozenset(), result.reference.fhir_base_url)
            at = one.updated_at if version == 1 else signatures[-1].at
            yield Served(_stamped(told, version, at), version, at)


def _served(
    results: Sequence[StoredResult], signatures: dict[str, tuple[Signature, ...]]
) -> Iterator[Served]:
    seen: set[Key] = set()
    for result in results:
        for one in _versions(result, signatures.get(result.id, ())):
            # A Device, and a result that two jobs came to, are told once.
            if one.version > 1 or one.key not in seen:
                yield one
            seen.add(one.key)


def _versions(result: StoredResult, signatures: Sequence[Signature]) -> Iterator[Served]:
    made = [(one, 1, result.created_at) for one in result.resources]
    made += [
        (one, signature.version, signature.at) for signature in signatures for one in signature.resources
    ]
    own = {f"{one['resourceType']}/{one['id']}" for one, _, _ in made}
    for resource, version, at in made:
        told = told_from_here(resource, own, result.reference.fhir_base_url)
        yield Served(_stamped(told, version, at), version, at)


def _stamped(resource: Resource, version: int, at: float) -> Resource:
    meta = {**resource.get("meta", {}), "versionId": str(version), "lastUpdated": instant(at)}
    return {**resource, "meta": meta}


def _studies(results: Sequence[StoredResult], jobs: Sequence[StoredJob]) -> Iterator[Served]:
    series: dict[str, set[str]] = defaultdict(set)
    for result in results:
        for image in result.result.instances:
            if image.series_instance_uid is not None:
                series[_study_id(result.reference)].add(image.series_instance_uid)
    newest: dict[str, StoredJob] = {}
    for job in jobs:
        newest.setdefault(_study_id(job.reference), job)
    for study_id, job in newest.items():
        resource = _imaging_study(study_id, job.reference, sorted(series[study_id]))
        yield Served(_stamped(resource, 1, job.row.updated_at), 1, job.row.updated_at)


def _imaging_study(study_id: str, reference: StudyReference, series_uids: Sequence[str]) -> Resource:
    """Return the study as we know it; `meta.source` is the EHR's own, which knows more.

    Series are told only where they can have but one modality: the EHR tells it of the study as a whole.
    """
    base = reference.fhir_base_url
    modalities = [{"system": codes.DCM, "code": one} for one in reference.modalities]
    series = [{"uid": uid, "modality": modalities[0]} for uid in series_uids] if len(modalities) == 1 else []
    order = reference.service_request
    return {
        "resourceType": "ImagingStudy",
        "id": study_id,
        "meta": {"source": f"{base}/ImagingStudy/{reference.imaging_study_id}"},
        "text": {
            "status": "generated",
            "div": '<div xmlns="http://www.w3.org/1999/xhtml"><p>Imaging study, as the EHR told it.</p></div>',
        },
        "identifier": [{"system": DICOM_UID_SYSTEM, "value": oid_uri(reference.study_instance_uid)}],
        "status": ImagingStudyStatus.AVAILABLE.value,
        "subject": {"reference": f"{base}/Patient/{reference.patient_id}"},
        **({"modality": modalities} if modalities else {}),
        **({"started": reference.started} if reference.started else {}),
        **({"basedOn": [{"reference": f"{base}/{order}"}]} if order else {}),
        **({"description": reference.description} if reference.description else {}),
        **({"series": series} if series else {}),
    }


def _study_id(reference: StudyReference) -> str:
    return str(uuid.uuid5(_STUDIES, f"{reference.fhir_base_url}/ImagingStudy/{reference.imaging_study_id}"))


def instant(at: float) -> str:
    """Return a FHIR instant with milliseconds."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def told_from_here(value: Any, own: AbstractSet[str], base_url: str) -> Any:
    """Return a copy whose references to the EHR's resources carry the EHR's own URL.

    Spec: FHIR R4 references.html#literal: a relative reference is to a resource of the same server
    """
    if isinstance(value, list):
        return [told_from_here(member, own, base_url) for member in value]
    if not isinstance(value, dict):
        return value
    copy = {key: told_from_here(member, own, base_url) for key, member in value.items()}
    reference = copy.get("reference")
    if isinstance(reference, str) and reference not in own and _RELATIVE.fullmatch(reference):
        copy["reference"] = f"{base_url}/{reference}"
    return copy
