"""The pictures and maps of a result, as DICOM."""

import logging
import time
import warnings
from dataclasses import replace
from io import BytesIO

import cv2
import numpy as np
import pytest
from highdicom.pm import ParametricMap
from pydicom import dcmread

from rayhook.inference.dicom_identity import open_source
from rayhook.inference.explain import pack_heat, unpack_heat
from rayhook.inference.secondary_capture import BURNED_IN, draw
from tests.unit.inference.dicom_objects import (
    analysed,
    datasets_of,
    errors,
    grid,
    objects_of,
    radiograph,
    rated_points,
    source,
    with_header,
)
from tests.unit.inference.samples import SERIES_UID, STUDY_UID


@pytest.fixture(scope="module")
def made():
    return datasets_of(*analysed())


@pytest.mark.parametrize("study", [analysed, radiograph, rated_points])
def test_dciodvfy_finds_no_error(study, tmp_path):
    for one in objects_of(*study()).values():
        assert errors(one.data, tmp_path) == [], one.kind


@pytest.mark.parametrize(
    "changes",
    [
        {"BodyPartExamined": None},
        {"BodyPartExamined": "LUNG"},
        {"BodyPartExamined": "BREAST", "Laterality": "R"},
        {"PatientSex": None, "PatientBirthDate": None, "StudyTime": None, "AccessionNumber": None},
        {
            "LossyImageCompression": "01",
            "LossyImageCompressionRatio": "10",
            "LossyImageCompressionMethod": "ISO_10918_1",
        },
        {"SliceThickness": None},
        {"PatientName": "Müller^Jörg", "ReferringPhysicianName": "山田^太郎"},
    ],
    ids="-".join,
)
def test_a_source_that_lacks_something_makes_no_error_of_ours(changes, tmp_path):
    result, manifest = analysed()
    for one in objects_of(with_header(result, **changes), manifest).values():
        assert errors(one.data, tmp_path) == [], one.kind


def test_an_enhanced_source_is_referred_to_as_such(tmp_path):
    result, manifest = analysed()
    enhanced = "1.2.840.10008.5.1.4.1.1.4.1"
    shown = result.key_image.sop_instance_uid
    images = tuple(replace(i, sop_class_uid=enhanced) for i in result.instances)
    result = replace(with_header(result, SOPClassUID=enhanced), instances=images)
    for one in objects_of(result, manifest).values():
        assert errors(one.data, tmp_path) == [], one.kind
        told = dcmread(BytesIO(one.data))
        classes = {
            item.ReferencedSOPClassUID
            for element in told.iterall()
            if element.VR == "SQ"
            for item in element.value
            if item.get("ReferencedSOPInstanceUID") == shown
        }
        assert classes == {enhanced}


def test_the_map_lies_in_the_images_own_space(made):
    told, header = made["parametric_map"], source(analysed()[0])
    position = told.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient
    shared = told.SharedFunctionalGroupsSequence[0]
    assert told.FrameOfReferenceUID == header.FrameOfReferenceUID
    assert list(position) == list(header.ImagePositionPatient)
    assert list(shared.PixelMeasuresSequence[0].PixelSpacing) == list(header.PixelSpacing)
    assert list(shared.PlaneOrientationSequence[0].ImageOrientationPatient) == list(
        header.ImageOrientationPatient
    )


def test_the_map_holds_the_evidence(made):
    heat = analysed()[0].key_image.heat
    np.testing.assert_array_equal(grid(made["parametric_map"]), unpack_heat(heat))
    assert grid(made["parametric_map"]).max() > 0.1


def test_the_map_says_what_its_values_are(made):
    shared = made["parametric_map"].SharedFunctionalGroupsSequence[0]
    (mapping,) = shared.RealWorldValueMappingSequence
    quantity = mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0]
    assert (quantity.CodeValue, quantity.CodingSchemeDesignator) == ("130401", "DCM")
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "1"


