"""A small PACS that speaks DICOMweb, for the demo and for the tests: the same app, with faults to switch on.

Spec: DICOM PS3.18 10.4 (Retrieve), 10.5 (Store), 10.6 (Search)
"""

import random
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse

from rayhook.deploy.demo.catalogue import Catalogue
from rayhook.deploy.demo.ledger import Act, Ledger, NoLedger, Outcome
from rayhook.deploy.demo.pacs_archive import Archive, Archived, Refusal, metadata, search

_DICOM_JSON = "application/dicom+json"
_EXPLICIT = "1.2.840.10008.1.2.1"
_CANNOT_UNDERSTAND = 0xC000
_RETRY_AFTER_S = 1
_CHUNK = 64 << 10
_MOST_FOUND = 1000
_PAGING = frozenset(("fuzzymatching", "includefield", "limit", "offset"))


@dataclass(slots=True)
class Faults:
    """What may go wrong, switched on by a test while the app runs; times are in seconds.

    status answers every request with that status.  slow_s is waited before each answer, drip_s after each
    byte of an image.  fail_share of the answers are a 503.  truncated ends the answer in the middle of its last part.  wrong_study sends the images
    of another study.  no_wildcard answers 406 to transfer-syntax=*.  refused gives SOP Class UIDs of which
    instances are not stored, with the failure reason.  busy is how many of the next stores are a 503.
    """

    status: int | None = None
    slow_s: float = 0.0
    drip_s: float = 0.0
    fail_share: float = 0.0
    truncated: bool = False
    wrong_study: bool = False
    no_wildcard: bool = False
    refused: dict[str, int] = field(default_factory=dict)
    busy: int = 0


