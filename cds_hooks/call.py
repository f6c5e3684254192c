"""One call of a CDS service, from top to bottom.

Spec: CDS Hooks 2.0.1, "Calling a CDS Service", "CDS Service Response"
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
from sqlalchemy import insert

from rayhook.audit.events import AuditKind
from rayhook.audit.record import AuditEntry
from rayhook.auth.principal import CDSClientPrincipal
from rayhook.cds_hooks.analysis import answers, deliver_late, look_up, start
from rayhook.cds_hooks.answers import StudyAnswer, Topic
from rayhook.cds_hooks.cards import CardWriter, incomplete_card
from rayhook.cds_hooks.dependencies import CDSDependencies
from rayhook.cds_hooks.feedback import CARD_ISSUED
from rayhook.cds_hooks.json_body import parse_json
from rayhook.cds_hooks.models import (
    Card,
    HookRequest,
    OrderSignContext,
    PatientViewContext,
    Response,
    read,
)
from rayhook.cds_hooks.orders import concerns_imaging
from rayhook.cds_hooks.prefetch import Fetcher, Prefetched, gather
from rayhook.cds_hooks.services import Service
from rayhook.cds_hooks.studies import MAX_STUDIES, image_sources, newest_studies
from rayhook.cds_hooks.trust import (
    Attempt,
    authenticate,
    check_prefetched_patient,
    check_token_patient,
    fhir_base_url,
    refusals_audited,
)
from rayhook.fhir.client import FHIRClient
from rayhook.fhir.errors import InvalidRequest
from rayhook.fhir.r4 import ImagingStudySummary

_FINISHED = frozenset({Topic.FINDING, Topic.NO_FINDING, Topic.NOTHING_TO_RATE})


@dataclass(frozen=True, slots=True)
class Received:
    """A request's body, and when it was there (monotonic): time limits count from then."""

    body: bytes
    at: float


