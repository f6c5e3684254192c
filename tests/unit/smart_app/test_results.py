import re
from dataclasses import replace

import pytest

from rayhook.inference.statement import EXPERIMENTAL
from rayhook.inference.study import AnalysisStatus, Mark
from tests.unit.smart_app.conftest import MODEL, rated_result, study_result

INLINE = re.compile(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=|javascript:", re.IGNORECASE)


@pytest.fixture
def browser(world):
    with world.browser() as browser:
        world.launch(browser, "phantom-a")
        yield browser


def test_page_tells_probability_threshold_and_figures(world, browser):
    page = browser.get(f"{world.base_url}/results/{world.store('phantom-a')}").text
    for shown in (
        "87.0%",
        "threshold 40.0%",
        "0.921 to 0.962",
        "ab" * 32,
    ):
        assert shown in page


def test_page_says_investigational(world, browser):
    page = browser.get(f"{world.base_url}/results/{world.store('phantom-a')}").text
    assert "Investigational software" in page


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ({"probability": 0.87}, "Finding above threshold"),
        ({"probability": 0.06}, "No finding above threshold"),
        ({"status": AnalysisStatus.ABSTAINED}, "The model abstained"),
        ({"status": AnalysisStatus.OUT_OF_SCOPE}, "no model is meant for these images"),
        ({"status": AnalysisStatus.REFUSED}, "could not be read faithfully"),
    ],
)
def test_each_state_has_its_own_words(world, browser, result, words):
    page = browser.get(f"{world.base_url}/results/{world.store('phantom-a', **result)}").text
    assert words in page


@pytest.mark.parametrize(
    "status", [AnalysisStatus.ABSTAINED, AnalysisStatus.OUT_OF_SCOPE, AnalysisStatus.REFUSED]
)
def test_what_was_not_analysed_is_never_negative(world, browser, status):
    page = browser.get(f"{world.base_url}/results/{world.store('phantom-a', status=status)}").text
    assert "This is not a negative result" in page
    assert "below threshold" not in page


def test_reason_is_shown_as_text(world, browser):
    result_id = world.store("phantom-a", status=AnalysisStatus.OUT_OF_SCOPE)
    page = browser.get(f"{world.base_url}/results/{result_id}").text
    assert "the &lt;modality&gt; is not" in page


@pytest.mark.parametrize("part", ["", "/image.png", "/overlay.png"])
def test_another_patients_result_is_as_one_that_does_not_exist(world, browser, part):
    foreign = world.store("phantom-b")
    answers = [browser.get(f"{world.base_url}/results/{each}{part}") for each in (foreign, "0" * 32)]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].text == answers[1].text


def test_refused_access_is_audited(world, browser):
    browser.get(f"{world.base_url}/results/{world.store('phantom-b')}")
    assert world.kinds()[0] == "smart_app:access:denied"


@pytest.mark.parametrize("path", ["/patient", "/results/x", "/results/x/image.png", "/jobs/x"])
def test_nothing_is_shown_without_a_session(world, path):
    with world.browser() as stranger:
        answer = stranger.get(f"{world.base_url}{path}")
    assert answer.status_code == 401
    assert answer.headers["content-type"].startswith("text/html")


def test_idle_session_ends(world, browser):
    world.clock.ahead_s = 15 * 60 + 1
    assert browser.get(f"{world.base_url}/patient").status_code == 401


@pytest.mark.parametrize("part", ["image", "overlay"])
def test_images_are_pngs_that_no_cache_keeps(world, browser, part):
    answer = browser.get(f"{world.base_url}/results/{world.store('phantom-a')}/{part}.png")
    assert answer.content.startswith(b"\x89PNG")
    assert answer.headers["cache-control"] == "no-store"


def test_result_without_an_image_has_no_image(world, browser):
    result_id = world.store("phantom-a", status=AnalysisStatus.ABSTAINED)
    assert browser.get(f"{world.base_url}/results/{result_id}/image.png").status_code == 404


@pytest.mark.parametrize("part", ["", "/image.png", "/overlay.png"])
def test_each_view_is_audited_with_its_study(world, browser, part):
    browser.get(f"{world.base_url}/results/{world.store('phantom-a')}{part}")
    viewed = next(event for event in world.audited() if str(event.kind) == "smart_app:result:viewed")
    assert (viewed.patient_id, viewed.entities) == ("phantom-a", ("urn:oid:1.2.3.9",))


@pytest.mark.parametrize("path", ["/results/{id}", "/results/{id}/image.png", "/patient"])
def test_nothing_leaves_when_the_audit_cannot_be_written(world, browser, path):
    result_id = world.store("phantom-a")
    with world.audit_is_full():
        answer = browser.get(world.base_url + path.format(id=result_id))
    assert answer.status_code == 503
    assert "87.0" not in answer.text
    assert "PHANTOM A" not in answer.text


@pytest.mark.parametrize("path", ["/patient", "/results/{id}", "/results/none"])
def test_pages_have_no_inline_code_and_a_strict_policy(world, browser, path):
    page = browser.get(world.base_url + path.format(id=world.store("phantom-a")))
    assert not INLINE.search(page.text)
    assert page.headers["cache-control"] == "no-store"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert policy.endswith(f"frame-ancestors {world.ehr_url}")