@dataclass(frozen=True, slots=True)
class DemoPACS:
    """The parts of a running demo PACS, for the tests that drive it; at `app.state.demo`."""

    archive: Archive
    introspect: Callable[[str], bool]
    faults: Faults = field(default_factory=Faults)
    ledger: Ledger = field(default_factory=NoLedger)

    def guard(self, request: Request) -> None:
        """Let in who has a token, and let the faults happen."""
        time.sleep(self.faults.slow_s)
        if self.faults.status is not None:
            raise HTTPException(self.faults.status)
        if random.random() < self.faults.fail_share:  # noqa: S311 - chance
            raise HTTPException(503)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not self.introspect(token):
            raise HTTPException(401, headers={"WWW-Authenticate": "Bearer"})

    def retrieve(
        self, request: Request, study: str, series: str | None = None, instance: str | None = None
    ) -> Response:
        found = self._found(study, series, instance)
        accept = request.headers.get("accept", "*/*")
        if self.faults.wrong_study:
            found = self.archive.other_study(study)
        if not _acceptable(accept, found, wildcard=not self.faults.no_wildcard):
            raise HTTPException(406)
        self.ledger.note(
            Act.RETRIEVED,
            Outcome.SENT,
            "instance" if instance else "study",
            request_id=request.headers.get("x-request-id", ""),
            identifier=instance or "",
            study=study,
        )
        boundary = uuid.uuid4().hex
        return StreamingResponse(
            self._with_faults(_multipart(found, boundary)),
            media_type=f'multipart/related; type="application/dicom"; boundary={boundary}',
        )

    def retrieve_metadata(
        self, study: str, series: str | None = None, instance: str | None = None
    ) -> Response:
        found = self._found(study, series, instance)
        return JSONResponse([metadata(one) for one in found], media_type=_DICOM_JSON)

    def search_studies(self, request: Request) -> Response:
        return self._search(request, "studies", self.archive.find())

    def search_series(self, request: Request, study: str) -> Response:
        return self._search(request, "series", self.archive.find(study=study))

    def search_instances(self, request: Request, study: str, series: str | None = None) -> Response:
        return self._search(request, "instances", self.archive.find(study=study, series=series))

    def store(self, request: Request, body: bytes, study: str | None) -> Response:
        """Answer 200 where all were stored, 202 where some were, 409 where none was.

        Spec: DICOM PS3.18 10.5.3, I.2
        """
        if self.faults.busy > 0:
            self.faults.busy -= 1
            raise HTTPException(503, headers={"Retry-After": str(_RETRY_AFTER_S)})
        parts = _parts(request.headers.get("content-type", ""), body)
        asker = request.headers.get("x-request-id", "")
        outcomes = [self._store(part, study, asker) for part in parts]
        done = [one for one in outcomes if isinstance(one, Archived)]
        failed = [one for one in outcomes if isinstance(one, Refusal)]
        answer: dict[str, Any] = {"00081199": {"vr": "SQ", "Value": [_reference(one) for one in done]}}
        named = [_failure(one) for one in failed if one.sop_instance_uid]
        nameless = [_failure(one) for one in failed if not one.sop_instance_uid]
        if named:
            answer["00081198"] = {"vr": "SQ", "Value": named}
        if nameless:
            answer["0008119A"] = {"vr": "SQ", "Value": nameless}
        status = 200 if not failed else 202 if done else 409
        return JSONResponse(answer, status, media_type=_DICOM_JSON)

    def _store(self, data: bytes, study: str | None, asker: str) -> Archived | Refusal:
        archived = self.archive.read(data)
        if archived is None:
            return Refusal(_CANNOT_UNDERSTAND)
        reason = self.faults.refused.get(archived.sop_class_uid)
        if reason is not None:
            return Refusal(reason, archived.sop_class_uid, archived.sop_instance_uid)
        kept = self.archive.store(archived, study=study)
        self.ledger.note(
            Act.STORED,
            _outcome(kept, archived),
            "instance",
            request_id=asker,
            identifier=archived.sop_instance_uid,
            study=archived.study_instance_uid,
        )
        return kept

    def _found(self, study: str, series: str | None, instance: str | None) -> list[Archived]:
        found = self.archive.find(study=study, series=series, instance=instance)
        if not found:
            raise HTTPException(404)
        return found

    def _search(self, request: Request, level: str, instances: list[Archived]) -> Response:
        query = {key: value for key, value in request.query_params.items() if key not in _PAGING}
        first = int(request.query_params.get("offset", 0))
        last = first + int(request.query_params.get("limit", _MOST_FOUND))
        answers = search(instances, level, query)[first:last]
        return JSONResponse(answers, media_type=_DICOM_JSON) if answers else Response(status_code=204)

    def _with_faults(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        if self.faults.truncated:
            whole = b"".join(pieces)
            yield whole[: len(whole) - min(2000, len(whole) // 2)]
            return
        for piece in pieces:
            if not self.faults.drip_s:
                yield piece
                continue
            for value in piece:
                yield bytes((value,))
                time.sleep(self.faults.drip_s)


def _outcome(kept: Archived | Refusal, archived: Archived) -> Outcome:
    if isinstance(kept, Refusal):
        return Outcome.REFUSED
    return Outcome.CREATED if kept is archived else Outcome.EXISTING


def create_pacs(
    catalogue: Catalogue,
    *,
    introspect: Callable[[str], bool],
    faults: Faults | None = None,
    ledger: Ledger | None = None,
) -> FastAPI:
    """Return the app, its DICOMweb at /dicom-web; `introspect` tells whether a bearer token is good.

    `app.state.demo` is the DemoPACS.
    """
    pacs = DemoPACS(Archive(catalogue), introspect, faults or Faults(), ledger or NoLedger())
    app = FastAPI(title="Rayhook demo PACS", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.demo = pacs
    app.include_router(_router(pacs), prefix="/dicom-web", dependencies=[Depends(pacs.guard)])
    return app


def _router(pacs: DemoPACS) -> APIRouter:
    router = APIRouter()
    study, series = "/studies/{study}", "/studies/{study}/series/{series}"
    router.add_api_route("/studies", pacs.search_studies, response_model=None)
    router.add_api_route(f"{study}/series", pacs.search_series, response_model=None)
    for level in (study, series):
        router.add_api_route(f"{level}/instances", pacs.search_instances, response_model=None)
    for level in (study, series, f"{series}/instances/{{instance}}"):
        router.add_api_route(level, pacs.retrieve, response_model=None)
        router.add_api_route(f"{level}/metadata", pacs.retrieve_metadata, response_model=None)

    async def read_body(request: Request) -> bytes:
        return await request.body()

    def store(
        request: Request, body: Annotated[bytes, Depends(read_body)], study: str | None = None
    ) -> Response:
        return pacs.store(request, body, study)

    for path in ("/studies", study):
        router.add_api_route(path, store, methods=["POST"], response_model=None)
    return router


def _acceptable(accept: str, instances: list[Archived], *, wildcard: bool) -> bool:
    """Tell whether the stored files may be sent as they are; this PACS never converts."""
    if "transfer-syntax=*" in accept:
        return wildcard
    syntaxes = {one.transfer_syntax_uid() for one in instances}
    return all(syntax == _EXPLICIT or f"transfer-syntax={syntax}" in accept for syntax in syntaxes)


def _multipart(instances: list[Archived], boundary: str) -> Iterator[bytes]:
    for instance in instances:
        yield f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        data = instance.read()
        for start in range(0, len(data), _CHUNK):
            yield data[start : start + _CHUNK]
        yield b"\r\n"
    yield f"--{boundary}--\r\n".encode()


def _reference(archived: Archived) -> dict[str, Any]:
    return {
        "00081150": {"vr": "UI", "Value": [archived.sop_class_uid]},
        "00081155": {"vr": "UI", "Value": [archived.sop_instance_uid]},
    }


def _failure(refusal: Refusal) -> dict[str, Any]:
    """Spec: DICOM PS3.3 C.14.1.1 (Failure Reason)."""
    reason = {"00081197": {"vr": "US", "Value": [refusal.reason]}}
    if not refusal.sop_instance_uid:
        return reason
    return {
        "00081150": {"vr": "UI", "Value": [refusal.sop_class_uid]},
        "00081155": {"vr": "UI", "Value": [refusal.sop_instance_uid]},
        **reason,
    }


def _parts(content_type: str, body: bytes) -> list[bytes]:
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/related" or b"boundary" not in options:
        raise HTTPException(415)
    parts: list[bytearray] = []
    parser = MultipartParser(
        options[b"boundary"],
        {
            "on_part_begin": lambda: parts.append(bytearray()),
            "on_part_data": lambda data, start, end: parts[-1].extend(data[start:end]),
        },
    )
    try:
        parser.write(body)
    except FormParserError as error:
        raise HTTPException(400) from error
    return [bytes(part) for part in parts]
