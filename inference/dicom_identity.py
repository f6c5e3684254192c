"""Whose a DICOM result is and who made it: what all objects of one result have in common.

Spec: DICOM PS3.3 C.7.5.2 (Enhanced General Equipment), C.12.1 (SOP Common), IHE RAD AI Results, 6.5.3.1 (Contributing Equipment)
"""

import logging
import re
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from typing import Any

from highdicom import ContributingEquipment
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, EnhancedMRImageStorage, MRImageStorage

from rayhook.inference.dicom_uid import ObjectKind, derived_uid, object_uid, seen_images
from rayhook.inference.instance_names import OWN_MANUFACTURER
from rayhook.inference.registry import Manifest
from rayhook.inference.report_key import model_key
from rayhook.inference.source_header import PERSON_NAMES, open_source_header
from rayhook.inference.statement import marked
from rayhook.inference.study import AnalysisStatus, InstanceResult, ModelIdentity, StudyResult

# The code that IHE AI Results gives in its trial text, which others emit as well; DICOM CID 7005 has none.
_PROCESSING_ALGORITHM = Code("Newcode1", "99IHE", "Processing Algorithm")
_PLAIN = {EnhancedCTImageStorage: CTImageStorage, EnhancedMRImageStorage: MRImageStorage}
_BODY_PARTS = {"12738006": "BRAIN", "39607008": "CHEST"}
_PAIRED = frozenset({"BREAST", "LUNG"})


# Their messages quote the values of attributes, which are the patient's.
for _library in ("highdicom", "pydicom"):
    logging.getLogger(_library).setLevel(logging.CRITICAL)

# Far above the numbers that scanners give their series, so that ours are listed last.
SERIES_NUMBERS = {
    ObjectKind.SR: 9901,
    ObjectKind.PARAMETRIC_MAP: 9902,
    ObjectKind.SECONDARY_CAPTURE: 9903,
    ObjectKind.VERIFIED_SR: 9904,
    ObjectKind.REJECTION_NOTE: 9905,
}
SERIES_DESCRIPTIONS = {
    ObjectKind.SR: "AI report, investigational",
    ObjectKind.PARAMETRIC_MAP: "AI heatmap, investigational",
    ObjectKind.SECONDARY_CAPTURE: "AI key image, investigational",
    ObjectKind.VERIFIED_SR: "AI report, signed by a radiologist",
    ObjectKind.REJECTION_NOTE: "AI report withdrawn by a radiologist",
}


@dataclass(frozen=True)
class ResultSource:
    """One result and the header of the image that it speaks of, from which its DICOM objects are made.

    model: whose result it is; without one there are no objects.
    """

    header: Dataset
    result: StudyResult
    model: ModelIdentity
    manifest: Manifest | None
    organization: str

    @property
    def seen(self) -> tuple[InstanceResult, ...]:
        """Return the images that the model saw."""
        return seen_images(self.result)

    def uid(self, kind: ObjectKind, part: str) -> str:
        """Return a UID that is the same for the same images under the same model, and no other."""
        return object_uid(self.result, kind, part)

    @property
    def device_uid(self) -> str:
        """Return the UID of the model as a device: other weights or thresholds are another device."""
        return derived_uid({"device": model_key(self.model).value})

    @property
    def software_versions(self) -> list[str]:
        return [self.model.version, f"Rayhook {version('rayhook')}"]

    @property
    def title(self) -> str:
        title = self.manifest.title if self.manifest else self.model.id
        return marked(title, self.model)[:64]

    def arguments(self, kind: ObjectKind) -> dict[str, Any]:
        """Return what the constructor of every kind of object takes.

        Times are local, as DICOM's are without an offset; an offset would also be read into the study's.
        """
        when = self.result.analysed_at.astimezone()
        return {
            "series_instance_uid": self.uid(kind, "series"),
            "series_number": SERIES_NUMBERS[kind],
            "series_description": SERIES_DESCRIPTIONS[kind],
            "sop_instance_uid": self.uid(kind, "instance"),
            "instance_number": 1,
            "manufacturer": OWN_MANUFACTURER,
            "manufacturer_model_name": self.model.id[:64],
            "software_versions": self.software_versions,
            "device_serial_number": self.model.weights_sha256,
            "content_date": f"{when:%Y%m%d}",
            "content_time": f"{when:%H%M%S.%f}",
            "series_date": f"{when:%Y%m%d}",
            "series_time": f"{when:%H%M%S.%f}",
            "contributing_equipment": [self._equipment()],
        }

    def signed_arguments(self, kind: ObjectKind, *, version: int, at: datetime, name: str) -> dict[str, Any]:
        """Return the same for an object of one signature or withdrawal.

        Two results of the same images share their other UIDs, and must not share what was signed.
        """
        part = f"instance.{version}.{at.isoformat()}.{name}"
        return self.arguments(kind) | {"sop_instance_uid": self.uid(kind, part), "instance_number": version}

    def _equipment(self) -> ContributingEquipment:
        made = ContributingEquipment(
            OWN_MANUFACTURER,
            codes.DCM.ProcessingEquipment,
            manufacturer_model_name=self.model.id[:64],
            software_versions=self.software_versions,
            device_serial_number=self.model.weights_sha256,
            institution_name=self.organization[:64],
            contribution_datetime=self.result.analysed_at.astimezone(),
            contribution_description="Analysed the images with a neural network; investigational",
        )
        made.PurposeOfReferenceCodeSequence = [CodedConcept.from_code(_PROCESSING_ALGORITHM)]
        made.DeviceUID = self.device_uid
        return made


