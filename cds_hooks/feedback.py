"""Feedback: what the clinician did with a card, from the client that got it, once.

Spec: CDS Hooks 2.0.1, "Feedback"
"""

import re
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta, Struct
from sqlalchemy import Column, LargeBinary, UniqueConstraint
from sqlalchemy.exc import IntegrityError
from sqlmodel import Field, Session, SQLModel, col, select

from rayhook.audit.events import AuditKind
from rayhook.audit.record import AuditEntry
from rayhook.auth.keys import Keyring
from rayhook.auth.patient_keys import clinical, installation, seal
from rayhook.auth.principal import CDSClientPrincipal
from rayhook.cds_hooks.dependencies import CDSDependencies
from rayhook.cds_hooks.issued import CardIssued
from rayhook.cds_hooks.json_body import parse_json
from rayhook.cds_hooks.models import UUID, Coding, JSONObject, read
from rayhook.cds_hooks.override import set_aside
from rayhook.cds_hooks.trust import Attempt, authenticate, refusals_audited
from rayhook.fhir.errors import Forbidden, InvalidRequest, NotFound

_UTC = re.compile(r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d{1,9})?([Zz]|[+-]00:00)")
_MAX_ITEMS = 100


class CardFeedback(SQLModel, table=True):
    """One thing said of one card. `item_sealed` is the item as it came: a comment may name the patient.

    `item_index` is the blind index of the item: the same one said again is the same row.
    """

    __tablename__ = "cds_card_feedback"
    __table_args__ = (UniqueConstraint("card", "item_index"),)

    id: str = Field(primary_key=True, max_length=36)
    card: str = Field(foreign_key="cds_card_issued.card", max_length=36)
    item_index: str = Field(max_length=64)
    outcome: str = Field(max_length=16, index=True)
    reason_code: str | None = Field(default=None, max_length=255)
    reason_system: str | None = Field(default=None, max_length=2048)
    outcome_at: float
    item_sealed: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    received_at: float


class AcceptedSuggestion(Struct, frozen=True, kw_only=True):
    id: UUID


