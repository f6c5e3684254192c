"""Which studies come first, which are shown, and on which page: from the address of the list, without a script."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, Generic, Protocol, TypeVar
from urllib.parse import urlencode

PAGE_SIZE: Final = 20


class Stage(StrEnum):
    """How far one study is, the most urgent first."""

    REVIEW = "review"
    CHECK = "check"
    PROGRESS = "progress"
    NEGATIVE = "negative"
    OTHER = "other"
    SIGNED = "signed"


class Sort(StrEnum):
    URGENCY = "urgency"
    NEWEST = "newest"
    OLDEST = "oldest"


_RANK: Final[Mapping[Stage, int]] = {stage: rank for rank, stage in enumerate(Stage)}


@dataclass(frozen=True, slots=True)
class Place:
    """What the order looks at. probability: the highest of a positive finding, 0 without.  key: the study's own."""

    stage: Stage
    started: str | None
    key: str
    probability: float = 0.0
    modalities: tuple[str, ...] = ()


class Placed(Protocol):
    @property
    def place(self) -> Place: ...


Row = TypeVar("Row", bound=Placed)


@dataclass(frozen=True, slots=True)
class Selection:
    """What the address of the list asks for; `page` counts from 1."""

    modality: str | None = None
    stage: Stage | None = None
    sort: Sort = Sort.URGENCY
    page: int = 1

    @classmethod
    def of(cls, query: Mapping[str, str]) -> "Selection":
        """Read the query; what is not known is as if it were not there."""
        page = query.get("page", "")
        return cls(
            modality=query.get("modality") or None,
            stage=_member(Stage, query.get("stage")),
            sort=_member(Sort, query.get("sort")) or Sort.URGENCY,
            page=int(page) if page.isascii() and page.isdecimal() and len(page) < 5 else 1,  # noqa: PLR2004 - digits
        )

    @property
    def is_filtered(self) -> bool:
        return self.modality is not None or self.stage is not None

    def shows(self, place: Place) -> bool:
        return self.stage in {None, place.stage} and (
            self.modality is None or self.modality in place.modalities
        )

    def path(self, page: int) -> str:
        """Return the address of another page of the same list."""
        asked = replace(self, page=page)
        parameters = {
            "modality": asked.modality,
            "stage": asked.stage,
            "sort": None if asked.sort is Sort.URGENCY else asked.sort,
            "page": None if page == 1 else page,
        }
        query = urlencode([(name, str(value)) for name, value in parameters.items() if value is not None])
        return f"/patient?{query}" if query else "/patient"


_Member = TypeVar("_Member", bound=StrEnum)


def _member(kind: type[_Member], value: str | None) -> _Member | None:
    return next((member for member in kind if member.value == value), None)


@dataclass(frozen=True, slots=True)
class Page(Generic[Row]):
    """rows: of this page.  count: of all that match.  total: of all there are."""

    rows: tuple[Row, ...]
    number: int
    pages: int
    count: int
    total: int


def page_of(rows: Sequence[Row], selection: Selection) -> Page[Row]:
    """Return the rows of the page asked for, or of the last there is."""
    matching = ordered((row for row in rows if selection.shows(row.place)), selection.sort)
    pages = max(1, math.ceil(len(matching) / PAGE_SIZE))
    number = min(max(selection.page, 1), pages)
    start = (number - 1) * PAGE_SIZE
    return Page(
        tuple(matching[start : start + PAGE_SIZE]), number, pages, count=len(matching), total=len(rows)
    )


def ordered(rows: Iterable[Row], sort: Sort) -> list[Row]:
    """Return the rows in an order that is total: no two studies change places between two looks."""
    if sort is Sort.OLDEST:
        return sorted(rows, key=lambda row: (started_at(row.place.started), row.place.key))
    if sort is Sort.NEWEST:
        return sorted(rows, key=lambda row: (-started_at(row.place.started), row.place.key))
    return sorted(rows, key=lambda row: _urgency(row.place))


def _urgency(place: Place) -> tuple[int, float, float, str]:
    probability = place.probability if place.stage is Stage.REVIEW else 0.0
    return _RANK[place.stage], -probability, -started_at(place.started), place.key


def started_at(started: str | None) -> float:
    """Return when a study was begun, in seconds; the first instant of a year, month or day alone.

    A study without a date is as old as can be. Spec: FHIR R4 datatypes.html#dateTime
    """
    text = started or ""
    padded = text + "0001-01-01"[len(text) :] if len(text) in {4, 7} else text
    try:
        instant = datetime.fromisoformat(padded)
    except ValueError:
        return -math.inf
    aware = instant if instant.tzinfo else instant.replace(tzinfo=UTC)
    try:
        return aware.timestamp()
    except (OverflowError, ValueError):
        return -math.inf
