"""What the EHR says of the launched patient: who it is, and which studies there are."""

from dataclasses import dataclass
from typing import Any

import structlog

from rayhook.auth.registry import EHR
from rayhook.auth.sessions import SMARTSession
from rayhook.fhir.client import FHIRClient
from rayhook.fhir.errors import RayhookError
from rayhook.fhir.r4 import ImagingStudySummary, read_imaging_study
from rayhook.fhir.transport import Transport
from rayhook.smart_app.access import Viewer

_DEADLINE_S = 1.5
_MAX_STUDIES = 50

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PatientBanner:
    """Who the page is about; `name` says so where the EHR did not tell (`read` is False)."""

    name: str
    facts: tuple[str, ...] = ()
    read: bool = True


@dataclass(frozen=True, slots=True)
class KnownStudies:
    """The EHR's imaging studies, newest first; `notice` says why they are missing."""

    studies: tuple[ImagingStudySummary, ...] = ()
    notice: str | None = None


class EHRReader:
    """Reads with the viewer's own token, no longer than a page may take; a silent EHR leaves a gap, not an error."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def banner(self, viewer: Viewer) -> PatientBanner:
        unnamed = PatientBanner("Patient of the launched chart", ("name not given by the EHR",), read=False)
        if not viewer.may("Patient", "r"):
            return unnamed
        try:
            return _banner(
                self._client(viewer.ehr, viewer.session).read(
                    "Patient", viewer.patient_id, deadline_s=_DEADLINE_S
                )
            )
        except RayhookError as error:
            log.info("patient_not_read", code=error.code)
            return unnamed

    def studies(self, viewer: Viewer) -> KnownStudies:
        if not viewer.may("ImagingStudy", "s"):
            return KnownStudies(notice="Not permitted by your EHR: the list of imaging studies.")
        query = [("patient", viewer.patient_id), ("_sort", "-started"), ("_count", str(_MAX_STUDIES))]
        try:
            found = self._client(viewer.ehr, viewer.session).search(
                "ImagingStudy", query, deadline_s=_DEADLINE_S, max_pages=1
            )
        except RayhookError as error:
            log.info("imaging_studies_not_read", code=error.code)
            return KnownStudies(
                notice="Your EHR did not give its list of imaging studies. Only studies that were analysed are shown."
            )
        summaries = [
            read_imaging_study(one, base_url=viewer.session.fhir_base_url)
            for one in found
            if one.get("resourceType") == "ImagingStudy"
        ]
        return KnownStudies(tuple(one for one in summaries if one.patient_id == viewer.patient_id))

    def _client(self, ehr: EHR, session: SMARTSession) -> FHIRClient:
        return FHIRClient(self._transport, session.fhir_base_url, ehr.allowed_origins, session.access_token)


def _banner(patient: dict[str, Any]) -> PatientBanner:
    facts = [
        f"Born {patient['birthDate']}" if "birthDate" in patient else "",
        *(
            f"No. {identifier['value']}"
            for identifier in patient.get("identifier", ())[:1]
            if "value" in identifier
        ),
    ]
    return PatientBanner(_name(patient.get("name", ())), tuple(fact for fact in facts if fact))


def _name(names: Any) -> str:
    """Spec: FHIR R4 HumanName; `text` is how the EHR itself shows the name."""
    for name in names:
        shown = name.get("text") or " ".join([*name.get("given", ()), name.get("family", "")]).strip()
        if shown:
            return str(shown)
    return "Unnamed patient"
