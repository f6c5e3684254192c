"""A result as a DICOM structured report that any reading room can open.

Spec: DICOM PS3.3 A.35.13 (Comprehensive 3D SR IOD); PS3.16 TID 1500 (Measurement Report), TID 1410 (Planar ROI),
TID 1501 (Measurement and Qualitative Evaluation Group), TID 4019 (Algorithm Identification)
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    Comprehensive3DSR,
    ContainerContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    GraphicTypeValues,
    ImageRegion,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    PersonObserverIdentifyingAttributes,
    PlanarROIMeasurementsAndQualitativeEvaluations,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    SourceImageForRegion,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from rayhook.fhir.errors import Unprocessable
from rayhook.inference.dicom_identity import (
    ResultSource,
    name_source_class,
    person_name,
    plain,
    settle,
)
from rayhook.inference.dicom_uid import ObjectKind, observation_uid
from rayhook.inference.instance_names import OWN_MANUFACTURER
from rayhook.inference.registry import Label
from rayhook.inference.report_text import conclusion
from rayhook.inference.statement import cautions
from rayhook.inference.study import AnalysisStatus, Finding, InstanceResult, Mark

MAX_MARKS = 100

_SNOMED = "http://snomed.info/sct"
_SCHEMES = {_SNOMED: "SCT", "http://loinc.org": "LN", "http://www.radlex.org": "RADLEX"}
_NO_UNITS = codes.UCUM.NoUnits
_THRESHOLD = codes.DCM.ThresholdValue
_ANSWER = Code("363713009", "SCT", "Has interpretation")
_POSITIVE = Code("10828004", "SCT", "Positive")
_NEGATIVE = Code("260385009", "SCT", "Negative")
_UNDETERMINED = Code("373068000", "SCT", "Undetermined")
_REVIEWED = {None: _UNDETERMINED, False: _NEGATIVE, True: _POSITIVE}
_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")
_BRAIN, _LUNG = "12738006", "39607008"
# What TID 1604 and TID 1603 tell of an image.
_CROSS_SECTIONAL = ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "SliceThickness")
_PROJECTION = ("ImagerPixelSpacing", "PatientOrientation")
# Spec: DICOM PS3.16 CID 100, LOINC
_PROCEDURES = {
    ("MR", _BRAIN): Code("24590-2", "LN", "MR Brain"),
    ("CT", _LUNG): Code("24627-2", "LN", "CT Chest"),
    ("CR", _LUNG): Code("30745-4", "LN", "XR Chest Views"),
    ("DX", _LUNG): Code("30745-4", "LN", "XR Chest Views"),
}
_ANY_PROCEDURE = {
    "CR": codes.cid100.XRUnspecifiedBodyRegion,
    "CT": codes.cid100.CTUnspecifiedBodyRegion,
    "DX": codes.cid100.XRUnspecifiedBodyRegion,
    "MR": codes.cid100.MRIUnspecifiedBodyRegion,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """What a person signed. answers: by finding code, None for no statement.  at: of the signature.

    version: of the report, which every signature makes a new one of.
    """

    name: str
    organization: str
    at: datetime
    version: int
    answers: Mapping[str, bool | None]
    sentences: tuple[str, ...]


def build_structured_report(source: ResultSource) -> Dataset:
    """Return the report: unverified and preliminary, whatever the model said."""
    made = Comprehensive3DSR(
        evidence=[plain(source.header), *other_images(source)],
        content=report_content(source)[0],
        is_complete=True,
        is_final=False,
        is_verified=False,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        **source.arguments(ObjectKind.SR),
    )
    name_source_class(made, source.header)
    return settle(made, source)


def report_content(source: ResultSource, review: Review | None = None) -> ContentSequence:
    """Return the document's tree, as the model made it or as a person signed it."""
    person = None if review is None else _person(review)
    report = MeasurementReport(
        observation_context=ObservationContext(
            observer_person_context=person, observer_device_context=_observer(source)
        ),
        procedure_reported=procedure(source),
        imaging_measurements=[*_groups(source, review)],
        title=codes.DCM.ImagingMeasurementReport,
        referenced_images=[_library_image(source.header)],
    )
    report[0].ContentSequence.append(_whole(source, review))
    _name_observations(report[0])
    return report


def procedure(source: ResultSource) -> CodedConcept:
    """Return the imaging procedure, as the image names it or as its modality and the body part tell."""
    named = source.header.get("ProcedureCodeSequence")
    if named:
        return CodedConcept(named[0].CodeValue, named[0].CodingSchemeDesignator, named[0].CodeMeaning)
    modality = source.header.get("Modality", "")
    site = next((label.body_site.code for label in _labels(source)), "")
    code = _PROCEDURES.get((modality, site)) or _ANY_PROCEDURE.get(modality) or codes.cid100.ImagingProcedure
    return CodedConcept.from_code(code)


