"""The SMART app against npm oidc-provider, a certified OpenID Provider set up as a strict SMART server."""

import base64
import hashlib
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from sqlalchemy import text

from rayhook.audit.review import AuditRecord, recent
from rayhook.auth.patient_keys import unseal
from rayhook.auth.registry import EHR
from rayhook.auth.smart import client_assertion
from rayhook.deploy.demo.run import serving
from rayhook.smart_app.dependencies import SMARTDependencies
from tests.peers.npm import installed
from tests.ports import free_port
from tests.unit.smart_app.conftest import Clock, app_of, smart_service

pytestmark = pytest.mark.oidc_provider

SCOPES = [
    "openid",
    "fhirUser",
    "launch",
    "online_access",
    "patient/Patient.r",
    "patient/ImagingStudy.rs",
    "patient/DiagnosticReport.rs",
    "patient/Observation.rs",
]
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
VERIFIER = "v" * 64
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()


@dataclass(frozen=True)
class Peer:
    """The running app, and the authorization server of its one EHR."""

    base_url: str
    origin: str
    deps: SMARTDependencies

    @property
    def fhir(self) -> str:
        return f"{self.origin}/fhir"

    @property
    def ehr(self) -> EHR:
        return self.deps.registry.ehrs[0]

    @property
    def clock(self) -> Clock:
        assert isinstance(self.deps.clock, Clock)
        return self.deps.clock

    def launch(self, browser: httpx.Client, patient: str = "phantom-a") -> httpx.Response:
        return browser.get(
            f"{self.base_url}/smart/launch", params={"iss": self.fhir, "launch": f"launch-{patient}"}
        )

    def callback_of(self, browser: httpx.Client) -> str:
        """Go as far as the server's answer; return the callback's address without following it."""
        address = f"{self.base_url}/smart/launch?iss={self.fhir}&launch=launch-phantom-a"
        for _ in range(10):
            response = browser.get(address, follow_redirects=False)
            address = str(httpx.URL(address).join(response.headers["location"]))
            if address.startswith(f"{self.base_url}/smart/callback"):
                return address
        raise AssertionError("the server never answered")

    def ask_for_code(self, **changed: str | None) -> dict[str, str]:
        """Ask as the app does, but for what the test changes; return the answer's parameters."""
        parameters = {
            "response_type": "code",
            "client_id": "rayhook",
            "redirect_uri": f"{self.base_url}/smart/callback",
            "scope": " ".join(SCOPES),
            "state": "state",
            "aud": self.fhir,
            "launch": "launch-phantom-a",
            "code_challenge": CHALLENGE,
            "code_challenge_method": "S256",
            **changed,
        }
        query = {name: value for name, value in parameters.items() if value is not None}
        address = str(httpx.URL(f"{self.origin}/auth", params=query))
        with httpx.Client(timeout=20) as browser:
            for _ in range(10):
                response = browser.get(address)
                if "location" not in response.headers:
                    return {"status": str(response.status_code)}
                address = str(httpx.URL(address).join(response.headers["location"]))
                if address.startswith(f"{self.base_url}/smart/callback"):
                    return {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
        raise AssertionError("the server never answered")

    def token(self, **form: str) -> httpx.Response:
        return self.post("token", **form)

    def post(self, path: str, **form: str) -> httpx.Response:
        assertion = client_assertion(
            self.deps.keyring, client_id="rayhook", token_endpoint=f"{self.origin}/token"
        )
        signed = {"client_assertion_type": ASSERTION_TYPE, "client_assertion": assertion, **form}
        return httpx.post(f"{self.origin}/{path}", data=signed, timeout=20)

    def exchange(self, code: str, **changed: str) -> httpx.Response:
        return self.token(
            **{
                "grant_type": "authorization_code",
                "code": code,
                "redirect_uri": f"{self.base_url}/smart/callback",
                "code_verifier": VERIFIER,
                **changed,
            }
        )

    def audited(self) -> list[AuditRecord]:
        with self.deps.sessions() as session:
            return list(recent(session, self.deps.keyring, limit=20))

    def last(self, kind: str) -> AuditRecord:
        return next(record for record in self.audited() if str(record.kind) == kind)

    def session_row(self) -> tuple[bytes, float]:
        with self.deps.sessions() as session:
            query = text("SELECT refresh_token, access_token_expires_at FROM smart_session")
            row = session.connection().execute(query).one()
        return row.refresh_token, row.access_token_expires_at


@contextmanager
def running_peer(folder: Path, **options: object) -> Iterator[Peer]:
    server = installed("oidc_provider") / "server.mjs"
    base_url, port = f"http://127.0.0.1:{free_port()}", free_port()
    origin = f"http://127.0.0.1:{port}"
    arguments = {
        "port": port,
        "clientId": "rayhook",
        "redirectUri": f"{base_url}/smart/callback",
        "jwksUri": f"{base_url}/.well-known/jwks.json",
        "algorithm": "ES384",
        "format": "opaque",
        **options,
    }
    registry_file = folder / "ehrs.toml"
    registry_file.write_text(
        f"""
[[ehr]]
id = "peer"
name = "A strict EHR"
fhir_base_urls = ["{origin}/fhir"]

[ehr.cds_client]
issuer = "{origin}"
jwks_url = "{origin}/jwks"

[ehr.smart]
client_id = "rayhook"
issuer = "{origin}"
scopes = {json.dumps(SCOPES)}
introspection = true

[ehr.backend]
scopes = ["system/Patient.r", "system/DiagnosticReport.crus"]
"""
    )
    with ExitStack() as stack:
        deps, _, _ = smart_service(stack, folder, registry_file, base_url=base_url)
        stack.enter_context(serving(app_of(deps), base_url))
        log = stack.enter_context((folder / "server.log").open("wb"))
        process = subprocess.Popen(["node", str(server), json.dumps(arguments)], stdout=log, stderr=log)
        stack.callback(process.wait, timeout=20)
        stack.callback(process.terminate)
        _await(f"{origin}/fhir/.well-known/smart-configuration", process, folder / "server.log")
        yield Peer(base_url, origin, deps)


def _await(address: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(address, timeout=5).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    pytest.fail("oidc-provider did not start in time")


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    with running_peer(tmp_path_factory.mktemp("oidc")) as peer:
        yield peer


@pytest.fixture
def peer(strict: Peer) -> Iterator[Peer]:
    yield strict
    strict.clock.ahead_s = 0.0
    with strict.deps.sessions() as session:
        for table in ("smart_session", "smart_launch"):
            session.connection().execute(text(f"DELETE FROM {table}"))
        session.commit()


@pytest.fixture
def browser() -> Iterator[httpx.Client]:
    with httpx.Client(follow_redirects=True, headers={"Accept": "text/html"}, timeout=20) as browser:
        yield browser


def test_an_ehr_launch_opens_the_launched_patient(peer: Peer, browser: httpx.Client) -> None:
    page = peer.launch(browser)
    assert (page.status_code, "PEER phantom-a" in page.text) == (200, True)


def test_a_standalone_launch_asks_the_server_for_a_patient(peer: Peer, browser: httpx.Client) -> None:
    page = browser.get(f"{peer.base_url}/smart/standalone", params={"iss": peer.fhir})
    assert (page.status_code, "PEER phantom-a" in page.text) == (200, True)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"algorithm": "RS384"}, id="RS384 assertions, RS256 id_tokens"),
        pytest.param({"format": "jwt"}, id="JWT access tokens"),
        pytest.param({"withheld": ["patient/ImagingStudy.rs", "patient/Patient.r"]}, id="fewer scopes"),
    ],
)
def test_other_servers_open_the_app_too(
    tmp_path: Path, browser: httpx.Client, options: dict[str, object]
) -> None:
    with running_peer(tmp_path, **options) as peer:
        page = peer.launch(browser)
    assert page.status_code == 200


