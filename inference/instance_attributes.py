"""The attributes that routing, geometry and reports need, told from one data set."""

import numpy as np

from rayhook.inference.dicom_attributes import Attributes, acquisition_datetime, invalid
from rayhook.inference.dicom_header import Header
from rayhook.inference.lut import FrameAttributes, Window
from rayhook.inference.pixel_description import PixelDescription
from rayhook.inference.study import InstanceAttributes

_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")


def read_uids(attributes: Attributes) -> dict[str, str]:
    """Return the UIDs that name the instance. Raises ImageRefused if one is missing or is no UID."""
    uids = {keyword: attributes.uid(keyword) for keyword in _UIDS}
    if attributes.value("FrameOfReferenceUID") is not None:
        attributes.uid("FrameOfReferenceUID")
    return uids


def meta_warnings(header: Header, uids: dict[str, str]) -> tuple[str, ...]:
    """Anonymisers often renew the data set's UIDs and forget those of the file meta information."""
    told = (header.media_storage_sop_class_uid, header.media_storage_sop_instance_uid)
    ours = (uids["SOPClassUID"], uids["SOPInstanceUID"])
    same = all(a is None or a == b for a, b in zip(told, ours, strict=True))
    return () if same else ("file_meta_differs",)


def read_instance_attributes(
    header: Header,
    uids: dict[str, str],
    frames: FrameAttributes,
    description: PixelDescription,
    window: Window | None,
) -> InstanceAttributes:
    top = frames.top
    orientation = _numbers(frames, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
    position = _numbers(frames, "PlanePositionSequence", "ImagePositionPatient", 3)
    return InstanceAttributes(
        sop_instance_uid=uids["SOPInstanceUID"],
        sop_class_uid=uids["SOPClassUID"],
        study_instance_uid=uids["StudyInstanceUID"],
        series_instance_uid=uids["SeriesInstanceUID"],
        transfer_syntax_uid=header.transfer_syntax_uid,
        patient_id=top.text("PatientID"),
        modality=top.required_text("Modality"),
        body_part_examined=top.text("BodyPartExamined") or _anatomic_region(frames),
        series_description=top.text("SeriesDescription"),
        study_description=top.text("StudyDescription"),
        protocol_name=top.text("ProtocolName"),
        sequence_name=top.text("SequenceName") or top.text("PulseSequenceName"),
        image_type=top.texts("ImageType"),
        inversion_time_ms=_first_number(frames, "MRModifierSequence", ("InversionTime", "InversionTimes")),
        echo_time_ms=_first_number(frames, "MREchoSequence", ("EchoTime", "EffectiveEchoTime")),
        repetition_time_ms=_first_number(frames, "MRTimingAndRelatedParametersSequence", ("RepetitionTime",)),
        pixel_spacing_mm=_pixel_spacing(frames),
        slice_location_mm=_slice_location(top, orientation, position),
        image_orientation=orientation,
        instance_number=_instance_number(top),
        acquisition_datetime=acquisition_datetime(top),
        rows=description.rows,
        columns=description.columns,
        number_of_frames=description.frames,
        photometric_interpretation=description.photometric_interpretation,
        burned_in_annotation=top.text("BurnedInAnnotation"),
        window=None if window is None else (window.center, window.width),
        slice_thickness_mm=_first_number(frames, "PixelMeasuresSequence", ("SliceThickness",)),
        rescale_type=_rescale_type(frames),
        view_position=top.text("ViewPosition"),
    )


def _anatomic_region(frames: FrameAttributes) -> str | None:
    """Enhanced images tell the body part as a code. Spec: DICOM PS3.3 C.7.6.16.2.8."""
    anatomy = frames.group("FrameAnatomySequence", 0) or frames.top
    region = anatomy.first_item("AnatomicRegionSequence")
    return None if region is None else region.text("CodeMeaning")


def _numbers(frames: FrameAttributes, group: str, keyword: str, count: int) -> tuple[float, ...] | None:
    source = frames.within(group, keyword)
    numbers = () if source is None else source.numbers(keyword)
    if not numbers:
        return None
    if len(numbers) != count:
        raise invalid(keyword, f"must have {count} values")
    return numbers


def _first_number(frames: FrameAttributes, group: str, keywords: tuple[str, ...]) -> float | None:
    for keyword in keywords:
        source = frames.within(group, keyword)
        number = None if source is None else source.number(keyword)
        if number is not None:
            return number
    return None


def _pixel_spacing(frames: FrameAttributes) -> tuple[float, float] | None:
    """Spec: DICOM PS3.3 10.7.1.1 (between rows, between columns)."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        numbers = _numbers(frames, "PixelMeasuresSequence", keyword, 2)
        if numbers is not None:
            if min(numbers) <= 0:
                raise invalid(keyword, "must be larger than 0")
            return numbers[0], numbers[1]
    return None


def _rescale_type(frames: FrameAttributes) -> str | None:
    source = frames.within("PixelValueTransformationSequence", "RescaleType")
    return None if source is None else source.text("RescaleType")


def _slice_location(
    top: Attributes, orientation: tuple[float, ...] | None, position: tuple[float, ...] | None
) -> float | None:
    """Return the distance along the slice's normal, which vendors' SliceLocation is only sometimes.

    Spec: DICOM PS3.3 C.7.6.2.1.1
    """
    if orientation is None or position is None:
        return top.number("SliceLocation")
    normal = np.cross(orientation[:3], orientation[3:])
    return float(np.dot(normal, position))


def _instance_number(top: Attributes) -> int | None:
    number = top.number("InstanceNumber")
    return None if number is None else int(number)