def test_result_page_survives_a_silent_ehr(world, browser):
    result_id = world.store("phantom-a")
    world.ehr.faults.fhir_status = 500
    page = browser.get(f"{world.base_url}/results/{result_id}")
    assert page.status_code == 200
    assert "name not given by the EHR" in page.text


def test_patient_page_lists_studies_that_were_not_asked_about(world, browser):
    assert "Rayhook has not been asked about this study" in browser.get(f"{world.base_url}/patient").text


def test_patient_page_says_when_the_ehr_gives_no_list(world, browser):
    world.ehr.faults.fhir_status = 500
    assert "did not give its list" in browser.get(f"{world.base_url}/patient").text


def test_patient_page_shows_the_launched_patients_results_only(world, browser):
    world.store("phantom-a", study="1.2.3.10")
    foreign = world.store("phantom-b", study="1.2.3.11")
    page = browser.get(f"{world.base_url}/patient").text
    assert "Finding above threshold" in page
    assert foreign not in page


def test_waiting_job_refreshes_by_itself(world, browser):
    page = browser.get(f"{world.base_url}/jobs/{world.enqueue('phantom-a')}").text
    assert "The analysis waits for its turn" in page
    assert 'data-refresh-seconds="2"' in page
    assert "nothing is known about whether a finding is present" in page


def test_failed_job_tells_why_and_is_not_negative(world, browser):
    job_id = world.enqueue("phantom-a")
    world.fail(job_id, code="upstream_timeout", message="the PACS did not answer in time")
    page = browser.get(f"{world.base_url}/jobs/{job_id}").text
    assert "the PACS did not answer in time" in page
    assert "This is not a negative result" in page
    assert "data-refresh-seconds" not in page


def test_finished_job_leads_to_its_result(world, browser):
    result_id = world.store("phantom-a")
    job_id = world.enqueue("phantom-a")
    assert browser.get(f"{world.base_url}/jobs/{job_id}").url.path == f"/results/{result_id}"


def test_another_patients_job_is_not_found(world, browser):
    assert browser.get(f"{world.base_url}/jobs/{world.enqueue('phantom-b')}").status_code == 404


@pytest.mark.parametrize(
    ("name", "status"), [("app.css", 200), ("app.js", 200), ("mark.svg", 200), ("nothing.js", 404)]
)
def test_static_files(world, name, status):
    with world.browser() as browser:
        assert browser.get(f"{world.base_url}/smart/static/{name}").status_code == status


@pytest.fixture
def page_of(world, browser):
    """Return the page of a result once it is stored."""
    return lambda result: (
        browser.get(f"{world.base_url}/results/{world.store_result('phantom-a', result)}").text
    )


@pytest.mark.parametrize("status", [AnalysisStatus.ANALYSED, AnalysisStatus.ABSTAINED])
def test_page_of_an_experimental_model_says_so(page_of, status):
    page = page_of(study_result("1.2.3.9", status))
    assert EXPERIMENTAL in page
    assert "Brain MRI FLAIR lesion (experimental)" in page


def test_page_of_a_validated_model_does_not_say_experimental(page_of):
    result = replace(study_result("1.2.3.9"), model=replace(MODEL, experimental=False))
    assert "experimental" not in page_of(result).lower()


def test_list_of_studies_says_experimental(world, browser):
    world.store("phantom-a")
    page = browser.get(f"{world.base_url}/patient").text
    assert "Experimental model" in page


def test_page_lists_the_points_rated(page_of):
    page = page_of(rated_result("1.2.3.9", (2, Mark(111, 222, 0.9, 0.8, positive=True))))
    assert "The one point rated" in page
    assert "<td>111</td><td>222</td>" in page


def test_page_says_the_aggregation_in_words(page_of):
    assert "the point rated highest, each by its mean logit" in page_of(rated_result("1.2.3.9"))


@pytest.mark.parametrize("digest", [f"{3:064x}", "ef" * 32, "ct-finder 1.0.0"])
def test_page_shows_the_digests_of_what_made_the_result(page_of, digest):
    assert digest in page_of(rated_result("1.2.3.9"))


NOTHING = rated_result("1.2.3.9", findings=(), key_image=None, reason="no point was like it")


def test_page_of_nothing_to_rate_rules_nothing_out(page_of):
    page = page_of(NOTHING)
    assert "The model found nothing to rate" in page
    assert "does not rule out what it looks for" in page
    assert "No finding above threshold" not in page


def test_list_of_studies_says_nothing_to_rate(world, browser):
    world.store_result("phantom-a", NOTHING)
    page = browser.get(f"{world.base_url}/patient").text
    assert "Nothing to rate" in page
    assert "No finding above threshold" not in page


def test_page_counts_by_the_unit_of_the_figures(page_of):
    assert "about 87 of 100 slices with this value show the finding" in page_of(study_result("1.2.3.9"))


def test_results_stored_before_the_digests_are_still_shown(page_of):
    assert "SHA-256 of the" not in page_of(study_result("1.2.3.9"))
