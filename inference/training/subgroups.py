"""Subgroups of an evaluation, by whatever columns labels.csv has."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayhook.inference.registry import Estimate
from rayhook.inference.training.bootstrap import Answers
from rayhook.inference.training.dataset import Sample
from rayhook.inference.training.evaluation_report import Subgroup, subgroup
from rayhook.inference.training.metrics import Flags
from rayhook.inference.training.trivial import number

FEWEST_PATIENTS = 3

_ONE_CLASS = ("sensitivity", "specificity", "abstention", "declined", "unsure", "pointing", "iou")
_THIRDS = 3

Attributes = Mapping[str, str]
Value = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class _Rule:
    """A subgroup's name, the columns that may tell it, and what a column's text means; "" for none."""

    name: str
    columns: tuple[str, ...]
    value: Value


def _banded(edges: Sequence[float], names: Sequence[str]) -> Value:
    """Return the name of the band that a number lies in, an edge belonging to the band above it."""

    def value(text: str) -> str:
        found = number(text)
        return names[int(np.searchsorted(edges, found, side="right"))] if np.isfinite(found) else ""

    return value


def _as_told(text: str) -> str:
    return text


def _rating(text: str) -> str:
    return {"0": "benign", "1": "suspicious", "-1": "indeterminate"}.get(text, "")


_SIZES = _banded((6, 8, 15.0001), ("below 6 mm", "6 to below 8 mm", "8 to 15 mm", "above 15 mm"))
_AGES = _banded((40, 60, 80), ("below 40", "40 to 59", "60 to 79", "80 and above"))
_READERS = _banded((3,), ("fewer than 3", "3 or more"))

RULES = (
    _Rule("site", ("site",), _as_told),
    _Rule("sex", ("sex", "gender"), str.capitalize),
    _Rule("age", ("age",), _AGES),
    _Rule("diameter", ("diameter_mm_median", "size_mm"), _SIZES),
    _Rule("readers", ("n_readers",), _READERS),
    _Rule("subtlety", ("subtlety",), _as_told),
)
RATING = _Rule(
    "rating",
    ("label",),
    {"0": "benign", "1": "suspicious", "-1": "indeterminate"}.get,  # type: ignore[arg-type]
)


def subgroups(
    samples: Sequence[Sample],
    *,
    rules: Sequence[_Rule] = RULES,
    lesion_column: str = "mask_px",
    known_sites: frozenset[str] = frozenset(),
) -> Iterator[tuple[str, str, Flags]]:
    """Yield (name, value, rows) of each subgroup, of columns that tell at least two apart.

    The thirds of lesion_column are those of the lesions evaluated, rows without a lesion left out.
    """
    rows = [sample.attributes for sample in samples]
    for rule in rules:
        yield from _of(rule.name, _values(rule, rows))
    if known_sites:
        sites = _values(RULES[0], rows)
        seen = np.isin(sites, sorted(known_sites))
        yield from _of("sites", np.where(sites == "", "", np.where(seen, "seen in training", "unseen")))
    yield from _of("lesion", _thirds(rows, lesion_column))


def measured(
    answers: Answers,
    found: Iterator[tuple[str, str, Flags]],
    estimate: Callable[[Flags], Mapping[str, Estimate]],
) -> tuple[Subgroup, ...]:
    """Return the figures of each subgroup; none where it has fewer than FEWEST_PATIENTS patients.

    Where all rows are of one class, those figures alone that the other class has no part in.
    """
    return tuple(
        subgroup(name, value, answers.chosen(rows), _fit(answers.chosen(rows), estimate, rows))
        for name, value, rows in found
    )


def _fit(
    part: Answers, estimate: Callable[[Flags], Mapping[str, Estimate]], rows: Flags
) -> Mapping[str, Estimate]:
    if np.unique(part.patients).size < FEWEST_PATIENTS:
        return {}
    return of_classes(part, estimate(rows))


def of_classes(answers: Answers, figures: Mapping[str, Estimate]) -> Mapping[str, Estimate]:
    """Return the figures; where all answers are of one class, those that the other has no part in."""
    if answers.labels.min() < answers.labels.max():
        return figures
    return {name: found for name, found in figures.items() if name.startswith(_ONE_CLASS)}


def _values(rule: _Rule, rows: Sequence[Attributes]) -> NDArray[np.str_]:
    column = next((name for name in rule.columns if any(row.get(name) for row in rows)), "")
    texts = (row.get(column, "") for row in rows)
    return np.array([rule.value(text) if text else "" for text in texts], np.str_)


def _of(name: str, values: NDArray[np.str_]) -> Iterator[tuple[str, str, Flags]]:
    told = [str(value) for value in np.unique(values) if value]
    if len(told) > 1:
        yield from ((name, value, values == value) for value in told)


def _thirds(rows: Sequence[Attributes], column: str) -> NDArray[np.str_]:
    sizes = np.array([number(row.get(column)) for row in rows])
    lesion = np.isfinite(sizes) & (sizes > 0)
    if lesion.sum() < _THIRDS:
        return np.full(len(rows), "", np.str_)
    first, second = (float(edge) for edge in np.quantile(sizes[lesion], (1 / 3, 2 / 3)))
    names = np.array(
        [
            f"smallest third, to {first:.0f} px",
            f"middle third, to {second:.0f} px",
            f"largest third, above {second:.0f} px",
        ]
    )
    place = np.searchsorted([first, second], np.where(lesion, sizes, 0))
    return np.where(lesion, names[place], "")
