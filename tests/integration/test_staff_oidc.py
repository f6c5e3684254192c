"""The staff's sign-in at a real OpenID provider, with a browser that keeps its cookies as SameSite says."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from rayhook.audit.review import AuditRecord, recent
from rayhook.auth.registry import load_registry
from rayhook.deploy.demo.run import serving
from rayhook.deploy.role_tables import bare_app
from rayhook.deploy.service import Service
from tests.peers.npm import installed
from tests.ports import free_port

pytestmark = pytest.mark.oidc_provider

REGISTRY = """
[[staff_oidc]]
id = "sso"
name = "General Hospital"
issuer = "{issuer}"
client_id = "rayhook-staff"
client_authentication = "{authentication}"
acr_values = {acr_values}

[[staff_oidc.role]]
role = "compliance_officer"
claim = "groups"
value = "compliance"
"""


@dataclass(frozen=True)
class Hospital:
    base_url: str
    issuer: str
    service: Service
    browser: httpx.Client

    def begin(self, landing: str = "/staff/roles") -> httpx.Response:
        return self.browser.get(f"{self.base_url}/sign-in/oidc/sso", params={"next": landing})

    def callback(self, landing: str = "/staff/roles") -> str:
        """Go through the provider's pages; return the address that it sends the browser back to."""
        answer = self.begin(landing)
        while answer.status_code == 303:
            target = str(answer.url.join(answer.headers["Location"]))
            if target.startswith(f"{self.base_url}/sign-in/oidc/callback"):
                return target
            answer = self.browser.get(target)
        raise AssertionError(f"the provider answered {answer.status_code}: {answer.text[:300]}")

    def sign_in(self) -> httpx.Response:
        return self.browser.get(self.callback())

    def audited(self) -> AuditRecord:
        with self.service.database.reading() as session:
            return recent(session, self.service.keyring, limit=1)[0]


@contextmanager
def provider(**options: object) -> Iterator[None]:
    node = shutil.which("node")
    assert node is not None
    server = installed("oidc_provider") / "staff.mjs"
    with subprocess.Popen(
        [node, str(server), json.dumps(options)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.strip() == "ready":
                    break
            yield
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Hospital]]:
    """Start a service and a provider for each set of options, once."""
    installed("oidc_provider")
    running: dict[str, Hospital] = {}
    with ExitStack() as stack:

        def start(**options: object) -> Hospital:
            key = json.dumps(options, sort_keys=True)
            if key not in running:
                folder = tmp_path_factory.mktemp("hospital")
                running[key] = stack.enter_context(started(folder, **options))
            return running[key]

        yield start


@contextmanager
def started(
    folder: Path,
    *,
    authentication: str = "private_key_jwt",
    acr_values: tuple[str, ...] = (),
    **options: object,
) -> Iterator[Hospital]:
    port = free_port()
    base_url, issuer = f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{port}"
    path = folder / "ehrs.toml"
    path.write_text(
        REGISTRY.format(issuer=issuer, authentication=authentication, acr_values=json.dumps(acr_values))
    )
    told = {
        "port": port,
        "clientId": "rayhook-staff",
        "redirectUri": f"{base_url}/sign-in/oidc/callback",
        "jwksUri": f"{base_url}/.well-known/jwks.json",
        "authentication": authentication,
        "groups": ["compliance", "others"],
        "acr": "mfa",
        **options,
    }
    registry = load_registry(path, development=True)
    with (
        bare_app(folder / "data", registry, public_base_url=base_url) as (app, service),
        serving(app, base_url),
        provider(**told),
        httpx.Client(timeout=20) as browser,
    ):
        yield Hospital(base_url, issuer, service, browser)


@pytest.fixture
def hospital(hospitals: Callable[..., Hospital]) -> Iterator[Callable[..., Hospital]]:
    """The same with a new browser, that nobody has signed in with."""
    with httpx.Client(timeout=20) as browser:
        yield lambda **options: replace(hospitals(**options), browser=browser)


