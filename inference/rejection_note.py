"""That a radiologist took a report back, as the PACS is told: a key object selection that rejects its objects.

Nothing is deleted: what a PACS and its displays do with rejected objects is theirs to decide.
Spec: IHE RAD TF-2 4.66 (Rejection Note Stored); DICOM PS3.3 A.35.4, PS3.16 TID 2010 and CID 7010
"""

from collections.abc import Sequence
from copy import deepcopy
from datetime import datetime

from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from highdicom.sr import ObserverContext, PersonObserverIdentifyingAttributes
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from rayhook.inference.dicom_identity import ResultSource, person_name, settle_signed
from rayhook.inference.dicom_table import StoredObject
from rayhook.inference.dicom_uid import ObjectKind

_TEXT = "A radiologist has withdrawn the report of an investigational AI. Its objects are not to be used."
_PICTURES = frozenset({ObjectKind.PARAMETRIC_MAP, ObjectKind.SECONDARY_CAPTURE})


def build_rejection_note(
    source: ResultSource, objects: Sequence[StoredObject], *, name: str, at: datetime, version: int
) -> Dataset:
    """Return a note that rejects objects of the result, at least one.

    name: of the person who took the report back.  at: when.  version: that it has since.
    """
    rejected = [_header_of(source, one) for one in objects]
    person = ObserverContext(codes.DCM.Person, PersonObserverIdentifyingAttributes(person_name(name)))
    made = KeyObjectSelectionDocument(
        evidence=rejected,
        content=KeyObjectSelection(
            codes.DCM.RejectedForPatientSafetyReasons,
            rejected,
            observer_person_context=person,
            description=_TEXT,
        ),
        **source.signed_arguments(ObjectKind.REJECTION_NOTE, version=version, at=at, name=name),
    )
    return settle_signed(made, source, at)


def _header_of(source: ResultSource, one: StoredObject) -> Dataset:
    """Return what names an object of ours; it has patient and study in common with the image that it speaks of."""
    header = deepcopy(source.header)
    header.SOPClassUID, header.SOPInstanceUID = one.names.sop_class_uid, one.names.sop_instance_uid
    header.SeriesInstanceUID = one.names.series_instance_uid
    if one.kind not in _PICTURES:
        # By these highdicom tells images from other objects.
        for keyword in ("Rows", "Columns"):
            header.pop(keyword, None)
    return header
