"""What the pipeline passes from step to step: frozen, free of protocol and of storage."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray


class AnalysisStatus(StrEnum):
    """What became of one instance or one study."""

    ABSTAINED = "abstained"
    ANALYSED = "analysed"
    OUT_OF_SCOPE = "out_of_scope"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class StudyReference:
    """Where one study's images are, and whose they are, as its EHR tells it.

    `imaging_study_id` is the logical id of the ImagingStudy, `patient_id` that of the Patient.
    `dicomweb_url` is the WADO-RS base without a trailing slash.
    `token_required` says that the EHR's token has to be shown to `dicomweb_url`
    (SMART extension requires-access-token).
    `source_version` changes when the EHR's ImagingStudy does: new images make a new analysis.
    Where `dicomweb_url` is empty, `endpoint_ids` name the EHR's Endpoints that are still to be read.
    `number_of_instances` is how many the EHR says there are.
    """

    ehr_id: str
    fhir_base_url: str
    patient_id: str
    imaging_study_id: str
    study_instance_uid: str
    dicomweb_url: str
    token_required: bool
    source_version: str = ""
    started: str | None = None
    modalities: tuple[str, ...] = ()
    description: str | None = None
    service_request: str | None = None
    endpoint_ids: tuple[str, ...] = ()
    number_of_instances: int | None = None


@dataclass(frozen=True, slots=True)
class InstanceAttributes:
    """The DICOM attributes that routing, geometry and reports need; patient names are not among them."""

    sop_instance_uid: str
    sop_class_uid: str
    study_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    patient_id: str | None
    modality: str
    body_part_examined: str | None
    series_description: str | None
    study_description: str | None
    protocol_name: str | None
    sequence_name: str | None
    image_type: tuple[str, ...]
    inversion_time_ms: float | None
    echo_time_ms: float | None
    repetition_time_ms: float | None
    pixel_spacing_mm: tuple[float, float] | None
    slice_location_mm: float | None
    image_orientation: tuple[float, ...] | None
    instance_number: int | None
    acquisition_datetime: datetime | None
    rows: int
    columns: int
    number_of_frames: int
    photometric_interpretation: str
    burned_in_annotation: str | None
    window: tuple[float, float] | None
    slice_thickness_mm: float | None = None
    rescale_type: str | None = None
    view_position: str | None = None


@dataclass(frozen=True, slots=True)
class DecodedInstance:
    """One instance's pixels after the Modality LUT, in MONOCHROME2 sense.

    pixels: (frames, rows, columns), float32; Hounsfield units for CT.
    display: (frames, rows, columns), uint8, after the VOI LUT or window: what a person would see.
    sha256 is that of the DICOM file's bytes.
    warnings are stable snake_case codes.
    source_header: what DICOM results copy from the image; it names the patient, and is never logged.
    """

    attributes: InstanceAttributes
    pixels: NDArray[np.float32]
    display: NDArray[np.uint8]
    sha256: str
    warnings: tuple[str, ...] = ()
    source_header: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class FrameScale:
    """How one frame's stored values become values with a meaning: value = stored * slope + intercept."""

    slope: float
    intercept: float


@dataclass(frozen=True, slots=True)
class StoredDescription:
    """How an image's values as acquired lie in memory, little-endian.

    dtype is numpy's name: uint8, int8, uint16, int16, uint32, int32 or float32.
    samples: 1, or 3 for colour, which is RGB of 8 bits whatever the file has.
    scales: one a frame.  lossy: that the file says it was compressed with loss.
    """

    dtype: str
    samples: int
    scales: tuple[FrameScale, ...]
    lossy: bool
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StoredInstance:
    """One instance's values as acquired: (frames, rows, columns), with samples as a fourth axis in colour."""

    attributes: InstanceAttributes
    description: StoredDescription
    pixels: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Finding:
    """One label's answer. `probability` is calibrated, 0..1; `positive` compares it with `threshold`."""

    code: str
    system: str
    display: str
    probability: float
    threshold: float
    positive: bool
    body_site_code: str | None = None
    body_site_display: str | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """A point of an image that was rated by itself.

    row, column: on the image's pixel grid, from 0.  score: the finder's, that there is something to
    rate.  probability: the leading finding's, None where the model abstained on this point.
    """

    row: int
    column: int
    score: float
    probability: float | None
    positive: bool


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which model answered, and by which files.

    experimental: that it was not validated when it answered; what nobody says to be validated is not.
    manifest_sha256: of the file that holds preprocessing, calibration and thresholds; empty where a
    result is older than its recording.  finder: the model that proposed the points, where one did.
    """

    id: str
    version: str
    weights_sha256: str
    manifest_sha256: str = ""
    experimental: bool = True
    finder: "ModelIdentity | None" = None


@dataclass(frozen=True, slots=True)
class InstanceResult:
    """What one instance came to. `reason` says why, for every status but `analysed`.

    `marks` are the points rated, the strongest first, for a model that rates points; without any such
    point it is `analysed` with no findings, and `reason` says so.
    sha256 is that of the file's bytes.
    """

    sop_instance_uid: str | None
    study_instance_uid: str | None
    series_instance_uid: str | None
    status: AnalysisStatus
    findings: tuple[Finding, ...] = ()
    model: ModelIdentity | None = None
    error_code: str | None = None
    reason: str | None = None
    elapsed_ms: float = 0.0
    marks: tuple[Mark, ...] = ()
    sha256: str | None = None
    sop_class_uid: str | None = None


@dataclass(frozen=True, slots=True)
class HeatMap:
    """The evidence over the key image, 0..1, on a grid of which one cell covers step x step pixels.

    The grid begins at the image's first pixel; its last row and column may reach beyond the image.
    values: (rows, columns), float16, little endian, deflated.
    """

    rows: int
    columns: int
    step: int
    values: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class KeyImage:
    """The image that carried a finding. PNGs are grey-level and overlay renderings, no text burned in.

    heat: None where a result is older than its recording.
    """

    sop_instance_uid: str
    series_instance_uid: str
    rows: int
    columns: int
    image_png: bytes
    overlay_png: bytes
    heat: HeatMap | None = None


@dataclass(frozen=True, slots=True)
class StudyResult:
    """What one study came to under one model.

    `findings` are series-level: the aggregation is named in `aggregation`.
    `slice_probabilities` are in slice order, one per analysed instance, whose SOP Instance UIDs are
    `slice_uids`; those are empty where a result is older than their recording.
    `source_header` is that of the key image, else of another image that the model saw.
    """

    study_instance_uid: str
    series_instance_uid: str | None
    status: AnalysisStatus
    reason: str | None
    findings: tuple[Finding, ...]
    model: ModelIdentity | None
    aggregation: str | None
    instances: tuple[InstanceResult, ...]
    slice_probabilities: tuple[float, ...]
    key_image: KeyImage | None
    analysed_at: datetime
    elapsed_ms: float
    slice_uids: tuple[str, ...] = ()
    source_header: bytes = field(default=b"", repr=False)

    @property
    def found_nothing_to_rate(self) -> bool:
        """Return whether a model that rates points was done, and there was no point like those."""
        return self.status is AnalysisStatus.ANALYSED and not self.findings
