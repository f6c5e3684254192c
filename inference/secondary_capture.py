"""The key image and its heatmap side by side, for a PACS that shows nothing but pictures.

Spec: DICOM PS3.3 A.8.1 (Secondary Capture Image IOD), C.7.6.1 (General Image)
"""

import cv2
import numpy as np
from highdicom import CoordinateSystemNames
from highdicom.sc import SCImage
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from rayhook.inference.dicom_identity import ResultSource, settle, tell_body_part
from rayhook.inference.dicom_uid import ObjectKind
from rayhook.inference.statement import is_experimental, probability_text
from rayhook.inference.study import KeyImage

BURNED_IN = "AI, investigational, not for diagnosis"

_PANEL = (512, 1024)
_LINE = 26
_MARGIN = 8
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_WHITE, _AMBER = (255, 255, 255), (255, 200, 60)

Picture = NDArray[np.uint8]


def build_secondary_capture(source: ResultSource, image: KeyImage) -> Dataset:
    """Return the picture, with what it is and what it is not burned in."""
    made = SCImage.from_ref_dataset(
        source.header,
        draw(source, image),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system=CoordinateSystemNames.PATIENT,
        patient_orientation=("L", "P"),
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        **source.arguments(ObjectKind.SECONDARY_CAPTURE),
    )
    made.PatientOrientation = []  # two panels under a line of text have no one orientation
    made.ConversionType = "SYN"
    made.BurnedInAnnotation = "YES"
    made.DerivationDescription = f"Key image, and the same with the model's heatmap. {BURNED_IN}"
    made.SourceImageSequence = [_source_image(source)]
    del made.DateOfSecondaryCapture, made.TimeOfSecondaryCapture
    _copy_lossy(made, source.header)
    tell_body_part(made, source)
    return settle(made, source)


def draw(source: ResultSource, image: KeyImage) -> Picture:
    """Return (rows, columns, RGB)."""
    panels = [_panel(png) for png in (image.image_png, image.overlay_png)]
    width = sum(panel.shape[1] for panel in panels) + _MARGIN
    lines = [BURNED_IN, *_answers(source)]
    gap = np.zeros((panels[0].shape[0], _MARGIN, 3), np.uint8)
    head = np.zeros((_LINE * len(lines) + 2 * _MARGIN, width, 3), np.uint8)
    for number, line in enumerate(lines, start=1):
        _write(head, line, row=_LINE * number, colour=_AMBER if number == 1 else _WHITE)
    return np.ascontiguousarray(np.vstack([head, np.hstack([panels[0], gap, panels[1]])]))


def _panel(png: bytes) -> Picture:
    """Return a picture at a size at which it can be seen and the text beside it read."""
    grey = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    if grey is None:
        raise ValueError("the key image is no PNG")
    side = max(grey.shape[:2])
    factor = min(max(side, _PANEL[0]), _PANEL[1]) / side
    if factor != 1:
        way = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        size = (round(grey.shape[1] * factor), round(grey.shape[0] * factor))
        grey = cv2.resize(grey, size, interpolation=way)
    return np.asarray(cv2.cvtColor(grey, cv2.COLOR_BGR2RGB), np.uint8)


def _answers(source: ResultSource) -> list[str]:
    for_research = ", experimental" if is_experimental(source.model) else ""
    lines = [f"{source.model.id} {source.model.version}{for_research}; right: where the model looked"]
    for finding in source.result.findings:
        side = "at or above" if finding.positive else "below"
        lines.append(
            f"{finding.display}: {probability_text(finding.probability)}, "
            f"{side} the threshold {finding.threshold:.3f}"
        )
    return lines


def _write(head: Picture, line: str, *, row: int, colour: tuple[int, int, int]) -> None:
    """Write one line as large as it fits; the font knows ASCII alone."""
    text = line.encode("ascii", "replace").decode("ascii")
    scale = 0.7
    (width, _), _ = cv2.getTextSize(text, _FONT, scale, 1)
    scale = min(scale, scale * (head.shape[1] - 2 * _MARGIN) / width)
    cv2.putText(head, text, (_MARGIN, row), _FONT, scale, colour, 1, cv2.LINE_AA)


def _source_image(source: ResultSource) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = source.header.SOPClassUID
    item.ReferencedSOPInstanceUID = source.header.SOPInstanceUID
    purpose = Dataset()
    code = codes.DCM.SourceImageForImageProcessingOperation
    purpose.CodeValue, purpose.CodingSchemeDesignator = code.value, code.scheme_designator
    purpose.CodeMeaning = code.meaning
    item.PurposeOfReferenceCodeSequence = [purpose]
    return item


def _copy_lossy(made: Dataset, header: Dataset) -> None:
    """What was once compressed with loss stays so in all that comes from it."""
    for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if keyword in header:
            made[keyword] = header[keyword]
