"""Which model, if any, an image is meant for. What is not told is not guessed: it is out of scope.

Spec: DICOM PS3.3 C.7.6.1.1.2 (ImageType), C.7.6.2.1.1 (orientation), C.8.3.1 (MR Image Module)
"""

import re
from collections.abc import Iterator

import numpy as np

from rayhook.fhir.errors import OutOfScope
from rayhook.inference.registry import Manifest, Role, SequenceRule, TomographyRule, ViewRule
from rayhook.inference.study import InstanceAttributes

_AXES = ("sagittal", "coronal", "axial")
_PLANE_WORDS = {
    "axial": frozenset(("ax", "axial", "tra", "transversal", "transverse")),
    "coronal": frozenset(("cor", "coronal")),
    "sagittal": frozenset(("sag", "sagittal")),
}
_LONG_PLANE_WORDS = frozenset(("axial", "coronal", "sagittal", "transversal", "transverse"))
_OBLIQUE = 0.7
_MIN_ECHO_TIME_MS = 70.0
_BODY_PART_WORDS = {
    "BRAIN": ("brain", "cerebral", "cerebrum", "neuro"),
    "CHEST": ("chest", "lung", "lungs", "pulmonary", "thorax"),
    "HEAD": ("cranial", "cranium", "head"),
}
_LOCALIZER = frozenset(("localiser", "localizer", "scout", "survey", "topogram"))
# DERIVED alone is no obstacle: scanners say so of images that they only filtered or corrected.
_NOT_AS_ACQUIRED = frozenset(
    ("ADC", "LOCALIZER", "MIN IP", "MIP", "MPR", "PROJECTION IMAGE", "SECONDARY", "SUBTRACTION")
)
_WORD = re.compile(r"[a-z0-9]+")


def route(attributes: InstanceAttributes, models: tuple[Manifest, ...]) -> Manifest:
    """Return the model that the image is meant for.

    Where more than one is, the first of them; a finder is never one.
    Raises OutOfScope with the reason: that of the first model of the image's modality, where there is one.
    """
    general = _general_reason(attributes)
    if general is not None:
        raise OutOfScope(general[1], expression=general[0])
    reasons: list[tuple[str, str]] = []
    classifiers = [manifest for manifest in models if manifest.role is Role.CLASSIFIER]
    for manifest in sorted(classifiers, key=lambda manifest: attributes.modality not in manifest.modalities):
        reason = next(_reasons(attributes, manifest), None)
        if reason is None:
            return manifest
        reasons.append(reason)
    keyword, message = reasons[0] if reasons else ("Modality", "no model is installed")
    raise OutOfScope(message, expression=keyword)


def _general_reason(attributes: InstanceAttributes) -> tuple[str, str] | None:
    """Return the attribute and why no model may look at the image, whatever it is meant for."""
    if attributes.burned_in_annotation == "YES":
        return "BurnedInAnnotation", "BurnedInAnnotation says that text is burned into the image"
    if not attributes.photometric_interpretation.startswith("MONOCHROME"):
        return "PhotometricInterpretation", "PhotometricInterpretation is not that of a grey-scale image"
    if _NOT_AS_ACQUIRED & {value.upper() for value in attributes.image_type}:
        return (
            "ImageType",
            "ImageType says that the image is a localizer, a reformat, a map or a secondary image",
        )
    if _LOCALIZER & _words(attributes):
        return "SeriesDescription", "SeriesDescription says that the image is a localizer"
    return None


