"""The image proxy: the launched patient's images and no others, exactly as stored, each access audited."""

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest

from rayhook.auth.registry import EHRRegistry
from rayhook.inference import jobs
from rayhook.smart_app.access import Gate, Viewer
from rayhook.smart_app.image_access import ImageAccess
from tests.unit.smart_app.conftest import MODEL
from tests.unit.smart_app.imaging import COUNT, PATIENT, ROOT, Imaging, open_imaging, pixels


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Imaging]:
    with open_imaging(tmp_path_factory.mktemp("imaging")) as imaging:
        yield imaging


@pytest.fixture
def imaging(running: Imaging) -> Iterator[Imaging]:
    yield running
    running.faults.status = None
    running.faults.slow_s = 0.0
    running.faults.wrong_study = running.faults.truncated = False
    running.asked.clear()


@pytest.fixture
def browser(imaging: Imaging) -> Iterator[httpx.Client]:
    with imaging.world.browser() as browser:
        imaging.world.launch(browser, PATIENT)
        yield browser


def numbers(answer: httpx.Response) -> np.ndarray:
    described = json.loads(answer.headers["X-Rayhook-Frame"])
    values = np.frombuffer(answer.content, np.dtype(described["dtype"]).newbyteorder("<"))
    return values.reshape(described["rows"], described["columns"])


def test_a_study_lists_its_series(imaging, browser):
    told = imaging.get(browser, imaging.study()).json()
    assert [(s["modality"], s["description"], s["images"]) for s in told["series"]] == [
        ("CT", "THORAX 5.0", COUNT)
    ]


def test_images_come_in_the_order_of_their_place(imaging, browser):
    told = imaging.get(browser, imaging.series()).json()
    assert [frame["position"][2] for frame in told["frames"]] == [70, 75, 80, 85, 90, 95]
    assert told["order"] == "position"


def test_an_image_tells_geometry_scale_and_windows(imaging, browser):
    frame = imaging.get(browser, imaging.series()).json()["frames"][0]
    assert frame["spacing"] == [0.5, 0.75]
    assert (frame["slope"], frame["intercept"], frame["unit"]) == (1, -24, "HU")
    assert frame["windows"] == [[40, 400, "MEDIASTINUM"], [-600, 1500, "LUNG"]]


@pytest.mark.parametrize("index", [1, COUNT])
def test_values_are_those_that_were_stored(imaging, browser, index):
    np.testing.assert_array_equal(numbers(imaging.get(browser, imaging.image(index))), pixels(index))


def test_nothing_told_names_a_uid(imaging, browser):
    paths = (imaging.study(), imaging.series(), f"{imaging.study()}/others")
    assert not any(ROOT in imaging.get(browser, path).text for path in paths)


@pytest.mark.parametrize("kind", ["study", "series", "image"])
def test_another_patients_is_as_what_does_not_exist(imaging, browser, kind):
    foreign = {"study": imaging.study(3), "series": imaging.series(3), "image": imaging.image(1, 3)}[kind]
    nowhere = foreign.replace(imaging.study(3), f"/studies/{'0' * 32}")
    answers = [imaging.get(browser, path) for path in (foreign, nowhere)]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].json() == answers[1].json()
    assert imaging.asked == []
    assert imaging.world.kinds()[0] == "smart_app:access:denied"


def test_another_patients_image_is_not_had_through_the_own_study(imaging, browser):
    path = imaging.image(1, 3).replace(imaging.study(3), imaging.study(1))
    assert imaging.get(browser, path).status_code == 404


def test_nothing_is_shown_without_a_session(imaging):
    with imaging.world.browser() as nobody:
        assert imaging.get(nobody, imaging.image(1)).status_code == 401


def test_a_page_of_another_session_gets_nothing(imaging, browser):
    answer = browser.get(f"{imaging.world.base_url}{imaging.study()}", headers={"X-Rayhook-Window": "f" * 32})
    assert (answer.status_code, answer.json()["code"]) == (409, "window_stale")


def test_the_answer_is_not_kept_by_the_browser(imaging, browser):
    assert imaging.get(browser, imaging.image(1)).headers["Cache-Control"] == "no-store"


