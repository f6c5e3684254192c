"""What the EHR says of the launched patient: who it is, and which studies there are."""

import threading
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import structlog

from rayhook.auth.abilities import Ability, missing_scopes
from rayhook.auth.registry import EHR
from rayhook.auth.sessions import SMARTSession
from rayhook.fhir.client import FHIRClient
from rayhook.fhir.errors import RayhookError
from rayhook.fhir.r4 import ImagingStudySummary, read_imaging_study
from rayhook.fhir.transport import Transport
from rayhook.smart_app.access import Viewer
from rayhook.smart_app.i18n import day_text, translatable, unit_text
from rayhook.smart_app.i18n import gettext as _

_DEADLINE_S = 1.5
_MAX_STUDIES = 200
_MAX_PAGES = 3  # some EHRs give fewer at a time than they are asked for
_YEARS_FROM_MONTHS = 24

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PatientBanner:
    """Who the page is about; `name` says so where the EHR did not tell (`read` is False).

    alert: what must not be overlooked, as that the patient has died.
    """

    name: str
    facts: tuple[str, ...] = ()
    alert: str = ""
    read: bool = True


@dataclass(frozen=True, slots=True)
class KnownStudies:
    """The EHR's imaging studies, newest first; `notice` says why they, or some of them, are missing.

    scope: the right that they need, where it was not granted.  again: whether to ask again may help.
    """

    studies: tuple[ImagingStudySummary, ...] = ()
    notice: str | None = None
    scope: str = ""
    again: bool = False


class EHRReader:
    """Reads with the viewer's own token, no longer than a page may take; a silent EHR leaves a gap, not an error."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def banner(self, viewer: Viewer) -> PatientBanner:
        unnamed = PatientBanner(
            _("Patient of the launched chart"), (_("name not given by the EHR"),), read=False
        )
        if Ability.READ_PATIENT not in viewer.session.abilities:
            return unnamed
        try:
            return banner_of(
                self._client(viewer.ehr, viewer.session).read(
                    "Patient", viewer.patient_id, deadline_s=_DEADLINE_S
                )
            )
        except RayhookError as error:
            log.info("patient_not_read", code=error.code)
            return unnamed

    def studies(self, viewer: Viewer) -> KnownStudies:
        if Ability.SEARCH_STUDIES not in viewer.session.abilities:
            return KnownStudies(
                notice=_("Not permitted by your EHR: the list of imaging studies."),
                scope=f"patient/{missing_scopes(viewer.session.scopes, Ability.SEARCH_STUDIES)[0]}",
            )
        query = [("patient", viewer.patient_id), ("_sort", "-started"), ("_count", str(_MAX_STUDIES))]
        cut = threading.Event()
        try:
            found = self._client(viewer.ehr, viewer.session).search(
                "ImagingStudy", query, deadline_s=_DEADLINE_S, max_pages=_MAX_PAGES, on_truncated=cut.set
            )
        except RayhookError as error:
            log.info("imaging_studies_not_read", code=error.code)
            return KnownStudies(
                notice=_(
                    "Your EHR did not give its list of imaging studies. Only studies that were analysed are shown."
                ),
                again=True,
            )
        summaries = [
            read_imaging_study(one, base_url=viewer.session.fhir_base_url)
            for one in found
            if one.get("resourceType") == "ImagingStudy"
        ]
        more = _(
            "Your EHR has more imaging studies of this patient than are listed here: look in the chart for them."
        )
        return KnownStudies(
            tuple(one for one in summaries if one.patient_id == viewer.patient_id),
            notice=more if cut.is_set() else None,
        )

    def _client(self, ehr: EHR, session: SMARTSession) -> FHIRClient:
        return FHIRClient(self._transport, session.fhir_base_url, ehr.allowed_origins, session.access_token)


def banner_of(patient: dict[str, Any]) -> PatientBanner:
    facts = (
        _birth(patient.get("birthDate"), patient.get("deceasedDateTime")),
        _sex(patient),
        _identifier(patient),
    )
    return PatientBanner(
        _name(patient.get("name", ())), tuple(fact for fact in facts if fact), alert=_death(patient)
    )


def _birth(born: Any, died: Any) -> str:
    """Return the date of birth with the age, that at death of who has died."""
    if not isinstance(born, str):
        return ""
    age = age_text(born, str(died)[:10] if died else datetime.now(UTC).date().isoformat())
    day = day_text(born)
    return _("Born %(day)s, %(age)s", day=day, age=age) if age else _("Born %(day)s", day=day)


def age_text(born: str, today: str) -> str:
    """Return the age in years, of small children in months or days; empty where the day is not known.

    Spec: FHIR R4 datatypes.html#date: a date may be a year alone
    """
    try:
        birth, now = date.fromisoformat(born), date.fromisoformat(today)
    except ValueError:
        return ""
    if birth > now:
        return ""
    months = (now.year - birth.year) * 12 + now.month - birth.month - (now.day < birth.day)
    if months >= _YEARS_FROM_MONTHS:
        return unit_text(months // 12, "duration-year")
    return unit_text(months, "duration-month") if months else unit_text((now - birth).days, "duration-day")


# Spec: FHIR R4 valueset-administrative-gender
_SEXES = {
    "female": translatable("Female"),
    "male": translatable("Male"),
    "other": translatable("Other sex"),
    "unknown": translatable("Sex unknown"),
}


def _sex(patient: dict[str, Any]) -> str:
    return _(_SEXES.get(str(patient.get("gender")), ""))


def _death(patient: dict[str, Any]) -> str:
    died = patient.get("deceasedDateTime")
    if died:
        return _("Died %(day)s", day=day_text(str(died)))
    return _("Deceased") if patient.get("deceasedBoolean") is True else ""


def _identifier(patient: dict[str, Any]) -> str:
    """Return the medical record number, or else the first identifier, with what kind it is."""
    known = [one for one in patient.get("identifier", ()) if isinstance(one, dict) and one.get("value")]
    first = next((one for one in known if _is_record_number(one)), known[0] if known else None)
    if first is None:
        return ""
    kind = first.get("type") or {}
    code: dict[str, Any] = next(iter(kind.get("coding", ())), {})
    # Spec: HL7 v2 table 0203: MR is the medical record number
    shown = _("MRN") if _is_record_number(first) else kind.get("text") or code.get("display") or _("No.")
    return f"{shown} {first['value']}"


def _is_record_number(identifier: dict[str, Any]) -> bool:
    return any(code.get("code") == "MR" for code in (identifier.get("type") or {}).get("coding", ()))


def _name(names: Any) -> str:
    """Spec: FHIR R4 HumanName; `text` is how the EHR itself shows the name."""
    for name in names:
        shown = name.get("text") or " ".join([*name.get("given", ()), name.get("family", "")]).strip()
        if shown:
            return str(shown)
    return _("Unnamed patient")
