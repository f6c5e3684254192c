import re
from dataclasses import replace
from html import unescape

import pytest

from rayhook.inference import jobs
from rayhook.inference.report import build_resources
from rayhook.inference.study import AnalysisStatus
from tests.unit.smart_app.conftest import MANIFEST, MODEL, study_result


@pytest.fixture
def browser(world):
    with world.browser() as browser:
        world.launch(browser, "phantom-a")
        yield browser


@pytest.fixture
def listed(world, browser):
    """Return the list as it is shown for a query, without markup."""

    def read(query: str = "") -> str:
        return browser.get(f"{world.base_url}/patient{query}").text

    return read


def store(world, study: str, *, started: str = "2026-05-01T10:00:00Z", model=MODEL, **result) -> str:
    reference = replace(
        world.reference("phantom-a", study=study), started=started, description=f"MR head {study}"
    )
    with world.database.sessions() as session:
        key = jobs.job_key(reference, [model])
        row, _ = jobs.enqueue(session, world.keyring, reference, None, key=key, request_id="test")
        claimed = jobs.claim(session, world.keyring, row.id, lease_s=60)
        made = study_result(study, **result)
        made = replace(made, model=model) if made.model else made
        resources = build_resources(reference, made, MANIFEST if made.model else None, organization="Test")
        result_id = jobs.complete(session, world.keyring, claimed, made, resources)
        session.commit()
    return result_id


def titles(page: str) -> list[str]:
    return [unescape(re.sub(r"<[^>]+>", "", one)).strip() for one in re.findall(r"<h3>(.*?)</h3>", page)]


def form_of(page: str) -> str:
    found = re.search(r'<form method="post" action="([^"]*/analysis[^"]*)"', page)
    assert found is not None
    return unescape(found[1])


def test_most_urgent_study_stands_first(world, listed):
    store(world, "1.1", probability=0.06)
    store(world, "1.2", status=AnalysisStatus.ABSTAINED)
    store(world, "1.3", probability=0.7)
    store(world, "1.4", probability=0.9)
    assert titles(listed())[:4] == ["MR head 1.4", "MR head 1.3", "MR head 1.2", "MR head 1.1"]


def test_list_can_be_ordered_by_date(world, listed):
    store(world, "1.1", started="2020-01-01", probability=0.9)
    store(world, "1.2", started="2027-01-01", probability=0.1)
    assert titles(listed("?sort=newest"))[0] == "MR head 1.2"
    assert titles(listed("?sort=oldest"))[0] == "MR head 1.1"


def test_list_can_be_narrowed_to_a_state(world, listed):
    store(world, "1.1", probability=0.06)
    store(world, "1.2", probability=0.9)
    assert titles(listed("?stage=negative")) == ["MR head 1.1"]


def test_list_can_be_narrowed_to_a_modality(world, listed):
    store(world, "1.1")
    assert titles(listed("?modality=XA")) == []
    assert "No study matches" in listed("?modality=XA")


def test_finding_is_shown_with_its_probability(world, listed):
    store(world, "1.1", probability=0.87)
    assert "87.0%" in listed()


def test_earlier_answer_of_the_same_model_is_shown_with_the_difference(world, listed):
    earlier = store(world, "1.1", started="2025-05-01", probability=0.3)
    store(world, "1.2", probability=0.87)
    page = listed("?stage=review")
    assert f"/results/{earlier}" in page
    assert "up by 57.0 points" in page


def test_earlier_answer_of_another_model_is_not_compared(world, listed):
    store(world, "1.1", started="2025-05-01", probability=0.3, model=replace(MODEL, weights_sha256="cd" * 32))
    store(world, "1.2", probability=0.87)
    page = listed("?stage=review")
    assert "by another model or version: not comparable" in page
    assert "points" not in page


def test_job_under_way_stands_as_in_progress_and_the_page_refreshes(world, listed):
    world.enqueue("phantom-a", study="1.9")
    page = listed()
    assert 'data-refresh-seconds="3"' in page
    assert 'http-equiv="refresh"' in page


def test_page_with_nothing_under_way_does_not_refresh(world, listed):
    store(world, "1.1")
    assert "refresh" not in listed().replace('id="refreshed"', "")


def test_failed_job_that_may_be_tried_again_has_a_button(world, listed):
    world.fail(
        world.enqueue("phantom-a", study="1.9"), code="upstream_timeout", message="late", retryable=True
    )
    assert "Try again" in listed("?stage=check")


def test_failed_job_that_will_fail_again_has_none(world, listed):
    world.fail(world.enqueue("phantom-a", study="1.9"), code="image_refused", message="no")
    assert "Try again" not in listed("?stage=check")


def test_study_opened_in_the_ehr_is_named_with_its_part_of_the_body(listed):
    assert "<span>Head</span>" in listed()