def test_what_was_decoded_is_not_fetched_again(imaging, browser):
    imaging.get(browser, imaging.image(2))
    imaging.faults.status = 500
    assert imaging.get(browser, imaging.image(2)).status_code == 200


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        (401, "upstream_refused", 502),
        (403, "upstream_refused", 502),
        (404, "study_not_found", 404),
        (500, "upstream_unavailable", 503),
    ],
)
def test_what_the_pacs_says_is_told_and_audited(imaging, browser, status, code, told):
    access = fresh(imaging)
    viewer = viewer_of(imaging, browser)
    imaging.faults.status = status
    with pytest.raises(Exception, match=r".") as caught:
        access.series_list(viewer, imaging.study().rpartition("/")[2])
    assert (caught.value.code, caught.value.status) == (code, told)
    record = imaging.world.audited()[0]
    assert (record.kind, record.detail["code"]) == ("dicomweb:study:failed", code)


def test_who_finds_the_pacs_taken_is_told_when_to_come_again(imaging, browser, monkeypatch):
    monkeypatch.setattr(imaging.deps.retrievals, "_most", 0)
    events = len(imaging.world.audited())
    answer = imaging.get(browser, imaging.study())
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert (answer.json()["code"], answer.json()["retryable"]) == ("overloaded", True)
    assert imaging.asked == []
    assert len(imaging.world.audited()) == events


def test_images_of_another_study_are_not_shown(imaging, browser):
    access, viewer = fresh(imaging), viewer_of(imaging, browser)
    study, series, image = handles(imaging.image(3))
    access.series(viewer, study, series)
    imaging.faults.wrong_study = True
    with pytest.raises(Exception, match="another study") as caught:
        access.pixels(viewer, study, series, image, 0)
    assert caught.value.code == "identity_conflict"


def test_opening_a_series_is_one_event_with_its_count(imaging, browser):
    imaging.get(browser, imaging.series())
    record = imaging.world.audited()[0]
    assert (record.kind, record.detail["images"]) == ("smart_app:series:opened", str(COUNT))
    assert f"urn:oid:{ROOT}.1" in record.entities


def test_looking_through_a_series_adds_no_event_of_its_own(imaging, browser):
    imaging.get(browser, imaging.series())
    before = len(imaging.world.audited())
    for index in range(1, COUNT + 1):
        imaging.get(browser, imaging.image(index))
    assert len(imaging.world.audited()) == before


def test_images_without_an_opened_series_are_told_once(imaging, browser):
    access, viewer = fresh(imaging), viewer_of(imaging, browser)
    study, series, image = handles(imaging.image(4))
    for _ in range(3):
        access.pixels(viewer, study, series, image, 0)
    kinds = [str(record.kind) for record in imaging.world.audited()]
    assert kinds[0] == "smart_app:image:viewed"
    assert kinds[1] != "smart_app:image:viewed"


@pytest.mark.parametrize("path", ["study", "series"])
def test_no_audit_no_images(imaging, browser, path):
    with imaging.world.audit_is_full():
        answer = imaging.get(browser, getattr(imaging, path)())
    assert (answer.status_code, answer.json()["code"]) == (503, "audit_unavailable")


def test_the_token_goes_where_the_endpoint_requires_it(imaging, browser):
    viewer = viewer_of(imaging, browser)
    fresh(imaging).series_list(viewer, imaging.study().rpartition("/")[2])
    assert set(imaging.asked) == {viewer.session.access_token}


def test_the_token_stays_here_where_no_endpoint_requires_it(imaging, browser):
    viewer = viewer_of(imaging, browser)
    analysed(imaging, imaging.reference(1, token_required=False, source_version="open"))
    with pytest.raises(Exception, match="401"):
        fresh(imaging).series_list(viewer, imaging.study().rpartition("/")[2])
    assert set(imaging.asked) <= {""}
    forget_jobs(imaging)