def open_source(
    header: bytes, result: StudyResult, manifest: Manifest | None, *, organization: str
) -> ResultSource | None:
    """Return what objects are made from, None where no model saw the study.

    Raises Unprocessable where the image's header was not kept or does not name the image.
    """
    if result.model is None or result.status not in (AnalysisStatus.ABSTAINED, AnalysisStatus.ANALYSED):
        return None
    return ResultSource(open_source_header(header), result, result.model, manifest, organization)


def settle(made: Dataset, source: ResultSource) -> Dataset:
    """Make an object the same whenever it is made: its own times for those of the clock, no UID by chance."""
    when = source.result.analysed_at.astimezone()
    made.InstanceCreationDate, made.InstanceCreationTime = f"{when:%Y%m%d}", f"{when:%H%M%S.%f}"
    made.InstitutionName = source.organization[:64]
    for item in made.ContributingEquipmentSequence:
        item.ContributionDateTime = f"{when:%Y%m%d%H%M%S.%f}"
    for keyword in PERSON_NAMES:
        made[keyword].value = str(made[keyword].value).rstrip("^")
    return made


def settle_signed(made: Dataset, source: ResultSource, at: datetime) -> Dataset:
    """Do the same for an object of one signature or withdrawal: its content is of that moment."""
    settled, when = settle(made, source), at.astimezone()
    settled.ContentDate, settled.ContentTime = f"{when:%Y%m%d}", f"{when:%H%M%S}"
    settled.InstanceCreationDate, settled.InstanceCreationTime = settled.ContentDate, settled.ContentTime
    return settled


def person_name(name: str) -> str:
    """Return a name as a DICOM PN: of a name in one piece nobody knows which part is the family's."""
    return (re.sub(r"[\\^=\x00-\x1f]", " ", name).strip()[:63] or "unknown") + "^"


def tell_body_part(made: Dataset, source: ResultSource) -> None:
    """Say which part of the body an image of ours shows, and of a paired one which side.

    A source often names a paired part without its side, which it should not: a film of both lungs is of the chest.
    Spec: DICOM PS3.3 C.7.3.1 (Laterality, type 2C), PS3.16 Annex L
    """
    part, side = source.header.get("BodyPartExamined"), source.header.get("Laterality")
    if part and (side or part not in _PAIRED):
        made.BodyPartExamined = part
    else:
        sites = (label.body_site.code for label in source.manifest.labels) if source.manifest else iter(())
        made.BodyPartExamined = next((_BODY_PARTS[site] for site in sites if site in _BODY_PARTS), "")
    if side:
        made.Laterality = side
    elif not made.BodyPartExamined:
        made.Laterality = ""  # not known


def plain(header: Dataset) -> Dataset:
    """Return a header under the plain SOP class of its modality.

    Of an enhanced one highdicom would ask for functional groups, which its only frame's header has no need of.
    """
    reference = deepcopy(header)
    reference.SOPClassUID = _PLAIN.get(header.SOPClassUID, header.SOPClassUID)
    return reference


def name_source_class(made: Dataset, header: Dataset) -> None:
    """Give references to the image the SOP class that it has."""
    for element in made.iterall():
        for item in element.value if element.VR == "SQ" else ():
            if item.get("ReferencedSOPInstanceUID") == header.SOPInstanceUID:
                item.ReferencedSOPClassUID = header.SOPClassUID
