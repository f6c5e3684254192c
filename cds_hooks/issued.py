"""Cards as they leave: written down with who got them, and in the audit, before the answer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
from sqlalchemy import insert
from sqlmodel import Field, Session, SQLModel

from rayhook.audit.events import AuditKind
from rayhook.audit.record import AuditEntry
from rayhook.auth.patient_keys import patient_index
from rayhook.cds_hooks.dependencies import CDSDependencies
from rayhook.cds_hooks.hook_call import Call
from rayhook.cds_hooks.models import Card, Response
from rayhook.cds_hooks.override import overridden, override_index


class CardIssued(SQLModel, table=True):
    """A card as it left: to whom, and about which result. It holds nothing that names the patient.

    `override_index` is what an override of it hides (see rayhook.cds_hooks.override); `suggestions` are the uuids of
    its suggestions, with spaces between them. `patient_index` tells whose key seals what is said of the card.
    """

    __tablename__ = "cds_card_issued"

    card: str = Field(primary_key=True, max_length=36)
    ehr_id: str = Field(max_length=128)
    issuer: str = Field(max_length=2048)
    tenant: str | None = None
    service_id: str = Field(max_length=64)
    hook_instance: str = Field(max_length=36)
    topic: str = Field(max_length=32)
    result_id: str | None = Field(default=None, max_length=32, index=True)
    issued_at: float
    override_index: str | None = Field(default=None, max_length=64)
    suggestions: str | None = Field(default=None, max_length=512)
    patient_index: str | None = Field(default=None, max_length=64)


_CARD_ISSUED = SQLModel.metadata.tables[CardIssued.__tablename__]


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedCard:
    """A card with the study and the result that it tells of.

    `subject` says what it would be to say the same again; None where that is always worth saying.
    """

    card: Card
    study_id: str | None = None
    result_id: str | None = None
    subject: tuple[str, ...] | None = None


def answered(
    dependencies: CDSDependencies, call: Call, cards: Sequence[IssuedCard], *, fetched: Sequence[str]
) -> bytes:
    """Return the JSON of those cards that the user has not set aside; they are in the audit before that."""
    indexes = {
        issued.card.uuid: override_index(dependencies.keyring, call.principal, call.context, issued.subject)
        for issued in cards
        if issued.subject is not None
    }
    issued_at = dependencies.clock()
    patient = patient_index(dependencies.keyring, call.principal.ehr.id, call.context.patient_id)
    with dependencies.sessions() as session:
        shown = _not_overridden(session, cards, indexes)
        if shown:
            rows = [
                {**_row(call, issued, issued_at, indexes.get(issued.card.uuid)), "patient_index": patient}
                for issued in shown
            ]
            session.execute(insert(_CARD_ISSUED), rows)
        for entry in _events(call, shown, fetched, suppressed=len(cards) - len(shown)):
            dependencies.audit.record(session, entry)
        session.commit()
    return msgspec.json.encode(Response(cards=tuple(issued.card for issued in shown)))


def _not_overridden(
    session: Session, cards: Sequence[IssuedCard], indexes: Mapping[str, str]
) -> Sequence[IssuedCard]:
    if not indexes:
        return cards
    hidden = overridden(session, list(indexes.values()))
    return [issued for issued in cards if indexes.get(issued.card.uuid) not in hidden]


def _row(
    call: Call, issued: IssuedCard, issued_at: float, index: str | None
) -> dict[str, str | float | None]:
    """Return the columns of CardIssued."""
    return {
        "card": issued.card.uuid,
        "ehr_id": call.principal.ehr.id,
        "issuer": call.principal.issuer,
        "tenant": call.principal.tenant,
        "service_id": call.service.id,
        "hook_instance": call.request.hook_instance.lower(),
        "topic": issued.card.source.topic.code,
        "result_id": issued.result_id,
        "issued_at": issued_at,
        "override_index": index,
        "suggestions": " ".join(suggestion.uuid for suggestion in issued.card.suggestions) or None,
    }


def _events(
    call: Call, cards: Sequence[IssuedCard], fetched: Sequence[str], *, suppressed: int
) -> Iterator[AuditEntry]:
    user = () if call.context.user_id is None else (call.context.user_id,)
    detail = {
        "service": call.service.id,
        "hook": call.service.hook,
        "hook_instance": call.request.hook_instance.lower(),
    }
    if call.principal.tenant is not None:
        detail["tenant"] = call.principal.tenant
    if suppressed:
        detail["suppressed"] = str(suppressed)
    yield _event(call, AuditKind.CDS_HOOKS_SERVICE_CALLED, user, detail)
    if fetched:
        keys = {**detail, "keys": " ".join(fetched)}
        yield _event(call, AuditKind.CDS_HOOKS_PREFETCH_FETCHED, user, keys)
    if cards:
        topics = {**detail, "topics": " ".join(issued.card.source.topic.code for issued in cards)}
        entities = dict.fromkeys(entity for issued in cards for entity in _entities(issued))
        yield _event(call, AuditKind.CDS_HOOKS_CARD_RETURNED, (*user, *entities), topics)


def _event(call: Call, kind: AuditKind, entities: tuple[str, ...], detail: Mapping[str, str]) -> AuditEntry:
    return AuditEntry(
        kind,
        ehr_id=call.principal.ehr.id,
        agent=call.principal.issuer,
        client_id=call.principal.issuer,
        jti=call.principal.jti,
        patient_id=call.context.patient_id,
        entities=entities,
        detail=detail,
    )


def _entities(issued: IssuedCard) -> Iterator[str]:
    if issued.study_id is not None:
        yield f"ImagingStudy/{issued.study_id}"
    if issued.result_id is not None:
        yield f"DiagnosticReport/{issued.result_id}"
