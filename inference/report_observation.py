"""The Observations of a result: one for the whole study, and one for each finding looked for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any

from rayhook.fhir import codes
from rayhook.fhir.codes import Coding, ObservationStatus
from rayhook.fhir.r4 import decimal
from rayhook.fhir.references import DICOM_UID_SYSTEM, oid_uri
from rayhook.inference.dicom_uid import observation_uid
from rayhook.inference.registry import Manifest
from rayhook.inference.report_key import ResourceKey, model_key, result_key
from rayhook.inference.report_text import answer_sentence, conclusion, narrative
from rayhook.inference.statement import aggregation_text, cautions, marked, model_words
from rayhook.inference.study import AnalysisStatus, Finding, StudyReference, StudyResult

Resource = dict[str, Any]

COMPONENT_SYSTEM = "urn:rayhook:component"

_DATA_ABSENT_REASON_URL = "http://hl7.org/fhir/StructureDefinition/data-absent-reason"
_INTERPRETATION = "http://terminology.hl7.org/CodeSystem/v3-ObservationInterpretation"
_POSITIVE = Coding(codes.SNOMED, "10828004", "Positive")
_NEGATIVE = Coding(codes.SNOMED, "260385009", "Negative")
_INTERPRETED = {
    True: Coding(_INTERPRETATION, "POS", "Positive"),
    False: Coding(_INTERPRETATION, "NEG", "Negative"),
}
_THRESHOLD = Coding(COMPONENT_SYSTEM, "decision-threshold", "Decision threshold")
_CALIBRATION = Coding(
    COMPONENT_SYSTEM, "calibration", "SHA-256 of the manifest that holds calibration and threshold"
)
_KEY_IMAGE = Coding(
    COMPONENT_SYSTEM, "key-image", "SOP Instance UID of the image that shows the finding best"
)
_ABSENT_REASONS = {
    AnalysisStatus.ABSTAINED: codes.UNKNOWN,
    AnalysisStatus.OUT_OF_SCOPE: codes.UNSUPPORTED,
    AnalysisStatus.REFUSED: codes.DATA_ERROR,
}


@dataclass(frozen=True, slots=True)
class Subject:
    """What every resource of one result says of whose it is and when: a result under its reference.

    is_in_sr: whether a DICOM structured report has the findings too.
    """

    reference: StudyReference
    result: StudyResult
    is_in_sr: bool = False

    @property
    def is_answered(self) -> bool:
        """Return whether a model answered; without it nothing may look like a result."""
        return self.result.status is AnalysisStatus.ANALYSED

    @property
    def issued(self) -> str:
        """Return the time of the analysis as a FHIR instant."""
        return (
            self.result.analysed_at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        )

    def key(self, part: str) -> ResourceKey:
        """Return the key of one of the result's resources."""
        return result_key(self.reference, self.result, part)

    def elements(self, key: ResourceKey) -> Resource:
        """Return what DiagnosticReport and Observations have in common.

        Spec: FHIR R4 Resource.meta; HL7 AI Transparency 1.0.0-ballot (AIAST on what an AI asserts)
        """
        based_on = self.reference.service_request
        effective: Resource = {"effectiveDateTime": self.reference.started}
        if self.reference.started is None:
            reason = {"url": _DATA_ABSENT_REASON_URL, "valueCode": codes.UNKNOWN.code}
            effective = {"_effectiveDateTime": {"extension": [reason]}}
        return {
            "id": key.id,
            "meta": {"security": [codes.AI_ASSERTED.json()], "tag": [tag_of(key)]},
            "identifier": [key.identifier],
            **({"basedOn": [{"reference": based_on}]} if based_on else {}),
            "subject": {"reference": f"Patient/{self.reference.patient_id}"},
            **effective,
            "issued": self.issued,
        }


def tag_of(key: ResourceKey) -> dict[str, str]:
    """Return the key as a tag: by `_tag` a Provenance, which has no identifier in R4, is found again."""
    return {"system": key.system, "code": key.value}


def build_observations(subject: Subject, manifest: Manifest | None) -> list[Resource]:
    """Return the study's Observation first, then one for each finding that the model looks for."""
    members = list(_members(subject, manifest))
    return [_panel(subject, manifest, members), *members]


def _panel(subject: Subject, manifest: Manifest | None, members: Sequence[Resource]) -> Resource:
    """Return the opinion on the whole study.

    Spec: DICOM PS3.16 CID 7002 (Impression); FHIR R4 Observation, obs-6
    """
    text = conclusion(subject.result, manifest)
    said = {"valueString": text} if subject.is_answered else _absence(subject.result)
    links = [{"reference": f"Observation/{member['id']}"} for member in members]
    return {
        **_observation(subject, "study"),
        "text": narrative(*text.splitlines()),
        "code": codes.IMPRESSION.concept(),
        **said,
        **({"hasMember": links} if links else {}),
    }


