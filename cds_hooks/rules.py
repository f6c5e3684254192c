"""What is to be said of an imaging order, given the patient's studies and results; each rule names its source.

1. Duplicate imaging: like imaging of the same part of the body a short time ago.
2. Follow-up due: a finding whose guideline asks for a next study that neither was made nor is being ordered.
3. Modality: an order for the finding's part of the body, but by another modality than its guideline asks for.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from rayhook.cds_hooks.answers import StudyAnswer, Topic
from rayhook.cds_hooks.guidelines import DUPLICATE_DAYS, Guideline, guideline_for
from rayhook.cds_hooks.orders import ImagingOrder
from rayhook.cds_hooks.studies import started_at
from rayhook.fhir.r4 import ImagingStudySummary
from rayhook.inference.anatomy import Region, regions_of, usual
from rayhook.inference.study import Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate:
    """Like imaging was done `days` before."""

    order: ImagingOrder
    study: ImagingStudySummary
    days: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowUp:
    """What the guideline of a finding asks for next, from `due` on."""

    answer: StudyAnswer
    finding: Finding
    guideline: Guideline
    due: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Misfit:
    """An order by another modality than the finding's guideline asks for."""

    order: ImagingOrder
    follow_up: FollowUp


Advice = Duplicate | FollowUp | Misfit


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What is known of the patient: every study, and what is said of those that were looked at."""

    studies: tuple[ImagingStudySummary, ...]
    answers: tuple[StudyAnswer, ...]
    now: datetime


def advice_on(orders: Sequence[ImagingOrder], history: History) -> tuple[Advice, ...]:
    """Return what is to be said before `orders` go out, the strongest first; nothing is said twice."""
    awaited = [follow_up for follow_up in follow_ups(history) if follow_up.due <= history.now]
    ordered = [one for one in awaited if not any(_fits(order, one.guideline) for order in orders)]
    misfits = [misfit for one in ordered if (misfit := _misfit(one, orders)) is not None]
    told = {id(misfit.follow_up) for misfit in misfits}
    due = [one for one in ordered if id(one) not in told]
    return (*misfits, *due, *_duplicates(orders, history, awaited))


def follow_ups(history: History) -> Iterator[FollowUp]:
    """Yield for each finding what its guideline asks for, unless a later study was just that."""
    seen = set[str]()
    for answer in history.answers:
        for finding in _positive(answer):
            guideline = guideline_for(finding.system, finding.code)
            if guideline is None or guideline.citation.url in seen:
                continue
            seen.add(guideline.citation.url)
            if not any(_answers(study, guideline, answer.study) for study in history.studies):
                due = _since(answer.study, history.now) + timedelta(days=guideline.earliest_days)
                yield FollowUp(answer=answer, finding=finding, guideline=guideline, due=due)


def _positive(answer: StudyAnswer) -> Iterable[Finding]:
    if answer.topic is not Topic.FINDING or answer.result is None:
        return ()
    return sorted((f for f in answer.result.findings if f.positive), key=lambda f: -f.probability)


def _since(study: ImagingStudySummary, now: datetime) -> datetime:
    """A study without a date, or of the future, counts as one of today: nothing is overdue on a guess."""
    return min(started_at(study) or now, now)


def _answers(study: ImagingStudySummary, guideline: Guideline, found_on: ImagingStudySummary) -> bool:
    """Say whether `study` is the next one that the guideline asks for."""
    earlier, later = started_at(found_on), started_at(study)
    return (
        earlier is not None
        and later is not None
        and later > earlier
        and not guideline.modalities.isdisjoint(modalities(study))
        and guideline.procedure.region in regions(study)
    )


def _fits(order: ImagingOrder, guideline: Guideline) -> bool:
    return order.modality in guideline.modalities and guideline.procedure.region in order.regions


def _misfit(follow_up: FollowUp, orders: Iterable[ImagingOrder]) -> Misfit | None:
    region = follow_up.guideline.procedure.region
    for order in orders:
        if order.modality is not None and region in order.regions:
            return Misfit(order=order, follow_up=follow_up)
    return None


def _duplicates(
    orders: Iterable[ImagingOrder], history: History, awaited: Sequence[FollowUp]
) -> Iterator[Duplicate]:
    told = set[str]()
    for order in orders:
        # What a guideline asks for is no repetition.
        if any(_fits(order, one.guideline) for one in awaited):
            continue
        found = next((study for study in history.studies if _repeats(order, study, history.now)), None)
        if found is not None and found.id not in told:
            told.add(found.id)
            days = (history.now - _since(found, history.now)).days
            yield Duplicate(order=order, study=found, days=days)


def _repeats(order: ImagingOrder, study: ImagingStudySummary, now: datetime) -> bool:
    """A study that this very order brought about is not one before it."""
    started = started_at(study)
    if started is None or (study.based_on is not None and study.based_on == order.reference):
        return False
    is_recent = timedelta() <= now - started <= timedelta(days=DUPLICATE_DAYS)
    return is_recent and order.modality in modalities(study) and not order.regions.isdisjoint(regions(study))


def modalities(study: ImagingStudySummary) -> frozenset[str]:
    return frozenset(code for found in study.modalities if (code := usual(found)) is not None)


def regions(study: ImagingStudySummary) -> frozenset[Region]:
    return regions_of((), (*study.body_sites, study.description or ""))


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
