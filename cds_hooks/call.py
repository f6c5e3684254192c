"""One call of a CDS service, from top to bottom.

Spec: CDS Hooks 2.0.1, "Calling a CDS Service", "CDS Service Response"
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rayhook.cds_hooks.advice_cards import AdviceWriter
from rayhook.cds_hooks.analysis import answers, deliver_late, finished, look_up, start, start_beside
from rayhook.cds_hooks.answers import StudyAnswer, Topic
from rayhook.cds_hooks.cards import CardWriter
from rayhook.cds_hooks.contexts import ImagingResultContext
from rayhook.cds_hooks.dependencies import CDSDependencies
from rayhook.cds_hooks.hook_call import Call, Received, read_call
from rayhook.cds_hooks.issued import IssuedCard, answered
from rayhook.cds_hooks.load import Turn
from rayhook.cds_hooks.models import Card
from rayhook.cds_hooks.ordered import ordered_by, orders_in_context
from rayhook.cds_hooks.orders import ImagingOrder
from rayhook.cds_hooks.prefetch import Prefetched, gather
from rayhook.cds_hooks.rules import Advice, Duplicate, History, Misfit, advice_on, follow_ups, moment
from rayhook.cds_hooks.services import Service
from rayhook.cds_hooks.studies import (
    MAX_STUDIES,
    image_sources,
    known_sources,
    studies_with_images,
    withdrawn_studies,
)
from rayhook.cds_hooks.trust import Attempt, authenticate, check_prefetched_patient, refusals_audited
from rayhook.fhir.r4 import ImagingStudySummary
from rayhook.inference.job_table import Priority
from rayhook.inference.withdrawal import cancel_withdrawn

_FINISHED = frozenset({Topic.FINDING, Topic.NO_FINDING, Topic.NOTHING_TO_RATE, Topic.WITHDRAWN})
# How far back an order looks for results; what is not analysed yet is queued, and not waited for.
_MAX_LOOKED_AT = 10


def answer_call(
    dependencies: CDSDependencies,
    service_id: str,
    hooks: Mapping[str, Service],
    authorization: str | None,
    received: Received,
) -> bytes:
    """Return the JSON of the cards; whatever was read, queued or answered is in the audit before that."""
    audience = f"{dependencies.public_base_url}/cds-services/{service_id}"
    principal = authenticate(dependencies, authorization, audience=audience)
    attempt = Attempt(principal, service_id)
    with dependencies.in_hand.call() as turn, refusals_audited(dependencies, attempt):
        dependencies.rate_limit.admit(principal)
        call = read_call(dependencies, hooks, attempt, received)
        orders = orders_in_context(call)
        if orders == ():
            return answered(dependencies, call, (), fetched=())
        prefetched = gather(call.service, call.request, call.context, call.fetcher, enough=MAX_STUDIES)
        check_prefetched_patient(prefetched.patient, call.context.patient_id)
        orders = ordered_by(call, prefetched) if orders is None else orders
        if orders == ():
            return answered(dependencies, call, (), fetched=prefetched.fetched)
        cards = _cards(dependencies, call, prefetched, orders, received_at=received.at, turn=turn)
        return answered(dependencies, call, cards, fetched=prefetched.fetched)


def _cards(
    dependencies: CDSDependencies,
    call: Call,
    prefetched: Prefetched,
    orders: tuple[ImagingOrder, ...] | None,
    *,
    received_at: float,
    turn: Turn,
) -> list[IssuedCard]:
    studies, complete = studies_with_images(
        prefetched.studies, patient_id=call.context.patient_id, base_url=call.base_url
    )
    _end_withdrawn(dependencies, call, prefetched)
    chosen = _chosen(call, studies)
    priority = min((Priority.ASAP, *(order.priority for order in orders or ())), key=lambda p: p.rank)
    found = _study_answers(dependencies, call, chosen, prefetched, received_at=received_at, priority=priority)
    turn.waited(time.monotonic())
    writer = _writer(dependencies, call)
    now = moment(dependencies.clock())
    if orders is None:
        history = History(studies=studies, answers=found, now=now)
        cards = list(_patient_cards(writer, call, history))
    else:
        older = _earlier(dependencies, call, prefetched, orders, others=_others(studies, chosen))
        history = History(studies=studies, answers=(*found, *older), now=now)
        advised = advice_on(orders, history)
        cards = [_advised(AdviceWriter(writer=writer, context=call.context, now=now), one) for one in advised]
        cards += [_told(writer, answer) for answer in _until_finished(found)]
    if not (complete and prefetched.complete):
        cards.append(IssuedCard(card=writer.incomplete()))
    return cards


def _end_withdrawn(dependencies: CDSDependencies, call: Call, prefetched: Prefetched) -> None:
    withdrawn = withdrawn_studies(
        prefetched.studies,
        ehr_id=call.principal.ehr.id,
        patient_id=call.context.patient_id,
        base_url=call.base_url,
    )
    if not withdrawn:
        return
    with dependencies.sessions() as session:
        cancel_withdrawn(
            session, dependencies.keyring, dependencies.audit, withdrawn, clock=dependencies.clock
        )
        session.commit()


def _chosen(call: Call, studies: Sequence[ImagingStudySummary]) -> tuple[ImagingStudySummary, ...]:
    """Return the newest studies; one that the hook names comes first."""
    if not isinstance(call.context, ImagingResultContext):
        return tuple(studies[:MAX_STUDIES])
    named = [study for study in studies if study.id == call.context.imaging_study_id]
    others = [study for study in studies if study.id != call.context.imaging_study_id]
    return (*named, *others)[:MAX_STUDIES]


def _study_answers(
    dependencies: CDSDependencies,
    call: Call,
    studies: Sequence[ImagingStudySummary],
    prefetched: Prefetched,
    *,
    received_at: float,
    priority: Priority,
) -> tuple[StudyAnswer, ...]:
    ehr = call.principal.ehr
    jobs = look_up(dependencies, studies, ehr=ehr, base_url=call.base_url, patient_id=call.context.patient_id)
    to_begin = [job.study for job in jobs if job.is_to_begin]
    if to_begin:
        sources = image_sources(to_begin, prefetched, call.fetcher, base_url=call.base_url)
        lent = call.request.fhir_authorization
        jobs = start(dependencies, jobs, sources, ehr=ehr, authorization=lent, priority=priority)
    wait_s = dependencies.in_hand.wait_s(dependencies.wait_s)
    found = answers(dependencies, jobs, ends_at=received_at + wait_s)
    deliver_late(dependencies, jobs, call.request.fhir_authorization)
    return found


def _others(
    studies: Sequence[ImagingStudySummary], chosen: Sequence[ImagingStudySummary]
) -> list[ImagingStudySummary]:
    return [study for study in studies[:_MAX_LOOKED_AT] if study not in chosen]


def _earlier(
    dependencies: CDSDependencies,
    call: Call,
    prefetched: Prefetched,
    orders: Iterable[ImagingOrder],
    *,
    others: Sequence[ImagingStudySummary],
) -> tuple[StudyAnswer, ...]:
    """Return what is known of earlier studies; those of which nothing is are analysed before the order is carried out."""
    ehr = call.principal.ehr
    jobs = look_up(dependencies, others, ehr=ehr, base_url=call.base_url, patient_id=call.context.patient_id)
    to_begin = [job for job in jobs if job.is_to_begin]
    start_beside(
        dependencies,
        to_begin,
        known_sources([job.study for job in to_begin], prefetched, base_url=call.base_url),
        ehr=ehr,
        authorization=call.request.fhir_authorization,
        priority=min((order.priority for order in orders), key=lambda p: p.rank, default=Priority.ROUTINE),
    )
    return finished(dependencies, jobs)


def _writer(dependencies: CDSDependencies, call: Call) -> CardWriter:
    is_launchable = call.principal.ehr.smart is not None
    base_url = dependencies.public_base_url
    return CardWriter(
        manifests=dependencies.manifests,
        launch_url=f"{base_url}/smart/launch" if is_launchable else None,
        about_url=f"{base_url}/cds-services/documentation",
    )


def _patient_cards(writer: CardWriter, call: Call, history: History) -> Iterator[IssuedCard]:
    """A finding comes with what its guideline asks for next, unless that was done already."""
    advice = AdviceWriter(writer=writer, context=call.context, now=history.now)
    awaited = {follow_up.answer.study.id: follow_up for follow_up in follow_ups(history)}
    for answer in history.answers:
        follow_up = awaited.get(answer.study.id)
        card = writer.card(answer) if follow_up is None else advice.finding(follow_up)
        yield _issued(answer, card)


def _told(writer: CardWriter, answer: StudyAnswer) -> IssuedCard:
    return _issued(answer, writer.card(answer))


def _issued(answer: StudyAnswer, card: Card) -> IssuedCard:
    subject = None if answer.result_id is None else (answer.topic.value, answer.result_id)
    return IssuedCard(card=card, study_id=answer.study.id, result_id=answer.result_id, subject=subject)


def _advised(writer: AdviceWriter, advice: Advice) -> IssuedCard:
    card = writer.card(advice)
    topic = card.source.topic.code
    if isinstance(advice, Duplicate):
        order, study_id = advice.order, advice.study.id
        subject = (topic, study_id, order.modality or "", *sorted(order.regions))
        return IssuedCard(card=card, study_id=study_id, subject=subject)
    follow_up = advice.follow_up if isinstance(advice, Misfit) else advice
    ordered = (advice.order.modality or "",) if isinstance(advice, Misfit) else ()
    result_id = follow_up.answer.result_id
    subject = (topic, result_id or "", follow_up.guideline.citation.url, *ordered)
    return IssuedCard(card=card, study_id=follow_up.answer.study.id, result_id=result_id, subject=subject)


def _until_finished(found: Iterable[StudyAnswer]) -> list[StudyAnswer]:
    """Return what matters before an order: the newest finished answer, and what newer studies still lack."""
    shown = []
    for answer in found:
        shown.append(answer)
        if answer.topic in _FINISHED:
            break
    return shown
