"""What a verification says, for a person and for a program."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

MAX_PROBLEMS = 1000
_MAX_SPANS = 100


class ProblemKind(StrEnum):
    """What a tampered log looks like.

    rehashed: the event has a hash of its own content, which is not the one that its successor follows.
    regrown: the events hang together, but are not those that the checkpoint at `seq` was signed over.
    forged: the event was not written with this installation's keys.
    unindexed: a search for what the event touched would not find it.
    """

    ANCHOR_DAMAGED = "anchor_damaged"
    ANCHOR_MISSING = "anchor_missing"
    CHECKPOINT_FORGED = "checkpoint_forged"
    CHECKPOINT_MISSING = "checkpoint_missing"
    CLOCK_MOVED_BACK = "clock_moved_back"
    DELETED = "deleted"
    DUPLICATED = "duplicated"
    EDITED = "edited"
    FORGED = "forged"
    HAND_OVER_FORGED = "hand_over_forged"
    INSERTED = "inserted"
    PURGE_FORGED = "purge_forged"
    REGROWN = "regrown"
    REHASHED = "rehashed"
    REORDERED = "reordered"
    TRUNCATED = "truncated"
    UNINDEXED = "unindexed"
    UNREADABLE = "unreadable"


# What an auditor asks first: which events are no longer as they were, and in what way.
_VERDICTS: Final = {
    "changed": {ProblemKind.EDITED, ProblemKind.REHASHED, ProblemKind.UNREADABLE},
    "missing": {ProblemKind.DELETED, ProblemKind.TRUNCATED},
    "inserted": {ProblemKind.INSERTED, ProblemKind.DUPLICATED, ProblemKind.FORGED},
    "reordered": {ProblemKind.REORDERED},
    "rewritten": {ProblemKind.REGROWN},
}


@dataclass(frozen=True, slots=True)
class Problem:
    """`seq` is the event's; for a checkpoint, hand-over or purge its size or id, for an anchor's line its number.

    `first` and `last` tell of more than one event, both included.
    """

    seq: int
    kind: ProblemKind
    first: int | None = None
    last: int | None = None

    @property
    def span(self) -> tuple[int, int]:
        return (self.seq if self.first is None else self.first, self.seq if self.last is None else self.last)


@dataclass(frozen=True, slots=True)
class ChainReport:
    """What `verify` found.

    `sealed_size` events lie under a signed checkpoint; `purged` of all events are only tombstones.
    `problems` end after the first thousand. `notes` are oddities of an untouched log, such as a clock that moved
    back.
    """

    intact: bool
    size: int
    sealed_size: int
    problems: tuple[Problem, ...]
    notes: tuple[Problem, ...] = ()
    purged: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return the report for a program: sequence numbers by what befell them, as [first, last]."""
        return {
            "intact": self.intact,
            "size": self.size,
            "sealed_size": self.sealed_size,
            "purged": self.purged,
            "sequence_numbers": {
                verdict: _spans(problem for problem in self.problems if problem.kind in kinds)
                for verdict, kinds in _VERDICTS.items()
            },
            "problems": [_problem_json(problem) for problem in self.problems],
            "notes": [_problem_json(note) for note in self.notes],
            "complete": len(self.problems) < MAX_PROBLEMS,
        }


def report_detail(report: ChainReport) -> dict[str, str]:
    """Return what the log keeps of a verification: counts, and the numbers by what befell them."""
    numbers = report.as_json()["sequence_numbers"]
    told = {verdict: _spans_text(spans) for verdict, spans in numbers.items() if spans}
    other = sorted(
        {one.kind.value for one in report.problems if not any(one.kind in k for k in _VERDICTS.values())}
    )
    return {
        "events": str(report.size),
        "sealed": str(report.sealed_size),
        "purged": str(report.purged),
        "problems": str(len(report.problems)),
        **told,
        **({"other": " ".join(other)} if other else {}),
    }


def _spans_text(spans: list[list[int]]) -> str:
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in spans[:_MAX_SPANS]]
    return ", ".join(shown) + (" ..." if len(spans) > _MAX_SPANS else "")


def _problem_json(problem: Problem) -> dict[str, Any]:
    first, last = problem.span
    return {"seq": problem.seq, "kind": problem.kind.value, "first": first, "last": last}


def _spans(problems: Iterable[Problem]) -> list[list[int]]:
    spans: list[list[int]] = []
    for first, last in sorted({problem.span for problem in problems}):
        if spans and first <= spans[-1][1] + 1:
            spans[-1][1] = max(spans[-1][1], last)
        else:
            spans.append([first, last])
    return spans
