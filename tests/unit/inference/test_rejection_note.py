"""The note that takes a report's DICOM objects back."""

from datetime import UTC, datetime
from io import BytesIO
from types import SimpleNamespace

import pytest
from pydicom import dcmread

from rayhook.inference.answers import Person
from rayhook.inference.dicom_results import build_note
from rayhook.inference.dicom_table import StoredObject, StoreState
from tests.unit.inference.dicom_objects import (
    analysed,
    errors,
    find,
    objects_of,
    radiograph,
    rated_points,
    source,
    with_header,
)

ANNA = Person(fhir_user="Practitioner/anna", name="Anna Ito")
AT = datetime(2026, 3, 12, 11, 0, tzinfo=UTC)


def stored_objects(result, manifest):
    return [
        StoredObject(one.kind, one.kind, one.names("https://pacs.example"), StoreState.STORED, None, 1, 0.0)
        for one in objects_of(result, manifest).values()
    ]


def notes(result, manifest, *, version=3, objects=None):
    withdrawal = SimpleNamespace(act=SimpleNamespace(by=ANNA), at=AT.timestamp(), version=version)
    return build_note(
        result.source_header,
        result,
        manifest,
        organization="Demo hospital",
        withdrawal=withdrawal,
        objects=stored_objects(result, manifest) if objects is None else objects,
    )


def note(*study, **changes):
    (made,) = notes(*study, **changes)
    return dcmread(BytesIO(made.data))


@pytest.mark.parametrize("study", [analysed, radiograph, rated_points])
def test_dciodvfy_finds_no_error(study, tmp_path):
    (made,) = notes(*study())
    assert errors(made.data, tmp_path) == []


def test_dciodvfy_finds_no_error_where_the_image_lacks_what_it_may_lack(tmp_path):
    result, manifest = analysed()
    bare = with_header(result, StudyID=None, AccessionNumber=None, PatientBirthDate=None)
    (made,) = notes(bare, manifest, objects=stored_objects(result, manifest))
    assert errors(made.data, tmp_path) == []


def test_it_says_that_the_objects_are_rejected_for_patient_safety():
    title = note(*analysed()).ConceptNameCodeSequence[0]
    assert (title.CodeValue, title.CodingSchemeDesignator) == ("113037", "DCM")


def test_it_rejects_the_objects_and_nothing_else():
    study = analysed()
    told = note(*study)
    evidence = [
        (series.SeriesInstanceUID, one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID)
        for series in told.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    ]
    names = [one.names for one in stored_objects(*study)]
    assert sorted(evidence) == sorted(
        (one.series_instance_uid, one.sop_class_uid, one.sop_instance_uid) for one in names
    )
    referenced = {item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in find(told, "Source")}
    assert referenced == {one.sop_instance_uid for one in names}


def test_pictures_are_referenced_as_images_and_the_report_is_not():
    kinds = {
        item.ReferencedSOPSequence[0].ReferencedSOPClassUID.name: item.ValueType
        for item in find(note(*analysed()), "Source")
    }
    assert kinds == {
        "Comprehensive 3D SR Storage": "COMPOSITE",
        "Parametric Map Storage": "IMAGE",
        "Secondary Capture Image Storage": "IMAGE",
    }


def test_it_names_who_took_the_report_back_and_when():
    told = note(*analysed())
    (name,) = find(told, "Person Observer Name")
    at = AT.astimezone()
    assert str(name.PersonName) == "Anna Ito^"
    assert (told.ContentDate, told.ContentTime) == (f"{at:%Y%m%d}", f"{at:%H%M%S}")


def test_it_is_of_the_patient_and_the_study_of_the_image():
    result, manifest = analysed()
    told, image = note(result, manifest), source(result)
    names = ("PatientName", "PatientID", "StudyInstanceUID", "AccessionNumber")
    assert [told[one].value for one in names] == [image[one].value for one in names]


def test_made_again_it_is_the_same_byte_for_byte():
    assert notes(*analysed()) == notes(*analysed())


def test_another_withdrawal_is_another_note():
    first, second = note(*analysed()), note(*analysed(), version=5)
    assert first.SOPInstanceUID != second.SOPInstanceUID


def test_there_is_none_where_the_pacs_has_nothing():
    assert notes(*analysed(), objects=[]) == []
