"""How people's answers agree with the models: counts and shares, never of so few that a patient shows.

Only what somebody answered is counted: nobody answers at random, so these are no substitute for an evaluation.
Spec: 45 CFR 170.315(b)(11)(iv)(B)(8) (validity in local data); EU AI Act article 72
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from sqlmodel import Session, col, select

from rayhook.auth.keys import Keyring
from rayhook.inference.answers import AnswerAction, FindingAnswerRow, FindingValue, is_added
from rayhook.inference.held_out import HeldOut
from rayhook.inference.registry import Estimate
from rayhook.inference.results import AnalysisResult, load_result

FEWEST: Final = 5
_FEWEST_SCORES = 50
_NEWEST_RESULTS = 500
_SMALLEST_SHARE = 1e-4
_Z = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Counted:
    """What one person's newest answer to one finding of a model came to."""

    model_id: str
    model_version: str
    finding: str
    ehr_id: str
    week: str
    model_positive: bool
    action: AnswerAction
    value: FindingValue | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """The answers of one group; where it `is_suppressed` there are too few, and every figure is None.

    agreed: the person says what the model said.  overridden: the model marked it, the person does not see it.
    missed: the model did not mark it, the person sees it.  ppv, npv: of those a person called present or
    not seen, with a Wilson interval; None where there are fewer than FEWEST of them.
    """

    key: tuple[str, ...]
    answered: int | None = None
    agreed: int | None = None
    overridden: int | None = None
    missed: int | None = None
    rejected: int | None = None
    uncertain: int | None = None
    ppv: Estimate | None = None
    npv: Estimate | None = None

    @property
    def is_suppressed(self) -> bool:
        return self.answered is None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPerformance:
    """One label of one version of a model: in all, by week and by EHR. `added`: findings people added to its results."""

    model_id: str
    model_version: str
    finding: str
    total: Tally
    weeks: tuple[Tally, ...]
    ehrs: tuple[Tally, ...]
    added: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreShift:
    """How far the model's scores here are from those it was evaluated on.

    psi: population stability index over the evaluation's own bins.  scores: how many were compared.
    """

    model_id: str
    model_version: str
    scores: int
    psi: float


def measure(session: Session) -> tuple[ModelPerformance, ...]:
    """Return the performance of every model that people answered."""
    every, added = _newest(session)
    groups: dict[tuple[str, str, str], list[Counted]] = defaultdict(list)
    for one in every:
        groups[one.model_id, one.model_version, one.finding].append(one)
    return tuple(
        ModelPerformance(
            model_id=key[0],
            model_version=key[1],
            finding=key[2],
            total=tally(key, answers),
            weeks=_by(answers, "week"),
            ehrs=_by(answers, "ehr_id"),
            added=_unless_few(added.get(key[:2], 0)),
        )
        for key, answers in sorted(groups.items())
    )


def tally(key: tuple[str, ...], answers: Sequence[Counted]) -> Tally:
    """Return what the answers come to, or that there are too few to tell."""
    if len(answers) < FEWEST:
        return Tally(key=key)
    said = {True: FindingValue.PRESENT, False: FindingValue.ABSENT}
    marked = [a for a in answers if a.model_positive and a.value in said.values()]
    unmarked = [a for a in answers if not a.model_positive and a.value in said.values()]
    right_marked = sum(a.value is FindingValue.PRESENT for a in marked)
    right_unmarked = sum(a.value is FindingValue.ABSENT for a in unmarked)
    return Tally(
        key=key,
        answered=len(answers),
        agreed=right_marked + right_unmarked,
        overridden=len(marked) - right_marked,
        missed=len(unmarked) - right_unmarked,
        rejected=sum(a.value is None for a in answers),
        uncertain=sum(a.value is FindingValue.UNCERTAIN for a in answers),
        ppv=_share(right_marked, len(marked)),
        npv=_share(right_unmarked, len(unmarked)),
    )


