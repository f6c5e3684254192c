"""A deployment under test: how it is called, and what it said."""

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import httpx
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

JSONObject = dict[str, Any]
SigningKey = ECKey | RSAKey

PATIENT = "conformance-check"
DOCUMENTATION = "/cds-services/documentation"
PATIENT_VIEW = "/cds-services/rayhook-patient-view"


class Failed(Exception):
    """What was seen, and what should have been; never a value of a patient."""


class Skipped(Exception):
    """What the check needs that it was not given."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """`audience` is the base URL that tokens name in `aud`, where it is not the one that is called.

    `request` is the body of a real call of patient-view, by which cards on results are looked at.
    """

    client: httpx.Client
    audience: str
    issuer: str = ""
    key: SigningKey | None = None
    tenant: str | None = None
    request: JSONObject | None = None
    elapsed_s: list[float] = field(default_factory=list)

    @cached_property
    def discovery(self) -> JSONObject:
        response = self.client.get("/cds-services")
        if response.status_code != httpx.codes.OK:
            raise Failed(f"discovery answered {response.status_code}")
        return read_json(response)

    @cached_property
    def services(self) -> list[JSONObject]:
        services = self.discovery.get("services")
        if not isinstance(services, list) or not all(isinstance(one, dict) for one in services):
            raise Failed("services is not an array of objects")
        return services

    @cached_property
    def cards(self) -> list[JSONObject]:
        """Return every card that the calls of this run bring."""
        bodies = [self.body(studies=[study()])]
        if self.request is not None:
            bodies.append(self.request | {"hookInstance": str(uuid.uuid4())})
        answers = [self.answer(body) for body in bodies]
        return [card for answer in answers for card in answer["cards"]]

    @property
    def signer(self) -> SigningKey:
        if self.key is None:
            raise Skipped("needs --issuer and --key of a registered test client")
        return self.key

    def claims(self, path: str, **changes: object) -> JSONObject:
        now = int(time.time())
        claims: JSONObject = {
            "iss": self.issuer,
            "aud": f"{self.audience}{path}",
            "iat": now,
            "exp": now + 120,
            "jti": str(uuid.uuid4()),
        }
        if self.tenant is not None:
            claims["tenant"] = self.tenant
        return claims | changes

    def header(self, **changes: object) -> JSONObject:
        algorithm = "ES384" if isinstance(self.signer, ECKey) else "RS384"
        return {"alg": algorithm, "kid": self.signer.kid, "typ": "JWT"} | changes

    def token(self, path: str, **changes: object) -> str:
        header = self.header()
        return jwt.encode(header, self.claims(path, **changes), self.signer, algorithms=[header["alg"]])

    def body(self, *, studies: list[JSONObject] | None = None, **members: object) -> JSONObject:
        """Return a call of patient-view that nothing has to be fetched for."""
        return {
            "hook": "patient-view",
            "hookInstance": str(uuid.uuid4()),
            "context": {"userId": "Practitioner/conformance", "patientId": PATIENT},
            "prefetch": {
                "patient": {"resourceType": "Patient", "id": PATIENT},
                "imagingStudies": bundle(studies or []),
            },
        } | members

    def post(
        self,
        body: object,
        *,
        path: str = PATIENT_VIEW,
        token: str | None = None,
        headers: Mapping[str, str] = {},
    ) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", "Authorization": f"Bearer {token or self.token(path)}"}
        started = time.perf_counter()
        response = self.client.post(path, content=content, headers={**sent, **headers})
        self.elapsed_s.append(time.perf_counter() - started)
        return response

    def answer(self, body: object) -> JSONObject:
        response = self.post(body)
        expect(response, 200)
        answer = read_json(response)
        if not isinstance(answer.get("cards"), list):
            raise Failed("cards is not an array")
        return answer


def bundle(resources: list[JSONObject]) -> JSONObject:
    entries = [{"resource": resource} for resource in resources]
    return {"resourceType": "Bundle", "type": "searchset", "entry": entries}


def study(**members: object) -> JSONObject:
    """Return a study that has no images: the service can say only that, and begins no analysis."""
    return {
        "resourceType": "ImagingStudy",
        "id": "conformance-study",
        "status": "available",
        "subject": {"reference": f"Patient/{PATIENT}"},
        "started": "2026-01-01T00:00:00Z",
        "modality": [{"system": "http://dicom.nema.org/resources/ontology/DCM", "code": "MR"}],
    } | members


def read_json(response: httpx.Response) -> JSONObject:
    """Return the object in `response`; Python's reader refuses comments and trailing commas."""
    try:
        value = response.json()
    except ValueError as error:
        raise Failed("the body is not JSON") from error
    if not isinstance(value, dict):
        raise Failed("the body is not a JSON object")
    return value


def expect(response: httpx.Response, *statuses: int) -> None:
    if response.status_code not in statuses:
        wanted = " or ".join(map(str, statuses))
        raise Failed(f"answered {response.status_code}, not {wanted}")


def require(holds: object, what: str) -> None:
    if not holds:
        raise Failed(what)
