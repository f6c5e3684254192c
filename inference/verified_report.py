"""A report that a radiologist signed, as a DICOM structured report that follows the model's.

Spec: DICOM PS3.3 C.17.2 (SR Document General), C.17.2.3 (Verifying Observer, Predecessor Documents)
"""

from highdicom.sr import Comprehensive3DSR
from pydicom.dataset import Dataset

from rayhook.inference.dicom_identity import (
    ResultSource,
    name_source_class,
    person_name,
    plain,
    settle_signed,
)
from rayhook.inference.dicom_table import ObjectNames
from rayhook.inference.dicom_uid import ObjectKind
from rayhook.inference.structured_report import Review, other_images, report_content


def build_verified_report(source: ResultSource, review: Review, predecessor: ObjectNames) -> Dataset:
    """Return the report as a new instance that a person answers for; the one before stays as it is.

    Groups keep what the model measured; every answer is the person's.
    """
    made = Comprehensive3DSR(
        evidence=[plain(source.header), *other_images(source)],
        content=report_content(source, review)[0],
        is_complete=True,
        is_final=True,
        is_verified=True,
        verifying_observer_name=person_name(review.name),
        verifying_organization=review.organization[:64],
        previous_versions=[_as_dataset(predecessor)],
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        **source.signed_arguments(
            ObjectKind.VERIFIED_SR, version=review.version, at=review.at, name=review.name
        ),
    )
    name_source_class(made, source.header)
    signed = settle_signed(made, source, review.at)
    signed.VerifyingObserverSequence[0].VerificationDateTime = f"{signed.ContentDate}{signed.ContentTime}"
    return signed


def _as_dataset(names: ObjectNames) -> Dataset:
    before = Dataset()
    before.SOPClassUID, before.SOPInstanceUID = names.sop_class_uid, names.sop_instance_uid
    before.StudyInstanceUID = names.study_instance_uid
    before.SeriesInstanceUID = names.series_instance_uid
    return before
