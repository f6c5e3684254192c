from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from starlette.responses import Response

from rayhook.smart_app.access import Cookies
from rayhook.smart_app.landing import named_result

RESULT = "0123456789abcdef" * 2


def query_of(url):
    return {name: values[0] for name, values in parse_qs(urlsplit(str(url)).query).items()}


def begin(world, browser, patient="phantom-a"):
    """Go as far as the EHR's answer; return the callback URL without following it."""
    url = f"{world.ehr_url}/patients/{patient}/launch?url={world.base_url}/smart/launch"
    for _ in range(3):
        response = browser.get(url, follow_redirects=False)
        url = response.headers["location"]
    assert url.startswith(f"{world.base_url}/smart/callback")
    return url


def test_launch_leads_to_the_launched_patients_page(world):
    with world.browser() as browser:
        page = world.launch(browser, "phantom-a")
    assert (page.status_code, page.url.path) == (200, "/patient")
    assert "PHANTOM A" in page.text


def test_app_context_of_the_card_leads_to_its_result(world):
    result_id = world.store("phantom-a")
    with world.browser() as browser:
        page = world.launch(browser, "phantom-a", f'{{"result": "{result_id}"}}')
    assert page.url.path == f"/results/{result_id}"


@pytest.mark.parametrize(
    ("context", "result_id"),
    [
        (f'{{"result": "{RESULT}"}}', RESULT),
        (None, None),
        ("", None),
        ("not json", None),
        ("[" * 100_000, None),
        ('["result"]', None),
        ('{"result": "https://evil.example"}', None),
        ('{"result": "../smart/logout"}', None),
        ('{"result": 7}', None),
    ],
)
def test_app_context_names_a_result_or_nothing(context, result_id):
    assert named_result(context) == result_id


def test_authorization_request_is_bound_to_the_fhir_server_with_pkce(world):
    with world.browser() as browser:
        handle = world.ehr.authorization.new_launch("phantom-a", None)
        response = browser.get(
            f"{world.base_url}/smart/launch",
            params={"iss": f"{world.ehr_url}/fhir", "launch": handle},
            follow_redirects=False,
        )
    query = query_of(response.headers["location"])
    assert query["code_challenge_method"] == "S256"
    assert query["aud"] == f"{world.ehr_url}/fhir"
    assert query["redirect_uri"] == f"{world.base_url}/smart/callback"
    assert query["launch"] == handle


@pytest.mark.parametrize("suffix", ["/other", ".evil.example", "@evil.example", "?x=/fhir"])
def test_launch_from_an_unregistered_iss_is_refused(world, suffix):
    with world.browser() as browser:
        page = browser.get(
            f"{world.base_url}/smart/launch", params={"iss": f"{world.ehr_url}/fhir{suffix}", "launch": "x"}
        )
    assert page.status_code == 403
    assert world.kinds()[0] == "smart_app:launch:refused"


def test_launch_without_its_parameters_is_a_page_that_says_which(world):
    with world.browser() as browser:
        page = browser.get(f"{world.base_url}/smart/launch", params={"launch": "x"})
    assert page.status_code == 400
    assert "Iss: is missing" in page.text


def test_launch_while_the_ehr_is_down_is_a_page_and_audited(world):
    world.ehr.faults.fhir_status = 500
    with world.browser() as browser:
        page = world.launch(browser, "phantom-a")
    assert page.status_code in {502, 503}
    assert page.headers["content-type"].startswith("text/html")
    assert world.kinds()[0] == "smart_app:launch:refused"


def test_callback_in_another_browser_is_refused(world):
    with world.browser() as victim, world.browser() as attacker:
        callback = begin(world, attacker)
        page = victim.get(callback)
    assert page.status_code == 400
    assert "session" not in str(page.headers.get("set-cookie"))


def test_callback_works_once(world):
    with world.browser() as browser:
        callback = begin(world, browser)
        first, second = browser.get(callback), browser.get(callback)
    assert (first.status_code, second.status_code) == (200, 400)


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"state": "guessed"}, 400),
        ({"iss": "https://evil.example/fhir"}, 400),
        ({"code": "guessed"}, 502),
        ({"error": "access_denied"}, 403),
    ],
)
def test_changed_callback_is_refused_and_audited(world, changed, status):
    with world.browser() as browser:
        callback = begin(world, browser)
        page = browser.get(f"{world.base_url}/smart/callback", params={**query_of(callback), **changed})
    assert page.status_code == status
    assert world.kinds()[0] == "smart_app:launch:refused"