def _library_image(header: Dataset) -> Dataset:
    """Return the image as the library describes it; one that does not say where it lies only by its size."""
    image = plain(header)
    needed = _CROSS_SECTIONAL if header.get("Modality") in ("CT", "MR") else _PROJECTION
    if any(keyword not in header for keyword in needed):
        image.Modality = "OT"
    return image


def _labels(source: ResultSource) -> tuple[Label, ...]:
    return source.manifest.labels if source.manifest else ()


def _observer(source: ResultSource) -> ObserverContext:
    return ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=source.device_uid,
            name=source.title,
            manufacturer_name=OWN_MANUFACTURER,
            model_name=source.model.id,
            serial_number=source.model.weights_sha256,
        ),
    )


def _person(review: Review) -> ObserverContext:
    return ObserverContext(
        observer_type=codes.DCM.Person,
        observer_identifying_attributes=PersonObserverIdentifyingAttributes(
            name=person_name(review.name), organization_name=review.organization[:64]
        ),
    )


def _algorithm(source: ResultSource) -> AlgorithmIdentification:
    return AlgorithmIdentification(
        name=source.title,
        version=source.model.version,
        parameters=list(_parameters(source)),
        family=codes.DCM.ArtificialIntelligence,
        manufacturer=OWN_MANUFACTURER,
    )


def _parameters(source: ResultSource) -> Iterator[str]:
    """Yield what decides the answer beside the weights."""
    for label in _labels(source):
        yield f"{label.name}: threshold={label.threshold:.6f}"
        calibration = label.calibration
        yield f"{label.name}: calibration=Platt a={calibration.a:.6f} b={calibration.b:.6f}"
        if label.unsure is not None:
            yield f"{label.name}: no answer from {label.unsure[0]:.6f} to below {label.unsure[1]:.6f}"
    yield f"weights SHA-256={source.model.weights_sha256}"
    if source.model.manifest_sha256:
        yield f"manifest SHA-256={source.model.manifest_sha256}"
    if source.model.finder is not None:
        yield f"points proposed by {source.model.finder.id} {source.model.finder.version}"
    if source.result.aggregation:
        yield f"aggregation={source.result.aggregation}"


def _groups(
    source: ResultSource, review: Review | None
) -> Iterator[MeasurementsAndQualitativeEvaluations | PlanarROIMeasurementsAndQualitativeEvaluations]:
    """Yield one group a finding, or a label without an answer, then one a point that was rated.

    Once a person has signed, a finding's answer is theirs, and the points have the model's numbers alone.
    """
    if source.result.status is AnalysisStatus.ANALYSED:
        yield from (_finding_group(source, finding, review) for finding in source.result.findings)
        signed = review is not None
        yield from (_mark_group(source, *mark, is_signed=signed) for mark in strongest_marks(source))
    else:
        yield from (_unanswered_group(source, label) for label in _labels(source))


def _finding_group(
    source: ResultSource, finding: Finding, review: Review | None
) -> MeasurementsAndQualitativeEvaluations:
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            observation_uid(source.result, finding.code), finding.display[:64]
        ),
        finding_type=_concept(finding.system, finding.code, finding.display),
        algorithm_id=_algorithm(source),
        finding_sites=_sites(finding.body_site_code, finding.body_site_display),
        measurements=[
            Measurement(codes.DCM.Probability, _number(finding.probability), _NO_UNITS),
            Measurement(_THRESHOLD, _number(finding.threshold), _NO_UNITS),
        ],
        qualitative_evaluations=[QualitativeEvaluation(_ANSWER, _answer(finding, review))],
        source_images=[_image(source)] if source.result.key_image else None,
    )


def _unanswered_group(source: ResultSource, label: Label) -> MeasurementsAndQualitativeEvaluations:
    asked = label.finding
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            observation_uid(source.result, asked.code), asked.display[:64]
        ),
        finding_type=_concept(asked.system, asked.code, asked.display),
        algorithm_id=_algorithm(source),
        finding_sites=_sites(label.body_site.code, label.body_site.display),
        qualitative_evaluations=[QualitativeEvaluation(_ANSWER, _UNDETERMINED)],
        source_images=[_image(source)],
    )


def strongest_marks(source: ResultSource) -> list[tuple[InstanceResult, Mark]]:
    """Return the points that were rated, those with an answer and the more probable ones first."""
    every = [(one, mark) for one in source.seen for mark in one.marks]
    every.sort(key=lambda pair: (pair[1].probability is None, -(pair[1].probability or 0.0), -pair[1].score))
    return every[:MAX_MARKS]


