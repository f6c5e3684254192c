"""The points of a study that were rated, the strongest first, as the page's table shows them."""

from collections.abc import Iterator
from dataclasses import dataclass

from rayhook.inference.study import AnalysisStatus, InstanceResult, Mark, StudyResult
from rayhook.smart_app.i18n import gettext as _
from rayhook.smart_app.i18n import ngettext
from rayhook.smart_app.numbers import percent

_SHOWN = 10


@dataclass(frozen=True, slots=True)
class MarkView:
    """One point. row, column: on the image's pixel grid, from 0.  shown: on the image of the page."""

    slice_number: str
    row: int
    column: int
    probability: str
    answer: str
    tone: str
    shown: bool


@dataclass(frozen=True, slots=True)
class MarkTable:
    marks: tuple[MarkView, ...]
    caption: str


def mark_table(result: StudyResult) -> MarkTable | None:
    """Return the table of the points rated; None where there is none to show, or no answer."""
    if result.status is not AnalysisStatus.ANALYSED:
        return None
    found = sorted(_marks(result), key=_strength, reverse=True)
    if not found:
        return None
    if len(found) > _SHOWN:
        caption = _("The %(shown)s strongest of %(count)s points rated", shown=_SHOWN, count=len(found))
    else:
        caption = ngettext("The one point rated", "All %(count)s points rated", len(found), count=len(found))
    return MarkTable(tuple(_view(result, *one) for one in found[:_SHOWN]), caption)


def _marks(result: StudyResult) -> Iterator[tuple[InstanceResult, Mark]]:
    """Yield the points of the series that speaks for the study."""
    for instance in result.instances:
        if instance.series_instance_uid == result.series_instance_uid:
            yield from ((instance, mark) for mark in instance.marks)


def _strength(found: tuple[InstanceResult, Mark]) -> tuple[bool, float, float]:
    mark = found[1]
    return mark.positive, -1.0 if mark.probability is None else mark.probability, mark.score


def _view(result: StudyResult, instance: InstanceResult, mark: Mark) -> MarkView:
    uid, uids = instance.sop_instance_uid, result.slice_uids
    if mark.probability is None:
        probability, answer, tone = _("no answer"), _("not rated"), "neutral"
    else:
        probability = percent(mark.probability)
        answer = _("above threshold") if mark.positive else _("below threshold")
        tone = "positive" if mark.positive else "negative"
    return MarkView(
        slice_number=str(uids.index(uid) + 1) if uid in uids else "",
        row=mark.row,
        column=mark.column,
        probability=probability,
        answer=answer,
        tone=tone,
        shown=result.key_image is not None and result.key_image.sop_instance_uid == uid,
    )