def test_highdicom_reads_the_map_back(made):
    assert ParametricMap.from_dataset(made["parametric_map"]).FloatPixelData


def test_a_coarser_map_begins_at_the_same_corner():
    result, manifest = analysed()
    heat = pack_heat(np.repeat(np.linspace(0, 1, 1100, dtype=np.float32)[None], 1030, axis=0))
    image = replace(result.key_image, heat=heat)
    told = datasets_of(replace(result, key_image=image), manifest)["parametric_map"]
    header = source(result)
    position = told.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient
    spacing = told.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    assert (heat.step, heat.rows, heat.columns) == (3, 344, 367)
    assert list(spacing) == [3 * value for value in header.PixelSpacing]
    assert position[0] == header.ImagePositionPatient[0] + header.PixelSpacing[1]


def test_a_radiograph_has_no_place_in_space_and_so_no_map():
    assert objects_of(*radiograph()).keys() == {"sr", "secondary_capture"}


def test_a_result_that_is_older_than_heatmaps_has_no_map():
    result, manifest = analysed()
    old = replace(result, key_image=replace(result.key_image, heat=None))
    assert objects_of(old, manifest).keys() == {"sr", "secondary_capture"}


def test_no_answer_has_no_pictures():
    assert objects_of(*analysed(noise=True)).keys() == {"sr"}


def test_the_picture_says_that_it_is_burned_in(made):
    told = made["secondary_capture"]
    assert told.BurnedInAnnotation == "YES"
    assert BURNED_IN in told.DerivationDescription
    assert told.PhotometricInterpretation == "RGB"


def test_image_and_heatmap_are_side_by_side_under_the_words():
    result, manifest = analysed()
    drawn = draw(open_source(result.source_header, result, manifest, organization="x"), result.key_image)
    image = cv2.imdecode(np.frombuffer(result.key_image.image_png, np.uint8), cv2.IMREAD_COLOR)
    left, right = drawn[-512:, :512], drawn[-512:, -512:]
    expected = cv2.resize(image, (512, 512), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(left, expected)
    assert (left != right).any()
    assert drawn[:-512].any()


@pytest.mark.parametrize("kind", ["sr", "parametric_map", "secondary_capture"])
def test_every_object_is_a_new_series_of_the_same_study(made, kind):
    told = made[kind]
    assert (told.StudyInstanceUID, told.PatientID) == (STUDY_UID, "MRN-1")
    assert told.SeriesInstanceUID != SERIES_UID
    assert told.SeriesDescription.startswith("AI ")
    assert told.SeriesNumber > 9000


def test_every_object_and_series_has_its_own_uid(made):
    uids = [uid for one in made.values() for uid in (one.SOPInstanceUID, one.SeriesInstanceUID)]
    assert len(set(uids)) == 6


def test_a_second_run_makes_the_same_bytes():
    result, manifest = analysed()
    first = objects_of(result, manifest)
    time.sleep(1.1)  # as DICOM tells seconds
    second = objects_of(result, manifest)
    assert {kind: one.data for kind, one in first.items()} == {kind: one.data for kind, one in second.items()}


def test_times_are_those_of_the_analysis(made):
    when = analysed()[0].analysed_at.astimezone()
    for told in made.values():
        assert told.ContentDate == f"{when:%Y%m%d}"
        assert told.ContentTime == f"{when:%H%M%S.%f}"


def test_nothing_of_the_patient_is_warned_of_or_logged(caplog):
    result, manifest = analysed()
    named = with_header(result, PatientName="CANARY", PatientID="CANARY", ReferringPhysicianName="CANARY")
    caplog.set_level(logging.DEBUG)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        made = datasets_of(named, manifest)
    assert all(told.PatientName == "CANARY" for told in made.values())
    assert "CANARY" not in caplog.text + "".join(str(one.message) for one in warned)
    assert str(source(result).SOPInstanceUID) not in caplog.text