def test_nothing_is_sent_to_an_address_off_the_list(imaging, browser):
    viewer = viewer_of(imaging, browser)
    with socket.socket() as elsewhere:
        elsewhere.bind(("127.0.0.1", 0))
        elsewhere.listen()
        elsewhere.settimeout(0.3)
        address = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/dicom-web"
        analysed(imaging, replace(imaging.reference(1, source_version="off"), dicomweb_url=address))
        with pytest.raises(Exception, match=r".") as caught:
            fresh(imaging).series_list(viewer, imaging.study().rpartition("/")[2])
        assert caught.value.code == "egress_denied"
        with pytest.raises(TimeoutError):
            elsewhere.accept()
    assert imaging.world.kinds()[0] == "transport:address:refused"
    forget_jobs(imaging)


def test_without_the_scope_for_studies_there_are_no_images(imaging, browser):
    viewer = viewer_of(imaging, browser)
    narrow = replace(
        viewer,
        session=replace(
            viewer.session, scopes=type(viewer.session.scopes).parse("patient/DiagnosticReport.r")
        ),
    )
    with pytest.raises(Exception, match="not permitted by your EHR") as caught:
        fresh(imaging).series_list(narrow, imaging.study().rpartition("/")[2])
    assert caught.value.code == "images_not_permitted"


def test_a_role_without_the_right_sees_no_images(imaging, browser):
    viewer = viewer_of(imaging, browser)
    nobody = replace(viewer, session=replace(viewer.session, roles=frozenset()))
    with pytest.raises(Exception, match="role"):
        Gate(imaging.deps).require(nobody, _image_read())


def test_the_other_studies_are_offered_without_the_strangers(imaging, browser):
    told = imaging.get(browser, f"{imaging.study()}/others").json()["studies"]
    assert [(one["study"], one["started"], one["comparable"]) for one in told] == [
        (imaging.study(2), "2024-02-01", True)
    ]


@pytest.mark.parametrize("path", ["/studies/x", "/studies/1.2.3", f"/studies/{'0' * 32}/series/1.2.3"])
def test_an_address_with_anything_but_a_handle_is_refused(imaging, browser, path):
    assert imaging.get(browser, path).status_code == 400


def fresh(imaging: Imaging) -> ImageAccess:
    """Images for somebody of whom nothing is remembered."""
    return ImageAccess(imaging.deps, Gate(imaging.deps))


def viewer_of(imaging: Imaging, browser: httpx.Client) -> Viewer:
    (cookie,) = [c for c in browser.cookies.jar if c.name == "rayhook-development-session"]
    session = Gate(imaging.deps)._live.find(cookie.value)
    assert session is not None
    registry: EHRRegistry = imaging.deps.registry
    ehr = registry.by_id(session.ehr_id)
    assert ehr is not None
    return Viewer(ehr, PATIENT, session)


def handles(path: str) -> tuple[str, str, str]:
    _, _, study, _, series, _, image, _ = path.split("/")
    return study, series, image


def analysed(imaging: Imaging, reference) -> None:
    with imaging.deps.sessions() as session:
        key = jobs.job_key(reference, [MODEL])
        jobs.enqueue(session, imaging.deps.keyring, reference, None, key=key, request_id="test")
        session.commit()


def forget_jobs(imaging: Imaging) -> None:
    with imaging.world.database.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM analysis_job")


def _image_read():
    from rayhook.auth.roles import Permission

    return Permission.SMART_APP_IMAGE_READ


def test_the_bundle_is_kept_for_ever_and_sent_compressed(imaging, browser):
    folder = Path(__file__).resolve().parents[3] / "smart_app" / "static" / "viewer" / "assets"
    (script,) = folder.glob("main-*.js")
    answer = browser.get(f"{imaging.world.base_url}/smart/static/viewer/assets/{script.name}")
    assert "immutable" in answer.headers["Cache-Control"]
    assert answer.headers["Content-Encoding"] in {"br", "gzip"}
    assert answer.headers["Content-Type"].startswith("text/javascript")


@pytest.mark.parametrize("name", ["manifest.json", "../viewer.py", "assets/none.js", "licenses.md"])
def test_nothing_else_is_sent_as_a_part_of_the_bundle(imaging, browser, name):
    assert browser.get(f"{imaging.world.base_url}/smart/static/viewer/{name}").status_code == 404