def _members(subject: Subject, manifest: Manifest | None) -> Iterator[Resource]:
    if subject.is_answered:
        yield from (_finding(subject, finding) for finding in subject.result.findings)
    elif manifest is not None and subject.result.model is not None:
        for label in manifest.labels:
            asked = Coding(label.finding.system, label.finding.code, label.finding.display)
            yield {
                **_observation(subject, f"finding.{asked.code}"),
                "text": narrative(f"{asked.display}: no answer.", *cautions(subject.result.model)),
                "code": asked.concept(),
                **_absence(subject.result),
            }


def _finding(subject: Subject, finding: Finding) -> Resource:
    """Return one finding's answer, its probability also as a component for those who skip extensions.

    Spec: HL7 AI Transparency 1.0.0-ballot (AIconfidence); DICOM PS3.16 (122157 Probability)
    """
    value = _POSITIVE if finding.positive else _NEGATIVE
    side = "at or above" if finding.positive else "below"
    model = subject.result.model
    site = Coding(codes.SNOMED, finding.body_site_code or "", finding.body_site_display or "")
    return {
        **_with_observation_uid(_observation(subject, f"finding.{finding.code}"), subject, finding),
        "extension": [{"url": codes.AI_CONFIDENCE_EXTENSION, "valueDecimal": decimal(finding.probability)}],
        "text": narrative(answer_sentence(finding, model), *cautions(model)),
        "code": Coding(finding.system, finding.code, finding.display).concept(),
        "valueCodeableConcept": value.concept(f"{side} the {model_words(model)}'s threshold"),
        "interpretation": [_INTERPRETED[finding.positive].concept()],
        "note": [{"text": caution} for caution in cautions(model)],
        **({"bodySite": site.concept()} if finding.body_site_code else {}),
        "component": list(_components(subject, finding)),
    }


def _with_observation_uid(observation: Resource, subject: Subject, finding: Finding) -> Resource:
    """Name the finding as the structured report does.

    Spec: DICOM PS3.3 C.18.8 (Observation UID); IHE RAD IMR
    """
    if not subject.is_in_sr:
        return observation
    uid = {"system": DICOM_UID_SYSTEM, "value": oid_uri(observation_uid(subject.result, finding.code))}
    return {**observation, "identifier": [*observation["identifier"], uid]}


def _components(subject: Subject, finding: Finding) -> Iterator[Resource]:
    yield {"code": codes.PROBABILITY.concept(), "valueQuantity": _ratio(finding.probability)}
    yield {"code": _THRESHOLD.concept(), "valueQuantity": _ratio(finding.threshold)}
    model = subject.result.model
    if model is not None and model.manifest_sha256:
        yield {"code": _CALIBRATION.concept(), "valueString": model.manifest_sha256}
    image = subject.result.key_image
    if image is not None:
        yield {"code": _KEY_IMAGE.concept(), "valueString": image.sop_instance_uid}


def _observation(subject: Subject, part: str) -> Resource:
    """Return what the study's Observation and the findings have in common.

    Spec: HL7 DICOM SR to FHIR 1.0.0-ballot (partOf the ImagingStudy, by its UID); IHE RAD IMR (derivedFrom)
    """
    result = subject.result
    status = ObservationStatus.PRELIMINARY if subject.is_answered else ObservationStatus.CANCELLED
    study = {"reference": f"ImagingStudy/{subject.reference.imaging_study_id}"}
    study_uid = {
        "type": codes.STUDY_INSTANCE_UID.concept(),
        "system": DICOM_UID_SYSTEM,
        "value": oid_uri(result.study_instance_uid),
    }
    aggregation = f": {aggregation_text(result.aggregation)}" if result.aggregation else ""
    by_model: Resource = {}
    if result.model is not None:
        by_model = {
            "method": {"text": f"{marked('Convolutional neural network', result.model)}{aggregation}"},
            "device": {"reference": f"Device/{model_key(result.model).id}"},
        }
    return {
        "resourceType": "Observation",
        **subject.elements(subject.key(part)),
        "partOf": [{**study, "identifier": study_uid}],
        "status": status.value,
        "category": [codes.IMAGING.concept()],
        **by_model,
        "derivedFrom": [study],
    }


def _absence(result: StudyResult) -> Resource:
    """Return why there is no value, in a code and in words."""
    reason = _ABSENT_REASONS[result.status]
    said = ([f"{result.reason}."] if result.reason else []) + list(cautions(result.model))
    return {"dataAbsentReason": reason.concept(result.status.value), "note": [{"text": " ".join(said)}]}


def _ratio(value: float) -> Resource:
    return {"value": decimal(value), "unit": "1", "system": codes.UCUM, "code": "1"}