def test_fewer_scopes_are_told_and_not_hidden(tmp_path: Path, browser: httpx.Client) -> None:
    with running_peer(tmp_path, withheld=["patient/ImagingStudy.rs"]) as peer:
        page = peer.launch(browser)
    assert "ot permitted by your EHR" in page.text


def test_who_signed_in_is_audited(peer: Peer, browser: httpx.Client) -> None:
    peer.launch(browser)
    created = peer.last("smart_app:session:created")
    assert (created.agent, created.patient_id) == ("Practitioner/clinician", "phantom-a")


def test_the_servers_capabilities_are_audited(peer: Peer, browser: httpx.Client) -> None:
    peer.launch(browser)
    assert "permission-v2" in peer.last("smart_app:launch:started").detail["capabilities"]


def test_a_token_about_to_run_out_is_renewed_and_its_refresh_token_replaced(
    peer: Peer, browser: httpx.Client
) -> None:
    peer.launch(browser)
    before = peer.session_row()
    peer.clock.ahead_s = 280.0
    # The server's clock stands where it stood: the assertion must not look as if it were from the future.
    page = browser.get(f"{peer.base_url}/patient")
    after = peer.session_row()
    assert page.status_code == 200
    assert after[0] != before[0]
    assert after[1] > before[1]


def test_a_refresh_token_used_twice_ends_the_session(peer: Peer, browser: httpx.Client) -> None:
    peer.launch(browser)
    stolen = _refresh_token(peer)
    assert peer.token(grant_type="refresh_token", refresh_token=stolen).status_code == 200
    peer.clock.ahead_s = 280.0
    page = browser.get(f"{peer.base_url}/patient")
    assert page.status_code == 401
    assert peer.last("smart_app:session:closed").detail["reason"] == "oauth_invalid_grant"


def test_logout_ends_the_tokens_at_the_server(peer: Peer, browser: httpx.Client) -> None:
    peer.launch(browser)
    refresh_token = _refresh_token(peer)
    browser.post(f"{peer.base_url}/smart/logout", headers={"Origin": peer.base_url})
    refused = peer.token(grant_type="refresh_token", refresh_token=refresh_token)
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_grant")