def _mark_group(
    source: ResultSource, one: InstanceResult, mark: Mark, *, is_signed: bool
) -> PlanarROIMeasurementsAndQualitativeEvaluations:
    """Return the group of one point.

    Spec: DICOM PS3.3 C.18.6.1.2: (column, row), the first pixel's centre is (0.5, 0.5)
    """
    label = _labels(source)[0]
    name = f"{one.sop_instance_uid}.{mark.row}.{mark.column}"
    answer = _UNDETERMINED if mark.probability is None else (_POSITIVE if mark.positive else _NEGATIVE)
    region = ImageRegion(
        GraphicTypeValues.POINT,
        np.array([[mark.column + 0.5, mark.row + 0.5]]),
        SourceImageForRegion(_sop_class(source, one), one.sop_instance_uid or ""),
    )
    measurements = [Measurement(_THRESHOLD, _number(label.threshold), _NO_UNITS)]
    if mark.probability is not None:
        measurements.insert(0, Measurement(codes.DCM.Probability, _number(mark.probability), _NO_UNITS))
    return PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            source.uid(ObjectKind.SR, f"mark.{name}"), f"point at row {mark.row}, column {mark.column}"
        ),
        referenced_region=region,
        finding_type=_concept(label.finding.system, label.finding.code, label.finding.display),
        algorithm_id=_algorithm(source),
        finding_sites=_sites(label.body_site.code, label.body_site.display),
        measurements=measurements,
        qualitative_evaluations=None if is_signed else [QualitativeEvaluation(_ANSWER, answer)],
    )


def _whole(source: ResultSource, review: Review | None) -> ContainerContentItem:
    """Return what is said of the study as a whole: an answer a finding, and the report's sentences."""
    container = ContainerContentItem(_EVALUATIONS, relationship_type=RelationshipTypeValues.CONTAINS)
    container.ContentSequence = ContentSequence()
    for concept, answer in _answers(source, review):
        container.ContentSequence.extend(QualitativeEvaluation(concept, answer))
    said = conclusion(source.result, source.manifest).splitlines() if review is None else review.sentences
    for sentence in dict.fromkeys([*cautions(source.model), *said]):
        container.ContentSequence.append(
            TextContentItem(codes.DCM.Comment, sentence, relationship_type=RelationshipTypeValues.CONTAINS)
        )
    return container


def _answers(source: ResultSource, review: Review | None) -> Iterator[tuple[CodedConcept, Code]]:
    if source.result.status is AnalysisStatus.ANALYSED:
        for finding in source.result.findings:
            concept = _concept(finding.system, finding.code, finding.display)
            yield concept, _answer(finding, review)
        return
    for label in _labels(source):
        yield _concept(label.finding.system, label.finding.code, label.finding.display), _UNDETERMINED


def _answer(finding: Finding, review: Review | None) -> Code:
    """Return what counts: a verified document must not hold the model's answer beside another of who signed it."""
    if review is not None:
        return _REVIEWED[review.answers.get(finding.code)]
    return _POSITIVE if finding.positive else _NEGATIVE


def _name_observations(root: Dataset) -> None:
    """Give the groups an Observation UID, by which the FHIR Observation names them."""
    for item in root.ContentSequence:
        for group in item.get("ContentSequence", ()) if _is(item, codes.DCM.ImagingMeasurements) else ():
            tracking = next(
                one for one in group.ContentSequence if _is(one, codes.DCM.TrackingUniqueIdentifier)
            )
            group.ObservationUID = tracking.UID


def _is(item: Dataset, code: Code) -> bool:
    name = item.ConceptNameCodeSequence[0]
    return (name.CodeValue, name.CodingSchemeDesignator) == (code.value, code.scheme_designator)


def other_images(source: ResultSource) -> Iterator[Dataset]:
    """Yield the other images that the model saw, as far as evidence has to name them."""
    for one in source.seen:
        if one.sop_instance_uid == source.header.SOPInstanceUID:
            continue
        other = Dataset()
        other.StudyInstanceUID = source.header.StudyInstanceUID
        other.SeriesInstanceUID = one.series_instance_uid or source.header.SeriesInstanceUID
        other.SOPInstanceUID, other.SOPClassUID = one.sop_instance_uid, _sop_class(source, one)
        yield other


def _sop_class(source: ResultSource, one: InstanceResult) -> str:
    """Return an image's SOP class; results older than its recording are all of the shown image's."""
    return one.sop_class_uid or str(source.header.SOPClassUID)


def _image(source: ResultSource) -> SourceImageForMeasurementGroup:
    return SourceImageForMeasurementGroup(source.header.SOPClassUID, source.header.SOPInstanceUID)


def _sites(code: str | None, display: str | None) -> list[FindingSite] | None:
    if not code:
        return None
    return [FindingSite(anatomic_location=CodedConcept(code, "SCT", display or code))]


def _concept(system: str, code: str, display: str) -> CodedConcept:
    """Raises Unprocessable for a system that DICOM has no designator for."""
    if system not in _SCHEMES:
        raise Unprocessable("the finding's code system has no DICOM designator", code="no_designator")
    return CodedConcept(code, _SCHEMES[system], display[:64])


def _number(value: float) -> float:
    """Return a value of as many digits as it has a meaning for; a DS has room for 16 characters."""
    return round(value, 6)
