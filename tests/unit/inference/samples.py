"""Results, references and a manifest as the tests of reports, analysis and pipeline need them."""

from dataclasses import replace
from datetime import UTC, datetime

from rayhook.inference.preprocess import BrainSlice
from rayhook.inference.registry import (
    Calibration,
    Coding,
    Label,
    Manifest,
    ModelStatus,
    OutOfDistribution,
    SequenceRule,
)
from rayhook.inference.study import (
    AnalysisStatus,
    Finding,
    InstanceAttributes,
    InstanceResult,
    KeyImage,
    ModelIdentity,
    StudyReference,
    StudyResult,
)

SNOMED = "http://snomed.info/sct"
STUDY_UID = "1.2.826.0.1.3680043.8.498.1"
SERIES_UID = "1.2.826.0.1.3680043.8.498.1.1"
MODEL = ModelIdentity(id="brain-flair-tumour", version="1.0.0", weights_sha256="ab" * 32)

# What `rayhook analyze --json` prints of every instance.
ANALYZE_FIELDS = {
    "path",
    "sop_instance_uid",
    "study_instance_uid",
    "status",
    "error",
    "findings",
    "marks",
    "model",
    "sha256",
    "elapsed_ms",
}


def manifest() -> Manifest:
    label = Label(
        name="tumour",
        finding=Coding(SNOMED, "126952004", "Neoplasm of brain"),
        body_site=Coding(SNOMED, "12738006", "Brain structure"),
        threshold=0.4,
        calibration=Calibration(a=1.0, b=0.0),
        cam_scale=4.0,
    )
    return Manifest(
        id=MODEL.id,
        version=MODEL.version,
        title="Tumour on axial FLAIR",
        intended_use="Research on axial FLAIR series of the adult brain.",
        limits=("Trained on gliomas of one collection.",),
        status=ModelStatus.EXPERIMENTAL,
        modality="MR",
        body_parts=("BRAIN", "HEAD"),
        sop_class_uids=("1.2.840.10008.5.1.4.1.1.4",),
        sequence=SequenceRule(
            name="FLAIR",
            plane="axial",
            words=("flair",),
            excluded_words=(),
            inversion_time_ms=(1500.0, 3200.0),
        ),
        output_stride=16,
        preprocessing=BrainSlice(input_size=64),
        labels=(label,),
        ood=OutOfDistribution(threshold=5.0, neighbour=1, reference="training slices"),
        golden_logits=(0.0,),
        weights_sha256=MODEL.weights_sha256,
        licence="research",
        training_data="samples",
        recipe_sha256="cd" * 32,
    )


def reference(**changes: object) -> StudyReference:
    values: dict[str, object] = {
        "ehr_id": "ehr",
        "fhir_base_url": "https://ehr.example/fhir",
        "patient_id": "patient-1",
        "imaging_study_id": "study-1",
        "study_instance_uid": STUDY_UID,
        "dicomweb_url": "https://pacs.example/dicom-web",
        "token_required": True,
        "source_version": "1",
        "started": "2026-03-12T10:15:00Z",
        "modalities": ("MR",),
        "description": "MR brain",
        "service_request": "ServiceRequest/order-1",
    }
    return StudyReference(**{**values, **changes})  # type: ignore[arg-type]


def finding(probability: float = 0.91) -> Finding:
    return Finding(
        code="126952004",
        system=SNOMED,
        display="Neoplasm of brain",
        probability=probability,
        threshold=0.4,
        positive=probability >= 0.4,
        body_site_code="12738006",
        body_site_display="Brain structure",
    )


def instance(
    number: int, status: AnalysisStatus = AnalysisStatus.ANALYSED, **changes: object
) -> InstanceResult:
    values: dict[str, object] = {
        "sop_instance_uid": f"{SERIES_UID}.{number}",
        "study_instance_uid": STUDY_UID,
        "series_instance_uid": SERIES_UID,
        "status": status,
        "findings": (finding(),) if status is AnalysisStatus.ANALYSED else (),
        "model": MODEL if status in {AnalysisStatus.ANALYSED, AnalysisStatus.ABSTAINED} else None,
    }
    return InstanceResult(**{**values, **changes})  # type: ignore[arg-type]


def refused_instance(code: str = "truncated_pixel_data") -> InstanceResult:
    return InstanceResult(None, None, None, AnalysisStatus.REFUSED, error_code=code, reason="half an image")


def analysed(
    probability: float = 0.91, *, instances: tuple[InstanceResult, ...] | None = None
) -> StudyResult:
    every = instances or tuple(instance(n) for n in range(1, 4))
    return StudyResult(
        study_instance_uid=STUDY_UID,
        series_instance_uid=SERIES_UID,
        status=AnalysisStatus.ANALYSED,
        reason=None,
        findings=(finding(probability),),
        model=MODEL,
        aggregation="max_of_median3",
        instances=every,
        slice_probabilities=(probability,) * len(every),
        key_image=KeyImage(f"{SERIES_UID}.2", SERIES_UID, 64, 64, b"png", b"png"),
        analysed_at=datetime(2026, 3, 12, 10, 20, tzinfo=UTC),
        elapsed_ms=12.5,
    )


def unanswered(status: AnalysisStatus) -> StudyResult:
    tried = status is AnalysisStatus.ABSTAINED
    every = (
        refused_instance()
        if status is AnalysisStatus.REFUSED
        else instance(1, status, reason="out_of_distribution")
    )
    return StudyResult(
        study_instance_uid=STUDY_UID,
        series_instance_uid=None,
        status=status,
        reason="out_of_distribution (1 of 1 images)",
        findings=(),
        model=MODEL if tried else None,
        aggregation=None,
        instances=(every,),
        slice_probabilities=(),
        key_image=None,
        analysed_at=datetime(2026, 3, 12, 10, 20, tzinfo=UTC),
        elapsed_ms=12.5,
    )


def nothing_to_rate() -> StudyResult:
    """A series in which a model that rates points found none."""
    reason = "no point of these images was like what the model rates"
    images = tuple(instance(n, findings=(), reason=reason) for n in range(1, 4))
    return replace(
        analysed(instances=images),
        reason=reason,
        findings=(),
        aggregation="mean_logit_of_4_slices",
        slice_probabilities=(0.0, 0.0, 0.0),
        key_image=None,
    )


def attributes(number: int = 1, **changes: object) -> InstanceAttributes:
    values: dict[str, object] = {
        "sop_instance_uid": f"{SERIES_UID}.{number}",
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.4",
        "study_instance_uid": STUDY_UID,
        "series_instance_uid": SERIES_UID,
        "transfer_syntax_uid": "1.2.840.10008.1.2.1",
        "patient_id": "MRN-1",
        "modality": "MR",
        "body_part_examined": "BRAIN",
        "series_description": "AX T2 FLAIR",
        "study_description": "MR brain",
        "protocol_name": None,
        "sequence_name": None,
        "image_type": ("ORIGINAL", "PRIMARY", "M"),
        "inversion_time_ms": 2500.0,
        "echo_time_ms": 120.0,
        "repetition_time_ms": 9000.0,
        "pixel_spacing_mm": (1.0, 1.0),
        "slice_location_mm": 5.0 * number,
        "image_orientation": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        "instance_number": number,
        "acquisition_datetime": None,
        "rows": 64,
        "columns": 64,
        "number_of_frames": 1,
        "photometric_interpretation": "MONOCHROME2",
        "burned_in_annotation": None,
        "window": None,
    }
    return InstanceAttributes(**{**values, **changes})  # type: ignore[arg-type]
