"""What a patient's chart shows, read from the demo EHR's resources."""

from dataclasses import dataclass
from typing import Any

from rayhook.deploy.demo.ehr_store import Resource, ResourceStore

_SUBJECT = "subject"


@dataclass(frozen=True, slots=True)
class PatientRow:
    id: str
    name: str
    mrn: str
    studies: tuple["StudyRow", ...]

    @property
    def initials(self) -> str:
        words = [word for word in self.name.replace("^", " ").replace("-", " ").split() if word[0].isalnum()]
        return "".join(word[0] for word in words[:2]).upper()


@dataclass(frozen=True, slots=True)
class StudyRow:
    id: str
    description: str
    modality: str
    started: str
    instances: int


@dataclass(frozen=True, slots=True)
class OrderRow:
    description: str
    status: str
    authored: str


@dataclass(frozen=True, slots=True)
class ReportRow:
    """`conclusion` is its first line, `remarks` are the others; `interpreters` are the people who signed it."""

    id: str
    title: str
    status: str
    effective: str
    issued: str
    conclusion: str
    remarks: tuple[str, ...]
    ai_made: bool
    interpreters: tuple[str, ...]
    versions: int
    observations: tuple["ObservationRow", ...]


@dataclass(frozen=True, slots=True)
class ObservationRow:
    """`facts` are the components: name and value as text."""

    name: str
    status: str
    value: str
    facts: tuple[tuple[str, str], ...]


def patient_rows(store: ResourceStore) -> list[PatientRow]:
    return [patient_row(store, patient) for patient in store.search("Patient", [])]


def patient_row(store: ResourceStore, patient: Resource) -> PatientRow:
    studies = store.search("ImagingStudy", [("patient", patient["id"])])
    return PatientRow(
        id=patient["id"],
        name=patient["name"][0]["text"],
        mrn=patient["identifier"][0]["value"],
        studies=tuple(
            StudyRow(
                id=study["id"],
                description=study.get("description", ""),
                modality=study["modality"][0]["code"],
                started=_day(study.get("started", "")),
                instances=study["numberOfInstances"],
            )
            for study in studies
        ),
    )


def order_rows(store: ResourceStore, patient_id: str) -> list[OrderRow]:
    orders = store.search("ServiceRequest", [(_SUBJECT, f"Patient/{patient_id}")])
    return [
        OrderRow(order["code"]["text"], order["status"], _day(order.get("authoredOn", "")))
        for order in orders
    ]


def report_rows(store: ResourceStore, patient_id: str) -> list[ReportRow]:
    """Return the reports that were written back, newest first."""
    reports = store.search("DiagnosticReport", [(_SUBJECT, f"Patient/{patient_id}")])
    return [_report_row(store, report) for report in reversed(reports)]


def _report_row(store: ResourceStore, report: Resource) -> ReportRow:
    labels = {label.get("code") for label in report.get("meta", {}).get("security", [])}
    references = [result["reference"] for result in report.get("result", [])]
    observations = [store.read(*reference.split("/", 1)) for reference in references]
    conclusion, *remarks = report.get("conclusion", "").splitlines() or [""]
    return ReportRow(
        id=report["id"],
        title=_text(report["code"]),
        status=report["status"],
        effective=_day(report.get("effectiveDateTime", "")),
        issued=_day(report.get("issued", "")),
        conclusion=conclusion,
        remarks=tuple(remarks),
        ai_made="AIAST" in labels,
        interpreters=tuple(str(one.get("display", "")) for one in report.get("resultsInterpreter", [])),
        versions=len(store.history("DiagnosticReport", report["id"])),
        observations=tuple(_observation_row(one) for one in observations),
    )


def _observation_row(observation: Resource) -> ObservationRow:
    return ObservationRow(
        name=_text(observation["code"]),
        status=observation["status"],
        value=_value(observation),
        facts=tuple((_text(part["code"]), _value(part)) for part in observation.get("component", [])),
    )


def _value(holder: Resource) -> str:
    if "dataAbsentReason" in holder:
        return f"not available: {_text(holder['dataAbsentReason'])}"
    if "valueQuantity" in holder:
        return _quantity(holder["valueQuantity"])
    if "valueCodeableConcept" in holder:
        return _text(holder["valueCodeableConcept"])
    if "valueBoolean" in holder:
        return "yes" if holder["valueBoolean"] else "no"
    return _first_line(str(holder.get("valueString", holder.get("valueInteger", ""))))


def _first_line(text: str) -> str:
    first, *rest = text.splitlines() or [""]
    return f"{first} …" if rest else first


def _quantity(quantity: dict[str, Any]) -> str:
    unit = quantity.get("unit", quantity.get("code", ""))
    return f"{quantity['value']} {unit}".removesuffix(" 1").strip()


def _text(concept: Resource) -> str:
    first = concept.get("coding", [{}])[0]
    return str(concept.get("text") or first.get("display") or first.get("code") or "")


def _day(instant: str) -> str:
    return instant[:10]
