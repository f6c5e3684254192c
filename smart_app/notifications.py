"""Where EHRs send their notifications of new studies.

Spec: HL7 Subscriptions R5 Backport 1.1.0, "Channels", rest-hook; FHIR R4 Subscription.channel.header
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Final

import msgspec
from fastapi import APIRouter, Depends, Header, Request
from starlette.responses import Response

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.record import AuditEntry
from rayhook.auth.registry import EHR
from rayhook.fhir.errors import InvalidRequest, PayloadTooLarge, RayhookError, Unauthenticated
from rayhook.fhir.subscription import read_notification
from rayhook.inference.notification import NotificationDesk
from rayhook.smart_app.dependencies import SMARTDependencies

PATH: Final = "/fhir/subscriptions/{ehr_id}"

_MAX_BYTES = 4 << 20


def build_notification_router(deps: SMARTDependencies) -> APIRouter:
    router = APIRouter(tags=["Subscriptions"])
    desk = NotificationDesk(keyring=deps.keyring, audit=deps.audit, clock=deps.clock)

    def sender(ehr_id: str, authorization: Annotated[str, Header()] = "") -> EHR:
        """Know who sends before a byte of it is read."""
        with _refusals_audited(deps, ehr_id, deps.tell_refusal):
            return _sender(deps, ehr_id, authorization)

    @router.post(PATH, response_class=Response)
    def notify(ehr: Annotated[EHR, Depends(sender)], body: Annotated[bytes, Depends(_body)]) -> Response:
        """Take one notification in; the answer comes when it is in the database."""
        with _refusals_audited(deps, ehr.id, deps.tell):
            _take_in(deps, desk, ehr, body)
        return Response()

    return router


async def _body(request: Request) -> bytes:
    """Read the body up to the limit: what is longer is not read to its end."""
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > _MAX_BYTES:
            raise PayloadTooLarge(f"a notification has at most {_MAX_BYTES} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def _sender(deps: SMARTDependencies, ehr_id: str, authorization: str) -> EHR:
    """Return the EHR whose secret the header shows; who does not know it learns nothing of who is registered."""
    ehr = deps.registry.by_id(ehr_id)
    scheme, _, shown = authorization.partition(" ")
    if ehr is None or ehr.arrivals.subscription is None:
        raise Unauthenticated(
            "no subscription is registered for this EHR", code="subscription_not_registered"
        )
    if scheme.lower() != "bearer" or not ehr.arrivals.subscription.secret.admits(shown):
        raise Unauthenticated("the notification does not show the subscription's secret", code="secret_wrong")
    return ehr


def _take_in(deps: SMARTDependencies, desk: NotificationDesk, ehr: EHR, body: bytes) -> None:
    with deps.sessions() as session:
        if body:
            desk.take_in(session, ehr, read_notification(_json(body)))
        else:
            desk.take_in_empty(session, ehr)
        session.commit()


def _json(body: bytes) -> object:
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        # Not chained: the error may quote the body.
        raise InvalidRequest("a notification has to be JSON", expression="Bundle") from None


@contextmanager
def _refusals_audited(
    deps: SMARTDependencies, ehr_id: str, tell: Callable[[AuditEntry], None]
) -> Iterator[None]:
    try:
        yield
    except RayhookError as error:
        if error.status < 500:  # noqa: PLR2004 - the database is there
            known = deps.registry.by_id(ehr_id)
            entry = AuditEntry(
                AuditKind.FHIR_NOTIFICATION_REFUSED,
                Outcome.MINOR_FAILURE,
                ehr_id=None if known is None else known.id,
                detail={"reason": error.code, "field": error.expression or ""},
            )
            tell(entry)
        raise
