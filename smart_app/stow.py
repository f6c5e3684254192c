"""Where modalities, routers and PACS store the images of new studies.

Spec: DICOM PS3.18 10.5 (Store Transaction); RFC 6750, RFC 7617
"""

import base64
import binascii
from dataclasses import dataclass, field
from typing import Final

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.record import AuditEntry
from rayhook.auth.bearer import BearerTokens
from rayhook.fhir.errors import (
    Forbidden,
    InvalidRequest,
    NotAcceptable,
    Overloaded,
    PayloadTooLarge,
    RayhookError,
    ServiceUnavailable,
    Unauthenticated,
    UnsupportedMediaType,
)
from rayhook.fhir.references import is_uid
from rayhook.inference.multipart import PartCollector, media_type
from rayhook.inference.received import ReceivedImages
from rayhook.inference.store_request import Sender, StoreRequest
from rayhook.smart_app.dependencies import SMARTDependencies

PATH: Final = "/dicom-web/studies"
_FULL_S: Final = 60
_MIB: Final = 1 << 20
_DICOM_JSON: Final = "application/dicom+json"
_ACCEPTABLE: Final = frozenset({_DICOM_JSON, "application/json", "application/*", "*/*"})


@dataclass(frozen=True, slots=True)
class StowLimits:
    """Bounds on one transaction, and on how many there may be at a time: each holds one instance in memory."""

    max_part_bytes: int = 256 * _MIB
    max_bytes: int = 4096 * _MIB
    max_instances: int = 5_000
    at_once: int = 4


@dataclass(slots=True)
class StowService:
    """settle_s: how long a study has to be quiet before it is looked at."""

    deps: SMARTDependencies
    received: ReceivedImages
    tokens: BearerTokens
    settle_s: float
    limits: StowLimits = field(default_factory=StowLimits)
    _in_hand: int = 0

    async def store(self, request: Request, study: str | None = None) -> Response:
        """Store instances; the answer comes when they are on the disk, and in the database."""
        sender = await run_in_threadpool(self._sender, request.headers.get("authorization", ""))
        try:
            boundary = _boundary(request)
            if study is not None and not is_uid(study):
                raise InvalidRequest("the study's UID is malformed", code="invalid_uid")
            if self._in_hand >= self.limits.at_once:
                raise Overloaded("as many senders store at the same time as may: send again later")
        except RayhookError as error:
            await run_in_threadpool(self._record_refusal, sender, error)
            raise
        self._in_hand += 1
        try:
            return await self._store(request, boundary, sender, study)
        finally:
            self._in_hand -= 1

    async def _store(self, request: Request, boundary: str, sender: Sender, study: str | None) -> Response:
        work = StoreRequest(
            received=self.received,
            audit=self.deps.audit,
            sender=sender,
            study_instance_uid=study,
            settle_s=self.settle_s,
            clock=self.deps.clock,
        )
        is_done = False
        try:
            await self._take_all(request, boundary, work)
            status, answer = await run_in_threadpool(work.finish)
            is_done = True
        except RayhookError as error:
            await run_in_threadpool(self._record_refusal, sender, error)
            raise (_later(error) if isinstance(error, ServiceUnavailable) else error) from None
        finally:
            if not is_done:
                await run_in_threadpool(work.abandon)
        return JSONResponse(answer, status, media_type=_DICOM_JSON, headers={"Cache-Control": "no-store"})

    async def _take_all(self, request: Request, boundary: str, work: StoreRequest) -> None:
        collector = PartCollector(boundary, max_part_bytes=self.limits.max_part_bytes)
        size = count = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > self.limits.max_bytes:
                raise PayloadTooLarge(f"a transaction has at most {self.limits.max_bytes} bytes")
            for part in collector.write(chunk):
                count += 1
                if count > self.limits.max_instances:
                    raise PayloadTooLarge(f"a transaction has at most {self.limits.max_instances} instances")
                await run_in_threadpool(work.take, part)
        if not collector.ended:
            raise InvalidRequest("the multipart body is cut off", expression="body")
        if count == 0:
            raise InvalidRequest("there is no instance in the body", expression="body")

    def _sender(self, authorization: str) -> Sender:
        """Return who shows a registered sender's secret, or a token of an EHR that may create studies there."""
        try:
            return self._by_secret(authorization) or self._by_token(authorization)
        except RayhookError as error:
            if error.status < 500:  # noqa: PLR2004 - the issuer was there
                self._record_refusal(None, error)
            raise

    def _by_secret(self, authorization: str) -> Sender | None:
        scheme, _, shown = authorization.partition(" ")
        if scheme.lower() == "basic":
            name, secret = _basic(shown)
            found = self.deps.registry.dicom_sender(name)
            if found is None or not found[1].secret.admits(secret):
                raise Unauthenticated("the sender or its secret is not known", code="secret_wrong")
            return Sender(found[0], found[1].id)
        unreadable: RayhookError | None = None
        for ehr in self.deps.registry:
            for sender in ehr.arrivals.senders:
                try:
                    if scheme.lower() == "bearer" and sender.secret.admits(shown):
                        return Sender(ehr, sender.id)
                except RayhookError as error:
                    unreadable = error
        if unreadable is not None:
            raise unreadable
        return None

    def _by_token(self, authorization: str) -> Sender:
        """Spec: SMART App Launch 2.2.0, "Backend Services": a patient's or user's token stores nothing here."""
        holder = self.tokens.holder(authorization)
        if holder.patient_id is not None or not holder.scopes.permits("system", "ImagingStudy", "c"):
            raise Forbidden("system/ImagingStudy.c is needed to store images", code="scope_insufficient")
        return Sender(holder.ehr, holder.client_id)

    def _record_refusal(self, sender: Sender | None, error: RayhookError) -> None:
        entry = AuditEntry(
            AuditKind.DICOMWEB_INSTANCES_REFUSED,
            Outcome.MINOR_FAILURE,
            ehr_id=None if sender is None else sender.ehr.id,
            agent=None if sender is None else sender.name,
            detail={"reason": error.code},
        )
        tell = self.deps.tell_refusal if sender is None else self.deps.tell
        tell(entry)


def build_stow_router(service: StowService) -> APIRouter:
    router = APIRouter(tags=["DICOMweb"])
    for path in (PATH, f"{PATH}/{{study}}"):
        router.add_api_route(path, service.store, methods=["POST"], response_class=Response)
    return router


def _later(error: ServiceUnavailable) -> ServiceUnavailable:
    """Return the error with a Retry-After: nothing of the transaction counts, and all of it may come again."""
    later = Overloaded(error.message, retry_after_s=_FULL_S)
    later.code = error.code
    return later


def _boundary(request: Request) -> str:
    """Spec: DICOM PS3.18 8.7.3 (media types), 10.5.2 (request)."""
    accepted = {media_type(one)[0] for one in request.headers.get("accept", "*/*").split(",")}
    if not accepted & _ACCEPTABLE:
        raise NotAcceptable(f"the answer is {_DICOM_JSON}")
    kind, parameters = media_type(request.headers.get("content-type", ""))
    if kind != "multipart/related" or parameters.get("type", "application/dicom") != "application/dicom":
        raise UnsupportedMediaType('the body has to be multipart/related; type="application/dicom"')
    return parameters.get("boundary", "")


def _basic(text: str) -> tuple[str, str]:
    """Spec: RFC 7617: a sender's id, and its secret."""
    try:
        name, _, secret = base64.b64decode(text, validate=True).decode("utf-8").partition(":")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise Unauthenticated("Authorization is malformed", code="secret_wrong") from error
    return name, secret
