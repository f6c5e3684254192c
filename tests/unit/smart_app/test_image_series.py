"""From DICOM JSON, as PACS tell it, to a stack in order."""

import itertools
from typing import Any

import pytest
from pydicom.datadict import tag_for_keyword

from rayhook.inference.dicom_json import JSONAttributes
from rayhook.smart_app import image_series
from rayhook.smart_app.image_series import ImageFrame, read_series, summarise

AXIAL = [1, 0, 0, 0, 1, 0]


def told(**values: Any) -> JSONAttributes:
    return JSONAttributes(
        {
            f"{tag_for_keyword(keyword):08X}": {
                "vr": "UN",
                "Value": value if isinstance(value, list) else [value],
            }
            for keyword, value in values.items()
        }
    )


def instance(number: int, **values: Any) -> JSONAttributes:
    plain = {
        "SOPInstanceUID": f"1.2.{number}",
        "Rows": 4,
        "Columns": 4,
        "Modality": "MR",
        "InstanceNumber": number,
    }
    return told(**plain | values)


def placed(number: int, z: float, **values: Any) -> JSONAttributes:
    return instance(
        number, ImagePositionPatient=[0, 0, z], ImageOrientationPatient=AXIAL, PixelSpacing=[1, 1], **values
    )


def uids(frames: tuple[ImageFrame, ...]) -> list[str]:
    return [frame.sop_instance_uid for frame in frames]


@pytest.mark.parametrize("arrival", list(itertools.permutations((0, 1, 2))))
def test_parallel_slices_are_ordered_by_place(arrival):
    slices = [placed(1, 30.0), placed(2, 10.0), placed(3, 20.0)]
    series = read_series("1.2", [slices[i] for i in arrival])
    assert (series.order, uids(series.frames)) == ("position", ["1.2.2", "1.2.3", "1.2.1"])


def test_places_that_repeat_are_ordered_by_acquisition_first():
    slices = [placed(n, 10.0 * (n % 2), AcquisitionNumber=n // 2) for n in range(4)]
    assert uids(read_series("1.2", slices[::-1]).frames) == ["1.2.0", "1.2.1", "1.2.2", "1.2.3"]


def test_images_that_are_not_parallel_are_ordered_by_number():
    slices = [
        placed(2, 10.0),
        instance(1, ImagePositionPatient=[0, 0, 5], ImageOrientationPatient=[0, 1, 0, 0, 0, -1]),
    ]
    series = read_series("1.2", slices)
    assert (series.order, uids(series.frames)) == ("instance_number", ["1.2.1", "1.2.2"])


def test_images_without_a_place_or_a_number_come_in_one_order():
    files = [told(SOPInstanceUID=f"1.2.{n}", Rows=4, Columns=4) for n in (3, 1, 2)]
    assert uids(read_series("1.2", files).frames) == ["1.2.1", "1.2.2", "1.2.3"]


def test_frames_take_their_place_from_functional_groups():
    def group(z: float) -> dict[str, Any]:
        position = told(ImagePositionPatient=[0, 0, z]).elements
        return dict(told(PlanePositionSequence=position).elements)

    shared = told(
        PlaneOrientationSequence=told(ImageOrientationPatient=AXIAL).elements,
        PixelMeasuresSequence=told(PixelSpacing=[0.7, 0.8]).elements,
    ).elements
    enhanced = instance(
        1,
        NumberOfFrames=2,
        SharedFunctionalGroupsSequence=dict(shared),
        PerFrameFunctionalGroupsSequence=[group(9.0), group(4.0)],
    )
    frames = read_series("1.2", [enhanced]).frames
    assert [(f.frame, f.position) for f in frames] == [(1, (0, 0, 4.0)), (0, (0, 0, 9.0))]
    assert frames[0].spacing_mm == (0.7, 0.8)


def test_a_film_is_measured_at_the_detector():
    (frame,) = read_series("1.2", [instance(1, ImagerPixelSpacing=[0.2, 0.2])]).frames
    assert (frame.spacing_mm, frame.spacing_at) == ((0.2, 0.2), "detector")


def test_a_calibrated_film_is_measured_at_the_patient():
    film = instance(
        1, ImagerPixelSpacing=[0.2, 0.2], PixelSpacing=[0.18, 0.18], PixelSpacingCalibrationType="GEOMETRY"
    )
    (frame,) = read_series("1.2", [film]).frames
    assert (frame.spacing_mm, frame.spacing_at) == ((0.18, 0.18), "patient")


@pytest.mark.parametrize("spacing", [[0, 1], [-1, 1], ["x", 1], [1], None, ["NaN", 1]])
def test_a_spacing_that_makes_no_sense_is_none(spacing):
    (frame,) = read_series("1.2", [instance(1, PixelSpacing=spacing or [])]).frames
    assert frame.spacing_mm is None


@pytest.mark.parametrize(
    ("values", "unit"),
    [
        ({"Modality": "CT"}, "HU"),
        ({"Modality": "CT", "RescaleSlope": 1, "RescaleType": "HU"}, "HU"),
        ({"Modality": "CT", "RescaleSlope": 1, "RescaleType": "US"}, ""),
        ({"Modality": "MR"}, ""),
    ],
)
def test_the_unit_is_what_the_file_tells(values, unit):
    (frame,) = read_series("1.2", [instance(1, **values)]).frames
    assert frame.unit == unit


@pytest.mark.parametrize(
    "values", [{"Rows": 0}, {"Columns": 70_000}, {"NumberOfFrames": 10**6}, {"Rows": "x"}]
)
def test_what_contradicts_itself_is_left_out(values):
    assert read_series("1.2", [instance(1, **values), instance(2)]).frames[0].sop_instance_uid == "1.2.2"


def test_a_long_series_is_bounded_and_says_so(monkeypatch):
    monkeypatch.setattr(image_series, "MAX_IMAGES", 3)
    series = read_series("1.2", [instance(n) for n in range(5)])
    assert (len(series.frames), series.left_out) == (3, 2)


def test_series_without_images_are_not_listed():
    found = [
        told(SeriesInstanceUID="1.2", Modality="SR", SeriesNumber=1),
        told(SeriesInstanceUID="1.4", Modality="CT", SeriesNumber=3, NumberOfSeriesRelatedInstances=40),
        told(SeriesInstanceUID="1.3", Modality="CT", SeriesNumber=2),
        told(SeriesInstanceUID="1.5", Modality="SEG"),
    ]
    assert [(s.series_instance_uid, s.images) for s in summarise(found)] == [("1.3", None), ("1.4", 40)]


def test_metadata_of_a_study_counts_its_images():
    found = [told(SeriesInstanceUID="1.2", SOPInstanceUID=f"1.2.{n}", Modality="MR") for n in range(3)]
    assert [s.images for s in summarise(found)] == [3]
