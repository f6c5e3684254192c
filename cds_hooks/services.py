"""The CDS services offered, and how discovery tells of them."""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from rayhook.cds_hooks.models import OrderSignContext, PatientViewContext
from rayhook.inference.statement import INVESTIGATIONAL_SHORT

SPECIFICATION_VERSION = "2.0.1"
PATIENT = "patient"
IMAGING_STUDIES = "imagingStudies"

_USAGE = (
    f"{INVESTIGATIONAL_SHORT} Calls carry a JWT signed with ES384 or RS384 by a registered "
    "issuer. `fhirAuthorization` should grant `patient/Patient.r`, `patient/ImagingStudy.rs` and "
    "`patient/Endpoint.r`, and whatever the DICOMweb server that the Endpoints name asks for; with "
    "`patient/DiagnosticReport.c`, `patient/Observation.c`, `patient/Device.c` and `patient/Provenance.c` results "
    "are written back."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One entry of discovery. `context` is the type that a call's context has to have."""

    id: str
    hook: str
    hook_version: str
    title: str
    description: str
    prefetch: Mapping[str, str]
    context: type[PatientViewContext]

    def json(self) -> dict[str, object]:
        return {
            "hook": self.hook,
            "hookVersion": self.hook_version,
            "title": self.title,
            "description": self.description,
            "id": self.id,
            "version": SPECIFICATION_VERSION,
            "prefetch": dict(self.prefetch),
            "usageRequirements": _USAGE,
        }


# Spec: CDS Hooks 2.0.1, "Prefetch query restrictions": no `_include`, so that every EHR can honour them.
_PREFETCH = {
    PATIENT: "Patient/{{context.patientId}}",
    IMAGING_STUDIES: "ImagingStudy?patient={{context.patientId}}&_sort=-started&_count=20",
}

_PATIENT_VIEW = Service(
    id="rayhook-patient-view",
    hook="patient-view",
    hook_version="1.0",
    title="Rayhook: imaging findings of this patient",
    description=(
        "Analyses the patient's newest imaging studies with a neural network and tells what it found, "
        f"with its confidence. {INVESTIGATIONAL_SHORT}"
    ),
    prefetch=_PREFETCH,
    context=PatientViewContext,
)

_ORDER_SIGN = Service(
    id="rayhook-order-sign",
    hook="order-sign",
    hook_version="1.0",
    title="Rayhook: imaging findings before an imaging order is signed",
    description=(
        "When an imaging order is about to be signed, tells what the neural network found in the patient's newest "
        f"imaging studies. {INVESTIGATIONAL_SHORT}"
    ),
    prefetch=_PREFETCH,
    context=OrderSignContext,
)

SERVICES: Mapping[str, Service] = {service.id: service for service in (_PATIENT_VIEW, _ORDER_SIGN)}


def discovery() -> bytes:
    """Spec: CDS Hooks 2.0.1, "Discovery"."""
    return msgspec.json.encode({"services": [service.json() for service in SERVICES.values()]})
