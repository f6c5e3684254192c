"""What a DICOM result copies from the image that it speaks of: whose it is, of which study, and where it lies.

Spec: DICOM PS3.3 C.7.1.1 (Patient), C.7.2.1 (General Study), C.7.4.1 (Frame of Reference), C.7.6.2 (Image Plane)
"""

import math
import re
from collections.abc import Iterator
from io import BytesIO
from typing import Any

from pydicom import dcmread, dcmwrite
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.uid import ExplicitVRLittleEndian

from rayhook.fhir.errors import Unprocessable
from rayhook.inference.lut import FrameAttributes

MAX_BYTES = 16 << 10
PERSON_NAMES = ("PatientName", "ReferringPhysicianName")

_COPIED = (
    "AccessionNumber",
    "BodyPartExamined",
    "Columns",
    "DeidentificationMethod",
    "FrameOfReferenceUID",
    "ImageLaterality",
    "ImagerPixelSpacing",
    "InstanceNumber",
    "IssuerOfPatientID",
    "Laterality",
    "LossyImageCompression",
    "LossyImageCompressionMethod",
    "LossyImageCompressionRatio",
    "Modality",
    "PatientAge",
    "PatientBirthDate",
    "PatientID",
    "PatientIdentityRemoved",
    "PatientName",
    "PatientOrientation",
    "PatientSex",
    "PositionReferenceIndicator",
    "ReferringPhysicianName",
    "Rows",
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "StudyDate",
    "StudyDescription",
    "StudyID",
    "StudyInstanceUID",
    "StudyTime",
    "ViewPosition",
)
_CODES = ("DeidentificationMethodCodeSequence", "ProcedureCodeSequence")
_CODE = ("CodeValue", "CodingSchemeDesignator", "CodingSchemeVersion", "CodeMeaning")
# Enhanced images tell these in a functional group.
_GROUPS = {
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "ImagePositionPatient": "PlanePositionSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
}
_COUNTS = {
    "ImageOrientationPatient": 6,
    "ImagePositionPatient": 3,
    "ImagerPixelSpacing": 2,
    "PatientOrientation": 2,
    "PixelSpacing": 2,
    "SliceThickness": 1,
}
_VALID = {
    "AS": re.compile(r"\d{3}[DWMY]", re.ASCII),
    "CS": re.compile(r"[A-Z0-9 _]{1,16}", re.ASCII),
    "DA": re.compile(r"\d{4}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])", re.ASCII),
    "LO": re.compile(r"[^\\\x00-\x1f]{1,64}"),
    "PN": re.compile(r"[^\\\x00-\x1f]{1,194}"),
    "SH": re.compile(r"[^\\\x00-\x1f]{1,16}"),
    "TM": re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?", re.ASCII),
    "UI": re.compile(r"(?=.{1,64}$)(0|[1-9]\d*)(\.(0|[1-9]\d*))+", re.ASCII),
}
_ENUMERATED = {
    "ImageLaterality": ("B", "L", "R", "U"),
    "Laterality": ("L", "R"),
    "LossyImageCompression": ("00", "01"),
    "PatientIdentityRemoved": ("NO", "YES"),
    "PatientSex": ("F", "M", "O"),
}
_READ_ERRORS = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)


def read_source_header(frames: FrameAttributes) -> bytes:
    """Return the header as a DICOM data set in UTF-8 without pixels; what is malformed is left out, not copied.

    Nothing at all where the header is of an unusual size.
    """
    header = Dataset()
    header.SpecificCharacterSet = "ISO_IR 192"
    for keyword in (*_COPIED, *_GROUPS):
        source = frames.within(_GROUPS[keyword], keyword) if keyword in _GROUPS else frames.top
        value = None if source is None else _value(source.dataset, keyword)
        if value is not None:
            setattr(header, keyword, value)
    for keyword in _CODES:
        items = list(_codes(frames.top.dataset, keyword))
        if items:
            setattr(header, keyword, items)
    buffer = BytesIO()
    dcmwrite(buffer, header, implicit_vr=False, little_endian=True)
    data = buffer.getvalue()
    return data if len(data) <= MAX_BYTES else b""


def open_source_header(data: bytes) -> Dataset:
    """Return the data set with every attribute that DICOM results must have, empty where the image had none.

    Raises Unprocessable if it does not name the image.
    """
    try:
        # Read to the end here, so that nothing malformed is found later.
        header = Dataset({element.tag: element for element in dcmread(BytesIO(data), force=True)})
    except (*_READ_ERRORS, InvalidDicomError) as error:
        raise Unprocessable("the image's header cannot be read", code="no_source_header") from error
    for keyword in (
        "SOPClassUID",
        "SOPInstanceUID",
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "Rows",
        "Columns",
    ):
        if not header.get(keyword):
            raise Unprocessable(
                "the image's header is incomplete", code="no_source_header", expression=keyword
            )
    for keyword in _TYPE_2:
        if keyword not in header:
            setattr(header, keyword, "")
    for keyword in PERSON_NAMES:
        # highdicom quotes a name without components in a warning; the components that this adds are empty.
        name = str(header[keyword].value)
        header[keyword].value = name if not name or "^" in name else f"{name}^"
    header.set_original_encoding(is_implicit_vr=False, is_little_endian=True, character_encoding="utf8")
    header.ensure_file_meta()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return header


_TYPE_2 = (
    "AccessionNumber",
    "PatientBirthDate",
    "PatientID",
    "PatientName",
    "PatientSex",
    "ReferringPhysicianName",
    "StudyDate",
    "StudyID",
    "StudyTime",
)


def _value(dataset: Dataset, keyword: str) -> Any:
    """Return an attribute's value if it is what the standard says, else None."""
    try:
        value = dataset.get(keyword)
        values = list(value) if isinstance(value, MultiValue) else [value]
        read = [_one(one, keyword) for one in values]
    except _READ_ERRORS:
        return None
    if any(one is None for one in read) or len(read) != _COUNTS.get(keyword, len(read)):
        return None
    many = keyword in _COUNTS or keyword.startswith(("LossyImageCompressionM", "LossyImageCompressionR"))
    return read[0] if len(read) == 1 else (read if many else None)


def _one(value: Any, keyword: str) -> Any:
    vr = dictionary_VR(keyword)
    if value is None:
        return None
    if vr == "DS":
        number = float(value)
        return f"{number:.10g}"[:16] if math.isfinite(number) else None
    if vr in ("IS", "US"):
        return int(value)
    text = str(value).strip(" \0")
    allowed = _ENUMERATED.get(keyword)
    if allowed is not None:
        return text if text in allowed else None
    return text if _VALID[vr].fullmatch(text) else None


def _codes(dataset: Dataset, keyword: str) -> Iterator[Dataset]:
    try:
        items = list(dataset.get(keyword) or ())
    except _READ_ERRORS:
        return
    for item in items[:8]:
        code = Dataset()
        for name in _CODE:
            value = _value(item, name)
            if value is not None:
                setattr(code, name, value)
        if all(name in code for name in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")):
            yield code