class OverrideReason(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    reason: Coding | None = None
    user_comment: Annotated[str, Meta(min_length=1, max_length=4000)] | None = None


class FeedbackItem(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    card: UUID
    outcome: str
    outcome_timestamp: str
    accepted_suggestions: tuple[AcceptedSuggestion, ...] = ()
    override_reason: OverrideReason | None = None
    extension: JSONObject | None = None


class Feedback(Struct, frozen=True, kw_only=True):
    feedback: Annotated[tuple[FeedbackItem, ...], Meta(min_length=1, max_length=_MAX_ITEMS)]


@dataclass(frozen=True, slots=True)
class Stored:
    """How many items were new, the results that the items are about, and suggestions that no card had."""

    new: int
    result_ids: tuple[str, ...]
    unknown_suggestions: int


def receive_feedback(
    dependencies: CDSDependencies, service_id: str, authorization: str | None, body: bytes
) -> None:
    """Store what is said of cards; the audit tells who said it, about which results."""
    audience = f"{dependencies.public_base_url}/cds-services/{service_id}/feedback"
    principal = authenticate(dependencies, authorization, audience=audience)
    with refusals_audited(dependencies, Attempt(principal, service_id)):
        dependencies.rate_limit.admit(principal)
        items = read_feedback(parse_json(body))
        with dependencies.sessions() as session:
            stored = store_feedback(
                session,
                dependencies.keyring,
                items,
                principal=principal,
                service_id=service_id,
                clock=dependencies.clock,
            )
            dependencies.audit.record(session, _event(principal, service_id, stored, len(items)))
            session.commit()


def _event(principal: CDSClientPrincipal, service_id: str, stored: Stored, items: int) -> AuditEntry:
    detail = {"service": service_id, "items": str(items), "new": str(stored.new)}
    if stored.unknown_suggestions:
        detail["unknown_suggestions"] = str(stored.unknown_suggestions)
    return AuditEntry(
        AuditKind.CDS_HOOKS_FEEDBACK_RECEIVED,
        ehr_id=principal.ehr.id,
        agent=principal.issuer,
        client_id=principal.issuer,
        jti=principal.jti,
        entities=tuple(f"DiagnosticReport/{result_id}" for result_id in stored.result_ids),
        detail=detail,
    )


def read_feedback(value: object) -> tuple[FeedbackItem, ...]:
    """Return the items; raises InvalidRequest that names the member at fault."""
    items = read(value, Feedback).feedback
    for number, item in enumerate(items):
        _check(item, f"feedback[{number}]")
    return items


def store_feedback(
    session: Session,
    keyring: Keyring,
    items: Iterable[FeedbackItem],
    *,
    principal: CDSClientPrincipal,
    service_id: str,
    clock: Callable[[], float] = time.time,
) -> Stored:
    """Add what was not said before: all of it, or nothing.

    Raises NotFound for a card that this service never gave, Forbidden for one given to another client.
    """
    new = unknown = 0
    results: dict[str, None] = {}
    for number, item in enumerate(items):
        issued = _issued(
            session, item, f"feedback[{number}].card", principal=principal, service_id=service_id
        )
        if issued.result_id is not None:
            results[issued.result_id] = None
        unknown += _unknown_suggestions(item, issued)
        is_new = _add(session, keyring, item, issued.patient_index, clock())
        if is_new and item.outcome == "overridden" and issued.override_index is not None:
            set_aside(session, issued.override_index, now=clock())
        new += is_new
    return Stored(new, tuple(results), unknown)


def _issued(
    session: Session, item: FeedbackItem, path: str, *, principal: CDSClientPrincipal, service_id: str
) -> CardIssued:
    issued = session.get(CardIssued, item.card.lower())
    if issued is None or issued.service_id != service_id:
        raise NotFound(f"{path} is not a card of this service", code="unknown_card", expression=path)
    recipient = (issued.ehr_id, issued.issuer, issued.tenant)
    if recipient != (principal.ehr.id, principal.issuer, principal.tenant):
        raise Forbidden(f"{path} was given to another client", code="foreign_card", expression=path)
    return issued


def _unknown_suggestions(item: FeedbackItem, issued: CardIssued) -> int:
    """Return how many of the accepted suggestions are none that the card had."""
    given = (issued.suggestions or "").split()
    return sum(accepted.id.lower() not in given for accepted in item.accepted_suggestions)


def _add(session: Session, keyring: Keyring, item: FeedbackItem, patient: str | None, now: float) -> bool:
    plaintext = msgspec.json.encode(item)
    index = keyring.blind_index(plaintext.decode(), purpose="cds_card_feedback.item")
    card = item.card.lower()
    known = select(CardFeedback.id).where(
        col(CardFeedback.card) == card, col(CardFeedback.item_index) == index
    )
    if session.exec(known).first() is not None:
        return False
    identifier = str(uuid.uuid4())
    subject = installation() if patient is None else clinical(patient)
    place = {"table": "cds_card_feedback", "column": "item_sealed", "row": identifier}
    sealed = seal(session, keyring, subject, plaintext, **place)
    row = _feedback_row(item, identifier, sealed, index=index, now=now)
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError:
        # PostgreSQL: the same feedback was committed since the look-up above.
        return False
    return True


def _feedback_row(
    item: FeedbackItem, identifier: str, sealed: bytes, *, index: str, now: float
) -> CardFeedback:
    reason = None if item.override_reason is None else item.override_reason.reason
    return CardFeedback(
        id=identifier,
        card=item.card.lower(),
        item_index=index,
        outcome=item.outcome,
        reason_code=None if reason is None else reason.code,
        reason_system=None if reason is None else reason.system,
        outcome_at=datetime.fromisoformat(item.outcome_timestamp.upper()).timestamp(),
        item_sealed=sealed,
        received_at=now,
    )


def _check(item: FeedbackItem, path: str) -> None:
    if item.outcome not in {"accepted", "overridden"}:
        raise _refusal(f"{path}.outcome", "must be accepted or overridden")
    if not _is_time(item.outcome_timestamp):
        raise _refusal(f"{path}.outcomeTimestamp", "must be an RFC 3339 time in UTC")
    if item.outcome == "accepted" and not item.accepted_suggestions:
        raise _refusal(f"{path}.acceptedSuggestions", "is missing for an accepted card")
    reason = item.override_reason
    if reason is not None and reason.reason is None and reason.user_comment is None:
        raise _refusal(f"{path}.overrideReason", "needs a reason or a userComment")


def _is_time(value: str) -> bool:
    if not _UTC.fullmatch(value):
        return False
    try:
        datetime.fromisoformat(value.upper())
    except ValueError:
        return False
    return True


def _refusal(path: str, rule: str) -> InvalidRequest:
    return InvalidRequest(f"{path} {rule}", expression=path)