def test_an_expired_session_is_refused_audited_and_says_how_to_come_back(
    peer: Peer, browser: httpx.Client
) -> None:
    peer.launch(browser)
    peer.clock.ahead_s = 16 * 60.0
    page = browser.get(f"{peer.base_url}/patient")
    assert (page.status_code, "Open Rayhook again" in page.text) == (401, True)
    assert str(peer.audited()[0].kind) == "smart_app:access:denied"


def test_a_callback_works_once(peer: Peer, browser: httpx.Client) -> None:
    callback = peer.callback_of(browser)
    assert [browser.get(callback).status_code for _ in range(2)] == [200, 400]


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        pytest.param({"state": "guessed"}, "invalid_request", id="wrong state"),
        pytest.param({"iss": "https://evil.example"}, "invalid_request", id="mix-up"),
        pytest.param({"iss": None}, "invalid_request", id="iss stripped"),
        pytest.param({"code": "guessed"}, "oauth_invalid_grant", id="another code"),
    ],
)
def test_a_changed_callback_is_refused_and_audited(
    peer: Peer, browser: httpx.Client, changed: dict[str, str | None], code: str
) -> None:
    query = {name: values[0] for name, values in parse_qs(urlsplit(peer.callback_of(browser)).query).items()}
    sent = {name: value for name, value in (query | changed).items() if value is not None}
    page = browser.get(f"{peer.base_url}/smart/callback", params=sent)
    refused = peer.last("smart_app:launch:refused")
    assert (page.is_error, refused.detail["code"]) == (True, code)


def test_a_code_of_another_browsers_launch_cannot_be_injected(peer: Peer, browser: httpx.Client) -> None:
    with httpx.Client(follow_redirects=True, timeout=20) as attacker:
        foreign = parse_qs(urlsplit(peer.callback_of(attacker)).query)["code"][0]
    own = {name: values[0] for name, values in parse_qs(urlsplit(peer.callback_of(browser)).query).items()}
    page = browser.get(f"{peer.base_url}/smart/callback", params={**own, "code": foreign})
    assert (page.is_error, peer.last("smart_app:launch:refused").detail["code"]) == (
        True,
        "oauth_invalid_grant",
    )


def test_a_code_used_twice_ends_what_came_of_it(peer: Peer) -> None:
    code = peer.ask_for_code()["code"]
    tokens = peer.exchange(code).json()
    again = peer.exchange(code)
    after = peer.token(grant_type="refresh_token", refresh_token=tokens["refresh_token"])
    assert (again.json()["error"], after.json()["error"]) == ("invalid_grant", "invalid_grant")


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"code_challenge": None, "code_challenge_method": None}, id="no PKCE"),
        pytest.param({"code_challenge": VERIFIER, "code_challenge_method": "plain"}, id="plain PKCE"),
    ],
)
def test_the_server_gives_no_code_without_pkce(peer: Peer, changed: dict[str, str | None]) -> None:
    """What the app relies on: it never asks so, and the server it is tested against would not answer."""
    answer = peer.ask_for_code(**changed)
    assert (answer["error"], answer.get("code")) == ("invalid_request", None)


def test_a_wrong_verifier_gets_no_token(peer: Peer) -> None:
    refused = peer.exchange(peer.ask_for_code()["code"], code_verifier="w" * 64)
    assert refused.json()["error"] == "invalid_grant"


def test_an_assertion_works_once(peer: Peer) -> None:
    assertion = client_assertion(
        peer.deps.keyring, client_id="rayhook", token_endpoint=f"{peer.origin}/token"
    )
    form = {"grant_type": "client_credentials", "scope": "system/Patient.r", "client_assertion": assertion}
    assert [peer.token(**form).status_code for _ in range(2)] == [200, 401]


def test_opaque_tokens_are_introspected_for_our_fhir_api(peer: Peer) -> None:
    tokens = peer.exchange(peer.ask_for_code()["code"]).json()
    answer = httpx.get(
        f"{peer.base_url}/fhir/R4/DiagnosticReport",
        headers={"Authorization": f"Bearer {tokens['access_token']}"},
        timeout=60,
    )
    assert (answer.status_code, answer.json()["type"]) == (200, "searchset")


def test_a_revoked_token_is_refused_by_our_fhir_api(peer: Peer) -> None:
    token = peer.exchange(peer.ask_for_code()["code"]).json()["access_token"]
    peer.post("token/revocation", token=token)
    answer = httpx.get(
        f"{peer.base_url}/fhir/R4/DiagnosticReport", headers={"Authorization": f"Bearer {token}"}, timeout=60
    )
    assert answer.status_code == 401


def test_two_patients_in_one_browser_are_told_apart(peer: Peer, browser: httpx.Client) -> None:
    first, second = peer.launch(browser, "phantom-a"), peer.launch(browser, "phantom-b")
    assert "PEER phantom-b" in second.text
    assert browser.get(str(first.url)).status_code == 409


def _refresh_token(peer: Peer) -> str:
    with peer.deps.sessions() as session:
        row = session.connection().execute(text("SELECT id_hash, refresh_token FROM smart_session")).one()
        return unseal(
            session,
            peer.deps.keyring,
            row.refresh_token,
            table="smart_session",
            column="refresh_token",
            row=row.id_hash,
        ).decode()