def _reasons(attributes: InstanceAttributes, manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield the attribute and the reason for each rule of the model that the image breaks."""
    if attributes.modality not in manifest.modalities:
        yield "Modality", f"Modality is not {' or '.join(manifest.modalities)}, which the model is meant for"
    if attributes.sop_class_uid not in manifest.sop_class_uids:
        yield "SOPClassUID", "SOPClassUID is not among those that the model is meant for"
    body_part = _body_part_reason(attributes, manifest.body_parts)
    if body_part is not None:
        yield "BodyPartExamined", body_part
    if manifest.sequence is not None:
        yield from _sequence_reasons(attributes, manifest.sequence)
    if manifest.tomography is not None:
        yield from _tomography_reasons(attributes, manifest.tomography)
    if manifest.view is not None:
        yield from _view_reasons(attributes, manifest.view)


def _sequence_reasons(attributes: InstanceAttributes, rule: SequenceRule) -> Iterator[tuple[str, str]]:
    sequence = _sequence_reason(attributes, rule)
    if sequence is not None:
        yield "SeriesDescription", sequence
    yield from _plane_reasons(attributes, rule.plane)


def _tomography_reasons(attributes: InstanceAttributes, rule: TomographyRule) -> Iterator[tuple[str, str]]:
    if any(_excludes(excluded, _words(attributes)) for excluded in rule.excluded_words):
        yield "SeriesDescription", f"a description says that the series is not {rule.name}"
    yield from _plane_reasons(attributes, rule.plane)
    thickness = attributes.slice_thickness_mm
    if thickness is not None and thickness > rule.max_thickness_mm:
        yield "SliceThickness", f"SliceThickness is above {rule.max_thickness_mm:g} mm"
    if attributes.rescale_type not in {None, "HU"}:  # absent, it is HU: PS3.3 C.8.2.1.1.2
        yield "RescaleType", "RescaleType says that the values are not Hounsfield units"
    if attributes.pixel_spacing_mm is None:
        yield "PixelSpacing", "PixelSpacing is missing, and the model needs the physical scale"


def _view_reasons(attributes: InstanceAttributes, rule: ViewRule) -> Iterator[tuple[str, str]]:
    if any(_excludes(excluded, _words(attributes)) for excluded in rule.excluded_words):
        yield "SeriesDescription", f"a description says that the view is not {rule.name}"
    told = attributes.view_position
    if told is not None and told.upper() not in rule.positions:
        yield "ViewPosition", f"ViewPosition is not {' or '.join(rule.positions)}"
    elif told is None and not _words(attributes) & set(rule.words):
        yield "ViewPosition", f"neither ViewPosition nor a description says that the view is {rule.name}"


def _plane_reasons(attributes: InstanceAttributes, plane: str) -> Iterator[tuple[str, str]]:
    reason = _plane_reason(attributes, plane)
    if reason is not None:
        yield "ImageOrientationPatient", reason


def _body_part_reason(attributes: InstanceAttributes, body_parts: tuple[str, ...]) -> str | None:
    wanted = " or ".join(body_parts)
    if attributes.body_part_examined is not None:
        told = attributes.body_part_examined.upper()
        return None if told in body_parts else f"BodyPartExamined is not {wanted}"
    words = _words(attributes)
    for body_part in body_parts:
        if words & {*_BODY_PART_WORDS.get(body_part, ()), body_part.lower()}:
            return None
    return f"neither BodyPartExamined nor a description says that the body part is {wanted}"


def _sequence_reason(attributes: InstanceAttributes, rule: SequenceRule) -> str | None:
    words, inversion, echo = _words(attributes), attributes.inversion_time_ms, attributes.echo_time_ms
    low, high = rule.inversion_time_ms
    if any(_excludes(excluded, words) for excluded in rule.excluded_words):
        return f"a description says that the series is not {rule.plane} {rule.name}"
    # A T2-weighted FLAIR nulls water late and reads out late; a T1-weighted one does neither.
    if inversion and not low <= inversion <= high:
        return f"InversionTime is not {low:g} to {high:g} ms, as for {rule.name}"
    if echo is not None and echo < _MIN_ECHO_TIME_MS:
        return f"EchoTime is below {_MIN_ECHO_TIME_MS:g} ms, too short for {rule.name}"
    timed = bool(inversion) and echo is not None
    named = any(word in _text(attributes) for word in rule.words)
    if timed or (named and not {"t1", "t1w"} & words):
        return None
    return f"neither a description nor InversionTime and EchoTime say that the sequence is {rule.name}"


def _excludes(excluded: str, words: frozenset[str]) -> bool:
    return excluded in words or any(word.startswith(excluded) for word in words & _LONG_PLANE_WORDS)


def _plane_reason(attributes: InstanceAttributes, plane: str) -> str | None:
    if attributes.image_orientation is None:
        if _PLANE_WORDS[plane] & _words(attributes):
            return None
        return f"neither ImageOrientationPatient nor a description says that the plane is {plane}"
    row, column = np.array(attributes.image_orientation).reshape(2, 3)
    normal = np.abs(np.cross(row, column))
    length = float(np.linalg.norm(normal))
    if length == 0 or normal.max() / length < _OBLIQUE or _AXES[int(normal.argmax())] != plane:
        return f"ImageOrientationPatient is not {plane}"
    return None


def _text(attributes: InstanceAttributes) -> str:
    told = (attributes.series_description, attributes.protocol_name, attributes.sequence_name)
    return " ".join(text for text in told if text).lower()


def _words(attributes: InstanceAttributes) -> frozenset[str]:
    """Return the words of the series' own descriptions and of the study's."""
    study = (attributes.study_description or "").lower()
    return frozenset(_WORD.findall(f"{_text(attributes)} {study}".replace("_", " ")))