@dataclass(frozen=True, slots=True)
class IssuedCard:
    """A card and the answer that it tells; None for the card about the list of studies."""

    card: Card
    answer: StudyAnswer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call that was understood and whose caller is known."""

    service: Service
    principal: CDSClientPrincipal
    request: HookRequest
    context: PatientViewContext
    base_url: str
    fetcher: Fetcher | None


def answer_call(
    dependencies: CDSDependencies, service: Service, authorization: str | None, received: Received
) -> bytes:
    """Return the JSON of the cards; whatever was read, queued or answered is in the audit before that."""
    audience = f"{dependencies.public_base_url}/cds-services/{service.id}"
    principal = authenticate(dependencies, authorization, audience=audience)
    attempt = Attempt(principal, service.id)
    with dependencies.in_hand, refusals_audited(dependencies, attempt):
        call = _read(dependencies, service, attempt, received)
        if not _concerns_imaging(call):
            return _answered(dependencies, call, (), fetched=())
        prefetched = gather(service, call.request, call.context, call.fetcher, enough=MAX_STUDIES)
        check_prefetched_patient(prefetched.patient, call.context.patient_id)
        studies, complete = newest_studies(
            prefetched.studies, patient_id=call.context.patient_id, base_url=call.base_url
        )
        found = _study_answers(dependencies, call, studies, prefetched, received_at=received.at)
        cards = _cards(dependencies, call, found, complete=complete and prefetched.complete)
        return _answered(dependencies, call, cards, fetched=prefetched.fetched)


def _read(dependencies: CDSDependencies, service: Service, attempt: Attempt, received: Received) -> Call:
    request = read(parse_json(received.body), HookRequest)
    if request.hook != service.hook:
        raise InvalidRequest(f"hook must be {service.hook} for this service", expression="hook")
    context = read(request.context, service.context, under="context")
    attempt.patient_id, attempt.user_id = context.patient_id, context.user_id
    check_token_patient(request.fhir_authorization, context.patient_id)
    base_url = fhir_base_url(request, attempt.principal.ehr)
    return Call(
        service=service,
        principal=attempt.principal,
        request=request,
        context=context,
        base_url=base_url,
        fetcher=_fetcher(dependencies, request, attempt.principal, base_url, received.at),
    )


def _fetcher(
    dependencies: CDSDependencies,
    request: HookRequest,
    principal: CDSClientPrincipal,
    base_url: str,
    received_at: float,
) -> Fetcher | None:
    """Spec: CDS Hooks 2.0.1, "Passing the Access Token": without a token nothing is fetched."""
    if request.fhir_authorization is None:
        return None
    client = FHIRClient(
        dependencies.transport,
        base_url,
        principal.ehr.fhir_origins,
        request.fhir_authorization.access_token,
    )
    return Fetcher(client, dependencies.pool, received_at + dependencies.fetch_s)


def _concerns_imaging(call: Call) -> bool:
    if not isinstance(call.context, OrderSignContext):
        return True
    drafts = call.context.draft_orders
    return concerns_imaging(drafts, patient_id=call.context.patient_id, base_url=call.base_url)


def _study_answers(
    dependencies: CDSDependencies,
    call: Call,
    studies: Sequence[ImagingStudySummary],
    prefetched: Prefetched,
    *,
    received_at: float,
) -> tuple[StudyAnswer, ...]:
    ehr = call.principal.ehr
    jobs = look_up(dependencies, studies, ehr=ehr, base_url=call.base_url, patient_id=call.context.patient_id)
    to_begin = [job.study for job in jobs if job.is_to_begin]
    if to_begin:
        sources = image_sources(to_begin, prefetched, call.fetcher, base_url=call.base_url)
        jobs = start(dependencies, jobs, sources, ehr=ehr, authorization=call.request.fhir_authorization)
    wait_s = dependencies.in_hand.wait_s(dependencies.wait_s)
    found = answers(dependencies, jobs, ends_at=received_at + wait_s)
    deliver_late(dependencies, jobs, call.request.fhir_authorization)
    return found


def _cards(
    dependencies: CDSDependencies, call: Call, found: Sequence[StudyAnswer], *, complete: bool
) -> tuple[IssuedCard, ...]:
    is_launchable = call.principal.ehr.smart is not None
    launch_url = f"{dependencies.public_base_url}/smart/launch" if is_launchable else None
    writer = CardWriter(manifests=dependencies.manifests, launch_url=launch_url)
    shown = _until_finished(found) if isinstance(call.context, OrderSignContext) else found
    cards = [IssuedCard(writer.card(answer), answer) for answer in shown]
    if not complete:
        cards.append(IssuedCard(incomplete_card()))
    return tuple(cards)


def _until_finished(found: Iterable[StudyAnswer]) -> list[StudyAnswer]:
    """Return what matters before an order: the newest finished answer, and what newer studies still lack."""
    shown = []
    for answer in found:
        shown.append(answer)
        if answer.topic in _FINISHED:
            break
    return shown


def _answered(
    dependencies: CDSDependencies, call: Call, cards: Sequence[IssuedCard], *, fetched: Sequence[str]
) -> bytes:
    issued_at = dependencies.clock()
    with dependencies.sessions() as session:
        if cards:
            session.execute(insert(CARD_ISSUED), [_row(call, issued, issued_at) for issued in cards])
        for entry in _events(call, cards, fetched):
            dependencies.audit.record(session, entry)
        session.commit()
    return msgspec.json.encode(Response(cards=tuple(issued.card for issued in cards)))


def _row(call: Call, issued: IssuedCard, issued_at: float) -> dict[str, str | float | None]:
    """Return the columns of CardIssued."""
    return {
        "card": issued.card.uuid,
        "ehr_id": call.principal.ehr.id,
        "issuer": call.principal.issuer,
        "tenant": call.principal.tenant,
        "service_id": call.service.id,
        "hook_instance": call.request.hook_instance.lower(),
        "topic": issued.card.source.topic.code,
        "result_id": None if issued.answer is None else issued.answer.result_id,
        "issued_at": issued_at,
    }


def _events(call: Call, cards: Sequence[IssuedCard], fetched: Sequence[str]) -> Iterator[AuditEntry]:
    detail = {"service": call.service.id, "hook_instance": call.request.hook_instance.lower()}
    if call.principal.tenant is not None:
        detail["tenant"] = call.principal.tenant
    yield _event(call, AuditKind.CDS_HOOKS_SERVICE_CALLED, (call.context.user_id,), detail)
    if fetched:
        keys = {**detail, "keys": " ".join(fetched)}
        yield _event(call, AuditKind.CDS_HOOKS_PREFETCH_FETCHED, (call.context.user_id,), keys)
    if cards:
        topics = {**detail, "topics": " ".join(issued.card.source.topic.code for issued in cards)}
        entities = tuple(entity for issued in cards if issued.answer for entity in _entities(issued.answer))
        yield _event(call, AuditKind.CDS_HOOKS_CARD_RETURNED, (call.context.user_id, *entities), topics)


def _event(call: Call, kind: AuditKind, entities: tuple[str, ...], detail: Mapping[str, str]) -> AuditEntry:
    return AuditEntry(
        kind,
        ehr_id=call.principal.ehr.id,
        agent=call.principal.issuer,
        patient_id=call.context.patient_id,
        entities=entities,
        detail=detail,
    )


def _entities(answer: StudyAnswer) -> Iterator[str]:
    yield f"ImagingStudy/{answer.study.id}"
    if answer.result_id is not None:
        yield f"DiagnosticReport/{answer.result_id}"
