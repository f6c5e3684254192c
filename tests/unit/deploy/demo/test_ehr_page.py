from urllib.parse import parse_qs, urlsplit

import pytest

from rayhook.auth.registry import load_registry
from rayhook.deploy.demo.ehr import demo_registry_toml
from rayhook.deploy.demo.ehr_page import draft_order, render_markdown
from rayhook.fhir.r4 import validate


def test_list_says_what_the_records_are(ehr):
    page = ehr.browser.get("/").text
    assert "phantoms, test files and public research data" in page
    assert "PHANTOM &lt;one&gt;" in page


def test_chart_shows_studies_and_orders(ehr):
    page = ehr.browser.get("/patients/one").text
    assert page.count(" MR head FLAIR (phantom)</td>") + page.count("<td>MR head FLAIR (phantom)") == 4


def test_unknown_patient_is_a_page(ehr):
    answer = ehr.browser.get("/patients/nobody")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "text/html; charset=utf-8")


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "[x](javascript:alert(1))",
        "![x](https://evil.example/pixel.png)",
        "<img src=x onerror=alert(1)>",
        "[x](data:text/html,<script>alert(1)</script>)",
    ],
)
def test_markdown_runs_and_loads_nothing(text):
    html = str(render_markdown(text))
    assert "<script" not in html
    assert "<img" not in html
    assert 'href="javascript' not in html
    assert 'href="data' not in html


def test_markdown_shows_tables():
    assert "<table>" in str(render_markdown("| a | b |\n| - | - |\n| 1 | 2 |"))


def test_cards_of_a_silent_service_are_not_no_finding(ehr):
    page = ehr.browser.get("/patients/one/cards").text
    assert "No answer from decision support" in page
    assert "This says nothing about the images" in page


def test_launch_hands_over_iss_and_a_fresh_handle(ehr):
    params = {"url": "http://127.0.0.1:8100/smart/launch", "app_context": "x"}
    places = [ehr.browser.get("/patients/one/launch", params=params).headers["location"] for _ in range(2)]
    queries = [parse_qs(urlsplit(place).query) for place in places]
    assert queries[0]["iss"] == ["http://127.0.0.1:8101/fhir"]
    assert queries[0]["launch"] != queries[1]["launch"]


@pytest.mark.parametrize(
    "url", ["https://evil.example/launch", "http://127.0.0.1:81000/x", "javascript:alert(1)"]
)
def test_only_the_registered_app_is_launched(ehr, url):
    assert ehr.browser.get("/patients/one/launch", params={"url": url}).status_code == 400


@pytest.mark.parametrize("name", ["..%2Fbase.html", "ehr.py", "nothing.css"])
def test_static_serves_its_own_files_only(ehr, name):
    assert ehr.browser.get(f"/static/{name}").status_code == 404


def test_only_the_app_may_be_framed(ehr):
    policy = ehr.browser.get("/patients/one/app?url=x").headers["content-security-policy"]
    assert "frame-src 'self' http://127.0.0.1:8100" in policy
    assert "default-src 'none'" in policy


def test_seeded_resources_and_drafts_are_valid_r4(ehr):
    for kind in ("Patient", "ImagingStudy", "Endpoint"):
        for resource in ehr.demo.store.search(kind, []):
            validate(resource)
    validate(draft_order("one", "MR brain"))


def test_registry_file_is_accepted_in_development(tmp_path):
    path = tmp_path / "ehrs.toml"
    path.write_text(
        demo_registry_toml(ehr_base_url="http://127.0.0.1:8101", pacs_base_url="http://127.0.0.1:8102")
    )
    ehr = load_registry(path, development=True).by_fhir_base("http://127.0.0.1:8101/fhir")
    assert ehr is not None
    assert ehr.dicomweb_origins == ("http://127.0.0.1:8102",)


def test_chart_opens_the_app_from_a_study(ehr):
    page = ehr.browser.get("/patients/one").text
    address = page.partition('href="/patients/one/app?url=')[2].partition('"')[0]
    assert address.startswith("http%3A//127.0.0.1%3A8100/smart/launch&amp;study=")


def test_launch_from_a_study_names_it(ehr):
    params = {"url": "http://127.0.0.1:8100/smart/launch", "study": "study-1"}
    place = ehr.browser.get("/patients/one/launch", params=params).headers["location"]
    handle = parse_qs(urlsplit(place).query)["launch"][0]
    assert ehr.demo.authorization._launches[handle].study_id == "study-1"
