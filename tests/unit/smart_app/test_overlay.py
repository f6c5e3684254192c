"""What is laid over the images: by handles, of the launched patient's result only."""

from collections.abc import Iterator

import cv2
import httpx
import numpy as np
import pytest

from rayhook.smart_app.image_study import image_handle
from tests.unit.smart_app.imaging import COUNT, KEY, PATIENT, ROOT, STRANGER, Imaging, open_imaging


@pytest.fixture(scope="module")
def imaging(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Imaging]:
    with open_imaging(tmp_path_factory.mktemp("overlay")) as imaging:
        yield imaging


@pytest.fixture(scope="module")
def result(imaging: Imaging) -> str:
    return imaging.store_result()


@pytest.fixture
def browser(imaging: Imaging) -> Iterator[httpx.Client]:
    with imaging.world.browser() as browser:
        imaging.world.launch(browser, PATIENT)
        yield browser


def test_the_overlay_names_what_the_series_names(imaging, browser, result):
    overlay = imaging.get(browser, f"/results/{result}/overlay").json()
    images = [frame["image"] for frame in imaging.get(browser, imaging.series()).json()["frames"]]
    assert [image for image, _ in overlay["slices"]] == images
    assert (
        overlay["key_image"]["image"]
        == images[KEY]
        == image_handle(imaging.deps.keyring, f"{ROOT}.1.1.{COUNT - KEY}")
    )


def test_marks_come_with_their_place_and_probability(imaging, browser, result):
    marks = imaging.get(browser, f"/results/{result}/overlay").json()["marks"]
    assert [(m["row"], m["column"], m["probability"], m["positive"]) for m in marks] == [
        (20, 40, 0.87, True),
        (30, 12, None, False),
    ]


def test_the_heat_is_transparent_where_there_is_none(imaging, browser, result):
    answer = imaging.get(browser, f"/results/{result}/heat.png")
    picture = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert picture.shape == (48, 64, 4)
    assert (picture[0, 0, 3], picture[20, 40, 3] > 200) == (0, True)


def test_the_overlay_names_no_uid(imaging, browser, result):
    assert ROOT not in imaging.get(browser, f"/results/{result}/overlay").text


@pytest.mark.parametrize("part", ["overlay", "heat.png"])
def test_another_patients_overlay_is_not_found(imaging, result, part):
    with imaging.world.browser() as other:
        imaging.world.launch(other, STRANGER)
        assert imaging.get(other, f"/results/{result}/{part}").status_code == 404
    assert imaging.world.kinds()[0] == "smart_app:access:denied"


def test_the_page_names_the_study_by_its_handle(imaging, browser, result):
    page = imaging.get(browser, f"/results/{result}").text
    assert f'data-study="{imaging.study()}"' in page
