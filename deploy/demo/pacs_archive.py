"""What the demo PACS holds: files on disk and what was stored since, found by UID."""

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from rayhook.deploy.demo.catalogue import Catalogue

_LARGEST_INLINE = 1024
_DOES_NOT_MATCH = 0xA900
_DUPLICATE = 0x0111
_STUDY_TAGS = (
    "AccessionNumber",
    "ModalitiesInStudy",
    "PatientID",
    "PatientName",
    "StudyDate",
    "StudyDescription",
    "StudyID",
    "StudyInstanceUID",
    "StudyTime",
)
_SERIES_TAGS = ("BodyPartExamined", "Modality", "SeriesDescription", "SeriesInstanceUID", "SeriesNumber")
_INSTANCE_TAGS = ("InstanceNumber", "SOPClassUID", "SOPInstanceUID")
_LEVELS = {
    "studies": _STUDY_TAGS,
    "series": (*_STUDY_TAGS, *_SERIES_TAGS),
    "instances": (*_STUDY_TAGS, *_SERIES_TAGS, *_INSTANCE_TAGS),
}
_FIELDS = {"studies": "study_instance_uid", "series": "series_instance_uid", "instances": "sop_instance_uid"}
_COUNTS = {
    "studies": "00201208",  # NumberOfStudyRelatedInstances
    "series": "00201209",  # NumberOfSeriesRelatedInstances
}


@dataclass(frozen=True, slots=True)
class Archived:
    """One instance. `content` is its file, or its bytes if it came over the network."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    content: Path | bytes

    def read(self) -> bytes:
        return self.content.read_bytes() if isinstance(self.content, Path) else self.content

    def header(self) -> Dataset:
        return dcmread(BytesIO(self.read()), stop_before_pixels=True)

    def transfer_syntax_uid(self) -> str:
        return str(self.header().file_meta.TransferSyntaxUID)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an instance was not stored. Spec: DICOM PS3.3 C.14.1.1, PS3.4 B.2.3."""

    reason: int
    sop_class_uid: str = ""
    sop_instance_uid: str = ""


class Archive:
    """Safe to share between threads."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._lock = threading.Lock()
        self._instances = {
            instance.sop_instance_uid: Archived(
                study.study_instance_uid,
                instance.series_instance_uid,
                instance.sop_instance_uid,
                instance.sop_class_uid,
                instance.path,
            )
            for study in catalogue.studies
            for instance in study.instances
        }

    def find(
        self, *, study: str | None = None, series: str | None = None, instance: str | None = None
    ) -> list[Archived]:
        """Return the instances that fit, in the order in which they came."""
        with self._lock:
            held = list(self._instances.values())
        return [
            one
            for one in held
            if study in (None, one.study_instance_uid)
            and series in (None, one.series_instance_uid)
            and instance in (None, one.sop_instance_uid)
        ]

    def other_study(self, study: str) -> list[Archived]:
        """Return the instances of some study that is not this one."""
        others = [one for one in self.find() if one.study_instance_uid != study]
        return [one for one in others if one.study_instance_uid == others[0].study_instance_uid]

    @staticmethod
    def read(data: bytes) -> Archived | None:
        """Return the file as an instance, None if it is none."""
        try:
            header = dcmread(BytesIO(data), stop_before_pixels=True)
            return Archived(
                study_instance_uid=str(header.StudyInstanceUID),
                series_instance_uid=str(header.SeriesInstanceUID),
                sop_instance_uid=str(header.SOPInstanceUID),
                sop_class_uid=str(header.SOPClassUID),
                content=data,
            )
        except (AttributeError, InvalidDicomError):
            return None

    def store(self, archived: Archived, *, study: str | None = None) -> Archived | Refusal:
        """Keep an instance of the study asked for, whose patient is that of the study's other instances.

        The same file again changes nothing; another one under a UID that is taken is refused.
        """
        names = (archived.sop_class_uid, archived.sop_instance_uid)
        if study not in (None, archived.study_instance_uid) or self._is_strange(archived):
            return Refusal(_DOES_NOT_MATCH, *names)
        with self._lock:
            held = self._instances.setdefault(archived.sop_instance_uid, archived)
        return held if held.read() == archived.read() else Refusal(_DUPLICATE, *names)

    def _is_strange(self, archived: Archived) -> bool:
        """Return whether the study is known, and of another patient."""
        others = self.find(study=archived.study_instance_uid)
        return bool(others) and others[0].header().get("PatientID") != archived.header().get("PatientID")


def search(instances: Iterable[Archived], level: str, query: dict[str, str]) -> list[dict[str, Any]]:
    """Return one DICOM JSON object for each study, series or instance that has the asked values.

    Spec: DICOM PS3.18 10.6 (Search Transaction), F.2 (DICOM JSON)
    """
    found: dict[str, dict[str, Any]] = {}
    counted: Counter[str] = Counter()
    for archived in instances:
        key = str(getattr(archived, _FIELDS[level]))
        counted[key] += 1
        if key in found:
            continue
        header = archived.header()
        if not all(_fits(str(header.get(keyword, "")), value) for keyword, value in query.items()):
            continue
        answer = Dataset()
        for keyword in _LEVELS[level]:
            if keyword in header:
                answer[keyword] = header[keyword]
        found[key] = answer.to_json_dict(suppress_invalid_tags=True)
    if level in _COUNTS:
        for key, told in found.items():
            told[_COUNTS[level]] = {"vr": "IS", "Value": [counted[key]]}
    return list(found.values())


def _fits(value: str, wanted: str) -> bool:
    """Spec: DICOM PS3.4 C.2.2.2.5 (Range Matching), of dates; UIDs and names have no hyphen here."""
    first, hyphen, last = wanted.partition("-")
    if not hyphen or not (first + last).isdigit():
        return value == wanted
    return (first or "0") <= value <= (last or "9")


def metadata(archived: Archived) -> dict[str, Any]:
    """Return the whole header as DICOM JSON, without values that belong in bulk data."""
    header = archived.header()
    for element in list(header):
        if isinstance(element.value, bytes) and len(element.value) > _LARGEST_INLINE:
            del header[element.tag]
    answer: dict[str, Any] = header.to_json_dict(suppress_invalid_tags=True)
    return answer