def test_two_hundred_studies_come_in_pages(world, listed):
    with world.database.sessions() as session:
        for number in range(200):
            reference = world.reference("phantom-a", study=f"1.2.{number}")
            jobs.enqueue(session, world.keyring, reference, None, key=f"{number:064}", request_id="test")
        session.commit()
    assert len(titles(listed())) == 20
    assert "Page 11 of 11" in listed("?page=99")


def test_read_of_the_list_is_audited(world, listed):
    listed()
    assert "smart_app:result:viewed" in world.kinds()


def test_study_that_was_not_asked_about_can_be_analysed(world, browser, listed):
    page = browser.post(f"{world.base_url}{form_of(listed())}", headers={"Origin": world.base_url})
    assert page.url.path.startswith("/jobs/")
    assert "inference:job:enqueued" in world.kinds()


def test_analysis_is_asked_for_with_the_viewers_own_token(world, browser, listed):
    browser.post(f"{world.base_url}{form_of(listed())}", headers={"Origin": world.base_url})
    with world.database.sessions() as session:
        job = jobs.jobs_for_patient(session, world.keyring, "demo-ehr", "phantom-a")[0]
        claimed = jobs.claim(session, world.keyring, job.row.id, lease_s=60)
    assert claimed.authorization.access_token
    assert "patient/ImagingStudy.rs" in claimed.authorization.scope.split()


def test_analysis_asked_for_twice_is_done_once(world, browser, listed):
    action, before = form_of(listed()), world.kinds().count("inference:job:enqueued")
    pages = [browser.post(f"{world.base_url}{action}", headers={"Origin": world.base_url}) for _ in range(2)]
    assert pages[0].url == pages[1].url
    assert world.kinds().count("inference:job:enqueued") == before + 1


def test_form_of_another_site_starts_nothing(world, browser, listed):
    page = browser.post(f"{world.base_url}{form_of(listed())}", headers={"Origin": "https://evil.example"})
    assert page.status_code == 403
    with world.database.sessions() as session:
        assert jobs.jobs_for_patient(session, world.keyring, "demo-ehr", "phantom-a") == []


def test_study_of_another_patient_cannot_be_analysed(world, browser, listed):
    action = form_of(listed())
    with world.browser() as other:
        foreign = form_of(world.launch(other, "phantom-b").text)
    handle = foreign.partition("/studies/")[2].partition("/")[0]
    own = action.partition("/studies/")[2].partition("/")[0]
    page = browser.post(f"{world.base_url}{action.replace(own, handle)}", headers={"Origin": world.base_url})
    assert page.status_code == 404
    assert world.kinds()[0] == "smart_app:access:denied"


def test_page_that_refreshes_itself_does_not_keep_the_session_open(world, browser, listed):
    listed()
    for _ in range(4):
        world.clock.ahead_s += 5 * 60
        page = browser.get(f"{world.base_url}/patient", headers={"X-Rayhook-Refresh": "1"})
    assert page.status_code == 401


def test_slow_analysis_says_so(world, browser):
    job_id = world.enqueue("phantom-a", study="1.9")
    world.clock.ahead_s = 120
    page = browser.get(f"{world.base_url}/jobs/{job_id}").text
    assert "the image archive may be slow" in page


@pytest.mark.parametrize(
    ("tag", "words"),
    [("es", "Estudios de imagen"), ("fr", "Examens d\N{RIGHT SINGLE QUOTATION MARK}imagerie")],
)
def test_list_is_written_in_the_readers_language(world, browser, tag, words):
    page = browser.get(f"{world.base_url}/patient", headers={"Accept-Language": tag}).text
    assert words in page


def test_job_that_waits_says_how_many_are_before_it(world, listed):
    world.enqueue("phantom-b", study="1.2.1")
    world.enqueue("phantom-a", study="1.2.2")
    assert "1 analysis before it" in listed()


def test_page_that_fails_is_still_a_page(world, browser, monkeypatch):
    monkeypatch.setattr("rayhook.smart_app.worklist_pages.page_of", lambda *_: 1 / 0)
    page = browser.get(f"{world.base_url}/patient")
    assert page.status_code == 500
    assert "This could not be shown" in page.text
    assert "ZeroDivisionError" not in page.text


def test_a_list_that_the_ehr_cut_short_says_so(world, listed, monkeypatch):
    monkeypatch.setattr("rayhook.smart_app.patient._MAX_STUDIES", 1)
    monkeypatch.setattr("rayhook.smart_app.patient._MAX_PAGES", 1)
    assert "more imaging studies of this patient" not in listed()
    (study,) = world.ehr.store.search("ImagingStudy", [("patient", "phantom-a")])
    uid = {"system": "urn:dicom:uid", "value": "urn:oid:1.2.3.999"}
    key = ("ImagingStudy", "one-more")
    world.ehr.store.seed([{**study, "id": key[1], "identifier": [uid]}])
    try:
        assert "more imaging studies of this patient" in listed()
    finally:
        del world.ehr.store._resources[key]
