from io import BytesIO

import pytest
from pydicom import dcmread

from rayhook.inference.decode_limits import DecodeLimits
from rayhook.inference.instance_names import OWN_MANUFACTURER, is_own_result
from tests.unit.inference.dicom_objects import analyse, analysed, objects_of
from tests.unit.inference.images import dicom_slice

LIMITS = DecodeLimits()


@pytest.mark.parametrize("kind", ["sr", "parametric_map", "secondary_capture"])
def test_every_object_of_ours_is_known_again(kind):
    assert is_own_result(objects_of(*analysed())[kind].data, LIMITS)


@pytest.mark.parametrize(
    "data",
    [
        dicom_slice(),
        dicom_slice(Manufacturer=OWN_MANUFACTURER),
        dicom_slice(Manufacturer="Another", SeriesDescription=f"as by {OWN_MANUFACTURER}"),
        b"no DICOM, but The Rayhook authors",
    ],
    ids=["image", "image by us", "said elsewhere", "no file"],
)
def test_nothing_else_is(data):
    assert not is_own_result(data, LIMITS)


def test_a_study_with_our_objects_in_it_is_the_same_study():
    files = [dicom_slice(n, lesion=3 <= n <= 5, FrameOfReferenceUID="1.2.3") for n in range(1, 9)]
    result, manifest = analyse(files)
    again, _ = analyse([*files, *(one.data for one in objects_of(result, manifest).values())])
    assert [one.sop_instance_uid for one in again.instances] == [
        one.sop_instance_uid for one in result.instances
    ]


def test_a_picture_of_others_is_told_as_out_of_scope():
    picture = dcmread(BytesIO(objects_of(*analysed())["secondary_capture"].data))
    picture.Manufacturer = "Another"
    buffer = BytesIO()
    picture.save_as(buffer)
    result, _ = analyse([*(dicom_slice(n) for n in range(1, 4)), buffer.getvalue()])
    assert [one.status.value for one in result.instances].count("out_of_scope") == 1
