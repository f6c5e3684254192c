"""The CDS services offered, and how discovery tells of them."""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from rayhook.cds_hooks.contexts import (
    AppointmentBookContext,
    Context,
    EncounterStartContext,
    ImagingResultContext,
    OrderDispatchContext,
    OrderSelectContext,
    OrderSignContext,
    PatientViewContext,
)
from rayhook.inference.statement import INVESTIGATIONAL_SHORT

SPECIFICATION_VERSION = "2.0.1"
PATIENT = "patient"
IMAGING_STUDIES = "imagingStudies"
IMAGING_STUDY = "imagingStudy"
ORDERS = "serviceRequests"
IMAGING_RESULT_AVAILABLE = "org.rayhook.imaging-result-available"

_USAGE = (
    f"{INVESTIGATIONAL_SHORT} Calls carry a JWT signed with ES384 or RS384 by a registered "
    "issuer. `fhirAuthorization` should grant `patient/Patient.r`, `patient/ImagingStudy.rs` and "
    "`patient/Endpoint.r`, and whatever the DICOMweb server that the Endpoints name asks for; with "
    "`patient/DiagnosticReport.c`, `patient/Observation.c`, `patient/Device.c` and `patient/Provenance.c` results "
    "are written back. Scopes of SMART 1 (`patient/ImagingStudy.read`) are read as well. All of it, with examples: "
    "`/cds-services/documentation`."
)


@dataclass(frozen=True, slots=True)
class Template:
    """A query for the EHR to run ahead, and the type of its answer. `more` is added where we ask ourselves.

    Spec: CDS Hooks 2.0.1, "Prefetch query restrictions": no `_include`, and root-level tokens alone, so that
    every EHR can honour it.
    """

    query: str
    resource_type: str
    more: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One entry of discovery. `context` is the type that a call's context has to have."""

    id: str
    hook: str
    hook_version: str
    title: str
    description: str
    prefetch: Mapping[str, Template]
    context: type[Context]

    def json(self) -> dict[str, object]:
        return {
            "hook": self.hook,
            "hookVersion": self.hook_version,
            "title": self.title,
            "description": self.description,
            "id": self.id,
            "version": SPECIFICATION_VERSION,
            "prefetch": {key: template.query for key, template in self.prefetch.items()},
            "usageRequirements": _USAGE,
        }


_PREFETCH = {
    PATIENT: Template("Patient/{{context.patientId}}", "Patient"),
    IMAGING_STUDIES: Template(
        "ImagingStudy?patient={{context.patientId}}&_sort=-started&_count=20",
        "Bundle",
        # With the Endpoints at hand no second round is needed.
        "&_include=ImagingStudy:endpoint",
    ),
}
_ORDERS = {
    ORDERS: Template("ServiceRequest?patient={{context.patientId}}&_sort=-authored&_count=20", "Bundle")
}
_STUDY = {IMAGING_STUDY: Template("ImagingStudy/{{context.imagingStudyId}}", "ImagingStudy")}
_RULES = (
    "Tells whether the patient had like imaging a short time ago, whether a finding of the neural network awaits "
    "follow-up, and whether the modality fits that finding; each with its source."
)

# Where one id is listed for two hooks, the later hook's cards replace the earlier's.
# Spec: CDS Hooks 2.0.1, "Discovery"; 3.0.0-ballot, "Cards and Transience". Clients that keep one entry an id keep
# the last: that is why our own hook stands first.
SERVICES = (
    Service(
        id="rayhook-patient-view",
        hook=IMAGING_RESULT_AVAILABLE,
        hook_version="1.0",
        title="Rayhook: a new imaging result",
        description=(
            "Called when images of a patient, or a result on them, have become available: tells what the neural "
            "network found in them and in the patient's newest studies, in place of the cards of `patient-view`. "
            f"{INVESTIGATIONAL_SHORT}"
        ),
        prefetch=_PREFETCH | _STUDY,
        context=ImagingResultContext,
    ),
    Service(
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
    ),
    Service(
        id="rayhook-encounter-start",
        hook="encounter-start",
        hook_version="1.0",
        title="Rayhook: imaging findings at the start of an encounter",
        description=(
            "When an encounter begins, tells what the neural network found in the patient's newest imaging "
            f"studies. {INVESTIGATIONAL_SHORT}"
        ),
        prefetch=_PREFETCH,
        context=EncounterStartContext,
    ),
    Service(
        id="rayhook-order-select",
        hook="order-select",
        hook_version="1.0",
        title="Rayhook: while an imaging order is chosen",
        description=f"When an imaging order was chosen. {_RULES} {INVESTIGATIONAL_SHORT}",
        prefetch=_PREFETCH,
        context=OrderSelectContext,
    ),
    Service(
        id="rayhook-order-sign",
        hook="order-sign",
        hook_version="1.0",
        title="Rayhook: imaging findings before an imaging order is signed",
        description=(
            "When an imaging order is about to be signed, tells what the neural network found in the patient's newest "
            f"imaging studies. {_RULES} {INVESTIGATIONAL_SHORT}"
        ),
        prefetch=_PREFETCH,
        context=OrderSignContext,
    ),
    Service(
        id="rayhook-order-dispatch",
        hook="order-dispatch",
        hook_version="1.1",
        title="Rayhook: before an imaging order goes to its performer",
        description=f"When a performer is chosen for an imaging order. {_RULES} {INVESTIGATIONAL_SHORT}",
        prefetch=_PREFETCH | _ORDERS,
        context=OrderDispatchContext,
    ),
    Service(
        id="rayhook-appointment-book",
        hook="appointment-book",
        hook_version="1.0",
        title="Rayhook: while an imaging appointment is booked",
        description=f"When an appointment for imaging is proposed. {_RULES} {INVESTIGATIONAL_SHORT}",
        prefetch=_PREFETCH,
        context=AppointmentBookContext,
    ),
)


def services_by_id() -> dict[str, dict[str, Service]]:
    """Return the services by their id, and below it by hook."""
    found: dict[str, dict[str, Service]] = {}
    for service in SERVICES:
        found.setdefault(service.id, {})[service.hook] = service
    return found


def discovery() -> bytes:
    """Spec: CDS Hooks 2.0.1, "Discovery"."""
    return msgspec.json.encode({"services": [service.json() for service in SERVICES]})