def score_shifts(
    session: Session, keyring: Keyring, held_out: Mapping[str, HeldOut]
) -> tuple[ScoreShift, ...]:
    """Return how the newest results' scores lie in the bins of their evaluation; too few scores tell nothing."""
    scores: dict[str, list[float]] = defaultdict(list)
    names: dict[str, tuple[str, str]] = {}
    query = select(AnalysisResult.id).order_by(col(AnalysisResult.created_at).desc()).limit(_NEWEST_RESULTS)
    for result_id in session.exec(query).all():
        stored = load_result(session, keyring, result_id)
        model = None if stored is None else stored.result.model
        if stored is None or model is None or model.weights_sha256 not in held_out:
            continue
        names[model.weights_sha256] = (model.id, model.version)
        marks = [m.probability for i in stored.result.instances for m in i.marks if m.probability is not None]
        scores[model.weights_sha256] += marks or list(stored.result.slice_probabilities)
    return tuple(
        ScoreShift(
            model_id=names[weights][0],
            model_version=names[weights][1],
            scores=len(found),
            psi=stability_index(held_out[weights], found),
        )
        for weights, found in sorted(scores.items())
        if len(found) >= _FEWEST_SCORES and held_out[weights].reliability
    )


def stability_index(held_out: HeldOut, scores: Iterable[float]) -> float:
    """Return the population stability index of scores against the evaluation's bins: 0 is no shift."""
    bins = held_out.reliability
    expected = [one.count / sum(b.count for b in bins) for one in bins]
    counts = [0] * len(bins)
    for score in scores:
        near = held_out.bin_of(score)
        assert near is not None
        counts[bins.index(near)] += 1
    seen = [max(count / sum(counts), _SMALLEST_SHARE) for count in counts]
    return sum((a - e) * math.log(a / e) for a, e in zip(seen, expected, strict=True))


def wilson(hits: int, count: int) -> Estimate:
    """Return a share with its 95 % interval. Spec: Wilson 1927."""
    share = hits / count
    centre = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z * math.sqrt((share * (1 - share) + _Z**2 / (4 * count)) / count) / (1 + _Z**2 / count)
    return Estimate(share, max(0.0, centre - half), min(1.0, centre + half))


def _newest(session: Session) -> tuple[list[Counted], dict[tuple[str, str], int]]:
    """Return the newest answer to each finding, and how many findings people added to each model's results."""
    newest: dict[tuple[str, str], FindingAnswerRow] = {}
    for row in session.exec(select(FindingAnswerRow).order_by(col(FindingAnswerRow.version))):
        newest[row.result_id, row.finding] = row
    counted, added = [], defaultdict[tuple[str, str], int](int)
    for row in newest.values():
        if is_added(row.finding):
            added[row.model_id, row.model_version] += row.action != AnswerAction.WITHDRAWN
        elif row.model_positive is not None:
            counted.append(_counted(row, model_positive=row.model_positive))
    return counted, added


def _counted(row: FindingAnswerRow, *, model_positive: bool) -> Counted:
    year, week, _ = datetime.fromtimestamp(row.answered_at, UTC).isocalendar()
    return Counted(
        row.model_id,
        row.model_version,
        row.finding,
        row.ehr_id,
        f"{year}-W{week:02}",
        model_positive,
        AnswerAction(row.action),
        None if row.value is None else FindingValue(row.value),
    )


def _by(answers: Iterable[Counted], attribute: str) -> tuple[Tally, ...]:
    """Return one tally a group. One that is suppressed alone could be had by subtraction: then the next is too."""
    groups: dict[str, list[Counted]] = defaultdict(list)
    for answer in answers:
        groups[getattr(answer, attribute)].append(answer)
    few = [key for key, members in groups.items() if len(members) < FEWEST]
    hidden = set(few)
    if len(few) == 1 and len(groups) > 1:
        rest = (key for key in groups if key not in hidden)
        hidden.add(min(rest, key=lambda key: (len(groups[key]), key)))
    return tuple(
        Tally(key=(key,)) if key in hidden else tally((key,), members)
        for key, members in sorted(groups.items())
    )


def _share(hits: int, count: int) -> Estimate | None:
    return wilson(hits, count) if count >= FEWEST else None


def _unless_few(count: int) -> int | None:
    return count if count == 0 or count >= FEWEST else None