@pytest.mark.parametrize("authentication", ["private_key_jwt", "none"])
def test_the_staff_signs_in_at_the_hospital(hospital, authentication):
    there = hospital(authentication=authentication)
    there.sign_in()
    page = there.browser.get(f"{there.base_url}/staff/roles")
    assert (page.status_code, "olga.price" in page.text) == (200, True)


def test_the_way_back_is_a_page_that_goes_on_by_itself(hospital):
    answer = hospital().sign_in()
    assert '<meta http-equiv="refresh" content="0;url=/staff/roles">' in answer.text


def test_the_audit_knows_who_by_issuer_and_subject(hospital):
    there = hospital()
    there.sign_in()
    record = there.audited()
    assert (record.kind, record.agent, record.detail["provider"]) == (
        "auth:sign_in:accepted",
        f"{there.issuer}#person-4711",
        "sso",
    )


def test_what_is_sent_to_the_provider_is_bound_and_fresh(hospital):
    there = hospital()
    sent = [parse_qs(urlsplit(there.begin().headers["Location"]).query) for _ in range(2)]
    assert all(one["code_challenge_method"] == ["S256"] and one["max_age"] == ["600"] for one in sent)
    assert all(sent[0][name] != sent[1][name] for name in ("state", "nonce", "code_challenge"))


def test_a_callback_works_once(hospital):
    there = hospital()
    url = there.callback()
    statuses = [there.browser.get(url).status_code for _ in range(2)]
    assert (statuses, there.audited().detail["code"]) == ([200, 400], "state_unknown")


def test_another_browser_cannot_take_the_callback_up(hospital):
    there = hospital()
    answer = httpx.get(there.callback())
    assert (answer.status_code, "Set-Cookie" in answer.headers) == (400, False)


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [("state", "x" * 43, "state_unknown"), ("iss", "http://evil.example", "issuer_unknown")],
)
def test_an_answer_that_is_not_the_one_asked_for_is_refused(hospital, name, value, code):
    there = hospital()
    url = httpx.URL(there.callback()).copy_set_param(name, value)
    assert there.browser.get(url).status_code == 400
    assert there.audited().detail["code"] == code


def test_an_answer_that_does_not_say_whose_it_is_is_refused(hospital):
    there = hospital()
    url = httpx.URL(there.callback()).copy_remove_param("iss")
    assert there.browser.get(url).status_code == 400


def test_a_code_of_another_sign_in_is_refused(hospital):
    there = hospital()
    first, second = (httpx.URL(there.callback()) for _ in range(2))
    answer = there.browser.get(second.copy_set_param("code", first.params["code"]))
    assert answer.status_code == 502
    assert there.audited().detail["code"] == "oauth_invalid_grant"


def test_who_is_in_no_group_of_a_rule_is_refused_and_told(hospital):
    there = hospital(groups=["compliance-readers"])
    answer = there.sign_in()
    assert (answer.status_code, there.audited().detail["code"]) == (403, "role_missing")


def test_a_sign_in_without_the_second_factor_is_refused(hospital):
    there = hospital(acr_values=("mfa",), acr="password")
    answer = there.sign_in()
    assert (answer.status_code, there.audited().detail["code"]) == (401, "second_factor_missing")


def test_a_sign_in_with_the_second_factor_is_not(hospital):
    assert hospital(acr_values=("mfa",)).sign_in().status_code == 200


def test_a_sign_in_that_the_provider_refuses_is_told(hospital):
    there = hospital(refuses=True)
    answer = there.sign_in()
    assert (answer.status_code, there.audited().detail["code"]) == (403, "provider_refused")


def test_a_second_sign_in_ends_the_first_session(hospital):
    there = hospital()
    there.sign_in()
    earlier = dict(there.browser.cookies)
    there.sign_in()
    assert httpx.get(f"{there.base_url}/staff", cookies=earlier).status_code == 303


def test_a_provider_that_nobody_registered_is_not_found(hospital):
    there = hospital()
    assert there.browser.get(f"{there.base_url}/sign-in/oidc/other").status_code == 404


def test_the_sign_in_page_offers_the_provider(hospital):
    there = hospital()
    page = there.browser.get(f"{there.base_url}/sign-in").text
    assert re.search(r'href="/sign-in/oidc/sso\?next=/staff">Sign in with General Hospital', page)
