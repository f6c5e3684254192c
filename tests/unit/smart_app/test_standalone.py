"""Launches outside of a chart, by POST, and where a launch's own context leads."""

import re
from urllib.parse import parse_qs, urlsplit

import pytest

from rayhook.auth.launch_context import ContextIdentifier, ContextItem, LaunchContext
from rayhook.auth.scopes import ScopeSet
from rayhook.auth.sessions import SMARTSession
from rayhook.smart_app.landing import is_launched_study


def standalone(world, browser, **query):
    return browser.get(f"{world.base_url}/smart/standalone", params=query)


def chosen(world, browser, name):
    """Choose on the EHR's own page."""
    page = standalone(world, browser, iss=f"{world.ehr_url}/fhir")
    row = re.search(rf'<td>{name}</td><td class="action"><a class="button small" href="([^"]+)"', page.text)
    return browser.get(world.ehr_url + row[1].replace("&amp;", "&"))


def test_without_an_iss_the_registered_ehrs_can_be_chosen(world):
    with world.browser() as browser:
        page = standalone(world, browser)
    assert "Demo EHR" in page.text
    assert f"/smart/standalone?iss={world.ehr_url.replace(':', '%3A')}/fhir" in page.text


def test_the_choice_leads_to_the_ehr(world):
    with world.browser() as browser:
        page = standalone(world, browser)
        address = re.search(r'href="(/smart/standalone\?iss=[^"]+)"', page.text)[1]
        assert str(browser.get(world.base_url + address).url).startswith(f"{world.ehr_url}/auth/authorize")


def test_a_standalone_launch_opens_the_patient_that_was_chosen(world):
    with world.browser() as browser:
        page = chosen(world, browser, "PHANTOM B")
    assert (page.url.path, "PHANTOM B" in page.text) == ("/patient", True)


def test_a_study_can_be_chosen_where_the_ehr_offers_it(world):
    with world.browser() as browser:
        page = chosen(world, browser, "PHANTOM B: MR head FLAIR \\(phantom\\)")
    assert page.status_code == 200


def test_an_unregistered_ehr_is_refused(world):
    with world.browser() as browser:
        page = standalone(world, browser, iss="https://evil.example/fhir")
    assert (page.status_code, world.kinds()[0]) == (403, "smart_app:launch:refused")


def test_the_kind_of_launch_is_audited(world):
    with world.browser() as browser:
        standalone(world, browser, iss=f"{world.ehr_url}/fhir")
    assert world.audited()[0].detail["launch"] == "standalone"


@pytest.fixture
def post_only(world):
    world.ehr.authorization.takes_post = True
    yield
    world.ehr.authorization.takes_post = False


def test_where_the_ehr_takes_a_post_the_request_is_a_form(world, post_only):
    with world.browser() as browser:
        page = world.launch(browser, "phantom-a")
        form = re.search(r'<form id="authorize" method="post" action="([^"]+)"', page.text)
        fields = dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', page.text))
        landed = browser.post(form[1], data=fields)
    assert form[1] == f"{world.ehr_url}/auth/authorize"
    assert (landed.url.path, "PHANTOM A" in landed.text) == ("/patient", True)


def test_the_form_may_go_to_that_ehr_only_and_runs_no_inline_script(world, post_only):
    with world.browser() as browser:
        page = world.launch(browser, "phantom-a")
    policy = page.headers["content-security-policy"]
    assert f"form-action 'self' {world.ehr_url};" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script>|<script [^>]*>[^<]", page.text)


def test_the_request_is_in_no_address_where_a_post_is_taken(world, post_only):
    with world.browser() as browser:
        page = world.launch(browser, "phantom-a")
    assert "state" not in parse_qs(urlsplit(str(page.url)).query)


def launched_with_study(world, browser, study_id):
    query = {"url": f"{world.base_url}/smart/launch", "study": study_id}
    return browser.get(f"{world.ehr_url}/patients/phantom-a/launch", params=query)


def test_a_study_in_the_launch_leads_to_its_result(world):
    result = world.store("phantom-a")
    with world.browser() as browser:
        page = launched_with_study(world, browser, "study-1")
    assert page.url.path == f"/results/{result}"


def test_a_study_under_way_leads_to_its_job(world):
    job = world.enqueue("phantom-a")
    with world.browser() as browser:
        page = launched_with_study(world, browser, "study-1")
    assert page.url.path == f"/jobs/{job}"


def test_a_study_that_nobody_analysed_leads_to_the_list(world):
    with world.browser() as browser:
        page = launched_with_study(world, browser, "unknown")
    assert page.url.path == "/patient"


def test_another_patients_study_leads_to_the_list(world):
    world.store("phantom-b")
    with world.browser() as browser:
        page = launched_with_study(world, browser, "study-1")
    assert (page.url.path, "PHANTOM A" in page.text) == ("/patient", True)


def session_with(*items):
    return SMARTSession(
        ehr_id="x",
        fhir_base_url="https://x.example/fhir",
        client_id="c",
        scopes=ScopeSet(),
        access_token="t",
        access_token_expires_at=0.0,
        patient_id="p",
        fhir_user=None,
        context=LaunchContext(items=items),
    )


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (ContextItem(reference="ImagingStudy/s1"), True),
        (ContextItem(reference="https://x.example/fhir/ImagingStudy/s1"), True),
        (ContextItem(reference="https://elsewhere.example/fhir/ImagingStudy/s1"), False),
        (ContextItem(reference="ImagingStudy/s1", role="http://x.example/prior"), False),
        (ContextItem(reference="Observation/s1"), False),
        (ContextItem(identifier=ContextIdentifier("urn:dicom:uid", "urn:oid:1.2.3")), True),
        (ContextItem(identifier=ContextIdentifier("urn:dicom:uid", "urn:oid:1.2.4")), False),
        (ContextItem(identifier=ContextIdentifier("urn:other", "urn:oid:1.2.3")), False),
        (ContextItem(identifier=ContextIdentifier("urn:dicom:uid", "urn:oid:1.2.3"), type="Media"), False),
    ],
)
def test_a_launched_study_is_known_by_reference_and_by_uid(item, expected):
    assert is_launched_study(session_with(item), "s1", "1.2.3") is expected


def test_what_the_ehr_did_not_grant_is_audited_with_the_session(world):
    with world.browser() as browser:
        world.launch(browser, "phantom-a")
    created = next(record for record in world.audited() if str(record.kind) == "smart_app:session:created")
    assert created.detail["missing"] == "write_results"
