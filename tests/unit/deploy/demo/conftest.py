"""A demo EHR of two phantoms, in process, and the client that is registered with it."""

import base64
import hashlib
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet
from starlette.types import Receive, Scope, Send

from rayhook.deploy.demo.catalogue import Catalogue, DemoInstance, DemoStudy
from rayhook.deploy.demo.ehr import DemoEHR, create_ehr
from rayhook.deploy.demo.ehr_clients import ASSERTION_TYPE
from rayhook.deploy.demo.ehr_tokens import CLIENT_ID
from rayhook.deploy.demo.ledger import LedgerFile
from rayhook.deploy.demo.run import serving
from tests.ports import free_url

BASE_URL = "http://127.0.0.1:8101"
RAYHOOK_URL = "http://127.0.0.1:8100"
PACS_URL = "http://127.0.0.1:8102"


def study(patient: str, uid: str, started: str = "2026-05-01T10:00:00Z") -> DemoStudy:
    instance = DemoInstance(Path("/nonexistent"), f"{uid}.1.1", "1.2.840.10008.5.1.4.1.1.4", f"{uid}.1")
    return DemoStudy(
        patient_id=patient,
        patient_display="PHANTOM <one>",
        dicom_patient_id=f"MRN-{patient}",
        study_instance_uid=uid,
        modality="MR",
        description="MR head FLAIR (phantom)",
        body_part="HEAD",
        started=started,
        is_phantom=True,
        instances=(instance,),
    )


@dataclass(frozen=True)
class EHRUnderTest:
    """The running EHR and the registered client's key."""

    browser: httpx.Client
    demo: DemoEHR
    client_key: ECKey

    def assertion(self, audience: str, **changed: Any) -> str:
        now = int(time.time())
        claims = {
            "iss": CLIENT_ID,
            "sub": CLIENT_ID,
            "aud": audience,
            "exp": now + 200,
            "jti": str(uuid.uuid4()),
            **changed,
        }
        return jwt.encode(
            {"alg": "ES384", "kid": self.client_key.kid}, claims, self.client_key, algorithms=["ES384"]
        )

    def form(self, audience: str, **fields: str) -> dict[str, str]:
        return {
            "client_assertion_type": ASSERTION_TYPE,
            "client_assertion": self.assertion(audience),
            **fields,
        }

    def fhir(self, path: str, *, scope: str = "patient/*.rs", patient: str = "one", **request: Any) -> Any:
        token = self.demo.authorization.issue(patient, scope)
        method = request.pop("method", "GET")
        headers = {"Authorization": f"Bearer {token}", **request.pop("headers", {})}
        return self.browser.request(method, f"/fhir{path}", headers=headers, **request)


class Switch:
    """One listening server for all tests, each of which puts its own app behind it."""

    app: FastAPI

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


@pytest.fixture(scope="session")
def switch() -> Iterator[tuple[Switch, httpx.Client]]:
    listening = free_url()
    switch = Switch()
    with serving(switch, listening), httpx.Client(base_url=listening) as browser:  # type: ignore[arg-type]
        yield switch, browser


@pytest.fixture
def ehr(tmp_path: Path, switch: tuple[Switch, httpx.Client]) -> EHRUnderTest:
    """The EHR knows itself by BASE_URL; where it really listens is the browser's business."""
    catalogue = Catalogue(
        studies=(
            study("one", "1.2.3.1"),
            study("one", "1.2.3.2", "2026-06-01T10:00:00Z"),
            study("two", "1.2.3.3"),
        )
    )
    server, browser = switch
    server.app = create_ehr(
        catalogue,
        base_url=BASE_URL,
        cds_base_url=RAYHOOK_URL,
        pacs_base_url=PACS_URL,
        keys_dir=tmp_path,
        ledger=LedgerFile(tmp_path / "ledger.jsonl"),
    )
    key = ECKey.generate_key("P-384", auto_kid=True)
    server.app.state.demo.authorization.client_keys = lambda: KeySet([key])
    return EHRUnderTest(browser, server.app.state.demo, key)


@pytest.fixture
def pkce() -> Callable[[], tuple[str, str]]:
    """Return a verifier and its S256 challenge."""

    def make() -> tuple[str, str]:
        verifier = "v" * 50
        digest = hashlib.sha256(verifier.encode()).digest()
        return verifier, base64.urlsafe_b64encode(digest).rstrip(b"=").decode()

    return make