def test_error_of_the_ehr_is_not_reflected(world):
    with world.browser() as browser:
        callback = begin(world, browser)
        changed = {**query_of(callback), "error": "<script>alert(1)</script>"}
        page = browser.get(f"{world.base_url}/smart/callback", params=changed)
    assert "alert(1)" not in page.text


def test_launch_is_audited_from_start_to_session(world):
    with world.browser() as browser:
        world.launch(browser, "phantom-b")
    created = next(e for e in world.audited() if str(e.kind) == "smart_app:session:created")
    assert (created.patient_id, created.agent) == ("phantom-b", "Practitioner/demo-clinician")
    assert "smart_app:launch:started" in world.kinds()


def test_development_cookie_is_not_readable_by_scripts(world):
    with world.browser() as browser:
        callback = begin(world, browser)
        cookie = browser.get(callback, follow_redirects=False).headers["set-cookie"]
    assert cookie.startswith("rayhook-development-session=")
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie


@pytest.mark.parametrize("planted", ["short", '"a\\015\\012Set-Cookie: x=1"', "x" * 44])
def test_launch_cookie_of_another_form_is_replaced(world, planted):
    with world.browser() as browser:
        handle = world.ehr.authorization.new_launch("phantom-a", None)
        response = browser.get(
            f"{world.base_url}/smart/launch",
            params={"iss": f"{world.ehr_url}/fhir", "launch": handle},
            headers={"Cookie": f"rayhook-development-launch={planted}"},
            follow_redirects=False,
        )
    assert response.status_code == 303
    assert planted not in response.headers["set-cookie"]


def test_cookie_on_https_is_host_bound_and_partitioned():
    response = Response()
    Cookies(secure=True).put(response, Cookies(secure=True).session, "id", max_age_s=60)
    assert response.headers["set-cookie"] == (
        "__Host-rayhook-session=id; Path=/; Max-Age=60; HttpOnly; Secure; SameSite=None; Partitioned"
    )


def test_logout_ends_the_session_and_revokes_the_token(world):
    with world.browser() as browser:
        world.launch(browser, "phantom-a")
        tokens = list(world.ehr.authorization.tokens._access)
        browser.post(f"{world.base_url}/smart/logout", headers={"Origin": world.base_url})
        page = browser.get(f"{world.base_url}/patient")
    assert page.status_code == 401
    assert not world.ehr.authorization.is_active(tokens[-1])
    assert "smart_app:session:closed" in world.kinds()


@pytest.mark.parametrize(
    "headers", [{}, {"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}]
)
def test_logout_from_another_site_does_nothing(world, headers):
    with world.browser() as browser:
        world.launch(browser, "phantom-a")
        refused = browser.post(f"{world.base_url}/smart/logout", headers=headers)
        page = browser.get(f"{world.base_url}/patient")
    assert (refused.status_code, page.status_code) == (403, 200)


def test_public_keys_hold_nothing_private(world):
    keys = httpx.get(f"{world.base_url}/.well-known/jwks.json").json()["keys"]
    assert {key["alg"] for key in keys} == {"ES384", "RS384"}
    assert not any({"d", "p", "q"} & key.keys() for key in keys)


def test_launch_without_the_log_does_not_begin(world):
    with world.browser() as browser, world.audit_is_full():
        url = f"{world.ehr_url}/patients/phantom-a/launch?url={world.base_url}/smart/launch"
        to_us = browser.get(url, follow_redirects=False).headers["location"]
        refused = browser.get(to_us, follow_redirects=False)
    assert refused.status_code == 503
    assert "location" not in refused.headers


def test_callback_without_the_log_begins_no_session(world):
    with world.browser() as browser:
        callback = begin(world, browser)
        with world.audit_is_full():
            refused = browser.get(callback)
        assert refused.status_code == 503
        assert "PHANTOM" not in refused.text
        assert browser.get(f"{world.base_url}/patient").status_code == 401


def test_logout_without_the_log_shows_nothing_and_is_told(world):
    with world.browser() as browser:
        world.launch(browser, "phantom-a")
        with world.audit_is_full():
            answer = browser.post(f"{world.base_url}/smart/logout", headers={"Origin": world.base_url})
        assert "PHANTOM" not in answer.text
        assert answer.status_code == 503
